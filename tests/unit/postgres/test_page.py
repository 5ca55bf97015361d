# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import collections.abc
import mmap
import os
import random
import re
import shutil
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryobackup.postgres import page, relfile
from cryobackup.postgres.lsn import MAX_LSN, parse_lsn

from .conftest import Cluster, new_root, run

BLOCK = page.BLOCK_SIZE_DEFAULT
SOME_LSN = parse_lsn("16/B374D848")


def scalar_checksum(data: bytes, block: int) -> int:
    """The checksum of one page, word by word: the definition, not the fast way."""
    words = list(struct.unpack(f"<{len(data) // 4}I", data[:8] + b"\0\0" + data[10:]))
    sums = list(page._LANE_OFFSETS)
    for position, word in enumerate([*words, *[0] * 64]):
        mixed = sums[position % 32] ^ word
        sums[position % 32] = (mixed * 16777619 & 0xFFFFFFFF) ^ (mixed >> 17)
    folded = block & 0xFFFFFFFF
    for lane in sums:
        folded ^= lane
    return folded % 65535 + 1


def valid_page(block: int, lsn: int = SOME_LSN, *, size: int = BLOCK, fill: bytes = b"x") -> bytes:
    """A page as PostgreSQL writes it: some line pointers, a hole, tuples, a right checksum."""
    header = struct.pack("<IIHHHHHHI", lsn >> 32, lsn & 0xFFFFFFFF, 0, 0, 40, size // 2, size, size | 4, 0)
    body = bytearray(header + bytes(size // 2 - len(header)) + (fill * size)[: size // 2])
    struct.pack_into("<H", body, 8, scalar_checksum(bytes(body), block))
    return bytes(body)


def relation_files(cluster: Cluster) -> collections.abc.Iterator[tuple[Path, relfile.RelationFile]]:
    for path in sorted(cluster.data.rglob("*")):
        file = relfile.relation_file(str(path.relative_to(cluster.data)))
        if file is not None and path.is_file():
            yield path, file


def file_of(cluster: Cluster, relation: str) -> Path:
    return cluster.data / str(cluster.one(f"SELECT pg_relation_filepath('{relation}')"))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1024, 4096, 8192, 32768]), st.integers())
def test_checksums_are_those_of_the_definition(first_block: int, size: int, seed: int) -> None:
    data = random.Random(seed).randbytes(3 * size)
    expected = [scalar_checksum(data[n * size : (n + 1) * size], first_block + n) for n in range(3)]
    assert page.page_checksums(data, first_block, block_size=size).tolist() == expected


def test_checksums_do_not_depend_on_how_many_pages_there_are() -> None:
    data = os.urandom((page._BATCH_PAGES + 3) * BLOCK)
    many = page.page_checksums(data, 7).tolist()
    assert many[-3:] == [scalar_checksum(data[n * BLOCK :][:BLOCK], 7 + n) for n in range(len(many) - 3, len(many))]


def test_the_buffer_is_left_as_it_was() -> None:
    data = bytearray(os.urandom(4 * BLOCK))
    before = bytes(data)
    page.verify_pages(data, 0, MAX_LSN)
    assert data == before


@pytest.mark.parametrize("relation", ["rows", "rows_pkey", "rows_gin", "rows_hash", "points_gist", "pg_class"])
@pytest.mark.parametrize("block", [0, 5, 131072, 131072 * 3 + 17, 2**31 - 1])
def test_checksums_are_those_of_pageinspect(server: Cluster, relation: str, block: int) -> None:
    raw, expected = server.sql(f"SELECT p, page_checksum(p, {block}) FROM get_raw_page('{relation}', 0) AS p")[0]
    # The function's result is a signed smallint.
    assert page.page_checksums(raw, block)[0] == expected % 65536


def test_lsns_are_those_of_pageinspect(server: Cluster) -> None:
    server.sql("CHECKPOINT")
    rows = server.sql(
        "SELECT (page_header(get_raw_page('rows', n::int))).lsn::text"
        " FROM generate_series(0, pg_relation_size('rows') / 8192 - 1) AS n ORDER BY n"
    )
    assert len(rows) > 10
    lsns = page.page_lsns(file_of(server, "rows").read_bytes())
    assert lsns.tolist() == [parse_lsn(text) for (text,) in rows]


