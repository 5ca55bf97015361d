# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything that a ``Location`` promises, asked of every kind there is: real servers, real object store."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from cryobackup.errors import LocationError, ObjectConflict, ObjectMissing
from cryobackup.storage.base import Location, put
from tests.lab import Workspace, wait_until
from tests.lab.stores import Store, open_store, replace

pytestmark = pytest.mark.every_location

WRITERS = 8
ROUNDS = 12
BIG_BYTES = 80 << 20
MANY = 1100

CRASHING_WRITER = """
import sys
from pathlib import Path
from cryobackup.config import load_config
from cryobackup.storage.open import open_location

(config,) = load_config(Path(sys.argv[1])).repository.locations.values()
writer = open_location(config).create("packs/crashed/000000.pack")
for _unused in range(40):
    writer.write(bytes(1 << 20))
print("written", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def store(workspace: Workspace) -> Store:
    return workspace.stores.make(workspace.path / "place")


@pytest.fixture
def opened(workspace: Workspace, store: Store) -> Callable[[], Location]:
    """Opens the place, each time as another process would."""
    return lambda: open_store(store, workspace.path)


@pytest.fixture
def place(opened: Callable[[], Location]) -> Location:
    made = opened()
    made.prepare()
    return made


def noise(size: int, seed: int = 0) -> bytes:
    return hashlib.shake_256(b"%d" % seed).digest(size)


def at_once(count: int, action: Callable[[int], object]) -> list[BaseException | None]:
    """Do it in so many threads at the same time; the error of each."""
    barrier = threading.Barrier(count)
    outcomes: list[BaseException | None] = [None] * count

    def run(number: int) -> None:
        barrier.wait()
        try:
            action(number)
        except Exception as error:
            outcomes[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


# Creation


def test_preparing_is_idempotent(place: Location) -> None:
    put(place, "a", b"x")
    place.prepare()
    assert place.read("a") == b"x"


def test_an_object_is_there_whole_or_not_at_all(place: Location, opened: Callable[[], Location]) -> None:
    other = opened()
    writer = place.create("packs/a/000000.pack")
    writer.write(b"one")
    assert other.stat("packs/a/000000.pack") is None
    assert list(other.list("")) == []
    writer.write(bytearray(b"two"))
    writer.write(memoryview(b"-three-")[1:-1])
    writer.write(b"")
    writer.commit()
    writer.abort()
    assert other.read("packs/a/000000.pack") == b"onetwothree"
    found = other.stat("packs/a/000000.pack")
    assert found is not None
    assert (found.key, found.size) == ("packs/a/000000.pack", 11)


def test_an_empty_object(place: Location) -> None:
    assert put(place, "empty", b"") is True
    assert put(place, "empty", b"") is False
    assert place.read("empty") == b""
    assert [(info.key, info.size) for info in place.list("")] == [("empty", 0)]
    with pytest.raises(ObjectConflict):
        put(place, "empty", b"x")


def test_what_was_handed_over_may_be_reused(place: Location) -> None:
    buffer = bytearray(noise(1 << 20))
    writer = place.create("a")
    for number in range(12):
        buffer[0] = number
        writer.write(buffer)
        buffer[0] = 255
    writer.commit()
    data = place.read("a")
    assert [data[number << 20] for number in range(12)] == list(range(12))


@pytest.mark.parametrize("size", [3, 9 << 20])
def test_an_aborted_object_leaves_nothing(place: Location, store: Store, size: int) -> None:
    writer = place.create("packs/a/000000.pack")
    writer.write(bytes(size))
    writer.abort()
    writer.abort()
    assert place.stat("packs/a/000000.pack") is None
    assert list(place.list("")) == []
    assert store.left_overs() == []
    assert put(place, "packs/a/000000.pack", b"again") is True


def test_a_writer_that_is_let_go_of_leaves_no_object(place: Location) -> None:
    place.create("a").write(b"x")
    assert place.stat("a") is None


def test_nothing_is_overwritten(place: Location, store: Store) -> None:
    assert put(place, "a", b"same") is True
    assert put(place, "a", b"same") is False
    with pytest.raises(ObjectConflict) as caught:
        put(place, "a", b"other")
    assert "'a'" in caught.value.message
    assert place.name in caught.value.message
    assert caught.value.hint
    assert place.read("a") == b"same"
    assert store.left_overs() == []


def test_a_large_object_does_not_overwrite_either(place: Location, store: Store) -> None:
    put(place, "a", b"first")
    writer = place.create("a")
    for _unused in range(20):
        writer.write(noise(1 << 20))
    with pytest.raises(ObjectConflict):
        writer.commit()
    writer.abort()
    assert place.read("a") == b"first"
    assert store.left_overs() == []


def test_the_slower_of_two_large_ones_loses(place: Location) -> None:
    writers = [place.create("a") for _unused in range(2)]
    for number, writer in enumerate(writers):
        for _unused in range(10):
            writer.write(noise(1 << 20, number))
    writers[1].commit()
    with pytest.raises(ObjectConflict):
        writers[0].commit()
    writers[0].abort()
    assert place.read("a", 0, 1 << 20) == noise(1 << 20, 1)


@pytest.mark.parametrize("same", [True, False], ids=["equal", "different"])
def test_one_of_many_writers_wins(opened: Callable[[], Location], place: Location, *, same: bool) -> None:
    """Each with a connection of its own, as many hosts would. Exactly one is told that it made the object."""
    places = [opened() for _unused in range(WRITERS)]
    for number in range(ROUNDS):
        key = f"manifests/main/{number}"
        made: list[int] = []
        outcomes = at_once(WRITERS, functools.partial(_write, places, key, made, same=same))
        assert len(made) == 1
        lost = [outcome for outcome in outcomes if outcome is not None]
        assert len(lost) == (0 if same else WRITERS - 1)
        assert all(isinstance(outcome, ObjectConflict) for outcome in lost), lost
        assert place.read(key) == (b"all the same" if same else b"%d" % made[0])


def _write(places: list[Location], key: str, made: list[int], writer: int, *, same: bool) -> None:
    content = b"all the same" if same else b"%d" % writer
    if put(places[writer], key, content):
        made.append(writer)


def test_one_of_many_writers_of_one_process_wins(place: Location) -> None:
    """The same through one location object, with objects of several parts."""
    made: list[int] = []

    def write(number: int) -> None:
        writer = place.create("packs/a/000000.pack")
        try:
            for _unused in range(9):
                writer.write(noise(1 << 20, number))
            writer.commit()
            made.append(number)
        finally:
            writer.abort()

    outcomes = at_once(4, write)
    assert len(made) == 1
    assert [type(outcome) for outcome in outcomes if outcome is not None] == [ObjectConflict] * 3
    assert place.read("packs/a/000000.pack", 0, 1 << 20) == noise(1 << 20, made[0])


# Reading


def test_ranges(place: Location) -> None:
    data = noise(3 << 20)
    put(place, "a", data)
    assert place.read("a") == data
    assert place.read("a", 0, len(data)) == data
    for offset, length in ((0, 1), (1, 0), (5, 7), (1 << 20, 1 << 20), (261_119, 3), (100, 2 << 20)):
        assert place.read("a", offset, length) == data[offset : offset + length]
    assert place.read("a", len(data) - 10) == data[-10:]
    assert place.read("a", len(data) - 10, 1000) == data[-10:]
    assert place.read("a", len(data), 10) == b""
    assert place.read("a", len(data) + 1000, 10) == b""
    assert place.read("a", len(data)) == b""


def test_what_is_missing(place: Location) -> None:
    put(place, "packs/a/0", b"x")
    for key in ("nothing", "packs/a/1", "packs/b/0", "packs/a/0/below"):
        assert place.stat(key) is None
        for ask in (place.read, place.confirm):
            with pytest.raises(ObjectMissing) as caught:
                ask(key)
            assert not isinstance(caught.value, LocationError)
    with pytest.raises(ObjectMissing):
        place.read("nothing", 100, 10)
    # What is above an object is none.
    assert place.stat("packs") is None
    assert place.stat("packs/a") is None


def test_big_objects(place: Location, opened: Callable[[], Location]) -> None:
    """Written by two threads at once, read in large and small parts by another process's location."""
    parts = [noise(1 << 20, number) for number in range(7)]

    def write(number: int) -> None:
        writer = place.create(f"packs/big/{number}")
        for index in range(BIG_BYTES >> 20):
            writer.write(parts[(index + number) % 7])
        writer.commit()

    assert at_once(2, write) == [None, None]
    other = opened()
    for number in range(2):
        found = other.stat(f"packs/big/{number}")
        assert found is not None
        assert found.size == BIG_BYTES
        for offset in range(0, BIG_BYTES, 16 << 20):
            data = other.read(f"packs/big/{number}", offset, 16 << 20)
            assert data == b"".join(parts[((offset >> 20) + index + number) % 7] for index in range(16))


