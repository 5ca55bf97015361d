# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which parts of a stream make a segment, what happens when it is archived meanwhile, and what a prune takes away."""

from __future__ import annotations

import datetime as dt
import itertools
from pathlib import Path

import pytest

from cryobackup.crypto import suite
from cryobackup.errors import DamageError
from cryobackup.events import Silent
from cryobackup.postgres import archive_fetch
from cryobackup.postgres.archive_fetch import Absent, WalFetch
from cryobackup.postgres.archive_outages import Outages
from cryobackup.postgres.lsn import format_lsn
from cryobackup.postgres.streamed import find_streamed, segment_content
from cryobackup.prune import prune
from cryobackup.repository import container, names
from cryobackup.repository.model import Mark
from cryobackup.repository.names import StreamedPart
from cryobackup.storage.base import put
from tests.faults.small_repository import SEGMENT_SIZE, START, SYSTEM, SmallRepository, two_backups, wal_segment

LSN = 9 * SEGMENT_SIZE
SEGMENT = "000000010000000000000009"
OLD, NEW = "20260301T120000Z-00000001", "20260301T120001Z-00000000"


@pytest.fixture
def made(tmp_path: Path) -> SmallRepository:
    return two_backups(tmp_path, ("here", "there"))


def content(end: int = SEGMENT_SIZE) -> bytes:
    head = wal_segment(LSN)[:40]
    return (head + bytes(n % 251 + 1 for n in range(end)))[:end]


def stream(made: SmallRepository, stream: str, *borders: int, where: str = "here", data: bytes | None = None) -> None:
    """Store the parts between these borders."""
    repository = made.open()
    place = next(each for each in repository.locations if each.name == where)
    for begin, end in itertools.pairwise(borders):
        key = names.streamed_part(SYSTEM, StreamedPart(SEGMENT, stream, begin, end))
        piece = (data or content())[begin:end]
        digest = suite.keyed_digest(repository.keys.digest_key, piece)
        encoder = container.ObjectEncoder(repository.keys, container.WAL, key, digest=digest, size=len(piece))
        put(place, key, encoder.start + encoder.frame(container.DATA, piece) + encoder.finish())


def found(made: SmallRepository) -> tuple[str, int] | None:
    streamed = find_streamed(made.open().locations, SYSTEM, SEGMENT)
    return (streamed.parts[0].stream, streamed.end) if streamed is not None else None


def fetch(made: SmallRepository, destination: Path, timeline: int | None = None) -> bytes | None:
    keys = made.open().keys
    fetcher = WalFetch(made.config.repository, keys, Outages(made.config.state_directory))
    result = fetcher.fetch(SYSTEM, SEGMENT, destination, streamed=True, timeline=timeline)
    return None if isinstance(result, Absent) else destination.read_bytes()


def test_names_come_back() -> None:
    part = StreamedPart(SEGMENT, OLD, 0, 1 << 20)
    key = names.streamed_part(SYSTEM, part)
    assert names.parse_streamed_part(key) == (SYSTEM, part)
    for other in (
        key + "0",
        key.replace("/00000001/", "/00000002/", 1),
        key.replace("-00100000", "-00000000"),
        key.replace(OLD, "x"),
        key.replace("streamed/", "wal/"),
        key.replace(SEGMENT, SEGMENT + ".partial"),
    ):
        assert names.parse_streamed_part(other) is None, other


def test_what_makes_a_segment(made: SmallRepository) -> None:
    assert found(made) is None
    stream(made, OLD, 100, 200)
    assert found(made) is None, "it has no beginning"
    stream(made, OLD, 0, 100)
    assert found(made) == (OLD, 200)
    stream(made, OLD, 300, 400)
    assert found(made) == (OLD, 200), "not over a gap"
    stream(made, NEW, 0, 150)
    assert found(made) == (OLD, 200), "the one that gets farthest"
    stream(made, NEW, 150, 200, where="there")
    assert found(made) == (NEW, 200), "the newest of those, from wherever"
    stream(made, OLD, 200, 300, where="there")
    assert found(made) == (OLD, 400)


def test_the_rest_is_zeros(made: SmallRepository, tmp_path: Path) -> None:
    stream(made, OLD, 0, 9000, 70001)
    assert fetch(made, tmp_path / "wanted") == content(70001).ljust(SEGMENT_SIZE, b"\0")
    assert [path.name for path in tmp_path.glob("wanted*")] == ["wanted"]