def test_changed_pages_are_those_written_since(server: Cluster) -> None:
    server.sql("CREATE TABLE changing AS SELECT i, repeat('x', 200) AS body FROM generate_series(1, 2000) AS i")
    server.sql("VACUUM (FREEZE) changing", "CHECKPOINT")
    before = parse_lsn(server.one("SELECT pg_current_wal_lsn()::text"))
    path = file_of(server, "changing")
    data = path.read_bytes()
    # Extended in advance, and never written to since.
    empty = set((page.page_lsns(data) == 0).nonzero()[0].tolist())
    assert set(page.changed_since(data, before).nonzero()[0].tolist()) == empty
    server.sql("UPDATE changing SET body = 'y' WHERE i IN (3, 1500)", "CHECKPOINT")
    touched = {
        int(tid[1:].partition(",")[0])
        for (tid,) in server.sql(
            "SELECT ctid::text FROM changing WHERE body = 'y' UNION"
            " SELECT format('(%s,1)', n) FROM generate_series(0, pg_relation_size('changing') / 8192 - 1) AS n,"
            " heap_page_items(get_raw_page('changing', n::int)) WHERE t_xmax::text <> '0'"
        )
    }
    changed = page.changed_since(path.read_bytes(), before)
    assert set(changed.nonzero()[0].tolist()) == touched | empty
    assert len(touched | empty) < len(changed)


def test_pages_without_an_lsn_count_as_changed(server: Cluster) -> None:
    server.sql("CHECKPOINT")
    unlogged = file_of(server, "scratch").read_bytes()
    assert unlogged
    assert page.changed_since(unlogged, MAX_LSN).all()
    assert page.changed_since(bytes(2 * BLOCK), 1).tolist() == [True, True]


@pytest.fixture(scope="module")
def stopped(server: Cluster, tmp_path_factory: pytest.TempPathFactory) -> collections.abc.Iterator[Cluster]:
    """The same data as the server's, consistent and at rest."""
    root = new_root()
    try:
        run("pg_basebackup", "-d", server.conninfo, "-D", root / "data", "-c", "fast", "--no-sync")
        cluster = Cluster(root)
        cluster.start(unix_socket_directories=str(root), archive_command="true")
        cluster.sql("SELECT 1")
        cluster.stop()
        yield cluster
    finally:
        shutil.rmtree(root)


def test_every_page_of_a_cluster_at_rest_is_good_and_pg_checksums_sees_as_many(stopped: Cluster) -> None:
    files = pages = 0
    for path, file in relation_files(stopped):
        scan = page.verify_pages(path.read_bytes(), file.first_block(131072), MAX_LSN)
        assert scan.suspect.size == 0, path
        assert scan.trailing_bytes == 0, path
        assert scan.newer == 0
        files, pages = files + 1, pages + scan.pages
    report = run("pg_checksums", "--check", "-D", stopped.data)
    assert re.findall(r"(?:Files|Blocks) scanned: +(\d+)", report) == [str(files), str(pages)]


@pytest.mark.parametrize("offset", [0, 8, 9, 12, 14, 18, 30, 4096, 8191])
def test_damage_is_found_where_pg_checksums_finds_it(stopped: Cluster, offset: int, tmp_path: Path) -> None:
    path = max(relation_files(stopped), key=lambda pair: pair[0].stat().st_size)[0]
    original = path.read_bytes()
    damaged = bytearray(original)
    damaged[3 * BLOCK + offset] ^= 0x10
    path.write_bytes(damaged)
    try:
        scan = page.verify_pages(damaged, 0, MAX_LSN)
        with pytest.raises(AssertionError, match=r"Bad checksums: +1") as failure:
            run("pg_checksums", "--check", "-D", stopped.data)
    finally:
        path.write_bytes(original)
    assert scan.suspect.tolist() == [3]
    assert f'{path.name}", block 3' in str(failure.value)


