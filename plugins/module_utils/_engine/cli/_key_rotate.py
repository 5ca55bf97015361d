# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``cryobackup key rotate`` and ``cryobackup key recover``."""

from __future__ import annotations

import typing as t
from pathlib import Path

from ._frame import Outcome
from ._key_recipient import add_passphrase_file, recipients_table
from ._keys import exit_of, failure_lines, failures, keys_table, shown

if t.TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from ..repository.recovery import Recovered
    from ..repository.rotation import Rotation
    from ._frame import Context


_WHY: t.Final = {
    "older": "has not had the one before either. To bring that recipient back: `cryobackup key recipient add`",
    "false": "no keeper of the keys made that wrap. Who has put it into the storage?",
    "unknown": "the identity is missing here that could tell whether the wrap is true",
}


def add_arguments(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    rotate_ = actions.add_parser("rotate", help="new keys for all that is written from now on")
    rotate_.add_argument(
        "--without", metavar="NAME", action="append", default=[], help="a recipient that does not get them"
    )
    recover_ = actions.add_parser("recover", help="get the keys back from a location, as a recipient")
    recover_.add_argument("name", metavar="NAME", help="the recipient")
    which = recover_.add_mutually_exclusive_group()
    which.add_argument("--key", metavar="FILE", type=Path, help="the recipient's key file")
    add_passphrase_file(which)
    recover_.add_argument(
        "--fingerprint", metavar="TEXT", help="that of the repository, as it was told when the recipient was added"
    )
    recover_.add_argument("--without-identity", action="store_true", help="for a host that shall only make backups")


def rotate(args: argparse.Namespace, context: Context) -> Outcome:
    from ..repository.rotation import rotate as rotate_keys

    directory = context.config.repository.keys
    done = rotate_keys(context.config.repository, context.now(), without=args.without)
    for standing in done.left_out:
        why = "as was asked" if standing.name in args.without else _WHY[standing.state]
        context.reporter.warn(f"recipient {standing.name} does not get epoch {done.epoch}: {why}")
    result = {
        "changed": True,
        "epoch": done.epoch,
        "resumed": done.resumed,
        "directory": str(directory),
        "keys": shown(done.keys, directory),
        "recipients": [standing.as_dict() for standing in done.recipients],
        "left_out": [standing.as_dict() for standing in done.left_out],
        "errors": failures(done.errors),
    }
    return Outcome(result, exit_of(done.errors), text="\n".join(_rotated(done, directory)))


def _rotated(done: Rotation, directory: Path) -> Iterator[str]:
    from ..crypto.keys import LOCKED_IDENTITY

    yield f"epoch {done.epoch}" + (", a rotation that was interrupted" if done.resumed else "")
    yield keys_table(shown(done.keys, directory))
    yield ""
    yield recipients_table(done.recipients) if done.recipients else "There are no recipients to wrap it for."
    yield from failure_lines(done.errors)
    if done.errors:
        yield "  Run `cryobackup init` when they are back."
    yield ""
    yield "What to do next:"
    if (directory / LOCKED_IDENTITY).exists():
        yield "  cryobackup key protect                the identity lies here in the open, the new one too"
    yield "  cryobackup key kit --output FILE      the old sheet does not open what is written from now on"
    yield "  cryobackup key export --writer DIR    for every other host that makes backups, then `key import DIR` there"
    yield "  Old backups stay readable with the old keys: keep them. Whoever had the old keys reads old backups still."


def recover(args: argparse.Namespace, context: Context) -> Outcome:
    from ..crypto.key_store import add_keys
    from ..crypto.recipients import check_name, read_opener
    from ..repository.recovery import recover as recover_keys
    from ._passphrase import read_passphrase

    repository = context.config.repository
    name = check_name(args.name)
    opener = None if args.key is None else read_opener(args.key)
    passphrase = "" if opener is not None else read_passphrase(args.passphrase_file, f"recipient {name}")
    found = recover_keys(repository, name, opener=opener, passphrase=passphrase, fingerprint=args.fingerprint)
    keys = [key for key in found.keys if not (args.without_identity and key.role == "identity")]
    changed = bool(add_keys(repository.keys, keys))
    for text in found.warnings:
        context.reporter.warn(text)
    if not found.anchored:
        context.reporter.warn(_unknown(found))
    rows = shown(sorted(keys, key=lambda key: (key.epoch, key.role)), repository.keys)
    result = {
        "changed": changed,
        "repository_id": keys[0].repository,
        "repository_fingerprint": found.fingerprint,
        "fingerprint_compared": found.anchored,
        "directory": str(repository.keys),
        "recipient": name,
        "wrap": found.wrap,
        "keys": rows,
        "warnings": found.warnings,
    }
    text = f"repository {keys[0].repository}, fingerprint {found.fingerprint}\n{keys_table(rows)}"
    return Outcome(result, text=text)


def _unknown(found: Recovered) -> str:
    return (
        f"nothing has proven that this is your repository. Its fingerprint is {found.fingerprint}: compare it with "
        "what was told when the recipient was added (--fingerprint does it)"
    )
