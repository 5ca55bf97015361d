# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything that is measured, by name."""

from __future__ import annotations

from dataclasses import dataclass

from .report import Operation


@dataclass(frozen=True)
class Change:
    """What happens to the cluster before an incremental backup.

    Attributes:
        fraction: Of the cluster's pages.
        clustered: In one place, not evenly over all tables.
    """

    fraction: float
    clustered: bool = False

    def __str__(self) -> str:
        return f"{self.fraction * 100:g} % {'clustered' if self.clustered else 'scattered'}"


CHANGES = tuple(Change(fraction, clustered) for fraction in (0.001, 0.01, 0.1) for clustered in (False, True))
FIRST_CHANGE = CHANGES[0]
DAMAGE = 0.001
"""Share of pages that are overwritten before a delta restore."""

START = Operation("start (--version)", "ms")
BARE = Operation("the same bytes, compressed only", whole=True)
FULL = Operation("full backup", whole=True)
RESTORE = Operation("restore of a full backup", whole=True)
DELTA = Operation(f"delta restore, {DAMAGE * 100:g} % changed")
INCREMENTALS = {change: Operation(f"incremental, {change}") for change in CHANGES}
UNCHANGED = Operation("incremental, nothing changed")
RESTORE_NEWEST = Operation("restore of the last incremental", whole=True)
DRAIN = Operation("WAL drained", "MB/s", more_is_better=True)
PUSH = Operation("a segment, one process", "ms")
ASK = Operation("a segment, archived already", "ms")
REPLAY_RATE = Operation("replay", "MB/s", more_is_better=True)
LOADED = Operation("pgbench during a full backup", "% of idle", more_is_better=True)
LOADED_BACKUP = Operation("full backup under pgbench")
LIMITED = Operation("pgbench during a limited full backup", "% of idle", more_is_better=True)
LIMITED_BACKUP = Operation("limited full backup under pgbench")

BRIEF = (FULL, RESTORE, DELTA, INCREMENTALS[FIRST_CHANGE], DRAIN)
"""What a program does that takes many times as long as all others."""
TOO_SLOW = "{name} takes too long to do everything; --thorough lets it."