def test_a_page_in_another_place_is_suspect() -> None:
    data = valid_page(0) + valid_page(2) + valid_page(1) + valid_page(3)
    assert page.verify_pages(data, 0, MAX_LSN).suspect.tolist() == [1, 2]


def test_block_numbers_count_within_the_relation() -> None:
    data = bytearray(valid_page(131072) + valid_page(131073))
    assert page.verify_pages(data, 131072, MAX_LSN).suspect.size == 0
    data[BLOCK + 5000] ^= 1
    assert page.verify_pages(data, 131072, MAX_LSN).suspect.tolist() == [131073]


def test_a_torn_page_newer_than_the_start_is_not_judged() -> None:
    torn = valid_page(0, SOME_LSN)[: BLOCK // 2] + valid_page(0, SOME_LSN, fill=b"y")[BLOCK // 2 :]
    assert page.verify_pages(torn, 0, SOME_LSN + 1).suspect.tolist() == [0]
    scan = page.verify_pages(torn, 0, SOME_LSN)
    assert (scan.suspect.tolist(), scan.newer, scan.highest_lsn) == ([], 1, SOME_LSN)


def test_an_empty_page_is_good_and_a_new_page_with_a_body_is_not() -> None:
    with_body = bytearray(BLOCK)
    with_body[6000] = 1
    scan = page.verify_pages(bytes(BLOCK) + with_body + bytes(BLOCK), 10, SOME_LSN)
    assert scan.suspect.tolist() == [11]
    assert page.verify_pages(bytes(3 * BLOCK), 0, SOME_LSN).highest_lsn == 0


def test_an_lsn_on_a_new_page_does_not_excuse_it() -> None:
    data = struct.pack("<II", 0xFFFF, 0) + bytes(BLOCK - 8)
    assert page.verify_pages(data, 0, SOME_LSN).suspect.tolist() == [0]


@pytest.mark.parametrize("length", [0, 1, 511, BLOCK - 1])
def test_a_partial_last_page_is_reported_and_not_judged(length: int) -> None:
    scan = page.verify_pages(valid_page(0) + os.urandom(length), 0, MAX_LSN)
    assert (scan.pages, scan.trailing_bytes, scan.suspect.tolist()) == (1, length, [])
    assert page.page_lsns(os.urandom(length)).size == 0


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (10, 0x0008),
        (12, 23),
        (12, BLOCK // 2 + 8),
        (14, BLOCK + 8),
        (16, BLOCK + 8),
        (16, BLOCK - 3),
        (18, BLOCK | 3),
        (18, 4096 | 4),
    ],
)
@pytest.mark.parametrize("checksums", [True, False])
def test_a_header_that_does_not_add_up_is_suspect_with_and_without_checksums(
    at: int, value: int, checksums: bool
) -> None:
    data = bytearray(valid_page(0))
    struct.pack_into("<H", data, at, value)
    struct.pack_into("<H", data, 8, scalar_checksum(bytes(data), 0))
    scan = page.verify_pages(valid_page(0) + data, 0, MAX_LSN, checksums=checksums)
    assert scan.suspect.tolist() == [1]


def test_without_checksums_a_wrong_one_is_no_matter() -> None:
    data = bytearray(valid_page(0))
    data[8] ^= 1
    assert page.verify_pages(data, 0, MAX_LSN, checksums=False).suspect.size == 0


@pytest.mark.parametrize("size", [4096, 32768])
def test_other_block_sizes(size: int) -> None:
    data = valid_page(0, size=size) + valid_page(1, size=size)
    assert page.verify_pages(data, 0, MAX_LSN, block_size=size).suspect.size == 0
    with pytest.raises(ValueError, match="block size"):
        page.page_lsns(data, block_size=size - 1)


def test_every_kind_of_buffer_is_taken(tmp_path: Path) -> None:
    data = valid_page(0) + valid_page(1)
    padded = bytearray(b"abc" + data)
    (tmp_path / "file").write_bytes(data)
    with (tmp_path / "file").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for buffer in (data, bytearray(data), memoryview(padded)[3:], mapped):
            assert page.verify_pages(buffer, 0, MAX_LSN).suspect.size == 0
