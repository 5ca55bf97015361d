# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryobackup.postgres import lsn

from .conftest import SEGMENT_SIZE, Cluster

LSNS = st.integers(0, lsn.MAX_LSN)
SEGMENT_SIZES = st.sampled_from([1 << power for power in range(20, 31)])


@given(LSNS)
def test_what_is_formatted_parses_to_itself(position: int) -> None:
    assert lsn.parse_lsn(lsn.format_lsn(position)) == position


def test_text_is_postgresqls(server: Cluster) -> None:
    for text in ("0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF", "0/1000028", "1/0"):
        value, printed = server.sql(f"SELECT ('{text}'::pg_lsn - '0/0')::text, '{text}'::pg_lsn::text")[0]
        assert lsn.parse_lsn(text) == int(value)
        assert lsn.format_lsn(int(value)) == printed


@pytest.mark.parametrize("text", ["", "16", "16/", "/1", "16/B374D848 ", "1/123456789", "x/1", "-1/0", "١/0"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a log sequence number"):
        lsn.parse_lsn(text)


@pytest.mark.parametrize("position", [-1, 1 << 64])
def test_positions_outside_64_bits_are_refused(position: int) -> None:
    with pytest.raises(ValueError, match="64 bits"):
        lsn.format_lsn(position)


@given(st.integers(1, lsn.MAX_LSN), SEGMENT_SIZES)
def test_a_position_lies_in_its_segment(position: int, size: int) -> None:
    number = lsn.segment_number(position, size)
    assert lsn.segment_start(number, size) + lsn.segment_offset(position, size) == position
    last = lsn.last_segment_number(position, size)
    assert lsn.segment_start(last, size) < position <= lsn.segment_start(last + 1, size)


@pytest.mark.parametrize("position", [1, SEGMENT_SIZE - 1, SEGMENT_SIZE, SEGMENT_SIZE + 1, (1 << 32) + 1, 1 << 40])
def test_the_last_segment_is_the_one_pg_walfile_name_names(server: Cluster, position: int) -> None:
    # pg_walfile_name() takes a position on a boundary for the end of the segment before, until PostgreSQL 16.
    number = (lsn.last_segment_number if server.major < 17 else lsn.segment_number)(position, SEGMENT_SIZE)
    per_log = (1 << 32) // SEGMENT_SIZE
    name = server.one(f"SELECT pg_walfile_name('{lsn.format_lsn(position)}')")
    assert (int(name[8:16], 16), int(name[16:], 16)) == divmod(number, per_log)


@pytest.mark.parametrize(
    ("size", "valid"),
    [
        (1 << 20, True),
        (16 << 20, True),
        (1 << 30, True),
        (1 << 19, False),
        (1 << 31, False),
        (3 << 20, False),
        (0, False),
    ],
)
def test_segment_sizes(size: int, valid: bool) -> None:
    assert lsn.is_valid_segment_size(size) is valid