# Listing and deleting


def test_list_is_sorted_by_key_and_shows_only_objects(place: Location) -> None:
    keys = [
        "wal/1/00000001/a",
        "wal/1/00000001/b",
        "wal/10/x",
        "packs/x-1/0",
        "packs/x/0",
        "packs/x.y",
        "repository.json",
    ]
    for key in keys:
        put(place, key, key.encode())
    assert [info.key for info in place.list("")] == sorted(keys)
    assert [info.key for info in place.list("wal/1/")] == ["wal/1/00000001/a", "wal/1/00000001/b"]
    assert [info.key for info in place.list("packs/")] == ["packs/x-1/0", "packs/x.y", "packs/x/0"]
    assert [info.size for info in place.list("")] == [len(key) for key in sorted(keys)]
    assert list(place.list("nothing/")) == []
    assert list(place.list("packs/x/0/")) == []
    assert list(place.list("pack/")) == []


def test_thousands_of_objects(place: Location, opened: Callable[[], Location]) -> None:
    """More than any server lists in one answer; nothing is missing, nothing twice, in order."""
    keys = sorted([f"wal/1/00000001/{number:024X}" for number in range(MANY)] + [f"packs/{n:03}/0" for n in range(60)])
    shares = [keys[number::WRITERS] for number in range(WRITERS)]
    assert at_once(WRITERS, lambda number: [put(place, key, b"") for key in shares[number]]) == [None] * WRITERS
    other = opened()
    assert [info.key for info in other.list("")] == keys
    assert [info.key for info in other.list("packs/")] == [key for key in keys if key.startswith("packs/")]
    # A walk that nobody goes to the end of.
    first = next(iter(other.list("")))
    assert first.key == keys[0]


