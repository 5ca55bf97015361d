# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way of WAL into the archive: a queue, a single segment, and the answer that a segment is there already."""

from __future__ import annotations

import time

from tests.benchmarks.database import IDLE_ARCHIVING, SEGMENT_BYTES, archive_with, write_segments
from tests.benchmarks.measure import Run
from tests.benchmarks.operations import ASK, DRAIN, PUSH
from tests.benchmarks.session import Session, say
from tests.benchmarks.tools import Ability, Tool

PUSHES = 5
ASKS = 20
DRAINED = 32


def measure(session: Session, number: int) -> None:
    """The same segments, one by one, for each program; then a queue of its own for each."""
    archive_with(session.cluster, IDLE_ARCHIVING)
    segments = write_segments(session.cluster, PUSHES)
    for tool in session.turns(number):
        if session.can(tool, PUSH, Ability.PUSH):
            with session.turn(tool, PUSH):
                for segment in segments:
                    session.measure(PUSH, tool, tool.wal_push(segment), segment.parent)
        if session.can(tool, ASK, Ability.ASK):
            with session.turn(tool, ASK), tool.archiving():
                # PostgreSQL has not asked yet, so that what archives ahead still remembers the answer.
                session.stopwatch.run(tool.wal_ask(segments[-1]))
                for _unused in range(ASKS):
                    session.measure(ASK, tool, tool.wal_ask(segments[-1]))
    for tool in session.turns(number):
        if session.can(tool, DRAIN, Ability.ARCHIVE):
            with session.turn(tool, DRAIN):
                _drain(session, tool)


def _drain(session: Session, tool: Tool) -> None:
    """From the moment that PostgreSQL is told to archive until all that has piled up is in the archive."""
    archive_with(session.cluster, IDLE_ARCHIVING)
    count = len(write_segments(session.cluster, DRAINED))
    with tool.archiving() as command:
        started = time.monotonic()
        archive_with(session.cluster, command)
        rest = tool.drained()
        if rest is not None:
            session.stopwatch.run(rest)
        seconds = time.monotonic() - started
        archive_with(session.cluster, IDLE_ARCHIVING)
    say(f"  {DRAIN.name:<36} {tool.name:<20} {seconds:8.3f} s for {count} segments")
    rate = count * SEGMENT_BYTES / seconds / 1e6
    session.report.add(DRAIN, tool.name, Run(seconds, 0.0, tool.archiver_bytes, 0.0, value=rate))
