# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the WAL archive has what a recovery needs, asked before anything is written."""

from __future__ import annotations

import dataclasses
import datetime as dt
import typing as t

from ..errors import TargetError
from .archive_index import WalIndex, histories, missing_for_backup, missing_segments, reachable
from .lsn import format_lsn, segment_number
from .recovery import IMMEDIATE, LATEST
from .restore_branches import Branch, Branches, Segment
from .restore_plan import Choice, Wish, postgres, stop_lsn
from .streamed import Streamed, Tails
from .timeline import TimelineHistory
from .wal import WalKind, history_name, parse_wal_name, segment_name

if t.TYPE_CHECKING:
    from ..repository.catalog import BackupRecord
    from ..repository.repository import Repository

_CLOCKS_MAY_DIFFER = dt.timedelta(minutes=5)


@dataclasses.dataclass(frozen=True, slots=True)
class Outlook:
    """What can be said in advance about how a recovery will go."""

    warnings: tuple[str, ...] = ()
    partial: bool = False
    """Recovery will end at a gap, with WAL behind it that cannot be used."""


def load_branches(repository: Repository, index: WalIndex, backups: t.Iterable[BackupRecord]) -> Branches:
    """The timelines of the archive and of the backups. Needs the identity: history files are read.

    A timeline without an archived history file has no ancestors, as PostgreSQL sees it
    (``readTimeLineHistory``).
    """
    infos = [postgres(backup) for backup in backups]
    segment_size = infos[-1].wal_segment_size
    known = histories(repository, index)
    for info in infos:
        known.setdefault(info.timeline, TimelineHistory(info.timeline))
    segments: dict[int, list[Segment]] = {timeline: [] for timeline in known}
    for file in index.of_kind(WalKind.SEGMENT):
        if file.name.timeline in segments and file.name.fits(segment_size):
            segments[file.name.timeline].append(Segment(file.name.number(segment_size), file.modified))
    branches = {}
    for timeline, history in known.items():
        born = index.files.get(history_name(timeline))
        found = tuple(sorted(segments[timeline], key=lambda segment: segment.number))
        branches[timeline] = Branch(history, found, born.modified if born is not None else None)
    return Branches(branches, segment_size)


def require_wal(index: WalIndex, backup: BackupRecord) -> None:
    """The segments from the backup's start to its stop: without them it is worth nothing.

    Raises TargetError, id ``wal-missing``, naming the first one.
    """
    missing = missing_for_backup(index, postgres(backup))
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise TargetError(
            f"backup {backup.id} cannot be made consistent: WAL segment {missing[0]}{more} is not in the archive",
            hint=_lost_words(index)
            or "Nothing was changed. Choose another backup with --backup; "
            "`cryobackup verify --all` shows which are whole.",
            id="wal-missing",
        )


def look_ahead(index: WalIndex, tails: Tails, choice: Choice, wish: Wish, now: dt.datetime) -> Outlook:
    """Gaps and the end of the archive, compared with the goal. Raises TargetError when it surely cannot be reached."""
    require_wal(index, choice.backup)
    if wish.goal.kind == IMMEDIATE:
        return Outlook()
    _check_not_in_future(wish, now)
    size = postgres(choice.backup).wal_segment_size
    stop = stop_lsn(choice.backup)
    # The last segment of the backup itself is there: the way goes on from it.
    start = max(stop - 1, 0)
    reach = reachable(index, choice.history, start, size)
    gaps = missing_segments(index, choice.history, start, None, size)
    number = segment_number(reach.end_lsn, size)
    tail = tails.of(segment_name(choice.history.timeline_of_segment(number, size), number, size))
    if wish.lsn is not None:
        end = tail.end_lsn(size) if tail is not None else reach.end_lsn
        return _towards_lsn(index, wish.lsn, end, str(gaps[0]) if gaps else None)
    if gaps:
        words = (
            f"the WAL archive has a gap: {gaps[0]} is missing, and what lies behind it cannot be used. "
            f"Recovery gets to {format_lsn(reach.end_lsn)}"
        )
        return Outlook((words + _lost_words(index),), partial=wish.goal.kind == LATEST)
    return Outlook(tuple(_end_words(index, wish, reach.last_segment, tail)))


def _towards_lsn(index: WalIndex, target: int, end: int, gap: str | None) -> Outlook:
    if target < end:
        return Outlook()
    words = f"the WAL archive reaches to {format_lsn(end)} only, the goal is {format_lsn(target)}"
    if gap is not None and not index.lost:
        raise TargetError(
            f"{words}: {gap} is missing",
            hint=f"The last LSN that can be reached is before {format_lsn(end)}. Nothing was changed.",
            id="wal-missing",
        )
    return Outlook((f"{words}. PostgreSQL will stop with an error unless more WAL is archived until then",))


def _check_not_in_future(wish: Wish, now: dt.datetime) -> None:
    if wish.goal.time is not None and wish.goal.time > now + _CLOCKS_MAY_DIFFER:
        raise TargetError(
            f"the recovery time {wish.goal.value} is in the future",
            hint=f"It is {now.isoformat(timespec='seconds')} now. Nothing was changed.",
            id="too-late",
        )


def _end_words(index: WalIndex, wish: Wish, last_segment: str | None, tail: Streamed | None) -> t.Iterator[str]:
    when = wish.goal.time
    if when is not None and tail is not None and tail.modified >= when.timestamp():
        return
    if when is None or last_segment is None or last_segment not in index.files:
        return
    archived = index.files[last_segment].modified
    if archived < when.timestamp():
        newest = dt.datetime.fromtimestamp(archived, dt.UTC).isoformat(timespec="seconds")
        yield (
            f"the newest WAL on the way, {last_segment}, was archived at {newest}, before the recovery time. "
            "PostgreSQL will stop with an error unless more is archived until then: on the living cluster, "
            "SELECT pg_switch_wal()"
        )


def _lost_words(index: WalIndex) -> str:
    if not index.lost:
        return ""
    return f" Not looked at, because it does not answer: location {', '.join(index.lost)}. Nothing was changed."


def first_segment(backup: BackupRecord) -> int:
    """The number of the first segment that a recovery from this backup reads."""
    info = postgres(backup)
    name = parse_wal_name(info.wal_start)
    return name.number(info.wal_segment_size)


def segment_of(lsn: int, backup: BackupRecord) -> int:
    """The number of the segment that holds an LSN."""
    return segment_number(lsn, postgres(backup).wal_segment_size)