def test_what_was_created_before_is_listed(place: Location, opened: Callable[[], Location]) -> None:
    """While others create and delete beside it."""
    stop = threading.Event()
    other = opened()

    def churn() -> None:
        number = 0
        while not stop.is_set():
            put(other, f"packs/churn/{number:06}", b"x")
            other.delete(f"packs/churn/{number:06}")
            number += 1

    busy = threading.Thread(target=churn)
    busy.start()
    try:
        for number in range(25):
            put(place, f"packs/kept/{number:06}", b"x")
            found = [info.key for info in place.list("packs/") if info.key.startswith("packs/kept/")]
            assert found == [f"packs/kept/{each:06}" for each in range(number + 1)]
    finally:
        stop.set()
        busy.join()


def test_deleting_is_idempotent(place: Location) -> None:
    put(place, "packs/a/0", b"x")
    place.delete("packs/a/0")
    place.delete("packs/a/0")
    assert place.stat("packs/a/0") is None
    assert list(place.list("")) == []
    with pytest.raises(ObjectMissing):
        place.read("packs/a/0")
    assert put(place, "packs/a/0", b"again") is True
    assert place.read("packs/a/0") == b"again"


def test_creating_where_others_tidy_up(place: Location, opened: Callable[[], Location]) -> None:
    """The directory that one writer puts its object into is the one that another's deletion just emptied."""
    places = [place, opened()]

    def work(number: int) -> None:
        for round_ in range(25):
            key = f"leases/main/{number}-{round_}"
            assert put(places[number], key, b"x")
            places[number].delete(key)

    assert at_once(2, work) == [None, None]
    assert list(place.list("")) == []


def test_many_threads_use_one_location(place: Location) -> None:
    def work(number: int) -> None:
        for round_ in range(6):
            key = f"packs/{number}/{round_}"
            data = noise(200_000 + number, number)
            assert put(place, key, data)
            assert place.read(key, 1000, 50_000) == data[1000:51_000]
            place.confirm(key)
            found = place.stat(key)
            assert found is not None
            assert found.size == len(data)
            assert [info.key for info in place.list(f"packs/{number}/")] == [
                f"packs/{number}/{n}" for n in range(round_ + 1)
            ]
        place.delete(f"packs/{number}/0")

    assert at_once(WRITERS, work) == [None] * WRITERS
    assert len(list(place.list("packs/"))) == WRITERS * 5


# Times


def test_its_clock_is_the_one_that_stamps_objects(place: Location) -> None:
    before = place.now()
    put(place, "a", b"x")
    after = place.now()
    found = place.stat("a")
    assert found is not None
    (listed,) = place.list("")
    assert found.modified == pytest.approx(listed.modified, abs=1)
    # Whole seconds, in some of them.
    assert before - 1 <= found.modified <= after + 1
    assert before <= after
    assert list(place.list("")) == [listed]


