# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs of bytes become extents: nothing is lost, zeros are nothing, frames are neither small nor large."""

from __future__ import annotations

import datetime as dt
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryobackup.config import LocationConfig, RepositoryConfig
from cryobackup.crypto.suite import keyed_digest
from cryobackup.postgres.frames import FrameWriter, join_zeros, store_units, zero_units
from cryobackup.repository import extents as xt
from cryobackup.repository import names
from cryobackup.repository.packs import FRAME_TARGET_BYTES, PackReader, PackSet
from cryobackup.repository.repository import Repository, init

ID = "20261102T110000Z-0000000a"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    directory = tmp_path_factory.mktemp("repository")
    config = RepositoryConfig({"here": LocationConfig("here", "posix", path=directory / "here")}, directory / "keys")
    init(config, dt.datetime.now(dt.UTC))
    return Repository.open(config, need_identity=True)


def packs(repository: Repository) -> PackSet:
    return PackSet(repository.fanout(), repository.keys, f"20261102T110000Z-{os.urandom(4).hex()}", level=1)


def read(repository: Repository, of: PackSet, extents: xt.Extents) -> bytes:
    parts = []
    for _unused, length, pack, frame, start, digest in extents.tolist():
        if pack == xt.ZEROS:
            parts.append(bytes(length))
            continue
        reader = PackReader(repository.locations, repository.keys, names.pack(of.backup_id, pack))
        part = reader.frame(frame)[start : start + length]
        assert keyed_digest(repository.keys.digest_key, part)[:16] == digest
        parts.append(part)
    return b"".join(parts)


@settings(max_examples=60, deadline=None)
@given(
    units=st.lists(st.sampled_from(["zero", "one", "two", "leave"]), max_size=40),
    tail=st.integers(0, 8191),
    unit=st.sampled_from([512, 8192]),
    random=st.randoms(use_true_random=False),
)
def test_wanted_units_come_back(repository: Repository, units: list[str], tail: int, unit: int, random: object) -> None:
    parts = [
        bytes(unit) if kind == "zero" else bytes([len(kind), number]) * (unit // 2) for number, kind in enumerate(units)
    ]
    data = b"".join(parts) + bytes([7]) * (tail % unit)
    wanted = np.array([kind != "leave" for kind in units] + [True] * bool(tail % unit), np.bool_)
    pack_set = packs(repository)
    writer = FrameWriter(pack_set.sink(), repository.keys.digest_key)
    offset = 3 << 30
    rows = join_zeros(store_units(writer, offset, memoryview(data), wanted, unit))
    writer.finish()
    expected = b"".join(data[at * unit : (at + 1) * unit] for at in np.flatnonzero(wanted))
    assert read(repository, pack_set, xt.build(rows)) == expected
    covered = np.zeros(len(data), np.bool_)
    for start, length, *_unused in rows:
        assert not covered[start - offset : start - offset + length].any()
        covered[start - offset : start - offset + length] = True
    assert np.array_equal(covered, np.repeat(wanted, unit)[: len(data)])
    assert sum(row.plain for row in pack_set.rows) == len(expected.replace(bytes(unit), b"")) or unit == 512


def test_small_runs_share_frames(repository: Repository) -> None:
    pack_set = packs(repository)
    writer = FrameWriter(pack_set.sink(), repository.keys.digest_key)
    pages = [bytes([number % 255 + 1]) * 8192 for number in range(300)]
    rows = [writer.store(number * 16384, memoryview(page)) for number, page in enumerate(pages)]
    large = os.urandom(FRAME_TARGET_BYTES)
    rows.append(writer.store(1 << 30, memoryview(large)))
    rows.append(writer.store(1 << 31, memoryview(pages[0])))
    writer.finish()
    assert [row[3] for row in rows] == [*[0] * 128, *[1] * 128, *[2] * 44, 3, 4]
    assert read(repository, pack_set, xt.build(rows)) == b"".join(pages) + large + pages[0]


def test_a_frame_is_never_larger_than_announced(repository: Repository) -> None:
    pack_set = packs(repository)
    writer = FrameWriter(pack_set.sink(), repository.keys.digest_key)
    odd = [os.urandom(FRAME_TARGET_BYTES // 2 - 1) for _unused in range(5)]
    rows = [writer.store(number << 20, memoryview(run)) for number, run in enumerate(odd)]
    writer.finish()
    assert [row[3] for row in rows] == [0, 0, 1, 1, 2]
    assert read(repository, pack_set, xt.build(rows)) == b"".join(odd)


def test_zero_units() -> None:
    data = bytearray(8192 * 3 + 5)
    assert zero_units(memoryview(data), 8192).tolist() == [True] * 4
    data[8192 + 9] = 1
    data[-1] = 1
    assert zero_units(memoryview(data), 8192).tolist() == [True, False, True, False]
    assert zero_units(memoryview(b""), 8192).tolist() == []
    assert zero_units(memoryview(b"\0\0"), 8192).tolist() == [True]


def test_neighbouring_zeros_are_one() -> None:
    def zeros(offset: int, length: int) -> tuple[int, int, int, int, int, bytes]:
        return offset, length, xt.ZEROS, 0, 0, xt.UNKNOWN_DIGEST

    data = (30, 5, 0, 0, 0, b"d" * 16)
    assert join_zeros([zeros(0, 10), zeros(10, 20), data, zeros(35, 5), zeros(50, 1)]) == [
        zeros(0, 30),
        data,
        zeros(35, 5),
        zeros(50, 1),
    ]
    assert len(join_zeros([zeros(0, xt.MAX_LENGTH), zeros(xt.MAX_LENGTH, 1)])) == 2
