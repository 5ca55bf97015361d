# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One pass, many places: a place that fails is left out, and only all of them fail the run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryobackup.errors import LocationError, ObjectConflict
from cryobackup.storage.base import Buffer, put
from cryobackup.storage.fanout import AHEAD_BYTES, Fanout
from cryobackup.storage.posix import PosixLocation


@pytest.fixture
def places(tmp_path: Path) -> list[PosixLocation]:
    found = [PosixLocation(name, tmp_path / name) for name in ("one", "two")]
    for place in found:
        place.prepare()
    return found


def lose(place: PosixLocation) -> None:
    place.path.rename(place.path.with_name("gone"))


class SlowWriter:
    """Does nothing until its gate is open."""

    def __init__(self, inner: object, gate: threading.Event) -> None:
        self._inner = inner
        self._gate = gate

    def write(self, data: Buffer) -> None:
        self._gate.wait()
        self._inner.write(data)

    def commit(self) -> None:
        self._gate.wait()
        self._inner.commit()

    def abort(self) -> None:
        self._inner.abort()


class SlowLocation(PosixLocation):
    """A place that does not come back from writing while ``gate`` is closed."""

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(name, path)
        self.gate = threading.Event()

    def create(self, key: str) -> SlowWriter:
        return SlowWriter(super().create(key), self.gate)


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[SlowLocation]:
    place = SlowLocation("slow", tmp_path / "slow")
    place.prepare()
    yield place
    place.gate.set()


def test_everything_goes_everywhere(places):
    fanout = Fanout(places)
    writer = fanout.create("a/b")
    writer.write(b"x")
    writer.write(bytearray(b"y"))
    writer.commit()
    assert [place.read("a/b") for place in places] == [b"xy", b"xy"]
    assert fanout.lost == {}


def test_what_is_written_may_be_changed_afterwards(places, slow):
    """Whoever writes may use his buffer again, also while a place is behind."""
    fanout = Fanout([*places, slow])
    writer = fanout.create("a")
    buffer = bytearray(b"first")
    writer.write(buffer)
    buffer[:] = b"other"
    slow.gate.set()
    writer.commit()
    assert {place.read("a") for place in (*places, slow)} == {b"first"}


def test_a_place_lost_half_way_keeps_nothing_and_the_other_goes_on(places):
    fanout = Fanout(places)
    writer = fanout.create("a")
    writer.write(b"x")
    lose(places[0])
    writer.commit()
    assert places[1].read("a") == b"x"
    assert list(fanout.lost) == ["one"]
    assert [place.name for place in fanout.healthy] == ["two"]
    fanout.put("b", b"y")  # goes to what is left
    assert places[1].read("b") == b"y"


def test_with_no_place_left_the_run_fails(places):
    fanout = Fanout(places)
    writer = fanout.create("a")
    writer.write(b"x")
    lose(places[0])
    places[1].path.rename(places[1].path.with_name("gone-too"))
    with pytest.raises(LocationError):
        writer.commit()
    assert sorted(fanout.lost) == ["one", "two"]


def test_a_conflict_is_no_outage(places):
    put(places[1], "a", b"other")
    fanout = Fanout(places)
    with pytest.raises(ObjectConflict):
        fanout.put("a", b"x")
    assert fanout.lost == {}
    assert places[1].read("a") == b"other"
    writer = fanout.create("a")
    writer.write(b"x")
    with pytest.raises(ObjectConflict):
        writer.commit()
    writer.abort()
    assert fanout.lost == {}


def test_an_aborted_object_is_nowhere(places):
    fanout = Fanout(places)
    writer = fanout.create("a")
    writer.write(b"x")
    writer.abort()
    for place in places:
        assert place.stat("a") is None
        assert list((place.path / ".tmp").iterdir()) == []


def test_a_slow_place_is_waited_for_only_when_it_is_far_behind(places, slow):
    fanout = Fanout([places[0], slow])
    writer = fanout.create("a")
    block = bytes(1 << 20)
    for _unused in range(AHEAD_BYTES // len(block)):
        writer.write(block)
    # All of that was taken, although the slow place has not even begun. More is not.
    waiting = threading.Thread(target=lambda: writer.write(block), daemon=True)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    slow.gate.set()
    waiting.join()
    writer.commit()
    assert len(places[0].read("a")) == len(slow.read("a")) == AHEAD_BYTES + len(block)


def test_the_commits_of_one_object_do_not_wait_for_each_other(places, slow):
    fanout = Fanout([places[0], slow])
    writer = fanout.create("a")
    writer.write(b"x")
    writer.finish()
    while places[0].stat("a") is None:
        pass
    assert slow.stat("a") is None
    slow.gate.set()
    writer.wait()
    assert slow.read("a") == b"x"


def test_a_place_that_never_comes_back_is_lost_and_the_others_finish(places, slow):
    fanout = Fanout([*places, slow], stalled_seconds=0.1)
    writer = fanout.create("a")
    writer.write(b"x")
    writer.commit()
    assert [place.read("a") for place in places] == [b"x", b"x"]
    assert fanout.lost["slow"].id == "location-down"
    fanout.put("b", b"y")
    assert slow.stat("b") is None
