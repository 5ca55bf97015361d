# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How much more lies there than is needed, from headers alone."""

from __future__ import annotations

from cryobackup.report.amplification import of_backup, of_source
from cryobackup.repository.catalog import BackupRecord
from cryobackup.repository.model import FULL, INCREMENTAL, OK, BackupHeader, ForeignPackRow, PackRow, Totals

FIRST, SECOND = "20260101T000000Z-00000001", "20260102T000000Z-00000002"


def header(backup_id: str, packs: list[PackRow], foreign: list[ForeignPackRow]) -> BackupHeader:
    at = "2026-01-01T00:00:00+00:00"
    kind = INCREMENTAL if foreign else FULL
    return BackupHeader(
        backup_id, "main", kind, None, OK, "", at, at, "host", "1", None, {}, Totals(), packs=packs, foreign=foreign
    )


def test_a_full_backup_stores_what_it_needs() -> None:
    assert of_backup(header(FIRST, [PackRow(0, 300, b"a", 1000, 1000), PackRow(1, 30, b"b", 100, 100)], [])) == {
        "bytes_needed": 330,
        "amplification": 1.0,
        "live_ratios": [0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
    }


def test_packs_that_are_partly_dead() -> None:
    full = header(FIRST, [PackRow(0, 300, b"a", 1000, 1000), PackRow(1, 100, b"b", 100, 100)], [])
    half = header(SECOND, [PackRow(0, 150, b"c", 500, 500)], [ForeignPackRow(FIRST, 0, 300, b"a", 1000, 500)])
    assert of_backup(half) == {
        "bytes_needed": 300,
        "amplification": 1.5,
        "live_ratios": [0, 0, 0, 0, 1, 0, 0, 0, 0, 1],
    }
    # A pack that both need counts once, and one that only the older needs counts, too.
    records = [BackupRecord(full, ("here",)), BackupRecord(half, ("here",))]
    assert of_source(records) == {
        "packs": 3,
        "bytes_packs": 550,
        "bytes_full": 300,
        "amplification": 1.83,
        "newest": {"backup_id": SECOND, **of_backup(half)},
    }


def test_nothing_at_all() -> None:
    empty = header(FIRST, [PackRow(0, 40, b"a", 0, 0)], [])
    assert of_backup(empty) == {"bytes_needed": 0, "amplification": None, "live_ratios": [1, 0, 0, 0, 0, 0, 0, 0, 0, 0]}
