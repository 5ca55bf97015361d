# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which backup a recovery starts from, and along which timelines it goes. Pure.

A backup leads to a point when it was consistent before that point (its *stop* is what counts, never
its start), and when its end lies on the way to the timeline that is wanted. Of those the newest is
taken: it needs the least WAL.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ..errors import TargetError
from ..repository.catalog import BackupRecord
from ..repository.model import OK, PHYSICAL, PostgresInfo
from .lsn import format_lsn, parse_lsn
from .recovery import CURRENT_TIMELINE, LATEST_TIMELINE, RecoveryTarget
from .restore_branches import Branches, LeftOut
from .timeline import TimelineHistory


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    backup: BackupRecord
    history: TimelineHistory
    """The way to the timeline that recovery is to end on."""
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Wish:
    """What recovery is to reach."""

    goal: RecoveryTarget
    timeline: str = LATEST_TIMELINE
    """``latest``, ``current`` or a decimal number."""
    found_lsn: int | None = None
    """Where the restore point or the transaction lies, when the goal is one and it was looked for."""

    @property
    def lsn(self) -> int | None:
        """The position that the backup must end before."""
        return self.goal.lsn if self.goal.lsn is not None else self.found_lsn


def choose(
    backups: t.Sequence[BackupRecord], wish: Wish, branches: Branches, *, named: BackupRecord | None = None
) -> Choice:
    """The newest backup that leads to the wish, or ``named`` if that one does.

    Args:
        backups: All of one source and one system identifier; others than physical ones are passed over.
        wish: What to reach.
        branches: What the WAL archive has.
        named: The backup the user named, which is then the only candidate.

    Raises:
        TargetError: ids ``no-backup``, ``too-early``, ``no-such-timeline``, ``ambiguous-timeline``.
    """
    physical = [backup for backup in backups if backup.header.kind in PHYSICAL]
    candidates = [named] if named is not None else physical
    if not candidates:
        raise no_backup()
    if wish.timeline == CURRENT_TIMELINE:
        # Positions of different branches cannot be compared, times can.
        backup, warnings = _best(candidates, wish, newest=lambda backup: backup.finished.timestamp())
        return Choice(backup, branches.history(postgres(backup).timeline), tuple(warnings))
    timeline = _timeline(wish, branches, named)
    history = branches.history(timeline)
    on_way = [backup for backup in candidates if leads_to(backup, history)]
    if not on_way:
        raise _no_way(candidates, history)
    backup, warnings = _best(on_way, wish)
    left_out = relevant(branches.left_out(timeline), wish, on_way)
    if wish.timeline == LATEST_TIMELINE:
        if named is None:
            branches.check_unambiguous(timeline, left_out)
        warnings += [_left_out_words(timeline, other) for other in left_out]
    return Choice(backup, history, tuple(warnings))


def no_backup() -> TargetError:
    """There is nothing at all to choose from."""
    return TargetError(
        "there is no backup to restore from",
        hint="`cryobackup list` shows what there is. Nothing was changed.",
        id="no-backup",
    )


def postgres(backup: BackupRecord) -> PostgresInfo:
    """What the backup says about its cluster. Raises TargetError for a backup of something else."""
    if backup.header.postgres is None or backup.header.kind not in PHYSICAL:
        raise TargetError(
            f"backup {backup.id} is no physical backup of a cluster ({backup.header.kind})",
            hint="`cryobackup list SOURCE` shows the backups of a cluster.",
            id="no-backup",
        )
    return backup.header.postgres


def stop_lsn(backup: BackupRecord) -> int:
    """From here on the backup is consistent."""
    return parse_lsn(postgres(backup).stop_lsn)


def leads_to(backup: BackupRecord, history: TimelineHistory) -> bool:
    """Whether the end of the backup lies on the way to the history's timeline."""
    return history.is_ancestor(postgres(backup).timeline, stop_lsn(backup) - 1)


