# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is measured: one file for each group, with a function ``measure`` for one round."""

from __future__ import annotations

from collections.abc import Callable

from tests.benchmarks.session import Session

from . import full, incremental, load, replay, restore, start, wal

GROUPS: dict[str, Callable[[Session, int], None]] = {
    "start": start.measure,
    "full": full.measure,
    "restore": restore.measure,
    "incremental": incremental.measure,
    "wal": wal.measure,
    "replay": replay.measure,
    "load": load.measure,
}
"""By the name that the command line has for them, in the order in which a round measures them."""