def test_another_segment_in_its_place(made: SmallRepository, tmp_path: Path) -> None:
    stream(made, OLD, 0, 100, data=wal_segment(LSN + SEGMENT_SIZE))
    with pytest.raises(Exception, match="its name says"):
        fetch(made, tmp_path / "wanted")


def test_a_part_that_is_not_as_long_as_its_name_says(made: SmallRepository) -> None:
    stream(made, OLD, 0, 100)
    stream(made, OLD, 100, 200, data=content(150))
    repository = made.open()
    streamed = find_streamed(repository.locations, SYSTEM, SEGMENT)
    assert streamed is not None
    with pytest.raises(DamageError, match="as long"):
        list(segment_content(repository, streamed))


@pytest.mark.parametrize(("switch", "given"), [(1000, False), (2000, True)])
def test_a_timeline_that_was_left(made: SmallRepository, tmp_path: Path, switch: int, given: bool) -> None:
    """Recovery on the new one asks for the old one's segment, too, and would replay what is not on its way."""
    stream(made, OLD, 0, 2000)
    repository = made.open()
    for timeline in (2, 3):
        key = names.wal(SYSTEM, f"{timeline:08X}.history")
        text = f"1\t{format_lsn(LSN + switch if timeline == 3 else LSN + 5000)}\tno reason\n".encode()
        digest = suite.keyed_digest(repository.keys.digest_key, text)
        encoder = container.ObjectEncoder(repository.keys, container.WAL, key, digest=digest, size=len(text))
        put(repository.locations[0], key, encoder.start + encoder.frame(container.DATA, text) + encoder.finish())
    assert (fetch(made, tmp_path / "wanted") is not None) == given
    assert (fetch(made, tmp_path / "wanted", timeline=3) is not None) == given
    for other in (1, 2):
        assert fetch(made, tmp_path / "wanted", timeline=other) is not None
    assert fetch(made, tmp_path / "wanted", timeline=4) is None, "nobody knows"


@pytest.mark.parametrize("left", [0, 1])
def test_archived_while_it_is_looked_for(
    made: SmallRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    """Between the look into the archive and that at the stream, the segment came, and a prune went."""
    stream(made, OLD, 0, 100, 200)
    whole = content()
    original = archive_fetch.find_streamed

    def prune_first(*args: object) -> object:
        made.push_wal(LSN, whole)
        for place in made.open().locations:
            for info in list(place.list(names.STREAMED))[left:]:
                place.delete(info.key)
        return original(*args)

    monkeypatch.setattr(archive_fetch, "find_streamed", prune_first)
    assert fetch(made, tmp_path / "wanted") == whole


def test_a_prune_takes_what_is_archived_in_two_steps(made: SmallRepository) -> None:
    def run() -> dict[str, int]:
        prune(made.config, now=START, dry_run=False, yes=True, reporter=Silent(), grace=dt.timedelta(0))
        return {place.name: len(list(place.list(names.STREAMED))) for place in made.open().locations}

    for where in ("here", "there"):
        stream(made, OLD, 0, 100, 200, where=where)
    assert run() == {"here": 2, "there": 2}, "it may be needed"
    made.push_wal(LSN, content())
    there = next(place for place in made.open().locations if place.name == "there")
    there.delete(names.wal(SYSTEM, SEGMENT))
    prune(made.config, now=START, dry_run=False, yes=True, reporter=Silent(), grace=dt.timedelta(days=1))
    assert found(made) == (OLD, 200), "marked, and no more"
    assert run() == {"here": 0, "there": 2}, "where the segment is"


@pytest.mark.parametrize("forged", [names.STREAMED, "streamed/../x/", f"{names.STREAMED}{SYSTEM}/00000001/"])
def test_a_forged_mark_takes_nothing(made: SmallRepository, forged: str) -> None:
    stream(made, OLD, 0, 100)
    repository = made.open()
    mark = Mark(OLD, START.isoformat())
    mark.wal = [forged, names.streamed_of(SYSTEM, SEGMENT)]
    key = names.mark(OLD)
    for place in repository.locations:
        put(place, key, container.encode_record(repository.keys, container.MARK, key, mark))
    result = prune(made.config, now=START, dry_run=False, yes=True, reporter=Silent(), grace=dt.timedelta(0))
    assert result.errors == {}
    assert found(made) == (OLD, 100)
