# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Recovery from the archive: how fast PostgreSQL replays WAL that each program's ``restore_command`` fetches."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

from tests.benchmarks.database import SEGMENT_BYTES, SETTINGS, write_rows
from tests.benchmarks.measure import Run, RunFailed, set_page_cache
from tests.benchmarks.operations import REPLAY_RATE
from tests.benchmarks.session import Session, say
from tests.benchmarks.tools import Ability, Tool
from tests.lab import Cluster, wait_until

REPLAYED = 16
"""Segments."""
TIMEOUT_SECONDS = 600
_LINE = re.compile(r"^(\S+ \S+) UTC \[\d+\] LOG:  redo (starts|done) at ([0-9A-F]+)/([0-9A-F]+)", re.MULTILINE)


def measure(session: Session, number: int) -> None:
    """Each program's newest backup, and the WAL of the same work after it."""
    for tool in session.turns(number):
        if session.can(tool, REPLAY_RATE, Ability.REPLAY):
            with session.turn(tool, REPLAY_RATE), session.target() as target:
                _replay(session, tool, target)


def _replay(session: Session, tool: Tool, target: Path) -> None:
    cluster = session.cluster
    with session.archiving(tool):
        # A new one: WAL since the last has gone elsewhere.
        session.plain_backup("full" if Ability.INCREMENTAL in tool.cannot else "incremental", tool)
        before = _position(cluster)
        while _position(cluster) - before < REPLAYED * SEGMENT_BYTES:
            write_rows(cluster)
        lsn = cluster.lsn()
        cluster.wait_archived(cluster.switch_wal(), timeout=300)
        rest = tool.drained()
        if rest is not None:
            session.stopwatch.run(rest)
    session.stopwatch.run(tool.restore(target, lsn=lsn))
    set_page_cache([*tool.store.files, target], warm=session.conditions.warm)
    settings = {"shared_buffers": SETTINGS["shared_buffers"], "log_checkpoints": False}
    restored = session.workspace.adopt(target, name=f"replayed-{target.name}", settings=settings)
    try:
        restored.start(timeout=TIMEOUT_SECONDS)
        wait_until(lambda: not restored.value("SELECT pg_is_in_recovery()"), "the end of recovery", TIMEOUT_SECONDS)
        seconds, size = _redo(restored)
    finally:
        restored.close()
    say(f"  {REPLAY_RATE.name:<36} {tool.name:<20} {seconds:8.3f} s for {size / 1e6:.0f} MB")
    session.report.add(REPLAY_RATE, tool.name, Run(seconds, 0.0, 0, 0.0, value=size / seconds / 1e6))


def _position(cluster: Cluster) -> int:
    return int(cluster.value("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn"))


def _redo(restored: Cluster) -> tuple[float, int]:
    """Seconds and bytes of WAL between the first record and the last that was replayed, as the server's log has it."""
    found = {}
    for time, what, high, low in _LINE.findall(restored.log_file.read_text()):
        moment = datetime.datetime.fromisoformat(time).replace(tzinfo=datetime.UTC)
        found[what] = (moment, (int(high, 16) << 32) + int(low, 16))
    if {*found} != {"starts", "done"}:
        raise RunFailed(f"the server's log tells nothing of a recovery:\n{restored.log_tail()}")
    (began, first), (ended, last) = found["starts"], found["done"]
    return max((ended - began).total_seconds(), 0.001), last - first
