# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``cryobackup key``: create, show, print, import, export, rotate and recover keys.

No key is ever part of a result. The recovery kit goes to a file that only its owner can read, or,
when a person asks for it, to standard output: for a printer.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import typing as t
from pathlib import Path

from ..errors import KeyFileError
from . import _key_recipient, _key_rotate
from ._frame import Outcome
from ._keys import keys_table, shown
from ._parser import UsageError
from ._text import format_time

if t.TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from ..config.locations import LocationConfig
    from ..crypto.keys import Key
    from ._frame import Context


_MAX_KIT_BYTES: t.Final = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    create = actions.add_parser("create", help="create the keys of a new repository")
    show = actions.add_parser("show", help="show which keys there are, by their fingerprints")
    kit = actions.add_parser("kit", help="the recovery kit: all keys on a sheet of paper")
    kit.add_argument("--output", metavar="FILE", type=Path, help="a new file (default: standard output)")
    kit.add_argument("--from-epoch", metavar="N", type=int, default=1, help="without the epochs before N")
    imported = actions.add_parser("import", help="add the keys of a recovery kit or of an export to the key files")
    imported.add_argument(
        "kit", metavar="FILE", nargs="?", default="-", help="a typed kit, key files or their directory (default: stdin)"
    )
    imported.add_argument(
        "--without-identity",
        action="store_true",
        help="leave the identity out: this host shall make backups and not be able to read them",
    )
    export = actions.add_parser("export", help="what a host gets that makes backups and cannot read them")
    export.add_argument("--writer", metavar="DIR", type=Path, required=True, help="a new directory for the key files")
    export.add_argument(
        "--from-epoch", metavar="N", type=int, default=1, help="so that it cannot list what was written before epoch N"
    )
    protect = actions.add_parser("protect", help="put the identity under a passphrase")
    protect.add_argument("--replace", action="store_true", help="give up the passphrase that it has already")
    unlock = actions.add_parser("unlock", help="make data.identity of what is under a passphrase, for a restore")
    for action in (protect, unlock):
        _key_recipient.add_passphrase_file(action)
    for action in (create, show, kit, imported, export, protect, unlock):
        action.add_argument(
            "--directory", metavar="DIR", type=Path, help="the key directory (default: that of the configuration)"
        )
    _key_rotate.add_arguments(actions)
    _key_recipient.add_arguments(actions)


def run(args: argparse.Namespace, context: Context) -> Outcome:
    match args.action:
        case "rotate":
            return _key_rotate.rotate(args, context)
        case "recover":
            return _key_rotate.recover(args, context)
        case "recipient":
            return _key_recipient.run(args, context)
    if args.directory is None:
        repository = context.config.repository
        directory, locations = repository.keys, repository.locations
    else:
        directory, locations = args.directory.absolute(), {}
    match args.action:
        case "create":
            return _create(directory)
        case "kit":
            return _kit(directory, locations.values(), args.output, args.from_epoch, context)
        case "import":
            return _import(directory, args.kit, context, without_identity=args.without_identity)
        case "export":
            return _export(directory, args.writer.absolute(), args.from_epoch)
        case "protect":
            return _protect(directory, args.passphrase_file, replace=args.replace)
        case "unlock":
            return _unlock(directory, args.passphrase_file)
    return _show(directory)


def _create(directory: Path) -> Outcome:
    from ..crypto.keys import new_keys, write_keys

    keys = new_keys(os.urandom(16).hex())
    write_keys(directory, keys)
    return _outcome(directory, keys, changed=True)


def _show(directory: Path) -> Outcome:
    from ..crypto.keys import LOCKED_IDENTITY, KeyRing
    from ..crypto.protection import locked_epochs
    from ..repository.rotation import STAGE

    outcome = _outcome(directory, KeyRing.load(directory).keys, changed=False)
    locked = locked_epochs(directory)
    text = str(outcome.text)
    if (directory / STAGE).exists():
        text += "\nA rotation was interrupted. Nothing uses its keys yet: `cryobackup key rotate` finishes it."
    if locked:
        epochs = ", ".join(map(str, locked))
        text += f"\nThe identity of epoch {epochs} is under a passphrase, in {directory / LOCKED_IDENTITY}."
    return dataclasses.replace(outcome, result={**outcome.result, "locked_epochs": locked}, text=text)


def _kit(
    directory: Path, locations: Iterable[LocationConfig], output: Path | None, from_epoch: int, context: Context
) -> Outcome:
    from ..crypto.keys import KeyRing
    from ..crypto.recovery_kit import kit_keys, write_kit

    if output is None and context.json:
        raise UsageError(
            "a recovery kit is not printed as JSON: it would end in a log",
            hint="Give --output FILE, or leave --json out.",
        )
    keys = kit_keys(KeyRing.load(directory, need_identity=True), from_epoch)
    where = [f"{location.name}: {location.where}" for location in locations]
    kit = write_kit(keys, where, format_time(context.now()))
    if output is None:
        return Outcome({}, text=kit)
    _write_secret(output, kit)
    outcome = _outcome(directory, keys, changed=True)
    text = f"{output} has the recovery kit. Print it, put the sheet in a safe, and delete the file."
    return dataclasses.replace(outcome, result={**outcome.result, "output": str(output)}, text=text)


