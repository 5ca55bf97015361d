# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``cryobackup verify``: prove that backups can be restored."""

from __future__ import annotations

import typing as t
from pathlib import Path

from ._frame import Outcome
from ._past import add_as_of, config_as_of

if t.TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from ..verify.result import BackupResult, Finding, VerifyReport
    from ._frame import Context

_FILES_SHOWN: t.Final = 5
_SIGNS: t.Final = {True: "ok", False: "FAILED", None: "left out"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "backup",
        metavar="BACKUP",
        nargs="?",
        help="its id, or the beginning or the end of it (default: the newest backup of every source)",
    )
    which.add_argument("--latest", metavar="SOURCE", help="the newest backup of a cluster or a file set")
    which.add_argument("--all", action="store_true", help="every backup, and all else that lies in the locations")
    parser.add_argument(
        "--level",
        choices=("presence", "content", "restore"),
        default="content",
        help="presence: every object is there and has its size (needs no identity); content: every byte is read and "
        "compared; restore: PostgreSQL is started on the backup in a sandbox (default: content)",
    )
    parser.add_argument(
        "--location", metavar="NAME", action="append", help="look at this location only; may be given several times"
    )
    parser.add_argument("--workers", metavar="N", type=int, help="threads (default: one for each processor, at most 8)")
    parser.add_argument("--no-record", action="store_true", help="do not note the result in the repository")
    add_as_of(parser)
    sandbox = parser.add_argument_group("with --level restore")
    sandbox.add_argument(
        "--to",
        choices=("immediate", "latest"),
        default="immediate",
        help="recover until the backup is consistent, or to the end of the archived WAL (default: immediate)",
    )
    sandbox.add_argument(
        "--work-directory", metavar="DIR", type=Path, help="where the sandbox is made (default: in the state directory)"
    )
    sandbox.add_argument("--keep-sandbox", action="store_true", help="leave the restored, stopped cluster there")
    sandbox.add_argument("--user", metavar="NAME", help="the user that runs the sandbox's PostgreSQL")
    sandbox.add_argument(
        "--preload",
        metavar="LIBRARIES",
        default="",
        help="shared_preload_libraries of the sandbox, for extensions that need it. What starts workers of its own "
        "(pg_cron) then does so there, too (default: none)",
    )


def run(args: argparse.Namespace, context: Context) -> Outcome:
    from ..verify.ladder import verify
    from ..verify.rehearsal import SandboxOptions
    from ..verify.subjects import Which
    from ._parser import UsageError

    if args.workers is not None and args.workers < 1:
        raise UsageError("--workers must be at least 1")
    report = verify(
        config_as_of(args, context),
        which=Which(args.backup, args.latest, args.all),
        level=args.level,
        reporter=context.reporter,
        clock=context.now,
        locations=args.location,
        workers=args.workers,
        record=not args.no_record and args.as_of is None,
        sandbox=SandboxOptions(args.work_directory, args.to, args.keep_sandbox, args.user, args.preload),
    )
    return Outcome(report.as_dict(), report.exit_code, lambda: "\n".join(_lines(report)))


def _lines(report: VerifyReport) -> Iterator[str]:
    from ._text import counted, format_bytes, format_duration, format_table

    rows = [
        (
            backup.backup_id,
            backup.source,
            backup.kind or "?",
            backup.result,
            ", ".join(f"{name}: {state}" for name, state in backup.locations.items()),
        )
        for backup in report.backups
    ]
    if rows:
        yield format_table(("BACKUP", "SOURCE", "TYPE", "RESULT", "LOCATIONS"), rows)
        yield ""
    for backup in report.backups:
        yield from _sandbox(backup)
    yield from _findings(report)
    for name, location in report.locations.items():
        read = f", {format_bytes(location.bytes)} read" if location.bytes else ""
        pages = f", {counted(location.pages, 'page')}" if location.pages else ""
        yield f"location {name}: {location.status}, {counted(location.objects, 'object')}{read}{pages}"
    yield f"{report.level}: {report.result}, in {format_duration(report.seconds)}"


def _sandbox(backup: BackupResult) -> Iterator[str]:
    from ._text import format_duration

    if backup.error is not None:
        yield f"{backup.backup_id} could not be verified: {backup.error.message}"
        if backup.error.hint:
            yield f"  {backup.error.hint}"
        yield ""
    if not backup.checks:
        return
    yield f"sandbox of {backup.backup_id}"
    width = max(len(check.name) for check in backup.checks)
    for check in backup.checks:
        first, *rest = check.detail.splitlines() or [""]
        seconds = f" ({format_duration(check.seconds)})" if check.seconds >= 0.05 else ""
        yield f"  {check.name.ljust(width)}  {_SIGNS[check.ok]}: {first}{seconds}"
        for line in rest:
            yield f"  {' ' * width}    {line}"
    if "recovery_seconds" in backup.figures:
        took = backup.figures["restore_seconds"] + backup.figures["recovery_seconds"]
        yield f"  recovery time {format_duration(took)}: restore and replay, until sessions are let in"
    yield ""


def _findings(report: VerifyReport) -> Iterator[str]:
    """One paragraph for each object, whatever number of backups needs it."""
    grouped: dict[tuple[str, str, str, str], list[Finding]] = {}
    for finding in report.findings:
        key = finding.severity, finding.location, finding.object, finding.what
        grouped.setdefault(key, []).append(finding)
    words = {"damage": "DAMAGE", "incomplete": "INCOMPLETE", "notice": "note"}
    for severity, word in words.items():
        for (of_severity, location, name, what), found in grouped.items():
            if of_severity != severity:
                continue
            yield f"{word}: location {location}{': ' + name if name else ''}"
            yield f"  {what}"
            backups = [finding.backup for finding in found if finding.backup is not None]
            if backups:
                yield f"  backups: {', '.join(backups)}"
            yield from _files(found)
            yield ""


def _files(found: list[Finding]) -> Iterator[str]:
    files = sorted({file for finding in found for file in finding.files})
    total = max((finding.files_total for finding in found), default=0)
    if files:
        more = max(total, len(files)) - min(len(files), _FILES_SHOWN)
        yield f"  files: {', '.join(files[:_FILES_SHOWN])}" + (f" and {more} more" if more > 0 else "")
    blocks = sorted({block for finding in found for block in finding.blocks})
    if blocks:
        yield f"  blocks: {', '.join(map(str, blocks))}"
