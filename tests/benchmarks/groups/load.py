# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a full backup costs those who use the database meanwhile: pgbench's throughput, with and without a limit."""

from __future__ import annotations

import time
from dataclasses import replace

from tests.benchmarks.database import IDLE_ARCHIVING, archive_with, pgbench
from tests.benchmarks.measure import Run
from tests.benchmarks.operations import LIMITED, LIMITED_BACKUP, LOADED, LOADED_BACKUP
from tests.benchmarks.session import Session, say
from tests.benchmarks.tools import Ability, Tool
from tests.lab import Pgbench

IDLE_SECONDS = 4.0
WARM_UP_SECONDS = 1.0
LIMITED_SECONDS = 8.0
"""The limit is such that reading the database takes so long."""


def measure(session: Session, number: int) -> None:
    """Each program's backups under load, in relation to pgbench alone, right before and right after."""
    cluster = session.cluster
    limit = max(1 << 20, int(session.report.database_bytes / LIMITED_SECONDS))
    session.report.facts["limit"] = f"{limit / 1e6:.0f} MB/s for the limited backups"
    # Whoever waits for commits wants them on the disk.
    cluster.configure(fsync=True)
    try:
        for tool in session.turns(number):
            # Asked of each, since each that is not measured has a reason in the table.
            free = [session.can(tool, each) for each in (LOADED, LOADED_BACKUP)]
            limited = [session.can(tool, each, Ability.LIMIT) for each in (LIMITED, LIMITED_BACKUP)]
            if all(free):
                with session.turn(tool, LOADED):
                    _measure(session, tool, limit if all(limited) else None)
    finally:
        cluster.configure(fsync=False)


def _measure(session: Session, tool: Tool, limit: int | None) -> None:
    """``limit``: bytes a second of another backup, if there shall be one."""
    archive_with(session.cluster, IDLE_ARCHIVING)
    session.cluster.checkpoint()
    load = pgbench(session.workspace, session.cluster, session.conditions.gigabytes)
    with load, session.archiving(tool):
        time.sleep(WARM_UP_SECONDS)
        before = _rate_alone(load)
        runs = [(LOADED, LOADED_BACKUP, *_under_load(session, tool, load, None))]
        if limit is not None:
            runs.append((LIMITED, LIMITED_BACKUP, *_under_load(session, tool, load, limit)))
        idle = max((before + _rate_alone(load)) / 2, 1e-9)
    for share, duration, run, rate in runs:
        say(f"  {duration.name:<36} {tool.name:<20} {run.seconds:8.3f} s, {rate:.0f} of {idle:.0f} transactions/s")
        session.report.add(duration, tool.name, run)
        session.report.add(share, tool.name, replace(run, value=100 * rate / idle, peak_bytes=0, cpu_seconds=0.0))


def _rate_alone(load: Pgbench) -> float:
    """Transactions per second while no backup runs."""
    before, started = load.transactions, time.monotonic()
    time.sleep(IDLE_SECONDS)
    return (load.transactions - before) / (time.monotonic() - started)


def _under_load(session: Session, tool: Tool, load: Pgbench, limit: int | None) -> tuple[Run, float]:
    """A full backup, and the transactions per second meanwhile."""
    before, started = load.transactions, time.monotonic()
    # No state of the page cache is made: the load reads the database, too.
    run = session.plain_backup("full", tool, limit=limit)
    return run, (load.transactions - before) / (time.monotonic() - started)
