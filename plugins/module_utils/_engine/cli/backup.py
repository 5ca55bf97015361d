# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``cryobackup backup``: back up a running cluster."""

from __future__ import annotations

import typing as t

from ..errors import reason_of
from ._frame import Outcome

if t.TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from ..postgres.result import BackupResult
    from ._frame import Context


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cluster", metavar="CLUSTER", help="the cluster's name in the configuration")
    parser.add_argument(
        "--type",
        choices=("full", "incremental"),
        default="full",
        help="incremental stores what changed since the newest backup, and restores by itself (default: full)",
    )
    parser.add_argument("--label", default="", metavar="TEXT", help="a line about this backup, for people")
    parser.add_argument(
        "--spread-checkpoint",
        action="store_true",
        help="let PostgreSQL take its time for the checkpoint before the backup, instead of writing all at once",
    )
    parser.add_argument(
        "--no-space-check",
        action="store_true",
        help="begin also where the backup is not expected to fit",
    )


def run(args: argparse.Namespace, context: Context) -> Outcome:
    from ..postgres.backup import take_backup

    result = take_backup(
        context.config,
        context.config.cluster(args.cluster),
        kind=args.type,
        label=args.label,
        reporter=context.reporter,
        clock=context.now,
        fast_checkpoint=not args.spread_checkpoint,
        space_check=not args.no_space_check,
    )
    return Outcome(result.as_dict(), result.exit_code, lambda: "\n".join(_lines(result)))


def _lines(result: BackupResult) -> Iterator[str]:
    from ._text import counted, format_bytes, format_duration

    parent = f", based on {result.parent}" if result.parent else ""
    yield f"{result.type} backup {result.backup_id} of {result.source}{parent}: {result.status}"
    if result.type != result.requested:
        yield f"  {result.requested} was asked for, but {result.change_detection['reason']}"
    yield (
        f"  {format_bytes(result.bytes_source)} in {counted(result.files, 'file')}, "
        f"{format_bytes(result.bytes_read)} read, {format_bytes(result.bytes_stored)} stored, "
        f"in {format_duration(result.seconds)}"
    )
    if result.compaction is not None:
        done = result.compaction
        left = counted(done["packs_left"], "pack")
        yield f"  compaction: {format_bytes(done['bytes'])} stored again, {left} of earlier backups left behind"
    yield f"  from {result.start_lsn} to {result.stop_lsn} on timeline {result.timeline}"
    for name, error in result.locations.items():
        requests = sum(result.requests.get(name, {}).values())
        cost = f", {requests} requests" if requests else ""
        yield f"  location {name}: {'ok' if error is None else f'not there: {reason_of(error, name)}'}{cost}"
    for damage in result.damage:
        blocks = ", ".join(map(str, damage.blocks[:_BLOCKS_SHOWN]))
        more = f" and {len(damage.blocks) - _BLOCKS_SHOWN} more" if len(damage.blocks) > _BLOCKS_SHOWN else ""
        yield f"  damaged in the cluster: {damage.path}, block {blocks}{more}"
    if result.damage:
        yield "  The backup was kept. Look after the cluster: restore these relations from an earlier backup."


_BLOCKS_SHOWN: t.Final = 10
