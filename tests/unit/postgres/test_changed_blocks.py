# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What several summaries say together, compared with a model that is a set of blocks; and how they arrive."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryobackup.errors import ClusterError
from cryobackup.postgres.changed_blocks import NO_LIMIT, ChangedBlocks, Locator, row_dtype
from cryobackup.postgres.summaries import RowStream

FORK = Locator(1663, 5, 16384, 0)
OTHER = Locator(1663, 5, 16384, 2)


def rows_of(locator: Locator, limit: int | None, blocks: list[int]) -> list[tuple[int, int, int, int, int, bool]]:
    head = (locator.relfilenode, locator.tablespace, locator.database, locator.fork)
    limits = [] if limit is None else [(*head, limit, True)]
    return [*limits, *((*head, block, False) for block in blocks)]


NUMBERS = st.integers(0, 200_000)
SUMMARY = st.tuples(st.none() | NUMBERS, st.lists(NUMBERS | st.integers(0, 40), unique=True, max_size=30))


@given(summaries=st.lists(SUMMARY, max_size=5), known=NUMBERS, stop=st.integers(1, 131072), segment=st.integers(0, 1))
@settings(max_examples=300, deadline=None)
def test_like_a_set(summaries: list[tuple[int | None, list[int]]], known: int, stop: int, segment: int) -> None:
    changed, model, lowest = ChangedBlocks(), set[int](), NO_LIMIT
    for limit, blocks in summaries:
        # What WAL changed before a relation was cut is not listed, nor what lay beyond: it was written again after.
        if limit is not None:
            model = {block for block in model if block < limit}
            lowest = min(lowest, limit)
        model |= {*blocks}
        rows = [*rows_of(FORK, limit, blocks), *rows_of(OTHER, None, [7])]
        for start in range(0, len(rows), 11):  # a summary comes in portions
            changed.add(np.array(rows[start : start + 11], row_dtype()))
    start = segment * 131072
    needed = changed.needed(FORK, start, start + stop, known)
    if lowest <= start:
        assert needed is None
        return
    assert needed is not None
    reliable = min(known, lowest)
    expected = [block for block in range(start, start + stop) if block in model or block >= reliable]
    assert needed.tolist() == expected


def test_many_blocks_take_little_room() -> None:
    changed = ChangedBlocks()
    for start in range(0, 1_000_000, 50_000):
        rows = np.zeros(50_000, row_dtype())
        rows["tablespace"], rows["database"], rows["relfilenode"] = FORK[:3]
        rows["block"] = np.arange(start, start + 50_000)
        changed.add(rows)
    assert changed.blocks == 1_000_000
    (fork,) = changed._forks.values()
    assert sum(chunk.nbytes for chunk in fork.chunks.values()) < 200_000
    needed = changed.needed(FORK, 131_072, 262_144, 1 << 31)
    assert needed is not None
    assert needed.tolist() == list(range(131_072, 262_144))


def wire(rows: list[tuple[int, int, int, int, int, bool]]) -> list[bytes]:
    """As libpq hands it out: a header with the first row, then row by row, then the end."""
    parts = [struct.pack(">hiIiIiIihiqi?", 6, 4, a, 4, b, 4, c, 2, d, 8, e, 1, f) for a, b, c, d, e, f in rows]
    head = b"PGCOPY\n\xff\r\n\0" + bytes(8)
    return [head + parts[0], *parts[1:], b"\xff\xff"] if parts else [head + b"\xff\xff"]


def stream(parts: list[bytes]) -> list[Any]:
    found: list[Any] = []
    made = RowStream(lambda rows: found.extend(rows.tolist()))
    for part in parts:
        made.write(part)
    made.finish()
    return found


@pytest.mark.parametrize("count", [0, 1, 5, 150_000])
def test_rows_arrive(count: int) -> None:
    rows = rows_of(Locator(4_000_000_000, 5, 3_000_000_000, 1), 12 if count else None, list(range(count)))
    assert stream(wire(rows)) == rows


@pytest.mark.parametrize(
    "parts",
    [
        [b"1\t2\t3\n"],
        [],
        wire(rows_of(FORK, None, [1, 2]))[:-1],
        [*wire(rows_of(FORK, None, [1, 2]))[:-1], b"\xff"],
        [part.replace(b"\0\x06\0\0\0\x04", b"\0\x06\0\0\0\x05") for part in wire(rows_of(FORK, None, [1, 2]))],
    ],
)
def test_what_is_no_such_answer(parts: list[bytes]) -> None:
    with pytest.raises(ClusterError, match="format"):
        stream(parts)
