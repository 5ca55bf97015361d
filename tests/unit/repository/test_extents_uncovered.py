# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of an older version of a file still shows under a newer one: against a reference of single bytes."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cryobackup.repository import extents as xt

Piece = tuple[int, int, bool]
"""Length, pack (0 to 3, where 3 stands for zeros), whether there is a gap instead."""

pieces = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 3), st.booleans()), max_size=12)


def build(parts: list[Piece], *, gaps: bool, base: int) -> xt.Extents:
    rows = []
    offset = 0
    for number, (length, pack, gap) in enumerate(parts):
        if not (gap and gaps):
            digest = bytes([number + 1]) * 16
            if pack == 3:
                rows.append((offset, length, xt.ZEROS, 0, 0, xt.UNKNOWN_DIGEST))
            else:
                rows.append((offset, length, base + pack, number, number * 7, digest))
        offset += length
    return xt.build(rows)


def by_bytes(extents: xt.Extents) -> dict[int, tuple[int, int, int]]:
    """Byte of the file → (pack, frame, byte in the frame); for zeros the last two are 0."""
    found = {}
    for offset, length, pack, frame, start, _unused in extents.tolist():
        for at in range(length):
            assert offset + at not in found, "overlap"
            found[offset + at] = (pack, frame, 0 if pack == xt.ZEROS else start + at)
    return found


@settings(max_examples=500)
@given(old=pieces, new=pieces, size=st.integers(0, 60))
def test_against_single_bytes(old: list[Piece], new: list[Piece], size: int) -> None:
    before = build(old, gaps=False, base=0)
    after = build(new, gaps=True, base=10)
    after = after[after["offset"].astype(int) + after["length"].astype(int) <= size]
    shows = xt.uncovered(before, after, size)
    covered = by_bytes(after)
    expected = {at: place for at, place in by_bytes(before).items() if at not in covered and at < size}
    assert by_bytes(shows) == expected
    assert shows.dtype == xt.dtype()
    # A digest stays exactly with an extent that was not cut.
    whole = {(row["offset"], row["length"]): row["digest"].tobytes() for row in before}
    for row in shows:
        wanted = whole.get((row["offset"], row["length"]), xt.UNKNOWN_DIGEST)
        assert row["digest"].tobytes() == wanted


def test_thousands_of_scattered_pages() -> None:
    page = 8192
    old = xt.build([(at << 20, 1 << 20, 0, at, 0, b"o" * 16) for at in range(1024)])
    new = xt.build([(at * 2 * page, page, 1, at // 128, at % 128 * page, b"n" * 16) for at in range(65536)])
    shows = xt.uncovered(old, new, 1 << 30)
    assert len(shows) == 65536
    assert int(shows["length"].sum()) == 1 << 29
    assert np.array_equal(shows["offset"], np.arange(65536) * 2 * page + page)


def test_byte_order_is_that_of_the_format() -> None:
    one = xt.build([(1, 2, 3, 4, 5, b"x" * 16)])
    assert xt.pack(xt.concatenate([one, one])) == xt.pack(one) * 2
    assert xt.pack(one.astype(one.dtype.newbyteorder("<"))) == xt.pack(one)


@settings(max_examples=200)
@given(parts=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 3), st.booleans()), max_size=40), gaps=st.booleans())
def test_few_and_many_extents_are_judged_alike(parts: list[Piece], gaps: bool) -> None:
    extents = build(parts, gaps=gaps, base=7)
    size = sum(length for length, _unused, _unused in parts)
    lengths: dict[int, int] = {}
    for row in extents.tolist():
        if row[2] != xt.ZEROS:
            lengths[row[2]] = lengths.get(row[2], 0) + row[1]
    covered = not gaps or not any(gap for _unused, _unused, gap in parts)
    assert xt.covers(extents, size) == covered
    assert not xt.covers(extents, size + 1)
    assert xt.live_bytes(extents) == lengths
    assert xt.pack_fields(extents) == sorted(lengths)
    renumbered = xt.renumber(extents, {7: 100, 8: xt.FOREIGN, 9: 102})
    assert xt.live_bytes(renumbered) == {{7: 100, 8: xt.FOREIGN, 9: 102}[pack]: n for pack, n in lengths.items()}
