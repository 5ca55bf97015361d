# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which bytes of a file are stored again, whatever way the file is backed up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryobackup.postgres.changes import Identity, Method, Plan
from cryobackup.postgres.compaction import Compactor, blocks_of
from cryobackup.postgres.relfile import RelationFile, relation_file
from cryobackup.repository import extents as xt
from cryobackup.repository import model
from cryobackup.repository.compaction import CompactionPlan
from cryobackup.repository.model import Entry

BLOCK = 8192
BLOCKS = 40
GONE = 7
"""The pack that is to go."""
SMALL = 16 * BLOCK


def relation() -> RelationFile:
    found = relation_file("base/5/16384")
    assert found is not None
    return found


def entry(rows: list[tuple[int, int, int]]) -> Entry:
    """``rows``: offset, length, pack."""
    extents = xt.build([(offset, length, pack, 0, 0, bytes([pack + 1] * 16)) for offset, length, pack in rows])
    size = sum(length for _offset, length, _pack in rows)
    return Entry(b"base/5/16384", model.FILE, 0o600, 0, 0, size, extents=xt.pack(extents))


def identity(size: int) -> Identity:
    return Identity(size, 1, 1, 1, 1)


def compactor(**allowances: int) -> Compactor:
    plan = CompactionPlan({int(name[1:]): size for name, size in allowances.items()})
    return Compactor(plan, block_size=BLOCK, small_bytes=SMALL)


@st.composite
def files(draw: st.DrawFn) -> Entry:
    """Runs of blocks in three packs, or zeros."""
    rows, at = [], 0
    while at < BLOCKS:
        count = min(draw(st.integers(1, 6)), BLOCKS - at)
        rows.append((at * BLOCK, count * BLOCK, draw(st.sampled_from([0, 1, GONE]))))
        at += count
    return entry(rows)


def blocks_in(extents: xt.Extents, pack: int) -> set[int]:
    return {
        block
        for offset, length, field in extents[["offset", "length", "pack"]].tolist()
        for block in range(offset // BLOCK, (offset + length) // BLOCK)
        if field == pack
    }


@settings(deadline=None, database=None)
@given(files(), st.sets(st.integers(0, BLOCKS - 1)))
def test_all_of_a_pack_by_every_method(parent: Entry, changed: set[int]) -> None:
    extents, found = xt.unpack(parent.extents), identity(parent.size)
    wanted = blocks_in(extents, GONE)
    needed = np.array(sorted(changed), np.int64)

    unchanged = compactor(p7=1 << 30).extend(Plan(Method.UNCHANGED, parent), found, relation())
    assert unchanged.reads == bool(wanted)
    assert {*(unchanged.blocks if unchanged.blocks is not None else [])} == wanted

    summary = compactor(p7=1 << 30).extend(Plan(Method.WAL_SUMMARY, parent, needed), found, relation())
    assert summary.blocks is not None
    assert summary.blocks.tolist() == sorted(changed | wanted)
    # What changed is no business of compaction: were it broken, it would be stored as it is.
    assert {*(summary.again if summary.again is not None else [])} == wanted - changed

    lsn = compactor(p7=1 << 30).extend(Plan(Method.PAGE_LSN, parent), found, relation())
    assert {*(lsn.again if lsn.again is not None else [])} == wanted

    content = compactor(p7=1 << 30).extend(Plan(Method.CONTENT, parent), found, relation())
    kept = content.comparable if content.comparable is not None else extents
    assert kept["pack"].tolist() == [pack for pack in extents["pack"].tolist() if pack != GONE]


@settings(deadline=None, database=None)
@given(files(), st.integers(1, BLOCKS * BLOCK))
def test_the_allowance_holds_but_for_one_extent(parent: Entry, allowed: int) -> None:
    one = compactor(p7=allowed)
    one.extend(Plan(Method.PAGE_LSN, parent), identity(parent.size), relation())
    extents = xt.unpack(parent.extents)
    there = int(extents["length"][extents["pack"] == GONE].sum())
    assert min(there, allowed) <= one.bytes < allowed + 6 * BLOCK
    before = one.bytes
    one.extend(Plan(Method.PAGE_LSN, parent), identity(parent.size), relation())
    if before >= allowed:
        assert one.bytes == before


def test_a_file_that_was_cut_off_has_no_blocks_beyond_its_end() -> None:
    parent = entry([(0, 10 * BLOCK, GONE)])
    plan = compactor(p7=1 << 30).extend(Plan(Method.PAGE_LSN, parent), identity(4 * BLOCK), relation())
    assert plan.again is not None
    assert plan.again.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("method", "size", "pages", "touched"),
    [
        (Method.STORE, BLOCK, True, False),  # all of it is stored anyway
        (Method.UNCHANGED, BLOCK + 1, True, False),  # no whole pages
        (Method.UNCHANGED, 100, False, True),
        (Method.UNCHANGED, SMALL + BLOCK, False, False),  # all of it would have to be read
        (Method.CONTENT, SMALL + BLOCK, False, True),
    ],
)
def test_files_that_are_left_alone(method: Method, size: int, pages: bool, touched: bool) -> None:
    one = compactor(p7=1 << 30)
    plan = Plan(method, entry([(0, size, GONE)]))
    extended = one.extend(plan, identity(size), relation() if pages else None)
    assert (extended is not plan) == touched
    assert one.bytes == (size if touched else 0)
    if touched:
        assert extended.method is Method.CONTENT
        assert extended.comparable is not None
        assert len(extended.comparable) == 0


def test_blocks_of_extents_that_do_not_end_with_a_block() -> None:
    extents = xt.build([(100, BLOCK, 0, 0, 0, bytes(16)), (5 * BLOCK - 1, 2, 0, 0, 0, bytes(16))])
    assert blocks_of(extents, BLOCK, 5).tolist() == [0, 1, 4]
    assert blocks_of(extents[:0], BLOCK, 5).tolist() == []
