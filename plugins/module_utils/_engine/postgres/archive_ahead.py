# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Looking ahead for a recovery: the segments that PostgreSQL will ask for next, fetched before it asks.

``restore_command`` is run for one segment after the other, and replay waits for each. What comes next is known: the
next numbers of the same timeline. A few of them are kept in memory, authenticated to the last byte, and sealed: there
is nothing on disk that could be left over, filled up or tampered with, and nothing to be lost but time.

Only "here it is" is ever said. Whatever is not plain (absence, damage, a location that does not answer) is left to
``wal-get``, which finds out by itself and tells.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
import typing as t

from .wal import WalKind, match_wal_name, segment_name

if t.TYPE_CHECKING:
    from collections.abc import Callable

KEPT_BYTES_MAX: t.Final = 64 << 20
KEPT_SEGMENTS_MAX: t.Final = 8
_WORKERS_MAX: t.Final = 3
_PATIENCE_SECONDS: t.Final = 30.0
_LOOK_SECONDS: t.Final = 0.5


def depth_for(segment_size: int) -> int:
    """How many segments of that size are looked ahead for at most; 0 for such large ones that it is not worth it."""
    return min(KEPT_SEGMENTS_MAX, KEPT_BYTES_MAX // segment_size)


def memory_file(name: str) -> int:
    """The descriptor of an empty file that is nowhere but in memory. Raises OSError."""
    return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def seal(descriptor: int) -> None:
    """From now on its content is what it is. Raises OSError."""
    import fcntl

    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)


@dataclasses.dataclass(eq=False, slots=True)
class _Slot:
    """A segment that is wanted. ``number`` counts from the beginning of the cluster's WAL."""

    timeline: int
    number: int
    begun: bool = False
    descriptor: int | None = None

    def close(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


class LookAhead:
    """The segments after the one that was asked for last. Thread-safe. Use as a context manager.

    How far it looks begins with one segment, doubles with each that is found, and is one again after one that is not:
    so the end of the archive costs one look for each segment, which a standby that waits there does not repeat.

    Memory: at most ``KEPT_BYTES_MAX`` for what is kept, and what the fetching of three segments takes.
    """

    def __init__(
        self,
        fetch: Callable[[str], int | None],
        segment_size: int,
        *,
        patience: float = _PATIENCE_SECONDS,
    ) -> None:
        """``fetch`` gives a sealed file with the authentic segment of a name, None where it is not plain.

        It is called in threads.
        """
        self._fetch = fetch
        self._segment_size = segment_size
        self._patience = patience
        self._hanging = False
        """Whether somebody waited in vain, and nothing was fetched since."""
        self._most = depth_for(segment_size)
        self._depth = 1
        self._changed = threading.Condition()
        self._slots: list[_Slot] = []
        self._last: tuple[int, int] | None = None
        self._stopping = False

    def __enter__(self) -> t.Self:
        for number in range(min(_WORKERS_MAX, self._most)):
            threading.Thread(target=self._work, name=f"ahead-{number}", daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        """Begin nothing more. What is under way is waited for by nobody."""
        with self._changed:
            self._stopping = True
            self._drop(lambda _slot: True)
            self._changed.notify_all()

    def begin(self, name: str) -> None:
        """A segment was delivered by somebody else: look ahead from there."""
        place = self._place(name)
        if place is not None:
            with self._changed:
                self._last = place
                self._plan()

    def take(self, name: str, wanted: Callable[[], bool] = lambda: True) -> int | None:
        """The descriptor of the sealed segment, now the caller's to close; None when it is not at hand.

        Waits for a segment that is being fetched, as long as it is ``wanted``, but not for ever, and not again until
        something was fetched: a location may be a black hole.
        """
        place = self._place(name)
        if place is None:
            return None
        with self._changed:
            repeated, self._last = place == self._last, place
            slot = self._find(place)
            if slot is not None:
                if not slot.begun:  # nobody else is faster; but it comes first now
                    self._slots.remove(slot)
                    self._slots.insert(0, slot)
                self._wait_for(slot, wanted)
            descriptor = None
            if slot is not None and slot in self._slots and slot.descriptor is not None:
                descriptor, slot.descriptor = slot.descriptor, None
                self._slots.remove(slot)
            if not repeated:
                self._plan()
            return descriptor

    def _wait_for(self, slot: _Slot, wanted: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self._patience
        while wanted() and not self._hanging:
            if self._changed.wait_for(
                lambda: slot.descriptor is not None or slot not in self._slots or self._stopping,
                min(self._patience, _LOOK_SECONDS),
            ):
                return
            self._hanging = time.monotonic() >= deadline

    def _place(self, name: str) -> tuple[int, int] | None:
        found = match_wal_name(name)
        if found is None or found.kind is not WalKind.SEGMENT or not found.fits(self._segment_size):
            return None
        return found.timeline, found.number(self._segment_size)

    def _find(self, place: tuple[int, int]) -> _Slot | None:
        return next((slot for slot in self._slots if (slot.timeline, slot.number) == place), None)

    def _plan(self) -> None:
        """What is wanted after the last one. What lies elsewhere goes."""
        if self._last is None or self._stopping:
            return
        timeline, number = self._last
        last = number + self._most
        # Where a timeline begins, the same number is asked for on the new one and then on the old one.
        self._drop(
            lambda slot: not (slot.number == number or (slot.timeline == timeline and number < slot.number <= last))
        )
        for wanted in range(number + 1, number + 1 + self._depth):
            if len(self._slots) >= self._most:
                break
            if self._find((timeline, wanted)) is None:
                self._slots.append(_Slot(timeline, wanted))
        self._changed.notify_all()

    def _drop(self, unwanted: Callable[[_Slot], bool]) -> None:
        for slot in [slot for slot in self._slots if unwanted(slot)]:
            self._slots.remove(slot)
            slot.close()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next() is not None or self._stopping)
                slot = self._next()
                if self._stopping or slot is None:
                    return
                slot.begun = True
            descriptor = None
            # Whatever it is, wal-get meets it too when the segment is asked for, and tells.
            with contextlib.suppress(Exception):
                descriptor = self._fetch(segment_name(slot.timeline, slot.number, self._segment_size))
            self._note(slot, descriptor)

    def _next(self) -> _Slot | None:
        return next((slot for slot in self._slots if not slot.begun), None)

    def _note(self, slot: _Slot, descriptor: int | None) -> None:
        with self._changed:
            self._hanging = self._hanging and descriptor is None
            if descriptor is None:
                self._depth = 1
                self._drop(
                    lambda other: (
                        other is slot
                        or (other.timeline == slot.timeline and other.number > slot.number and not other.begun)
                    )
                )
            elif slot in self._slots:
                slot.descriptor = descriptor
                self._depth = min(2 * self._depth, self._most)
                self._plan()
            else:
                os.close(descriptor)
            self._changed.notify_all()
