# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``cryobackup pin``: keep a backup, whatever the retention rules say."""

from __future__ import annotations

import typing as t

if t.TYPE_CHECKING:
    import argparse

    from ._frame import Context, Outcome


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("backup", metavar="BACKUP", help="its id, or the beginning or the end of it")
    parser.add_argument("--reason", metavar="TEXT", required=True, help="why it stays, in one line for people")
    parser.add_argument(
        "--until", metavar="TIME", help="when the pin ends, ISO 8601 with UTC offset (default: when it is unpinned)"
    )


def run(args: argparse.Namespace, context: Context) -> Outcome:
    from ..repository.pins import parse_until, pin
    from ._backups import change_pin

    until = None if args.until is None else parse_until(args.until)
    return change_pin(
        context,
        args.backup,
        lambda repository, backup: pin(repository, backup, args.reason, context.now(), until=until),
    )
