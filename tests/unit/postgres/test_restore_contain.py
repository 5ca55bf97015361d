# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each segment of WAL is made harmless by a process of its own, also where a record lies in two of them."""

from __future__ import annotations

import datetime as dt
import os
import struct
from pathlib import Path

import google_crc32c
import pytest

from cryobackup.config import LocationConfig, RepositoryConfig
from cryobackup.crypto import suite
from cryobackup.postgres.archive_ahead_fetch import AheadFetch
from cryobackup.postgres.archive_contain import contain
from cryobackup.postgres.archive_get import deliver
from cryobackup.postgres.archive_outages import Outages
from cryobackup.postgres.restore_search import payload_bytes, without_page_headers
from cryobackup.postgres.wal import segment_name
from cryobackup.repository import container, names
from cryobackup.repository.repository import Repository, init
from cryobackup.storage.base import put

SYSTEM = 7100000000000000001
PAGE = 8192
SEGMENT = 4 * PAGE
PAYLOAD = payload_bytes(SEGMENT)
FIRST = 7
PATH = b"/srv/living/tablespace"


def record() -> bytes:
    """The creation of a tablespace, padded to 8 bytes."""
    data = struct.pack("<I", 16400) + PATH + b"\0"
    body = b"\xff" + bytes([len(data)]) + data
    start = struct.pack("<IIQBBH", 24 + len(body), 700, 0, 0, 5, 0)
    whole = start + struct.pack("<I", google_crc32c.value(body + start)) + body
    return whole + bytes(-len(whole) % 8)


def two_segments(at: int) -> list[bytes]:
    """With the record at a position of their content, and page headers that say where it goes on."""
    one = record()
    stream = (bytes(at) + one).ljust(2 * PAYLOAD, b"\0")
    found = []
    for number in range(2):
        part = stream[number * PAYLOAD :][:PAYLOAD]
        remaining = max(0, at + len(one) - PAYLOAD) if number and at < PAYLOAD else 0
        head = struct.pack("<HHIQI", 0xD110, 2 | bool(remaining), 1, (FIRST + number) * SEGMENT, remaining)
        pages = [head.ljust(40, b"\0") + part[: PAGE - 40]]
        rest = part[PAGE - 40 :]
        pages += [b"s" * 24 + rest[begin : begin + PAGE - 24] for begin in range(0, len(rest), PAGE - 24)]
        found.append(b"".join(pages))
    return found


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RepositoryConfig:
    path = tmp_path_factory.mktemp("repository")
    made = RepositoryConfig({"here": LocationConfig("here", "posix", path=path / "here")}, path / "keys")
    init(made, dt.datetime(2026, 3, 1, tzinfo=dt.UTC))
    return made


@pytest.fixture(scope="module")
def repository(config: RepositoryConfig) -> Repository:
    return Repository.open(config, need_identity=True)


def ahead(config: RepositoryConfig, repository: Repository, directory: Path, *, contains: bool = True) -> AheadFetch:
    """What looks ahead, new, so that it knows of no other segment."""
    outages = Outages(directory / "state")
    return AheadFetch(config, repository.keys, outages, SYSTEM, SEGMENT, contains_tablespaces=contains)


def content(fetch: AheadFetch, name: str) -> bytes | None:
    descriptor = fetch(name)
    if descriptor is None:
        return None
    try:
        return os.pread(descriptor, 2 * SEGMENT, 0)
    finally:
        os.close(descriptor)


def archive(repository: Repository, timeline: int, number: int, segment: bytes) -> str:
    name = segment_name(timeline, number, SEGMENT)
    key = names.wal(SYSTEM, name)
    digest = suite.keyed_digest(repository.keys.digest_key, segment)
    encoder = container.ObjectEncoder(repository.keys, container.WAL, key, digest=digest, size=len(segment))
    put(repository.locations[0], key, encoder.start + encoder.frame(container.DATA, segment) + encoder.finish())
    return name


