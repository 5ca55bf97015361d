# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Incremental backups after changes of several sizes, and a restore of the last of them."""

from __future__ import annotations

from tests.benchmarks.changes import change_pages
from tests.benchmarks.database import IDLE_ARCHIVING, archive_with, settle
from tests.benchmarks.operations import FIRST_CHANGE, INCREMENTALS, RESTORE_NEWEST, UNCHANGED
from tests.benchmarks.report import Operation
from tests.benchmarks.session import Session
from tests.benchmarks.tools import Ability


def measure(session: Session, number: int) -> None:
    """Each program makes one after each change: a chain, for those that have chains."""
    archive_with(session.cluster, IDLE_ARCHIVING)
    for tool in session.turns(number):
        if Ability.INCREMENTAL in tool.cannot:
            continue
        with session.turn(tool, INCREMENTALS[FIRST_CHANGE]), session.archiving(tool):
            session.prepare_backup(tool, "full", "incremental")
    changed = []
    for place, (change, operation) in enumerate(INCREMENTALS.items(), 1):
        pages = change_pages(session.cluster, change, number * len(INCREMENTALS) + place)
        changed.append(f"{pages} ({change})")
        settle(session.cluster)
        _backups(session, number, operation)
        if change == FIRST_CHANGE:
            _backups(session, number, UNCHANGED)
    session.report.facts["pages changed"] = ", ".join(changed)
    for tool in session.turns(number):
        with session.turn(tool, RESTORE_NEWEST), session.target() as target:
            if session.can(tool, RESTORE_NEWEST, Ability.INCREMENTAL):
                session.measure(RESTORE_NEWEST, tool, tool.restore(target), *tool.store.files)
                session.check(tool, target)


def _backups(session: Session, number: int, operation: Operation) -> None:
    for tool in session.turns(number):
        if session.can(tool, operation, Ability.INCREMENTAL):
            with session.turn(tool, operation), session.archiving(tool):
                session.backup(operation, "incremental", tool)
