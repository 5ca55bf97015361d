# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Restore points and ends of transactions are found wherever they lie in the WAL, and nothing else is."""

from __future__ import annotations

import datetime as dt
import struct
import subprocess

import google_crc32c
from hypothesis import given
from hypothesis import strategies as st

from cryobackup.postgres.lsn import format_lsn, parse_lsn
from cryobackup.postgres.restore_search import Found, WalSearch, payload_bytes, without_page_headers
from cryobackup.postgres.wal import segment_name

from .conftest import SEGMENT_SIZE, Cluster, as_postgres, bin_dir

PAGE = 8192
SEGMENT = 4 * PAGE
PAYLOAD = payload_bytes(SEGMENT)
FIRST = 5
WHEN = dt.datetime(2026, 3, 1, 14, 3, tzinfo=dt.UTC)
MICROSECONDS = (WHEN - dt.datetime(2000, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)
XLOG, XACT, HEAP = 0, 1, 10


def record(manager: int, info: int, data: bytes, *, xid: int = 0, before: bytes = b"") -> bytes:
    """As PostgreSQL writes it, padded to 8 bytes. ``before``: what may precede the data's header."""
    body = before + b"\xff" + bytes([len(data)]) + data
    start = struct.pack("<IIQBBH", 24 + len(body), xid, 0, info, manager, 0)
    whole = start + struct.pack("<I", google_crc32c.value(body + start)) + body
    return whole + bytes(-len(whole) % 8)


def restore_point(name: bytes, *, junk: bytes = b"\xee") -> bytes:
    return record(XLOG, 0x70, struct.pack("<q", MICROSECONDS) + (name + b"\0").ljust(64, junk))


def commit(xid: int, info: int = 0x00, before: bytes = b"") -> bytes:
    return record(XACT, info, struct.pack("<q", MICROSECONDS), xid=xid, before=before)


def segments(stream: bytes) -> list[bytes]:
    """A run of records as segments with page headers."""
    count = max(2, -(-len(stream) // PAYLOAD))
    stream = stream.ljust(count * PAYLOAD, b"\0")
    found = []
    for number in range(count):
        part = stream[number * PAYLOAD :][:PAYLOAD]
        pages = [b"L" * 40 + part[: PAGE - 40]]
        rest = part[PAGE - 40 :]
        pages += [b"s" * 24 + rest[at : at + PAGE - 24] for at in range(0, len(rest), PAGE - 24)]
        found.append(b"".join(pages))
    return found


def position(at: int) -> int:
    """The LSN of a position in the stream: counted along the segments, byte by byte."""
    number, rest = divmod(at, PAYLOAD)
    lsn = (FIRST + number) * SEGMENT + 40
    for _unused in range(rest):
        lsn += 1
        if lsn % PAGE == 0:
            lsn += 24
    return lsn


def search(stream: bytes, *, name: str | None = None, xid: int | None = None) -> list[Found]:
    looking = WalSearch(SEGMENT, name=name, xid=xid)
    return [found for number, part in enumerate(segments(stream)) for found in looking.feed(FIRST + number, part)]


places = st.integers(0, 2 * PAYLOAD // 8 - 15).map(lambda number: number * 8)


@given(at=places)
def test_a_restore_point_anywhere(at: int) -> None:
    found = search(bytes(at) + restore_point(b"here"), name="here")
    assert found == [Found(position(at), WHEN, "restore point")]


@given(at=places, info=st.sampled_from([0x00, 0x80, 0x20, 0xA0]), origin=st.sampled_from([b"", b"\xfd\x01\x00"]))
def test_the_end_of_a_transaction_anywhere(at: int, info: int, origin: bytes) -> None:
    found = search(bytes(at) + commit(777, info, origin), xid=777)
    assert found == [Found(position(at), WHEN, "abort" if info & 0x20 else "commit")]


def test_the_page_headers_are_left_out() -> None:
    stream = bytes(range(256)) * (PAYLOAD // 256 + 2)
    (first, second) = segments(stream[: PAYLOAD + 256])[:2]
    assert without_page_headers(first) == stream[:PAYLOAD]
    assert without_page_headers(second)[:256] == stream[PAYLOAD : PAYLOAD + 256]


def test_what_is_none_of_them() -> None:
    broken = bytearray(restore_point(b"here"))
    broken[30] ^= 1
    stream = b"".join(
        [
            restore_point(b"there"),
            restore_point(b"her"),
            restore_point(b"here too"),
            bytes(broken),
            record(HEAP, 0x70, struct.pack("<q", MICROSECONDS) + b"here\0".ljust(64, b"\0")),
            record(XLOG, 0x30, struct.pack("<q", MICROSECONDS) + b"here\0".ljust(64, b"\0")),
            commit(778),
            commit(777, 0x10),  # prepared
            commit(777, 0x50),  # a subtransaction's assignment
            record(HEAP, 0x00, struct.pack("<q", 777), xid=777),
        ]
    )
    assert search(stream, name="here") == []
    assert search(stream, xid=777) == []


def test_several_of_one_name_in_their_order() -> None:
    stream = restore_point(b"x") + commit(5) + restore_point(b"x", junk=b"\0") + bytes(PAYLOAD) + restore_point(b"x")
    assert [found.lsn for found in search(stream, name="x")] == [
        position(0),
        position(len(restore_point(b"x") + commit(5))),
        position(len(restore_point(b"x") * 2 + commit(5)) + PAYLOAD),
    ]


def test_real_wal(server: Cluster) -> None:
    """Compared with pg_waldump."""
    server.sql("CREATE TABLE searched (n int)")
    start = server.one("SELECT pg_current_wal_lsn()::text")
    xids = []
    for number in range(40):
        xids.append(int(server.one("WITH new AS (INSERT INTO searched SELECT 1) SELECT pg_current_xact_id()::text")))
        server.sql(f"SELECT pg_create_restore_point('point {number}')")
        server.sql(f"INSERT INTO searched SELECT generate_series(1, {number * 40})")
    with_abort = server.connect()
    with_abort.autocommit = False
    with with_abort.cursor() as cursor:
        cursor.execute("SELECT pg_current_xact_id()::text")
        aborted = int(cursor.fetchone()[0])
        cursor.execute("INSERT INTO searched VALUES (1)")
    with_abort.rollback()
    with_abort.close()
    end = server.one("SELECT pg_switch_wal()::text")

    dump = subprocess.run(
        as_postgres(bin_dir() / "pg_waldump", "-p", server.data / "pg_wal", "-s", start, "-e", end),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    expected = {}
    for line in dump.splitlines():
        lsn = line.partition("lsn: ")[2].partition(",")[0].lstrip("0") or "0"
        lsn = format_lsn(parse_lsn(line.partition("lsn: ")[2].partition(",")[0]))
        if "RESTORE_POINT" in line:
            expected[line.rpartition("desc: RESTORE_POINT ")[2].strip()] = lsn
        if "desc: COMMIT " in line or "desc: ABORT " in line:
            expected[int(line.partition("tx: ")[2].partition(",")[0])] = lsn
    first, last = parse_lsn(start) // SEGMENT_SIZE, (parse_lsn(end) - 1) // SEGMENT_SIZE
    wanted: list[tuple[object, WalSearch]] = []
    wanted += [(f"point {number}", WalSearch(SEGMENT_SIZE, name=f"point {number}")) for number in range(40)]
    wanted += [(xid, WalSearch(SEGMENT_SIZE, xid=xid)) for xid in (*xids, aborted)]
    for key, looking in wanted:
        found = []
        for number in range(first, last + 1):
            content = (server.data / "pg_wal" / segment_name(1, number, SEGMENT_SIZE)).read_bytes()
            found += looking.feed(number, content)
        assert [format_lsn(each.lsn) for each in found] == [expected[key]], key
        assert found[0].what == ("abort" if key == aborted else "commit" if key in xids else "restore point")
        assert abs(found[0].time - dt.datetime.now(dt.UTC)) < dt.timedelta(hours=1)
