# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``cryobackup key``: create, show, print and import keys.

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
from ._frame import Outcome
from ._parser import UsageError
from ._text import format_table, format_time

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
    imported = actions.add_parser("import", help="make key files from a recovery kit")
    imported.add_argument("kit", metavar="FILE", nargs="?", default="-", help="the typed kit (default: standard input)")
    imported.add_argument(
        "--without-identity",
        action="store_true",
        help="leave the identity out: this host shall make backups and not be able to read them",
    )
    for action in (create, show, kit, imported):
        action.add_argument(
            "--directory", metavar="DIR", type=Path, help="the key directory (default: that of the configuration)"
        )


def run(args: argparse.Namespace, context: Context) -> Outcome:
    if args.directory is None:
        repository = context.config.repository
        directory, locations = repository.keys, repository.locations
    else:
        directory, locations = args.directory.absolute(), {}
    match args.action:
        case "create":
            return _create(directory)
        case "kit":
            return _kit(directory, locations.values(), args.output, context)
        case "import":
            return _import(directory, args.kit, context, without_identity=args.without_identity)
    return _show(directory)


def _create(directory: Path) -> Outcome:
    from ..crypto.keys import new_keys, write_keys

    keys = new_keys(os.urandom(16).hex())
    write_keys(directory, keys)
    return _outcome(directory, keys, changed=True)


def _show(directory: Path) -> Outcome:
    from ..crypto.keys import KeyRing

    return _outcome(directory, KeyRing.load(directory).keys, changed=False)


def _kit(directory: Path, locations: Iterable[LocationConfig], output: Path | None, context: Context) -> Outcome:
    from ..crypto.keys import KeyRing
    from ..crypto.recovery_kit import write_kit

    if output is None and context.json:
        raise UsageError(
            "a recovery kit is not printed as JSON: it would end in a log",
            hint="Give --output FILE, or leave --json out.",
        )
    keys = KeyRing.load(directory, need_identity=True).keys
    where = [f"{location.name}: {location.where}" for location in locations]
    kit = write_kit(keys, where, format_time(context.now()))
    if output is None:
        return Outcome({}, text=kit)
    _write_secret(output, kit)
    outcome = _outcome(directory, keys, changed=True)
    text = f"{output} has the recovery kit. Print it, put the sheet in a safe, and delete the file."
    return dataclasses.replace(outcome, result={**outcome.result, "output": str(output)}, text=text)


def _import(directory: Path, kit: str, context: Context, *, without_identity: bool) -> Outcome:
    from ..crypto.key_import import add_keys
    from ..crypto.recovery_kit import read_kit

    if kit == "-" and sys.stdin is not None and sys.stdin.isatty():
        context.reporter.note("Type the recovery kit as it is printed, then press Ctrl-D on an empty line.")
    keys = read_kit(_read_kit(kit))
    if without_identity:
        keys = [key for key in keys if key.role != "identity"]
    return _outcome(directory, keys, changed=bool(add_keys(directory, keys)))


def _outcome(directory: Path, keys: Iterable[Key], *, changed: bool) -> Outcome:
    from ..crypto.keys import FILES

    keys = list(keys)
    shown = [
        {
            "role": key.role,
            "epoch": key.epoch,
            "fingerprint": key.fingerprint(),
            "file": str(directory / FILES[key.role]),
        }
        for key in keys
    ]
    result = {
        "changed": changed,
        "repository_id": keys[0].repository,
        "directory": str(directory),
        "has_identity": any(key.role == "identity" for key in keys),
        "keys": shown,
    }
    rows = [(str(key["role"]), str(key["epoch"]), str(key["fingerprint"]), str(key["file"])) for key in shown]
    table = format_table(("KEY", "EPOCH", "FINGERPRINT", "FILE"), rows)
    return Outcome(result, text=f"repository {keys[0].repository}\n{table}")


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
