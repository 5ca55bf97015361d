# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Timelines: where each branched off, and which positions lie on the way to it.

The format of history files and the rules are those of ``src/backend/access/transam/timeline.c``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import SourceError
from .lsn import format_lsn, segment_number

# Like the sscanf() in readTimeLineHistory: what follows the LSN is for people.
_LINE = re.compile(r"\s*(\d+)\s+([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})(?:\s(.*))?", re.ASCII | re.DOTALL)


@dataclass(frozen=True, slots=True)
class TimelineSwitch:
    """One line of a history file: ``timeline`` was left at ``switch_lsn`` for its child."""

    timeline: int
    switch_lsn: int
    reason: str


@dataclass(frozen=True, slots=True)
class TimelineSpan:
    """The part of a timeline that lies on the way: from ``begin`` to before ``end`` (None: no end yet)."""

    timeline: int
    begin: int
    end: int | None


@dataclass(frozen=True, slots=True)
class TimelineHistory:
    """The ancestry of ``timeline``; ``parents`` has the oldest ancestor first.

    Invariants: parents' numbers ascend and are below ``timeline``; switch positions never descend.
    """

    timeline: int
    parents: tuple[TimelineSwitch, ...] = ()

    def spans(self) -> tuple[TimelineSpan, ...]:
        """The way from the beginning of WAL to this timeline, without gaps or overlaps, oldest first."""
        spans = []
        begin = 0
        for parent in self.parents:
            spans.append(TimelineSpan(parent.timeline, begin, parent.switch_lsn))
            begin = parent.switch_lsn
        return (*spans, TimelineSpan(self.timeline, begin, None))

    def timeline_at(self, lsn: int) -> int:
        """The timeline that the byte at ``lsn`` belongs to (``tliOfPointInHistory``).

        A switch position itself belongs to the child: for the end of something, ask for the byte before.
        """
        for span in reversed(self.spans()):
            if span.begin <= lsn:
                return span.timeline
        raise ValueError(f"a log sequence number is not negative: {lsn}")

    def is_ancestor(self, timeline: int, lsn: int) -> bool:
        """Whether the byte at ``lsn`` on ``timeline`` lies on the way to this timeline, or on it.

        A backup that stopped on ``timeline`` at ``stop_lsn`` can be recovered to this timeline exactly
        when ``is_ancestor(timeline, stop_lsn - 1)``.
        """
        return self.timeline_at(lsn) == timeline

    def path_for(self, lsn: int) -> tuple[TimelineSpan, ...]:
        """The spans that lead from the beginning of WAL to before ``lsn``, the last one cut off there."""
        path = [span for span in self.spans() if span.begin < lsn]
        if not path:
            return ()
        last = path[-1]
        return (*path[:-1], TimelineSpan(last.timeline, last.begin, lsn))

    def way(self, begin: int, end: int) -> tuple[TimelineSpan, ...]:
        """The spans that lead from ``begin`` to before ``end``, each with both of its ends."""
        return tuple(
            TimelineSpan(span.timeline, max(span.begin, begin), end if span.end is None else span.end)
            for span in self.path_for(end)
            if span.end is None or span.end > max(span.begin, begin)
        )

    def timeline_of_segment(self, number: int, segment_size: int) -> int:
        """The timeline in whose name recovery first looks for segment ``number``: the youngest that has it.

        From ``XLogFileReadAnyTLI`` in ``xlogrecovery.c``: a timeline has its segments from the one with the
        switch position on, which it begins with a copy of its parent's.
        """
        for span in reversed(self.spans()):
            if segment_number(span.begin, segment_size) <= number:
                return span.timeline
        raise ValueError(f"a segment number is not negative: {number}")


def parse_history(text: str, timeline: int) -> TimelineHistory:
    """The contents of ``timeline``'s history file; SourceError ``history-format`` where PostgreSQL refuses.

    Comments and empty lines are skipped. Beyond PostgreSQL's own checks, switch positions must not
    descend. Timeline 1 has no history file: ``TimelineHistory(1)``.
    """
    parents: list[TimelineSwitch] = []
    for line in text.split("\n"):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise _bad_history(timeline, f"cannot make sense of the line {line!r}")
        lsn = int(match[2], 16) << 32 | int(match[3], 16)
        parents.append(TimelineSwitch(int(match[1]), lsn, (match[4] or "").strip()))
    history = TimelineHistory(timeline, tuple(parents))
    _check_order(history)
    return history


def _check_order(history: TimelineHistory) -> None:
    previous = TimelineSwitch(0, 0, "")
    for parent in history.parents:
        if parent.timeline <= previous.timeline:
            raise _bad_history(history.timeline, f"timeline {parent.timeline} comes after {previous.timeline}")
        if parent.switch_lsn < previous.switch_lsn:
            raise _bad_history(
                history.timeline,
                f"timeline {parent.timeline} was left at {format_lsn(parent.switch_lsn)}, before it began",
            )
        previous = parent
    if previous.timeline >= history.timeline:
        raise _bad_history(history.timeline, f"timeline {previous.timeline} cannot be its ancestor")


def _bad_history(timeline: int, reason: str) -> SourceError:
    return SourceError(
        f"the history file of timeline {timeline} is invalid: {reason}",
        hint="Fetch it again from the server that was promoted (pg_wal/*.history), or from another location.",
        id="history-format",
    )
