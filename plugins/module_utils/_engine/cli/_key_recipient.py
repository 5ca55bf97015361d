# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``cryobackup key recipient``: who gets the keys out of the repository."""

from __future__ import annotations

import typing as t
from pathlib import Path

from ..errors import reason_of
from ._frame import Outcome
from ._keys import exit_of, failure_lines, failures
from ._text import format_table

if t.TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from ..repository.keepers import Added
    from ..repository.wraps import Standing
    from ._frame import Context


def add_passphrase_file(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--passphrase-file",
        metavar="FILE",
        type=Path,
        help="a file whose only line is the passphrase (default: ask on the terminal)",
    )


def add_arguments(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    recipient = actions.add_parser("recipient", help="those who get the keys out of the repository")
    what = recipient.add_subparsers(dest="what", metavar="ACTION", required=True)
    new = what.add_parser("new", help="make a key pair for a recipient, in two files")
    new.add_argument("name", metavar="NAME", help="the recipient; everybody who sees the storage sees it")
    new.add_argument("--output", metavar="FILE", type=Path, help="the secret one; .pub is added for the other one")
    add = what.add_parser("add", help="wrap the keys for a recipient, into every location")
    add.add_argument("name", metavar="NAME", help="the recipient")
    which = add.add_mutually_exclusive_group()
    which.add_argument("--key", metavar="FILE", type=Path, help="the recipient's public file")
    add_passphrase_file(which)
    add.add_argument("--from-epoch", metavar="N", type=int, default=1, help="without the epochs before N")
    what.add_parser("list", help="show them")
    remove = what.add_parser("remove", help="delete the wraps of a recipient")
    remove.add_argument("name", metavar="NAME", help="the recipient")
    passphrase = what.add_parser("passphrase", help="give a recipient another passphrase")
    passphrase.add_argument("name", metavar="NAME", help="the recipient")
    add_passphrase_file(passphrase)


def run(args: argparse.Namespace, context: Context) -> Outcome:
    match args.what:
        case "new":
            return _new(args.name, args.output)
        case "add":
            return _add(args, context)
        case "remove":
            return _remove(args.name, context)
        case "passphrase":
            return _passphrase(args.name, args.passphrase_file, context)
    return _list(context)


def _new(name: str, output: Path | None) -> Outcome:
    from ..crypto.recipients import Opener, check_name, write_opener

    secret = (output or Path(f"{check_name(name)}.key")).absolute()
    public = secret.with_suffix(".pub")
    opener = Opener.generate(name)
    write_opener(opener, secret, public)
    fingerprint = opener.recipient.fingerprint()
    result = {"changed": True, "name": name, "fingerprint": fingerprint, "secret": str(secret), "public": str(public)}
    text = (
        f"recipient {name}, fingerprint {fingerprint}\n"
        f"  {secret}: the recipient keeps it, and shows it to nobody\n"
        f"  {public}: for `cryobackup key recipient add {name} --key {public.name}` where the keys are\n"
        "Compare the fingerprint over the telephone."
    )
    return Outcome(result, text=text)


def _add(args: argparse.Namespace, context: Context) -> Outcome:
    from ..crypto.recipients import check_name, read_recipient
    from ..repository.keepers import add_recipient, add_recipient_with_passphrase
    from ._passphrase import read_passphrase

    name = check_name(args.name)
    config, now = context.config.repository, context.now()
    if args.key is not None:
        added = add_recipient(config, name, read_recipient(args.key), now, from_epoch=args.from_epoch)
    else:
        passphrase = read_passphrase(args.passphrase_file, f"recipient {name}", new=True)
        added = add_recipient_with_passphrase(config, name, passphrase, now, from_epoch=args.from_epoch)
    return _added(added)


def _passphrase(name: str, file: Path | None, context: Context) -> Outcome:
    from ..crypto.recipients import check_name
    from ..repository.keepers import change_passphrase
    from ._passphrase import read_passphrase

    passphrase = read_passphrase(file, f"recipient {check_name(name)}", new=True)
    outcome = _added(change_passphrase(context.config.repository, name, passphrase, context.now()))
    hint = (
        "\nThe old passphrase opens old copies of the storage as before. If somebody knows it who must not: "
        "`cryobackup key rotate`."
    )
    return Outcome(outcome.result, outcome.exit_code, f"{outcome.text}{hint}")


def _added(added: Added) -> Outcome:
    epochs = ", ".join(map(str, added.epochs))
    result = {
        "changed": added.changed,
        "name": added.recipient.name,
        "fingerprint": added.recipient.fingerprint(),
        "repository_fingerprint": added.repository_fingerprint,
        "epochs": list(added.epochs),
        "wrap": added.wrap,
        "errors": failures(added.errors),
    }
    lines = [
        f"recipient {added.recipient.name}, fingerprint {added.recipient.fingerprint()}, has the keys of epoch {epochs}"
        + ("" if added.changed else ", and had them before"),
        f"To note and to keep with the key: the repository's fingerprint is {added.repository_fingerprint}.",
        "On any machine with a configuration that names a location:",
        f"    cryobackup key recover {added.recipient.name}",
        *failure_lines(added.errors),
    ]
    if added.errors:
        lines.append("  Run `cryobackup init` when they are back.")
    return Outcome(result, exit_of(added.errors), text="\n".join(lines))


def _remove(name: str, context: Context) -> Outcome:
    from ..crypto.recipients import check_name
    from ..repository.keepers import remove_recipient

    removed, errors = remove_recipient(context.config.repository, check_name(name))
    result = {"changed": bool(removed), "name": name, "removed": removed, "errors": failures(errors)}
    # Where a wrap stays, the next rotation would take it for that of a recipient who is still one.
    rotate = f"cryobackup key rotate --without {name}" if errors else "cryobackup key rotate"
    lines = [
        f"recipient {name} is removed" if not errors else f"recipient {name} is not removed everywhere",
        *failure_lines(errors),
        "The keys that were wrapped for that name may have been kept: backups of those epochs stay readable to it.",
        f"What is made from now on is closed to it after `{rotate}`: run it next, before anything else.",
    ]
    return Outcome(result, exit_of(errors), text="\n".join(lines))


def _list(context: Context) -> Outcome:
    from ..repository.keepers import list_recipients

    epoch, standings, lost = list_recipients(context.config.repository)
    result = {
        "epoch": epoch,
        "recipients": [standing.as_dict() for standing in standings],
        "errors": failures(lost),
    }
    for name, error in lost.items():
        context.reporter.warn(f"location {name} was not looked at: {reason_of(error, name)}")
    text = recipients_table(standings) if standings else "There are no recipients."
    return Outcome(result, exit_of(lost), text=text)


def recipients_table(standings: Sequence[Standing]) -> str:
    rows = []
    for standing in standings:
        wrap = standing.wrap
        rows.append(
            (
                standing.name,
                standing.state,
                "-" if wrap is None else ",".join(map(str, wrap.epochs)),
                "-" if wrap is None else "passphrase" if wrap.has_passphrase else "key file",
                "-" if wrap is None else wrap.recipient.fingerprint(),
                ",".join(standing.locations) or "-",
            )
        )
    return format_table(("RECIPIENT", "STATE", "EPOCHS", "OPENS WITH", "FINGERPRINT", "LOCATIONS"), rows)
