# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What reading costs where every request is paid for, and how a reader goes on when a location fails."""

from __future__ import annotations

import collections
import concurrent.futures as cf
import dataclasses
import os
from pathlib import Path

import pytest

from cryobackup.errors import DamageError, LocationError, ObjectMissing
from cryobackup.postgres.archive_object import WalReader, look_at_wal
from cryobackup.repository import names
from cryobackup.repository import packs as packs_module
from cryobackup.repository.catalog import Catalog
from cryobackup.repository.manifest import Manifest, open_manifest
from cryobackup.repository.model import pack_names
from cryobackup.repository.packs import JOINED_BYTES, PackReader, PackSet
from cryobackup.repository.repository import Repository
from cryobackup.storage.base import ObjectInfo
from cryobackup.storage.breaker import Breaker
from cryobackup.storage.posix import PosixLocation
from cryobackup.verify.content import examine_pack
from cryobackup.verify.needs import Needs
from tests.faults.small_repository import SEGMENT_SIZE, SYSTEM, SmallRepository, sample


class CountingLocation(PosixLocation):
    """Counts what an object store would be asked, and may be gone."""

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(name, path)
        self.asked: collections.Counter[str] = collections.Counter()
        self.lives: int | None = None
        """So many reads from now on it is gone."""

    def _request(self, kind: str) -> None:
        self.asked[kind] += 1
        if self.lives is not None:
            self.lives -= kind == "get"
            if self.lives < 0:
                raise LocationError(f"location {self.name!r}: no answer", id="location-down")

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        self._request("get")
        return super().read(key, offset, length)

    def stat(self, key: str) -> ObjectInfo | None:
        self._request("head")
        return super().stat(key)

    def list(self, prefix: str):
        self._request("list")
        return super().list(prefix)

    def counted(self) -> dict[str, int]:
        """Since the last time."""
        found, self.asked = dict(self.asked), collections.Counter()
        return found


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def breaker(self) -> Breaker:
        return Breaker(clock=lambda: self.now, sleep=self.sleep)


@dataclasses.dataclass
class Store:
    small: SmallRepository
    repository: Repository
    places: list[CountingLocation]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    small = SmallRepository(tmp_path, ("near", "far"))
    repository = small.open()
    places = [CountingLocation(name, path) for name, path in small.paths.items()]
    repository.locations = list(places)
    return Store(small, repository, places)


def big_pack(store: Store, frames: int = 40) -> tuple[str, list[bytes]]:
    """A pack of frames that cannot be compressed, each of 1 MiB."""
    backup_id = "20260101T000000Z-00000001"
    packs = PackSet(store.repository.fanout(), store.repository.keys, backup_id, level=1)
    sink = packs.sink()
    plain = [os.urandom(1 << 20) for _unused in range(frames)]
    for data in plain:
        sink.store(data)
    sink.close()
    for place in store.places:
        place.counted()
    return names.pack(backup_id, 0), plain


def size_of(store: Store, name: str) -> int:
    return (store.places[0].path / name).stat().st_size


