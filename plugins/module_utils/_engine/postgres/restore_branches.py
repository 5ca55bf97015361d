# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The timelines of a WAL archive as branches of one history, and which of them "latest" means. Pure.

PostgreSQL's own ``recovery_target_timeline = 'latest'`` is the highest number in the archive. That is
right after a promotion and after a recovery in place. It is wrong, and silently so, when a copy of the
cluster was promoted and archived into the archive of its source: the living cluster is then on a lower
number. Such a state shows: the timeline that was left has received WAL after the newest WAL of the one
that left it. Then nobody but the user can say which one is meant.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ..errors import TargetError
from .lsn import format_lsn
from .timeline import TimelineHistory


@dataclasses.dataclass(frozen=True, slots=True)
class Segment:
    """A complete segment of the archive."""

    number: int
    archived_at: float
    """Seconds since 1970 by the storage's clock: all that it holds was written before."""


@dataclasses.dataclass(frozen=True, slots=True)
class Branch:
    """What the archive has of one timeline."""

    history: TimelineHistory
    segments: tuple[Segment, ...] = ()
    """In order of their numbers."""
    history_archived_at: float | None = None

    @property
    def newest_at(self) -> float:
        """When it last received anything; 0 when it never did."""
        times = [segment.archived_at for segment in self.segments]
        return max([*times, self.history_archived_at or 0.0])


@dataclasses.dataclass(frozen=True, slots=True)
class LeftOut:
    """WAL of another timeline that does not lie on the way to the chosen one."""

    timeline: int
    fork_lsn: int
    """Up to here both ways are one."""
    newest_at: float
    """When the last segment behind the fork was archived, seconds since 1970."""


@dataclasses.dataclass(frozen=True, slots=True)
class Branches:
    """All timelines of a cluster that are known, by number."""

    branches: t.Mapping[int, Branch]
    segment_size: int

    def history(self, timeline: int) -> TimelineHistory:
        """Raises TargetError, id ``no-such-timeline``."""
        branch = self.branches.get(timeline)
        if branch is None:
            known = ", ".join(map(str, sorted(self.branches))) or "none"
            raise TargetError(
                f"the archive does not know timeline {timeline}",
                hint=f"Timelines with WAL or a history file: {known}.",
                id="no-such-timeline",
            )
        return branch.history

    @property
    def newest(self) -> int:
        """The highest timeline."""
        return max(self.branches, default=1)

    def left_out(self, chosen: int) -> list[LeftOut]:
        """Complete segments on other timelines, behind the point where they and the chosen one part."""
        way = self.history(chosen)
        found = []
        for timeline, branch in self.branches.items():
            fork = fork_of(way, branch.history)
            if timeline == chosen or fork is None:
                continue
            # Of the segment with the fork in it nobody can tell by its name how far it goes.
            beyond = [s.archived_at for s in branch.segments if s.number * self.segment_size >= fork]
            if beyond:
                found.append(LeftOut(timeline, fork, max(beyond)))
        return found

    def check_unambiguous(self, chosen: int, left_out: t.Iterable[LeftOut]) -> None:
        """Raises TargetError, id ``ambiguous-timeline``, when another branch is the one that lives."""
        for other in left_out:
            if other.newest_at > self.branches[chosen].newest_at:
                raise TargetError(
                    f"two branches of the cluster's history have WAL: timeline {chosen} is the highest, "
                    f"but timeline {other.timeline}, which it left at {format_lsn(other.fork_lsn)}, got WAL later",
                    hint=f"Was a copy promoted that archives here? Say which one is meant: --timeline "
                    f"{other.timeline} or --timeline {chosen}.",
                    id="ambiguous-timeline",
                )


def fork_of(one: TimelineHistory, other: TimelineHistory) -> int | None:
    """The LSN where the ways to two timelines part; None when ``other`` lies on the way to ``one`` or is it.

    A timeline that was left lies on the way only up to where it was left: behind that, it parts.
    """
    for mine, theirs in zip(one.spans(), other.spans(), strict=False):
        if mine == theirs:
            continue
        if mine.timeline != theirs.timeline:
            return min(mine.begin, theirs.begin)
        if mine.end is None:
            return theirs.end if theirs.end is not None else None
        return mine.end if theirs.end is None else min(mine.end, theirs.end)
    return None
