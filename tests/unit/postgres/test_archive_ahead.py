# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Looking ahead for a recovery: what is kept, how much of it, and what is never said."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

import pytest

from cryobackup.postgres.archive_ahead import KEPT_BYTES_MAX, KEPT_SEGMENTS_MAX, LookAhead, depth_for, memory_file, seal
from cryobackup.postgres.wal import segment_name
from tests.lab import wait_until

SIZE = 16 << 20
PREFIX = "/memfd:0000"


class Shelf:
    """Segments by name, as small as can be, and who asked for which."""

    def __init__(self, *numbers: int, timeline: int = 1) -> None:
        self.there: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.put(*numbers, timeline=timeline)
        self._lock = threading.Lock()

    def put(self, *numbers: int, timeline: int = 1) -> None:
        for number in numbers:
            name = segment_name(timeline, number, SIZE)
            self.there[name] = name.encode()

    def __call__(self, name: str) -> int | None:
        with self._lock:
            self.asked.append(name)
        content = self.there.get(name)
        return sealed_file(name, content) if content is not None else None


def sealed_file(name: str, content: bytes) -> int:
    descriptor = memory_file(name)
    os.write(descriptor, content)
    seal(descriptor)
    return descriptor


def name(number: int, timeline: int = 1) -> str:
    return segment_name(timeline, number, SIZE)


def taken(ahead: LookAhead, wanted: str) -> bytes | None:
    descriptor = ahead.take(wanted)
    if descriptor is None:
        return None
    try:
        return os.pread(descriptor, 100, 0)
    finally:
        os.close(descriptor)


def kept() -> set[str]:
    """Names of the segments that this process has in memory."""
    found = set()
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{entry}")
            if target.startswith(PREFIX):
                found.add(target.removeprefix("/memfd:").removesuffix(" (deleted)"))
    return found


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    yield
    wait_until(lambda: kept() == set(), "what was being fetched is given up, too")


def test_what_comes_next_is_there_before_it_is_asked_for() -> None:
    shelf = Shelf(*range(1, 30))
    with LookAhead(shelf, SIZE) as ahead:
        ahead.begin(name(1))
        for number in range(2, 30):
            wait_until(lambda number=number: name(number) in kept(), f"segment {number}")  # type: ignore[misc]
            shelf_before = shelf.there.pop(name(number))
            assert taken(ahead, name(number)) == shelf_before


def test_no_more_is_kept_than_is_allowed() -> None:
    shelf = Shelf(*range(1, 100))
    with LookAhead(shelf, SIZE) as ahead:
        ahead.begin(name(1))
        wait_until(lambda: len(kept()) == depth_for(SIZE), "as many as may be kept")
        assert kept() == {name(number) for number in range(2, 2 + depth_for(SIZE))}
        assert len(shelf.asked) == depth_for(SIZE)
        # One goes, one comes.
        assert taken(ahead, name(2)) is not None
        wait_until(lambda: name(2 + depth_for(SIZE)) in kept(), "the next one")
        assert len(kept()) == depth_for(SIZE)
        # A jump: what was kept is of no use any more.
        assert taken(ahead, name(60)) is None
        wait_until(lambda: kept() == {name(number) for number in range(61, 61 + depth_for(SIZE))}, "the others")


@pytest.mark.parametrize("size", [1 << 20, 16 << 20, 64 << 20, 128 << 20, 1 << 30])
def test_the_bound_is_in_bytes_too(size: int) -> None:
    assert depth_for(size) * size <= KEPT_BYTES_MAX
    assert depth_for(size) <= KEPT_SEGMENTS_MAX
    assert depth_for(16 << 20) > 1


def test_the_end_of_the_archive_costs_one_look_for_each_segment() -> None:
    """A standby waits there: it asks for the same one again and again, and then for the next."""
    shelf = Shelf(1)
    with LookAhead(shelf, SIZE) as ahead:
        ahead.begin(name(1))
        wait_until(lambda: shelf.asked == [name(2)], "a look")
        for _unused in range(20):
            assert taken(ahead, name(2)) is None
        # Archived now, and fetched by who asked; the last question was the first for this one.
        wait_until(lambda: shelf.asked == [name(2), name(3)], "one more look")
        for number in range(2, 12):
            shelf.put(number)
            for _unused in range(5):
                assert taken(ahead, name(number + 1)) is None
            wait_until(lambda number=number: shelf.asked[-1] == name(number + 2), "a look")  # type: ignore[misc]
    assert shelf.asked == [name(number) for number in range(2, 14)]


def test_what_is_archived_later_is_found_again() -> None:
    shelf = Shelf(1, 2)
    with LookAhead(shelf, SIZE) as ahead:
        ahead.begin(name(1))
        wait_until(lambda: name(3) in shelf.asked, "the end")
        shelf.put(*range(3, 20))
        assert taken(ahead, name(2)) == name(2).encode()
        for number in range(3, 20):
            assert taken(ahead, name(number)) == name(number).encode()


