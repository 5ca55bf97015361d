# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``cryobackup replicate``: bring to each location what the others have."""

from __future__ import annotations

import typing as t

from ._frame import Outcome

if t.TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from ..replicate.result import Brought, Problem, ReplicateResult
    from ._frame import Context

_PROBLEMS_SHOWN: t.Final = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Without arguments every location gets every backup that retention keeps, and all WAL that goes with them.\n"
        "Objects are copied as they are, so that this needs no identity. Stopped or killed, the next run goes on.\n\n"
        f"{parser.epilog or ''}"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "backups",
        metavar="BACKUP",
        nargs="*",
        default=[],
        help="ids, or beginnings or ends of ids (default: all backups that retention keeps)",
    )
    which.add_argument("--latest", metavar="SOURCE", help="the newest backup of a cluster or a file set")
    which.add_argument("--all", action="store_true", help="also backups that retention lets go at the next prune")
    parser.add_argument(
        "--wal",
        choices=("all", "needed", "only"),
        help="all: also the WAL after the backups, for point-in-time recovery; needed: what backups need to become "
        "consistent; only: no backups (default: needed for backups that are named, else all)",
    )
    parser.add_argument(
        "--from",
        dest="sources",
        metavar="NAME",
        action="append",
        default=[],
        help="read from this location only; may be given several times (default: all, the nearest first)",
    )
    parser.add_argument(
        "--to",
        dest="destinations",
        metavar="NAME",
        action="append",
        default=[],
        help="bring things to this location only; may be given several times (default: all)",
    )
    parser.add_argument(
        "--repair",
        action="store_true",
        help="also read what is there already, every byte of it, and replace what is damaged",
    )
    parser.add_argument("--dry-run", action="store_true", help="show what is missing and change nothing")
    parser.add_argument("--workers", metavar="N", type=int, help="objects under way at the same time (default: 4)")
    parser.add_argument("--bandwidth-limit", metavar="RATE", help="read no faster than this, such as 20MB/s")


def run(args: argparse.Namespace, context: Context) -> Outcome:
    from ..replicate.delivery import WORKERS, Options
    from ..replicate.run import replicate
    from ..replicate.wanted import Which
    from ._parser import UsageError

    if args.workers is not None and args.workers < 1:
        raise UsageError("--workers must be at least 1")
    result = replicate(
        context.config,
        which=Which(tuple(args.backups), args.latest, args.all, args.wal),
        options=Options(
            tuple(args.sources),
            tuple(args.destinations),
            repair=args.repair,
            dry_run=args.dry_run,
            workers=args.workers or WORKERS,
            bandwidth_limit=_rate(args.bandwidth_limit),
        ),
        reporter=context.reporter,
        clock=context.now,
    )
    return Outcome(result.as_dict(), result.exit_code, lambda: "\n".join(_lines(result)))


def _rate(text: str | None) -> int | None:
    from ..config._section import parse_bandwidth
    from ._parser import UsageError

    if text is None:
        return None
    rate = parse_bandwidth(text)
    if not rate:
        raise UsageError(f"{text!r} is no rate: write bytes a second with a unit, such as 20MB/s")
    return rate


def _lines(result: ReplicateResult) -> Iterator[str]:
    from ._text import format_bytes, format_duration, format_table

    header = ("LOCATION", "BACKUPS", "COMPLETED", "PACKS", "WAL", "NOTES", "REPAIRED", "BYTES", "STATE")
    rows = [_row(result, name, brought) for name, brought in result.locations.items()]
    if rows:
        yield format_table(header, rows, right=header[1:-1])
    for name, brought in result.locations.items():
        if brought.error is not None:
            yield f"location {name}: {brought.error.message}"
            yield f"  {brought.error.hint}"
    yield from _problems(result.problems)
    read = sum(result.read.values())
    if result.dry_run:
        yield "nothing was changed"
    else:
        word = "ok" if result.complete else "partial"
        yield f"{word}: {format_bytes(read)} read in {format_duration(result.seconds)}"


def _row(result: ReplicateResult, name: str, brought: Brought) -> tuple[str, ...]:
    from ._text import format_bytes

    of_this = any(problem.location == name for problem in result.problems)
    state = "failed" if brought.error is not None else "incomplete" if of_this else "ok"
    if result.dry_run and state == "ok":
        state = "lacks this" if brought.changed else "complete"
    return (
        name,
        str(len(brought.backups)),
        str(len(brought.completed)),
        str(brought.packs),
        str(brought.wal),
        str(brought.notes),
        str(len(brought.repaired)),
        format_bytes(brought.bytes),
        state,
    )


def _problems(problems: list[Problem]) -> Iterator[str]:
    """One paragraph for each object, whatever number of backups needs it."""
    grouped: dict[tuple[str, str, str], list[Problem]] = {}
    for problem in problems:
        grouped.setdefault((problem.location, problem.object, problem.error.message), []).append(problem)
    for location, name, message in list(grouped)[:_PROBLEMS_SHOWN]:
        found = grouped[location, name, message]
        where = f"location {location}" + (f": {name}" if name else "") if location else name
        yield f"PROBLEM: {where}"
        yield f"  {message}"
        backups = sorted({problem.backup for problem in found if problem.backup})
        if backups:
            yield f"  backups: {', '.join(backups)}"
        yield f"  {found[0].error.hint}"
    if len(grouped) > _PROBLEMS_SHOWN:
        yield f"and {len(grouped) - _PROBLEMS_SHOWN} more (--json has all)"
