# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Full backups, and what compression alone costs."""

from __future__ import annotations

import shutil

from tests.benchmarks.database import settle
from tests.benchmarks.operations import BARE, FULL
from tests.benchmarks.session import Session
from tests.benchmarks.tools import LEVEL


def measure(session: Session, number: int) -> None:
    """One of each program."""
    settle(session.cluster)
    _compress_only(session)
    for tool in session.turns(number):
        with session.turn(tool, FULL), session.archiving(tool):
            session.backup(FULL, "full", tool)


def _compress_only(session: Session) -> None:
    """The cluster's files through zstd, on the same cores."""
    if shutil.which("zstd") is None:
        return
    data_dir = session.cluster.data_dir
    program = f"zstd -{LEVEL} -T{session.conditions.workers}"
    files = f"find {data_dir} -path '*/pg_wal/*' -o -type f -print0"
    # Nothing is written: a lower bound for every program that compresses at this level.
    pipe = f"{files} | xargs -0 cat | {program} --quiet --stdout > /dev/null"
    session.report.add(BARE, program, session.run(BARE, program, ["/bin/sh", "-c", pipe], data_dir))
