# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``cryobackup prune``: delete what retention drops, in two phases."""

from __future__ import annotations

import typing as t

from ._frame import Outcome

if t.TYPE_CHECKING:
    import argparse

    from ..prune import PruneResult
    from ..repository.collect import Collected
    from ._frame import Context


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="show the plan and change nothing")
    parser.add_argument("--yes", action="store_true", help="delete even where the brake asks for an explicit yes")
    parser.add_argument(
        "--grace",
        metavar="DURATION",
        help="how long a mark must have stood before its objects go (12h, 3d, 0 for at once; default: configuration)",
    )


def run(args: argparse.Namespace, context: Context) -> Outcome:
    from .. import prune, retention

    grace = None if args.grace is None else retention.parse_grace(args.grace)
    result = prune.prune(
        context.config,
        now=context.now(),
        dry_run=args.dry_run,
        yes=args.yes,
        reporter=context.reporter,
        grace=grace,
    )
    return Outcome(result.as_dict(), result.exit_code, lambda: "\n".join(_lines(result)))


def _lines(result: PruneResult) -> t.Iterator[str]:
    from .. import retention
    from ..errors import reason_of
    from ._text import counted, format_bytes

    yield from retention.explain(result.plan)
    would = "would be " if result.dry_run else ""
    for name, done in result.locations.items():
        yield f"location {name}: {_done(done, dry_run=result.dry_run)}"
        if done.hidden is not None:
            hidden = done.hidden
            yield (
                f"location {name}: {counted(hidden.objects, 'deleted object')} still stored "
                f"({format_bytes(hidden.bytes)}), {hidden.locked} of them locked; "
                f"{counted(hidden.removed, 'version')} {would}removed for good"
            )
    for name, error in result.errors.items():
        yield f"location {name}: not pruned: {reason_of(error, name)}"


def _done(done: Collected, *, dry_run: bool) -> str:
    """In one line; what is not, is not named."""
    from ._text import counted, format_bytes

    would = "would be " if dry_run else ""
    kinds = ((done.manifests, "manifest"), (done.packs, "pack"), (done.wal, "WAL file"))
    deleted = [counted(count, kind) for count, kind in kinds if count]
    parts = [f"{', '.join(deleted)} {would}deleted ({format_bytes(done.bytes_freed)})"] if deleted else []
    if done.marked:
        parts.append(f"{counted(done.marked, 'object')} {would}marked, to be deleted after the grace")
    if done.waiting:
        parts.append(f"{counted(done.waiting, 'object')} marked before, and waiting")
    return "; ".join(parts) or "nothing to delete"