def test_a_whole_pack_is_read_with_few_requests(store: Store) -> None:
    name, plain = big_pack(store)
    size = size_of(store, name)
    reader = PackReader(store.places, store.repository.keys, name, size=size)
    assert [frame for _unused, frame in reader.read(range(40))] == plain
    # Beginning, end, and all between in pieces of 8 MiB. Nothing of the other location.
    assert store.places[0].counted() == {"get": 2 + -(-40 // (JOINED_BYTES // (1 << 20) - 1))}
    assert store.places[1].counted() == {}
    # Once more costs the pieces alone, also when the next piece is fetched while one is used.
    with cf.ThreadPoolExecutor(2) as ahead:
        assert [frame for _unused, frame in reader.read(range(40), ahead)] == plain
    assert store.places[0].counted()["get"] <= 6


def test_a_small_pack_is_read_with_one_request_each_time(store: Store) -> None:
    """A long chain has hundreds of them, all open at the same time: nothing of their bytes is kept."""
    backup_id = "20260101T000000Z-00000003"
    packs = PackSet(store.repository.fanout(), store.repository.keys, backup_id, level=1)
    sink = packs.sink()
    plain = [os.urandom(200 << 10) for _unused in range(4)]
    for data in plain:
        sink.store(data)
    sink.close()
    store.places[0].counted()
    name = names.pack(backup_id, 0)
    reader = PackReader(store.places, store.repository.keys, name, size=size_of(store, name))
    with cf.ThreadPoolExecutor(1) as ahead:
        for _unused in range(3):
            assert [frame for _number, frame in reader.read(range(4), ahead)] == plain
            assert store.places[0].counted() == {"get": 1}


def test_one_frame_of_a_pack_takes_three_requests(store: Store) -> None:
    name, plain = big_pack(store)
    reader = PackReader(store.places, store.repository.keys, name, size=size_of(store, name))
    assert reader.frame(17) == plain[17]
    assert store.places[0].counted() == {"get": 3}
    assert PackReader(store.places, store.repository.keys, name).frame(3) == plain[3]
    assert store.places[0].counted() == {"get": 3, "head": 1}


def test_small_gaps_are_read_over_and_large_ones_are_not(store: Store) -> None:
    backup_id = "20260101T000000Z-00000002"
    packs = PackSet(store.repository.fanout(), store.repository.keys, backup_id, level=1)
    sink = packs.sink()
    plain = [os.urandom(64 << 10) for _unused in range(60)]
    for data in plain:
        sink.store(data)
    sink.close()
    store.places[0].counted()
    name = names.pack(backup_id, 0)
    reader = PackReader(store.places, store.repository.keys, name, size=size_of(store, name))
    assert reader.count == 60
    assert store.places[0].counted() == {"get": 2}
    wanted = [0, 2, 4, 30, 31, 33]
    assert list(reader.read(wanted)) == [(number, plain[number]) for number in wanted]
    assert store.places[0].counted() == {"get": 2}


def test_a_small_pack_is_one_request(store: Store) -> None:
    record = store.small.backup(sample())
    (name, (size, _digest)), *_unused = pack_names(record.header).items()
    reader = PackReader(store.places, store.repository.keys, name, size=size)
    assert [number for number, frame in reader.read(range(reader.count)) if isinstance(frame, bytes)] == list(range(6))
    assert store.places[0].counted() == {"get": 1}


def test_the_header_of_a_manifest_is_one_request_and_all_of_a_small_one_too(store: Store) -> None:
    record = store.small.backup(sample())
    manifest = Manifest(store.repository.keys, store.places[0], "main", record.id)
    assert len(list(manifest.entries())) == len(store.small.content[record.id])
    assert store.places[0].counted() == {"get": 1}


def test_a_large_manifest(store: Store) -> None:
    files = {b"base/%05d/%s" % (number, os.urandom(80).hex().encode()): b"" for number in range(12_000)}
    record = store.small.backup(files)
    assert size_of(store, names.manifest("main", record.id)) > 500_000
    manifest = Manifest(store.repository.keys, store.places[0], "main", record.id)
    assert store.places[0].counted()["get"] == 1
    assert len(list(manifest.entries())) == len(store.small.content[record.id])
    assert store.places[0].counted() == {"head": 1, "get": 2}


def test_the_catalog_asks_once_for_each_manifest(store: Store) -> None:
    for number in range(3):
        store.small.backup({b"a": b"%d" % number})
    assert len(Catalog.load(store.repository).backups) == 3
    assert store.places[0].counted() == {"list": 2, "get": 3}
    assert store.places[1].counted() == {"list": 2}


def test_wal_is_one_request(store: Store) -> None:
    key = store.small.push_wal(2 * SEGMENT_SIZE)
    name = key.rpartition("/")[2]
    place, keys = store.places[0], store.repository.keys
    assert len(b"".join(WalReader.archived(keys, place, SYSTEM, name).chunks())) == SEGMENT_SIZE
    assert place.counted() == {"get": 1}
    assert look_at_wal(keys, place, SYSTEM, name) is not None
    assert place.counted() == {"get": 1}
    assert look_at_wal(keys, place, SYSTEM, name[:-1] + "F") is None
    assert place.counted() == {"get": 1}


def test_verifying_a_pack_reads_each_byte_about_once(store: Store) -> None:
    name, _unused = big_pack(store)
    needs = Needs()
    pack = needs.packs.setdefault(name, _needs_of(store, name))
    found = examine_pack(store.places[0], store.repository.keys, pack, _never())
    assert found.problem is None
    assert store.places[0].counted()["get"] <= 8


def _needs_of(store: Store, name: str) -> object:
    from blake3 import blake3

    from cryobackup.verify.needs import Claim, PackNeeds

    data = (store.places[0].path / name).read_bytes()
    return PackNeeds(Claim(name, len(data), blake3(data).digest()))


def _never() -> object:
    import threading

    return threading.Event()


@pytest.mark.parametrize("change", ["longer", "shorter", "empty"])
@pytest.mark.parametrize("frames", [1, 3])
def test_a_pack_of_another_length_is_damaged(store: Store, change: str, frames: int) -> None:
    name, plain = big_pack(store, frames)
    path = store.places[0].path / name
    size, data = size_of(store, name), path.read_bytes()
    path.unlink()
    path.write_bytes({"longer": data + b"x", "shorter": data[:-1], "empty": b""}[change])
    with pytest.raises(DamageError):
        PackReader(store.places[:1], store.repository.keys, name, size=size).frame(0)
    reader = PackReader(store.places, store.repository.keys, name, size=size)
    assert list(reader.read(range(frames))) == list(enumerate(plain))


def test_a_damaged_frame_is_taken_from_another_location(store: Store) -> None:
    name, plain = big_pack(store, 6)
    path = store.places[0].path / name
    data = bytearray(path.read_bytes())
    data[3 << 20] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    reader = PackReader(store.places, store.repository.keys, name)
    assert list(reader.read(range(6))) == list(enumerate(plain))
    alone = PackReader(store.places[:1], store.repository.keys, name)
    found = dict(alone.read(range(8)))
    assert {number for number, frame in found.items() if isinstance(frame, DamageError)} == {2, 6, 7}
    (store.places[0].path / name).unlink()
    gone = PackReader(store.places[:1], store.repository.keys, name)
    assert all(isinstance(frame, ObjectMissing) for _unused, frame in gone.read([0, 1]))


def test_a_location_that_fails_is_not_asked_for_every_frame(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    name, plain = big_pack(store)
    monkeypatch.setattr(packs_module, "JOINED_BYTES", 2 << 20)
    near, far = store.places
    breaker = Clock().breaker()
    reader = PackReader(store.places, store.repository.keys, name, size=size_of(store, name), breaker=breaker)
    near.lives = 6  # header, table, and a few frames
    assert list(reader.read(range(40))) == list(enumerate(plain))
    assert near.counted()["get"] == 7
    assert far.counted()["get"] >= 30
    assert list(breaker.failures) == ["near"]
    assert set(breaker.read) == {"near", "far"}
    assert sum(breaker.read.values()) > sum(map(len, plain))


def test_a_location_that_failed_is_asked_again_for_what_no_other_has(store: Store) -> None:
    name, plain = big_pack(store, 4)
    near, far = store.places
    clock = Clock()
    breaker = clock.breaker()
    reader = PackReader(store.places, store.repository.keys, name, breaker=breaker)
    near.lives = 0
    assert reader.frame(0) == plain[0]
    near.lives = None
    (far.path / name).unlink()
    assert reader.frame(1) == plain[1]
    assert clock.now > 0, "it was left alone for a moment"
    near.lives = 0
    with pytest.raises(ObjectMissing):  # of the one that answers; the other would have been an outage
        reader.frame(2)


def test_an_object_that_cannot_be_read_is_no_outage(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad sector: the rest of the location is as good as before."""
    name, plain = big_pack(store, 2)
    near = store.places[0]
    original = near.read

    def read(key: str, offset: int = 0, length: int | None = None) -> bytes:
        if key == name:
            raise LocationError(f"location 'near': cannot read {key}: Input/output error")
        return original(key, offset, length)

    monkeypatch.setattr(near, "read", read)
    breaker = Clock().breaker()
    reader = PackReader(store.places, store.repository.keys, name, breaker=breaker)
    assert reader.frame(0) == plain[0]
    assert breaker.failures == {}


def test_with_every_location_gone_the_reader_gives_up(store: Store) -> None:
    name, _unused = big_pack(store, 2)
    for place in store.places:
        place.lives = 0
    reader = PackReader(store.places, store.repository.keys, name, breaker=Clock().breaker())
    with pytest.raises(LocationError):
        list(reader.read(range(2)))


def test_a_manifest_goes_on_in_another_location(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent's manifest is read for as long as the backup takes: its location may fail meanwhile."""
    monkeypatch.setattr(packs_module, "JOINED_BYTES", 1)
    files = {b"base/%05d/%s" % (number, os.urandom(80).hex().encode()): b"" for number in range(24_000)}
    record = store.small.backup(files)
    manifest = open_manifest(store.repository.keys, store.places, "main", record.id, breaker=Clock().breaker())
    entries = manifest.entries()
    first = next(entries)
    store.places[0].path.rename(store.places[0].path.with_name("away"))
    assert {first.path, *(entry.path for entry in entries)} == store.small.content[record.id].keys()
