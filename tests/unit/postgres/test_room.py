# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How much a backup takes at least: never more than what earlier ones of its kind let one expect."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryobackup.postgres.room import Wanted, least_needed
from cryobackup.repository.catalog import BackupRecord
from cryobackup.repository.holdings import Room
from cryobackup.repository.model import BackupHeader, PackRow, Totals

GB = 10**9


def record(kind: str, source: int, stored: int) -> BackupRecord:
    header = BackupHeader(
        backup_id="20261123T010000Z-00000000",
        source="main",
        kind=kind,
        parent=None,
        status="ok",
        label="",
        started_at="2026-11-23T01:00:00+00:00",
        finished_at="2026-11-23T01:02:00+00:00",
        host="db1",
        tool_version="0.1.0",
        postgres=None,
        change_detection={},
        totals=Totals(bytes_source=source),
        packs=[PackRow(0, stored, b"", stored)],
    )
    return BackupRecord(header, ("local",))


@pytest.mark.parametrize(
    ("kind", "size", "earlier", "needed"),
    [
        ("full", 100 * GB, [], 10 * GB),
        ("full", None, [], 0),
        ("full", 100 * GB, [("full", 50 * GB, 20 * GB)], 36 * GB),
        ("full", None, [("full", 50 * GB, 20 * GB)], 18 * GB),
        ("full", 100 * GB, [("full", 50 * GB, 20 * GB), ("full", 50 * GB, 10 * GB)], 18 * GB),
        ("full", 100 * GB, [("full", 50 * GB, 5 * GB), *[("full", 50 * GB, 10 * GB)] * 5], 18 * GB),
        ("full", 100 * GB, [("incremental", 50 * GB, 1)], 10 * GB),
        ("full", 100 * GB, [("full", 0, 5)], 10 * GB),
        ("incremental", 100 * GB, [], 0),
        ("incremental", 100 * GB, [("full", 50 * GB, 20 * GB)], 0),
        ("incremental", 100 * GB, [("incremental", 50 * GB, 3 * GB), ("incremental", 50 * GB, GB)], GB),
    ],
)
def test_least_needed(kind: str, size: int | None, earlier: list[tuple[str, int, int]], needed: int) -> None:
    assert least_needed(Wanted("main", kind, size), [record(*each) for each in earlier]) == needed


@given(
    st.sampled_from(["full", "incremental"]),
    st.integers(0, 10**12),
    st.lists(st.tuples(st.sampled_from(["full", "incremental"]), st.integers(1, 10**12), st.integers(0, 10**12))),
)
def test_no_backup_that_is_like_an_earlier_one_is_refused(
    kind: str, size: int, earlier: list[tuple[str, int, int]]
) -> None:
    needed = least_needed(Wanted("main", kind, size), [record(*each) for each in earlier])
    for of_kind, source, stored in [each for each in earlier if each[0] == kind][-5:]:
        if of_kind == "incremental":
            assert needed <= stored
        else:
            assert needed <= size * (stored / source) + 1


@pytest.mark.parametrize(
    ("room", "left", "by_quota"),
    [
        (Room(None, None, None, None), None, False),
        (Room(None, 5, 10, None), 5, False),
        (Room(7, None, None, 10), 3, True),
        (Room(7, 2, 10, 10), 2, False),
        (Room(7, 5, 10, 10), 3, True),
        (Room(12, None, None, 10), 0, True),
    ],
)
def test_room(room: Room, left: int | None, by_quota: bool) -> None:
    assert (room.left, room.by_quota) == (left, by_quota)
