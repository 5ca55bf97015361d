# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Extents against a model: a file as a list of bytes, each with where it came from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryobackup.errors import DamageError
from cryobackup.repository import extents as xt

DIGEST = b"d" * 16


@st.composite
def files(draw, pack: int = 1, whole: bool = True):
    """Extents of a small file; with ``whole`` they cover it."""
    rows, at = [], 0
    for frame, length in enumerate(draw(st.lists(st.integers(1, 20), max_size=8))):
        if not whole:
            at += draw(st.integers(0, 10))
        if draw(st.booleans()):
            rows.append((at, length, pack, frame, draw(st.integers(0, 50)), DIGEST))
        else:
            rows.append((at, length, xt.ZEROS, 0, 0, xt.UNKNOWN_DIGEST))
        at += length
    return xt.build(rows)


def model(extents: xt.Extents) -> dict[int, tuple[int, int, int]]:
    """Where each byte of the file lies: (pack, frame, place in the frame)."""
    found = {}
    for row in extents:
        for at in range(int(row["length"])):
            zero = row["pack"] == xt.ZEROS
            place = 0 if zero else int(row["frame_offset"]) + at
            found[int(row["offset"]) + at] = (int(row["pack"]), int(row["frame"]), place)
    return found


@given(files(), st.integers(0, 200), st.integers(0, 200))
def test_cut(extents, start, stop):
    expected = {at: where for at, where in model(extents).items() if start <= at < stop}
    assert model(xt.cut(extents, start, stop)) == expected


@given(files(), st.integers(0, 200), st.integers(0, 200))
def test_only_whole_extents_keep_their_digest(extents, start, stop):
    before = {(int(row["offset"]), int(row["length"])): bytes(row["digest"]) for row in extents}
    for row in xt.cut(extents, start, stop):
        whole = before.get((int(row["offset"]), int(row["length"])))
        assert bytes(row["digest"]) == (whole if whole is not None else xt.UNKNOWN_DIGEST)


@given(files(), files(pack=2, whole=False), st.integers(0, 200))
def test_uncovered(old, new, size):
    expected = {at: where for at, where in model(old).items() if at < size and at not in model(new)}
    result = xt.uncovered(old, new, size)
    assert model(result) == expected
    before = {(int(row["offset"]), int(row["length"])): bytes(row["digest"]) for row in old}
    for row in result:
        whole = before.get((int(row["offset"]), int(row["length"])))
        assert bytes(row["digest"]) == (whole if whole is not None else xt.UNKNOWN_DIGEST)


@given(files(whole=False), st.integers(0, 200))
def test_covers_is_strict(extents, size):
    places = model(extents)
    assert xt.covers(extents, size) == (sorted(places) == list(range(size)))


def test_overlaps_do_not_cover():
    overlapping = xt.build([(0, 10, 1, 0, 0, DIGEST), (5, 5, 1, 1, 0, DIGEST)])
    assert not xt.covers(overlapping, 10)


@given(files())
def test_packed_extents_are_40_bytes_each_and_come_back(extents):
    packed = xt.pack(extents)
    assert len(packed) == 40 * len(extents)
    assert np.array_equal(xt.unpack(packed), extents)


def test_an_incomplete_extent_is_damage():
    with pytest.raises(DamageError):
        xt.unpack(bytes(39))


def test_the_layout_is_the_documented_one():
    packed = xt.pack(xt.build([(0x0102030405060708, 9, 10, 11, 12, bytes(range(16)))]))
    assert packed == bytes.fromhex("0102030405060708 00000009 0000000a 0000000b 0000000c") + bytes(range(16))


@given(files())
def test_live_bytes_leave_zeros_out(extents):
    stored = [int(row["length"]) for row in extents if row["pack"] != xt.ZEROS]
    assert sum(xt.live_bytes(extents).values()) == sum(stored)


@given(files())
def test_renumbering_changes_packs_only(extents):
    result = xt.renumber(extents, {1: 77})
    assert {int(field) for field in result["pack"]} <= {77, xt.ZEROS}
    result["pack"] = extents["pack"]
    assert np.array_equal(result, extents)


@settings(max_examples=5)
@given(st.integers(0, 5 * (1 << 30)))
def test_zeros_of_any_length(length):
    assert xt.covers(xt.zeros(0, length), length)
