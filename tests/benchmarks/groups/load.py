# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a full backup costs those who use the database meanwhile: pgbench's throughput, with and without a limit."""

from __future__ import annotations

import time
from dataclasses import replace

from tests.benchmarks.database import IDLE_ARCHIVING, archive_with, pgbench
from tests.benchmarks.operations import LIMITED, LIMITED_BACKUP, LOADED, LOADED_BACKUP
from tests.benchmarks.report import Operation
from tests.benchmarks.session import Session, say
from tests.benchmarks.tools import Ability, Tool
from tests.lab import Pgbench

IDLE_SECONDS = 5.0
WARM_UP_SECONDS = 1.0
LIMITED_SECONDS = 8.0
"""The limit is such that reading the database takes so long."""


def measure(session: Session, number: int) -> None:
    """Each program's backups under load, in relation to pgbench alone, right before."""
    cluster = session.cluster
    limit = max(1 << 20, int(session.report.database_bytes / LIMITED_SECONDS))
    session.report.facts["limit"] = f"{limit / 1e6:.0f} MB/s for the limited backups"
    # Whoever waits for commits wants them on the disk.
    cluster.configure(fsync=True)
    try:
        for tool in session.turns(number):
            if not session.can(tool, LOADED) or not session.can(tool, LOADED_BACKUP):
                continue
            with session.turn(tool, LOADED):
                archive_with(cluster, IDLE_ARCHIVING)
                cluster.checkpoint()
                load = pgbench(session.workspace, cluster, session.conditions.gigabytes)
                with load, session.archiving(tool):
                    time.sleep(WARM_UP_SECONDS)
                    idle = _rate_alone(load)
                    _under_load(session, tool, load, idle, None)
                    limited = session.can(tool, LIMITED, Ability.LIMIT)
                    if session.can(tool, LIMITED_BACKUP, Ability.LIMIT) and limited:
                        _under_load(session, tool, load, idle, limit)
    finally:
        cluster.configure(fsync=False)


def _rate_alone(load: Pgbench) -> float:
    """Transactions per second while no backup runs."""
    before, started = load.transactions, time.monotonic()
    time.sleep(IDLE_SECONDS)
    return (load.transactions - before) / (time.monotonic() - started)


def _under_load(session: Session, tool: Tool, load: Pgbench, idle: float, limit: int | None) -> None:
    share: Operation = LOADED if limit is None else LIMITED
    duration: Operation = LOADED_BACKUP if limit is None else LIMITED_BACKUP
    before, started = load.transactions, time.monotonic()
    # No state of the page cache is made: the load reads the database, too.
    run = session.plain_backup("full", tool, limit=limit)
    rate = (load.transactions - before) / (time.monotonic() - started)
    say(f"  {duration.name:<36} {tool.name:<20} {run.seconds:8.3f} s, {rate:.0f} of {idle:.0f} transactions/s")
    session.report.add(duration, tool.name, run)
    session.report.add(share, tool.name, replace(run, value=100 * rate / idle, peak_bytes=0, cpu_seconds=0.0))