def test_a_gap_is_not_looked_behind() -> None:
    shelf = Shelf(*range(1, 5), *range(6, 20))
    with LookAhead(shelf, SIZE) as ahead:
        ahead.begin(name(1))
        for number in range(2, 5):
            assert taken(ahead, name(number)) == name(number).encode()
        assert taken(ahead, name(5)) is None
        wait_until(lambda: name(6) in kept(), "the other side, now that it was asked for")


def test_a_timeline_is_left_for_the_next() -> None:
    """PostgreSQL asks for the segment of the switch on the new timeline, and on the old one when it is not there."""
    shelf = Shelf(*range(1, 9))
    shelf.put(*range(6, 20), timeline=2)
    with LookAhead(shelf, SIZE) as ahead:
        ahead.begin(name(1))
        for number in range(2, 5):
            assert taken(ahead, name(number)) == name(number).encode()
        wait_until(lambda: name(5) in kept(), "the segment of the switch")
        assert taken(ahead, name(5, 2)) is None
        assert taken(ahead, name(5)) == name(5).encode()
        assert taken(ahead, name(6, 2)) in (None, name(6, 2).encode())
        for number in range(7, 20):
            assert taken(ahead, name(number, 2)) == name(number, 2).encode()


def test_failures_are_nothing_at_hand() -> None:
    """And do not end the looking ahead."""
    shelf = Shelf(*range(1, 30))

    def fetch(wanted: str) -> int | None:
        if wanted in (name(3), name(5)):
            raise OSError(28, "No space left on device")
        return shelf(wanted)

    with LookAhead(fetch, SIZE) as ahead:
        ahead.begin(name(1))
        found = [taken(ahead, name(number)) for number in range(2, 30)]
    assert found[1] is None
    assert found[3] is None
    assert found[10:] == [name(number).encode() for number in range(12, 30)]


def test_one_that_is_being_fetched_is_waited_for() -> None:
    shelf = Shelf(*range(1, 9))
    go = threading.Event()

    def fetch(wanted: str) -> int | None:
        go.wait(60)
        return shelf(wanted)

    with LookAhead(fetch, SIZE) as ahead:
        ahead.begin(name(1))
        timer = threading.Timer(0.2, go.set)
        timer.start()
        assert taken(ahead, name(2)) == name(2).encode()
        timer.join()


def test_a_black_hole_is_waited_for_once() -> None:
    """Whoever asks does it without us, until something comes out of it again."""
    shelf = Shelf(*range(1, 30))
    go = threading.Event()

    def fetch(wanted: str) -> int | None:
        go.wait(60)
        return shelf(wanted)

    with LookAhead(fetch, SIZE, patience=0.2) as ahead:
        ahead.begin(name(1))
        assert taken(ahead, name(2)) is None
        assert [taken(ahead, name(number)) for number in range(3, 9)] == [None] * 6
        go.set()
        wait_until(lambda: name(9) in kept(), "it answers again")
        assert taken(ahead, name(9)) == name(9).encode()


def test_who_is_gone_is_not_waited_for() -> None:
    """The recovery was ended while it waited."""
    go = threading.Event()

    def fetch(_wanted: str) -> int | None:
        go.wait(60)
        return None

    with LookAhead(fetch, SIZE, patience=600) as ahead:
        ahead.begin(name(1))
        assert ahead.take(name(2), lambda: False) is None
        go.set()


@pytest.mark.parametrize(
    "other",
    ["00000002.history", f"{name(2)}.partial", f"{name(2)}.00000028.backup", "", "x", "0000000100000000000001FF"],
)
def test_other_files_are_not_looked_ahead_for(other: str) -> None:
    shelf = Shelf(*range(1, 9))
    with LookAhead(shelf, SIZE) as ahead:
        ahead.begin(other)
        assert taken(ahead, other) is None
        assert shelf.asked == []
        ahead.begin(name(1))
        assert taken(ahead, other) is None
        assert taken(ahead, name(2)) == name(2).encode()


def test_nobody_changes_what_was_authenticated() -> None:
    descriptor = sealed_file(name(1), b"content")
    try:
        for change in (
            lambda fd: os.pwrite(fd, b"other", 0),
            lambda fd: os.ftruncate(fd, 3),
            lambda fd: os.ftruncate(fd, 30),
        ):
            with pytest.raises(PermissionError):
                change(descriptor)
            again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
            try:
                with pytest.raises(PermissionError):
                    change(again)
            finally:
                os.close(again)
        assert os.pread(descriptor, 100, 0) == b"content"
    finally:
        os.close(descriptor)
