# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records that create tablespaces, wherever they lie in the WAL, are found and made harmless."""

from __future__ import annotations

import struct

import google_crc32c
from hypothesis import given
from hypothesis import strategies as st

from cryobackup.postgres.restore_search import without_page_headers
from cryobackup.postgres.wal_tablespaces import apply, contain_tablespaces

PAGE = 8192
SEGMENT = 4 * PAGE
PAYLOAD = SEGMENT - 40 - 3 * 24
TABLESPACES, DATABASES = 5, 4


def record(path: bytes, *, manager: int = TABLESPACES, info: int = 0, oid: int = 16400) -> bytes:
    """As PostgreSQL writes it, padded to 8 bytes."""
    data = struct.pack("<I", oid) + path + b"\0"
    head = b"\xff" + bytes([len(data)]) if len(data) < 256 else b"\xfe" + struct.pack("<I", len(data))
    body = head + data
    start = struct.pack("<IIQBBH", 24 + len(body), 700, 0, info, manager, 0)
    whole = start + struct.pack("<I", google_crc32c.value(body + start)) + body
    return whole + bytes(-len(whole) % 8)


def segments(stream: bytes, count: int = 2) -> list[bytes]:
    """A run of records as segments with page headers."""
    stream = stream.ljust(count * PAYLOAD, b"\0")
    found = []
    for number in range(count):
        part = stream[number * PAYLOAD :][:PAYLOAD]
        pages = [b"L" * 40 + part[: PAGE - 40]]
        rest = part[PAGE - 40 :]
        pages += [b"s" * 24 + rest[at : at + PAGE - 24] for at in range(0, len(rest), PAGE - 24)]
        found.append(b"".join(pages))
    assert all(len(segment) == SEGMENT for segment in found)
    return found


def contained(first: bytes, second: bytes) -> tuple[tuple[str, ...], bytes]:
    """The paths found, and the stream of both segments as a sandbox sees it."""
    found = contain_tablespaces(first, lambda: second)
    again = contain_tablespaces(second, lambda: None)
    changed = apply(first, found.here), apply(apply(second, found.following), again.here)
    return found.paths + again.paths, b"".join(map(without_page_headers, changed))


def valid(stream: bytes, at: int) -> bytes:
    """The record at a position, whose CRC is right."""
    (length,) = struct.unpack_from("<I", stream, at)
    whole = stream[at : at + length]
    assert google_crc32c.value(whole[24:] + whole[:20]) == struct.unpack_from("<I", whole, 20)[0]
    return whole


@given(at=st.integers(0, (2 * PAYLOAD - 1200) // 8).map(lambda number: number * 8), length=st.integers(1, 1023))
def test_anywhere(at: int, length: int) -> None:
    path = b"/" + b"x" * (length - 1)
    stream = bytes(at) + record(path)
    paths, changed = contained(*segments(stream))
    assert paths == (path.decode(),)
    whole = valid(changed, at)
    assert whole[-length - 1 :] == b"\0" + path[1:] + b"\0", "the path is empty, nothing else of it is changed"
    before = without_page_headers(segments(stream)[0]) + without_page_headers(segments(stream)[1])
    differing = [position for position in range(len(before)) if before[position] != changed[position]]
    crc = set(range(at + 20, at + 24))
    assert set(differing) - crc == {at + len(valid(before, at)) - length - 1}


@given(at=st.integers(PAYLOAD // 8 - 150, PAYLOAD // 8).map(lambda number: number * 8))
def test_across_the_end_of_a_segment(at: int) -> None:
    path = b"/srv/" + b"y" * 500
    paths, changed = contained(*segments(bytes(at) + record(path)))
    assert paths == (path.decode(),)
    valid(changed, at)


def test_what_is_none_of_them() -> None:
    broken = bytearray(record(b"/srv/a"))
    broken[-1 - 8] ^= 1
    others = (
        record(b"/srv/a", manager=DATABASES),
        record(b"/srv/a", info=0x10),  # XLOG_TBLSPC_DROP
        record(b""),  # in place already
        bytes(broken),
    )
    stream = b"".join(others)
    first, second = segments(stream)
    assert contain_tablespaces(first, lambda: second) == ((), (), ())


def test_several() -> None:
    stream = record(b"/srv/a") + record(b"/b", manager=DATABASES) + record(b"/srv/c", oid=9)
    first, second = segments(stream)
    found = contain_tablespaces(first, lambda: second)
    assert found.paths == ("/srv/a", "/srv/c")
    again = contain_tablespaces(apply(first, found.here), lambda: second)
    assert again.paths == ()


def test_the_next_segment_is_not_asked_for_without_need() -> None:
    (first, _unused) = segments(bytes(PAYLOAD - 4096) + record(b"/srv/a"))

    def next_one() -> bytes | None:
        raise AssertionError("asked")

    assert contain_tablespaces(first, next_one).paths == ("/srv/a",)