def relevant(left_out: t.Iterable[LeftOut], wish: Wish, on_way: t.Sequence[BackupRecord]) -> list[LeftOut]:
    """Without those that part only behind the goal: there the ways are still one.

    For a time that is certain only when a backup on the way was begun later than it, and before the
    fork: what was committed behind the fork was committed after that.
    """

    def shared(other: LeftOut) -> bool:
        if wish.lsn is not None:
            return wish.lsn < other.fork_lsn
        begun = [b.started for b in on_way if parse_lsn(postgres(b).start_lsn) <= other.fork_lsn]
        return wish.goal.time is not None and any(wish.goal.time < when for when in begun)

    return [other for other in left_out if not shared(other)]


def _timeline(wish: Wish, branches: Branches, named: BackupRecord | None) -> int:
    if wish.timeline != LATEST_TIMELINE:
        return int(wish.timeline)
    if named is None:
        return branches.newest
    # Who names a backup means its branch, also when a younger one left it before.
    reachable = [number for number, branch in branches.branches.items() if leads_to(named, branch.history)]
    return max(reachable, default=postgres(named).timeline)


def _best(
    candidates: t.Sequence[BackupRecord],
    wish: Wish,
    *,
    newest: t.Callable[[BackupRecord], float] = stop_lsn,
) -> tuple[BackupRecord, list[str]]:
    before = [backup for backup in candidates if _ends_before(backup, wish)]
    if not before:
        raise _too_early(candidates, wish)
    sound = [backup for backup in before if backup.header.status == OK and not backup.known_bad]
    best = max(sound or before, key=lambda backup: (newest(backup), backup.finished, backup.id))
    warnings = []
    if best.known_bad and best.verified is not None:
        warnings.append(f"backup {best.id} did not pass its verification of {best.verified.at}")
    if sound:
        passed_over = [backup.id for backup in before if backup.known_bad and newest(backup) > newest(best)]
        if passed_over:
            warnings.append(
                f"newer backups are passed over, as they did not pass verification: {', '.join(passed_over)}"
            )
    if best.header.status != OK:
        why = "" if len(candidates) == 1 else "; there is no other that leads to the goal"
        warnings.append(f"backup {best.id} is {best.header.status}: not all of it could be read when it was made{why}")
    return best, warnings


def _ends_before(backup: BackupRecord, wish: Wish) -> bool:
    if wish.lsn is not None:
        return stop_lsn(backup) <= wish.lsn
    # The backup's own clock readings are later than its stop: a commit before them may lie behind it,
    # a commit after them does for sure.
    return wish.goal.time is None or backup.finished < wish.goal.time


def _too_early(candidates: t.Sequence[BackupRecord], wish: Wish) -> TargetError:
    if wish.lsn is not None:
        first = min(candidates, key=stop_lsn)
        earliest = format_lsn(stop_lsn(first))
        what = "LSN"
    else:
        first = min(candidates, key=lambda backup: backup.finished)
        earliest = first.finished.isoformat()
        what = "time"
    where = f" ({format_lsn(wish.found_lsn)})" if wish.found_lsn is not None else ""
    return TargetError(
        f"{wish.goal}{where} is before the end of "
        + (f"backup {first.id}" if len(candidates) == 1 else f"every backup that leads there ({len(candidates)})"),
        hint=f"The earliest {what} that can be restored is {earliest} (backup {first.id}). Nothing was changed.",
        id="too-early",
    )


def _no_way(candidates: t.Sequence[BackupRecord], history: TimelineHistory) -> TargetError:
    timelines = sorted({postgres(backup).timeline for backup in candidates})
    if len(candidates) == 1:
        words = f"backup {candidates[0].id}, on timeline {timelines[0]}, does not lead to timeline {history.timeline}"
    else:
        words = f"no backup leads to timeline {history.timeline}"
    return TargetError(
        words,
        hint=f"There are backups on timeline {', '.join(map(str, timelines))}: --timeline {timelines[-1]}, or "
        "--timeline current for the backup's own. Nothing was changed.",
        id="no-backup",
    )


def _left_out_words(timeline: int, other: LeftOut) -> str:
    return (
        f"this follows timeline {timeline}. Timeline {other.timeline} goes on behind {format_lsn(other.fork_lsn)}, "
        f"where they part; --timeline {other.timeline} restores that branch instead"
    )
