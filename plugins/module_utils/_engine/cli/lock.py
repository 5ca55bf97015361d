# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``cryobackup lock``: object locks that last as long as the backups are kept."""

from __future__ import annotations

import typing as t

from ..errors import reason_of
from ._frame import Outcome

if t.TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from ..object_lock import LockReport
    from ._frame import Context


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    status = actions.add_parser("status", help="show how long what is kept is locked; change nothing")
    extend = actions.add_parser("extend", help="lengthen the lock of what is kept for longer than it is locked")
    extend.add_argument("--dry-run", action="store_true", help="count, and change nothing")
    for each in (status, extend):
        each.add_argument(
            "--at-least",
            metavar="DURATION",
            default="7d",
            help="how long everything that is kept must still be locked (default: %(default)s)",
        )
        each.add_argument(
            "--at-most",
            metavar="DURATION",
            default="1y",
            help="how far ahead anything is locked, however long it will be kept (default: %(default)s)",
        )


def run(args: argparse.Namespace, context: Context) -> Outcome:
    from ..object_lock import keep_locked
    from ..repository.locking import Terms
    from ..retention import parse_duration

    terms = Terms(parse_duration(args.at_least), parse_duration(args.at_most))
    dry_run = args.action == "status" or args.dry_run
    report = keep_locked(context.config, terms, now=context.now(), dry_run=dry_run, reporter=context.reporter)
    return Outcome(report.as_dict(), report.exit_code, lambda: "\n".join(_lines(report)))


def _lines(report: LockReport) -> Iterator[str]:
    from ._text import format_table, format_time

    rows = [
        (
            name,
            str(result.objects),
            str(result.short),
            str(result.lengthened),
            "-" if result.least_until is None else format_time(result.least_until),
            " ".join(f"{kind} {count}" for kind, count in sorted(result.requests.items()) if count),
        )
        for name, result in report.locations.items()
    ]
    header = ("LOCATION", "KEPT", "TOO SHORT", "TO DO" if report.dry_run else "DONE", "LOCKED UNTIL", "REQUESTS")
    yield format_table(header, rows, right=("KEPT", "TOO SHORT", "TO DO", "DONE"))
    for name, error in report.errors.items():
        yield f"location {name}: {reason_of(error, name)}"
    if report.attention:
        yield ""
        yield "Attention:"
        yield from (f"  {text}" for text in report.attention)