def test_capacity(place: Location, store: Store) -> None:
    capacity = place.capacity()
    if store.kind == "s3":
        assert (capacity.free, capacity.total) == (None, None)
        return
    assert capacity.free is not None
    assert capacity.total is not None
    assert 0 < capacity.free <= capacity.total


def test_requests_are_counted_where_they_cost(place: Location, store: Store) -> None:
    put(place, "a", b"x")
    place.read("a")
    counted = place.requests()
    assert bool(counted) == (store.kind == "s3")
    assert all(number > 0 for number in counted.values())


# Crashes and outages


def test_a_crashed_writer_leaves_no_object_and_what_it_left_is_swept(
    place: Location, store: Store, workspace: Workspace, opened: Callable[[], Location]
) -> None:
    script = workspace.path / "writer.py"
    script.write_text(CRASHING_WRITER)
    process = subprocess.Popen(
        [sys.executable, script, workspace.path / "place.yml"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    with process, contextlib.ExitStack() as end:
        end.callback(os.killpg, process.pid, signal.SIGKILL)
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        wait_until(lambda: len(store.left_overs()) == 1, "something to be left over")
    assert list(place.list("")) == []
    assert place.stat("packs/crashed/000000.pack") is None
    assert len(store.left_overs()) == 1
    assert place.sweep(3600) == 0
    assert len(store.left_overs()) == 1, "it may still be in use"
    time.sleep(1.1)  # by the storage's own clock, in whole seconds
    assert opened().sweep(-1) == 1
    assert store.left_overs() == []
    assert put(place, "packs/crashed/000000.pack", b"whole") is True


def test_sweeping_takes_no_objects(place: Location) -> None:
    keys = ["packs/a/0", "repository.json", "wal/1/00000001/x"]
    for key in keys:
        put(place, key, b"x")
    place.sweep(-10)
    assert [info.key for info in place.list("")] == keys
    assert put(place, "packs/a/1", b"x") is True


def test_an_object_that_others_replaced_is_seen(place: Location, store: Store) -> None:
    """Nothing is remembered of objects: what verify reads is what is there."""
    put(place, "packs/a/0", b"right")
    assert place.read("packs/a/0") == b"right"
    replace(store.root / "packs/a/0", b"wrong!")
    assert place.read("packs/a/0") == b"wrong!"
    found = place.stat("packs/a/0")
    assert found is not None
    assert found.size == 6
    (store.root / "packs/a/0").unlink()
    with pytest.raises(ObjectMissing):
        place.read("packs/a/0")
    assert place.stat("packs/a/0") is None


def test_a_place_that_is_away_is_not_an_empty_one(place: Location, store: Store) -> None:
    put(place, "a", b"x")
    writer = place.create("b")
    writer.write(b"x")
    with store.away():
        for ask in (
            lambda: place.read("a"),
            lambda: place.stat("a"),
            lambda: place.stat("nothing"),
            lambda: list(place.list("")),
            lambda: list(place.list("packs/")),
            lambda: put(place, "c", b"x"),
            lambda: place.delete("a"),
            lambda: place.confirm("a"),
            writer.commit,
            lambda: place.sweep(0),
        ):
            with pytest.raises(LocationError) as caught:
                ask()
            assert not isinstance(caught.value, ObjectMissing)
            assert caught.value.hint
            assert place.name in caught.value.message
        if store.kind != "s3":  # there, a refusal tells the time, too
            with pytest.raises(LocationError):
                place.now()
        writer.abort()
    assert [info.key for info in place.list("")] == ["a"]
    assert put(place, "b", b"x") is True


# Names


@pytest.mark.parametrize("key", ["../x", "a/../x", "/etc/x", "a//b", "", ".tmp/x", "a\\b", "ä", "x" * 300, "a/"])
def test_names_cannot_leave_the_location(place: Location, key: str) -> None:
    for use in (place.create, place.read, place.stat, place.delete, place.confirm):
        with pytest.raises(LocationError, match="not a name"):
            use(key)


@pytest.mark.parametrize("key", ["a b", "a+b", "a%2Fb", "a&b=c", "~a", "x" * 200, "a/" * 6 + "b", "a'b\"c", "a:b", "*"])
def test_names_mean_themselves(place: Location, key: str) -> None:
    assert put(place, key, b"x") is True
    assert place.read(key) == b"x"
    assert [info.key for info in place.list("")] == [key]
    place.delete(key)
    assert list(place.list("")) == []
