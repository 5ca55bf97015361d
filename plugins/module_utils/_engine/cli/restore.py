# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``cryobackup restore``: a cluster, as it was at its latest or at a point in time."""

from __future__ import annotations

import typing as t
from pathlib import Path

from ._frame import Outcome
from ._parser import UsageError
from ._past import add_as_of, config_as_of
from ._text import counted, format_bytes, format_duration

if t.TYPE_CHECKING:
    import argparse

    from ..postgres.recovery import RecoveryTarget
    from ..postgres.restore_request import RestoreRequest, RestoreResult
    from ._frame import Context


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cluster", metavar="CLUSTER", help="the name that its backups have")
    parser.add_argument("--target", metavar="DIR", type=Path, required=True, help="the data directory to write")
    parser.add_argument("--backup", metavar="ID", help="restore this backup (default: the one that fits the goal)")
    add_as_of(parser)
    goal = parser.add_argument_group("where recovery ends (default: at the end of the archived WAL)")
    one = goal.add_mutually_exclusive_group()
    one.add_argument("--to-time", metavar="TIME", help="ISO 8601 with UTC offset: 2026-03-01T14:03:00+01:00")
    one.add_argument("--to-lsn", metavar="LSN", help="a position in the WAL: 16/B374D848")
    one.add_argument("--to-name", metavar="NAME", help="a restore point (pg_create_restore_point)")
    one.add_argument("--to-xid", metavar="XID", help="the end of a transaction")
    one.add_argument("--immediate", action="store_true", help="the end of the backup itself")
    goal.add_argument("--exclusive", action="store_true", help="stop before the goal instead of after it")
    goal.add_argument(
        "--timeline", default="latest", metavar="T", help="latest (default), current (that of the backup) or a number"
    )
    goal.add_argument(
        "--action",
        choices=("promote", "pause", "shutdown"),
        default="promote",
        help="what the server does at the goal (default: promote)",
    )
    target = parser.add_argument_group("how it is written")
    target.add_argument(
        "--delta", action="store_true", help="the target may hold this cluster: replace what differs, remove the rest"
    )
    target.add_argument(
        "--tablespace", metavar="OLD=NEW", action="append", default=[], help="a tablespace's new directory; repeatable"
    )
    target.add_argument(
        "--archiving",
        choices=("auto", "preserve", "off"),
        default="auto",
        help="whether the restored cluster archives its WAL (auto: only in the configured data directory)",
    )
    target.add_argument("--owner", metavar="USER", help="the user it belongs to (default: as recorded)")
    target.add_argument("--workers", metavar="N", type=int, help="threads")
    target.add_argument(
        "--without",
        metavar="LOCATION",
        action="append",
        default=[],
        help="a location that is lost for good; repeatable",
    )
    target.add_argument("--dry-run", action="store_true", help="check everything, write nothing")
    start = parser.add_argument_group("afterwards")
    start.add_argument("--start", action="store_true", help="start PostgreSQL and wait for the end of recovery")
    start.add_argument(
        "--start-timeout",
        metavar="SECONDS",
        type=float,
        default=3600.0,
        help="how long start and recovery may take (default: %(default)g)",
    )
    start.add_argument("--port", metavar="PORT", type=int, help="write this port into the restored configuration")
    start.add_argument("--bin-directory", metavar="DIR", type=Path, help="where pg_ctl is")


def run(args: argparse.Namespace, context: Context) -> Outcome:
    from ..postgres.restore import restore_cluster

    request = _request(args)
    request.check()
    result = restore_cluster(
        config_as_of(args, context), args.cluster, request, reporter=context.reporter, clock=context.now
    )
    return Outcome(result.as_dict(), result.exit_code, text=lambda: _text(result))


def _request(args: argparse.Namespace) -> RestoreRequest:
    from ..postgres.restore_request import RestoreRequest

    if args.workers is not None and args.workers < 1:
        raise UsageError("--workers needs a number from 1")
    if args.port is not None and not 0 < args.port < 1 << 16:
        raise UsageError("--port needs a number from 1 to 65535")
    return RestoreRequest(
        target=args.target.absolute(),
        backup=args.backup,
        goal=_goal(args),
        inclusive=not args.exclusive,
        timeline=args.timeline,
        action=args.action,
        delta=args.delta,
        tablespaces=dict(_mapping(text) for text in args.tablespace),
        archiving=args.archiving,
        workers=args.workers,
        owner=args.owner,
        without=tuple(args.without),
        dry_run=args.dry_run,
        start=args.start,
        start_timeout=args.start_timeout,
        port=args.port,
        bin_directory=args.bin_directory,
    )


def _goal(args: argparse.Namespace) -> RecoveryTarget:
    from ..postgres.recovery import RecoveryTarget

    if args.to_time is not None:
        return RecoveryTarget.at_time(args.to_time)
    if args.to_lsn is not None:
        return RecoveryTarget.at_lsn(args.to_lsn)
    if args.to_name is not None:
        return RecoveryTarget.at_name(args.to_name)
    if args.to_xid is not None:
        return RecoveryTarget.at_xid(args.to_xid)
    return RecoveryTarget.immediate() if args.immediate else RecoveryTarget.latest()


def _mapping(text: str) -> tuple[str, str]:
    old, separator, new = text.partition("=")
    if not separator or not old or not new:
        raise UsageError(
            f"--tablespace {text!r} is not OLD=NEW",
            hint="OLD is the directory that it had, or its OID; NEW is absolute.",
        )
    return old, new


def _text(result: RestoreResult) -> str:
    verb = "would be restored" if result.dry_run else "is restored"
    lines = [f"{result.source} {verb} to {result.target}", "", f"  backup      {result.backup_id} ({result.kind})"]
    size = f"{counted(result.files, 'file')}, {format_bytes(result.bytes_restored)}"
    if not result.dry_run:
        size += f" in {format_duration(result.seconds)}"
    lines.append(f"  size        {size}")
    if result.bytes_compared:
        compared, written = format_bytes(result.bytes_compared), format_bytes(result.bytes_written)
        lines.append(f"  delta       {compared} compared, {written} written")
    lines.append(f"  recovery    {_recovery(result)}")
    lines.append(f"  archiving   {result.archiving}")
    lines += [f"  tablespace  {oid}: {path}" for oid, path in result.tablespaces.items()]
    if result.kept_wal:
        lines.append(f"  pg_wal      kept: {counted(len(result.kept_wal), 'file')}, never archived")
    if result.saved_wal["directory"]:
        saved = result.saved_wal
        lines.append(
            f"  put aside   {counted(len(saved['files']), 'file')} of pg_wal, never archived, in {saved['directory']}"
        )
    if result.state:
        lines.append(f"  server      {result.state}")
    if result.next_steps:
        lines += ["", "Next:", *(f"  - {step}" for step in result.next_steps)]
    return "\n".join(lines)


def _recovery(result: RestoreResult) -> str:
    recovery = result.recovery
    words = {"latest": "to the end of the WAL", "immediate": "to the end of the backup"}.get(recovery["target"])
    if words is None:
        words = f"to {recovery['target']} {recovery['value']}" + ("" if recovery["inclusive"] else " (exclusive)")
    if "lsn" in recovery:
        words += f" ({recovery['lsn']}, {recovery['time']})"
    return f"{words} on timeline {recovery['timeline']}, then {recovery['action']}"
