# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long the program takes to start."""

from __future__ import annotations

from dataclasses import replace

from tests.benchmarks.operations import START
from tests.benchmarks.session import Session
from tests.benchmarks.tools import NAME

STARTS = 20


def measure(session: Session, number: int) -> None:
    """Once is enough: ``--version``, several times."""
    for _unused in range(STARTS if number == 0 else 0):
        run = session.stopwatch.run([session.program, "--version"])
        session.report.add(START, NAME, replace(run, value=run.seconds * 1000))
