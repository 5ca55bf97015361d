# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Restores of a full backup, into an empty directory and into one of which little differs."""

from __future__ import annotations

from tests.benchmarks.changes import damage_pages
from tests.benchmarks.operations import DAMAGE, DELTA, RESTORE
from tests.benchmarks.session import Session
from tests.benchmarks.tools import Ability


def measure(session: Session, number: int) -> None:
    """One restore of each program, and one with delta where it has that."""
    for tool in session.turns(number):
        with session.turn(tool, RESTORE), session.target() as target:
            with session.archiving(tool):
                session.prepare_backup(tool, "full")
            session.measure(RESTORE, tool, tool.restore(target), *tool.store.files)
            session.check(tool, target)
            if not session.can(tool, DELTA, Ability.DELTA):
                continue
            damage_pages(target, DAMAGE, number)
            session.measure(DELTA, tool, tool.restore(target, delta=True), *tool.store.files, target)
            session.check(tool, target)