def _import(directory: Path, kit: str, context: Context, *, without_identity: bool) -> Outcome:
    from ..crypto.key_store import add_keys

    if kit == "-" and sys.stdin is not None and sys.stdin.isatty():
        context.reporter.note("Type the recovery kit as it is printed, then press Ctrl-D on an empty line.")
    keys = _keys_in(kit)
    if without_identity:
        keys = [key for key in keys if key.role != "identity"]
    return _outcome(directory, keys, changed=bool(add_keys(directory, keys)))


def _keys_in(kit: str) -> list[Key]:
    """Of a recovery kit, of a file with key lines, or of a directory with key files."""
    from ..crypto.keys import FILE_OF, KeyRing, parse_lines
    from ..crypto.recovery_kit import read_kit

    if kit != "-" and Path(kit).is_dir():
        return KeyRing.load(Path(kit)).keys
    text = _read_kit(kit)
    if not any(line.startswith("cryo-") for line in text.splitlines()):
        return read_kit(text)
    keys = parse_lines(text, kit)
    if not all(key.role in FILE_OF for key in keys):
        raise KeyFileError(f"{kit} is not a key file", hint="Name a file or a directory that `key export` wrote.")
    return keys


def _export(directory: Path, target: Path, from_epoch: int) -> Outcome:
    from ..crypto.key_store import writer_keys
    from ..crypto.keys import KeyRing, write_keys

    keys = writer_keys(KeyRing.load(directory), from_epoch)
    write_keys(target, keys)
    outcome = _outcome(target, keys, changed=True)
    text = (
        f"{target} has the keys of a host that makes backups. Bring it there, and there run\n"
        "    cryobackup key import DIR\n"
        "Then delete it here: its catalog key is a secret."
    )
    return dataclasses.replace(outcome, text=f"{outcome.text}\n{text}")


def _protect(directory: Path, passphrase_file: Path | None, *, replace: bool) -> Outcome:
    from ..crypto.keys import KeyRing
    from ..crypto.protection import locked_epochs, protect
    from ._passphrase import read_passphrase

    keys = KeyRing.load(directory)
    changed = False
    if keys.has_identity or not locked_epochs(directory):
        passphrase = read_passphrase(passphrase_file, "the identity", new=replace or not locked_epochs(directory))
        changed = protect(directory, passphrase, replace=replace)
    result = _show(directory)
    hint = "\nWithout the passphrase only the recovery kit and other recipients bring the identity back."
    return dataclasses.replace(result, result={**result.result, "changed": changed}, text=f"{result.text}{hint}")


def _unlock(directory: Path, passphrase_file: Path | None) -> Outcome:
    from ..crypto.protection import unlock_identity
    from ._passphrase import read_passphrase

    changed = unlock_identity(directory, read_passphrase(passphrase_file, "the identity"))
    result = _show(directory)
    hint = "\nIt can be read now. `cryobackup key protect` when the work is done."
    return dataclasses.replace(result, result={**result.result, "changed": changed}, text=f"{result.text}{hint}")


def _outcome(directory: Path, keys: Iterable[Key], *, changed: bool) -> Outcome:
    keys = list(keys)
    rows = shown(keys, directory)
    result = {
        "changed": changed,
        "repository_id": keys[0].repository,
        "directory": str(directory),
        "has_identity": any(key.role == "identity" for key in keys),
        "keys": rows,
    }
    return Outcome(result, text=f"repository {keys[0].repository}\n{keys_table(rows)}")


def _read_kit(kit: str) -> str:
    """At most a sheet or two: somebody may name the wrong file. Never shown in an error."""
    try:
        with _open_kit(kit) as file:
            return file.read(_MAX_KIT_BYTES).decode("utf-8", "replace")
    except OSError as error:
        raise KeyFileError(
            f"cannot read {kit}: {error.strerror}",
            hint="Name the file with the typed kit, or - for standard input.",
        ) from error


def _open_kit(kit: str) -> t.BinaryIO:
    # Standard input is opened anew by its descriptor, so that closing it here does no harm.
    return open(0, "rb", closefd=False) if kit == "-" else open(kit, "rb")


def _write_secret(path: Path, text: str) -> None:
    """A new file for its owner alone, durable on return."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
    except FileExistsError as error:
        raise KeyFileError(
            f"{path} exists already", hint="Nothing was written. Name a new file.", id="output-exists"
        ) from error
    except OSError as error:
        raise KeyFileError(f"cannot write {path}: {error.strerror}", hint="Name another file.") from error