def fetched(repository: Repository, name: str, directory: Path) -> tuple[bytes, tuple[str, ...]]:
    path = directory / name
    assert deliver(repository, SYSTEM, name, path) is not None
    paths = contain(repository, SYSTEM, name, path)
    assert list(directory.iterdir()) == [path]
    content = path.read_bytes()
    path.unlink()
    return content, paths


@pytest.mark.parametrize("distance", [*range(8, 80, 8), 4000])
def test_wherever_the_boundary_lies(repository: Repository, tmp_path: Path, distance: int) -> None:
    """Two processes, one after the other, each with one segment only."""
    timeline = distance + 1
    at = PAYLOAD - distance
    segments = two_segments(at)
    written = [archive(repository, timeline, FIRST + number, segment) for number, segment in enumerate(segments)]
    first, paths = fetched(repository, written[0], tmp_path)
    second, _unused = fetched(repository, written[1], tmp_path)
    assert paths == (PATH.decode(),)
    stream = without_page_headers(first) + without_page_headers(second)
    (length,) = struct.unpack_from("<I", stream, at)
    whole = stream[at : at + length]
    assert whole[30:] == b"\0" + PATH[1:] + b"\0"
    assert google_crc32c.value(whole[24:] + whole[:20]) == struct.unpack_from("<I", whole, 20)[0]
    others = stream[:at] + stream[at + length :]
    assert not any(others)


@pytest.mark.parametrize("distance", [*range(8, 80, 8), 4000])
def test_what_is_looked_ahead_for_is_what_would_be_fetched(
    config: RepositoryConfig, repository: Repository, tmp_path: Path, distance: int
) -> None:
    """In whatever order, and each of them alone."""
    timeline = distance + 1001
    segments = two_segments(PAYLOAD - distance)
    written = [archive(repository, timeline, FIRST + number, segment) for number, segment in enumerate(segments)]
    directory = tmp_path / "fetched"
    directory.mkdir()
    wanted = [fetched(repository, name, directory)[0] for name in written]
    assert wanted != segments
    for order in ([0, 1], [1, 0], [0], [1]):
        fetch = ahead(config, repository, tmp_path)
        assert [content(fetch, written[number]) for number in order] == [wanted[number] for number in order]
    plain = ahead(config, repository, tmp_path, contains=False)
    assert [content(plain, name) for name in written] == segments


def test_what_is_not_plain_is_left_to_who_looks_twice(
    config: RepositoryConfig, repository: Repository, tmp_path: Path
) -> None:
    """The other half of the record is on another timeline, or not there yet."""
    segments = two_segments(PAYLOAD - 24)
    first = archive(repository, 2000, FIRST, segments[0])
    second = archive(repository, 2001, FIRST + 1, segments[1])
    fetch = ahead(config, repository, tmp_path)
    assert fetch(first) is None
    assert fetch(second) is None
    assert fetch(segment_name(2002, FIRST, SEGMENT)) is None


def test_the_segment_before_is_on_an_older_timeline(repository: Repository, tmp_path: Path) -> None:
    """The first segment of a timeline is a copy up to where it began; the one before it is its parent's."""
    segments = two_segments(PAYLOAD - 24)
    archive(repository, 200, FIRST, segments[0])
    second = archive(repository, 202, FIRST + 1, segments[1])
    changed, _unused = fetched(repository, second, tmp_path)
    assert changed != segments[1]


def test_a_record_whose_beginning_is_not_there(repository: Repository, tmp_path: Path) -> None:
    """The first segment that a backup needs: WAL before it may have expired, and is not replayed."""
    segments = two_segments(PAYLOAD - 24)
    name = archive(repository, 300, FIRST + 1, segments[1])
    assert fetched(repository, name, tmp_path) == (segments[1], ())


def test_other_files_stay_as_they_are(repository: Repository, tmp_path: Path) -> None:
    path = tmp_path / "00000002.history"
    path.write_text("1\t0/5000000\tno recovery target specified\n")
    assert contain(repository, SYSTEM, path.name, path) == ()
