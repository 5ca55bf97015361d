# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write once, to every location: the same bytes, in the same pass, each location at its own pace.

A location that fails is left out for the rest of the run and remembered with its error; the others
go on. Only when none is left does the run fail. One that does not come back from a call at all counts as failed
after a quarter of an hour: longer than any location itself tries.
"""

from __future__ import annotations

import contextlib
import threading
import typing as t

from ..errors import LocationError
from .base import Buffer, Location, ObjectWriter, put
from .lane import Calls, Lane, Task

if t.TYPE_CHECKING:
    from collections.abc import Callable, Sequence

AHEAD_BYTES: t.Final = 4 << 20
"""By so much a location may be behind, for each object, before the others wait for it."""
STALLED_SECONDS: t.Final = 900.0


class Fanout:
    """The locations of one run. Thread-safe."""

    def __init__(self, locations: Sequence[Location], *, stalled_seconds: float = STALLED_SECONDS) -> None:
        self._locations = list(locations)
        self._lost: dict[str, LocationError] = {}
        self._lock = threading.Lock()
        self.stalled_seconds = stalled_seconds

    @property
    def healthy(self) -> list[Location]:
        with self._lock:
            return [location for location in self._locations if location.name not in self._lost]

    @property
    def lost(self) -> dict[str, LocationError]:
        """Locations that failed in this run, by name, with the first error of each."""
        with self._lock:
            return dict(self._lost)

    def is_lost(self, location: Location) -> bool:
        with self._lock:
            return location.name in self._lost

    def lose(self, location: Location, error: LocationError) -> None:
        with self._lock:
            self._lost.setdefault(location.name, error)

    def create(self, key: str) -> FanoutWriter:
        return FanoutWriter(self, key)

    def put(self, key: str, data: Buffer) -> None:
        """Create a small object in every healthy location (see ``base.put``)."""
        self.each(lambda location: put(location, key, data))

    def delete(self, key: str) -> None:
        self.each(lambda location: location.delete(key))

    def each(self, action: Callable[[Location], object]) -> None:
        """Do something in every healthy location, at the same time, losing those that fail.

        Raises the last LocationError when no location is left; other errors pass, after all have ended.
        """
        healthy = self.healthy
        if len(healthy) == 1:
            with self.losing(healthy[0]):
                action(healthy[0])
        else:
            changed = threading.Condition()
            tasks = [Task(location, action, changed) for location in healthy]
            wait_for(self, tasks, changed, lambda _task: False)
        self.check()

    @contextlib.contextmanager
    def losing(self, location: Location) -> t.Iterator[None]:
        try:
            yield
        except LocationError as error:
            self.lose(location, error)

    def check(self) -> None:
        """Raises the error of a lost location when none is healthy."""
        if not self.healthy:
            raise next(reversed(self.lost.values()))


class FanoutWriter:
    """One object in the making, in every healthy location. Same contract as ObjectWriter.

    To a single location it writes directly; several have a thread each.
    """

    def __init__(self, fanout: Fanout, key: str) -> None:
        self._fanout = fanout
        self._changed = threading.Condition()
        self._direct: tuple[Location, ObjectWriter] | None = None
        self._lanes: list[Lane] = []
        healthy = fanout.healthy
        if len(healthy) == 1:
            with fanout.losing(healthy[0]):
                self._direct = healthy[0], healthy[0].create(key)
        else:
            self._lanes = [Lane(location, key, self._changed) for location in healthy]
        fanout.check()

    def write(self, data: Buffer) -> None:
        if self._direct is not None:
            with self._fanout.losing(self._direct[0]):
                self._direct[1].write(data)
        else:
            kept = data if isinstance(data, bytes) else bytes(data)
            for lane in self._lanes:
                lane.put(kept)
            self._wait(lambda lane: lane.waiting_bytes <= AHEAD_BYTES)
        self._fanout.check()

    def finish(self) -> None:
        """Begin the commit: nothing can be written any more. ``wait`` tells what came of it."""
        if self._direct is not None:
            with self._fanout.losing(self._direct[0]):
                self._direct[1].commit()
            self._fanout.check()
        for lane in self._lanes:
            lane.finish()

    @property
    def has_ended(self) -> bool:
        """Whether ``wait`` would return at once, after ``finish``."""
        return all(lane.ended for lane in self._lanes)

    def wait(self) -> None:
        """Return when the object is complete and durable in every healthy location."""
        self._wait(lambda _lane: False)
        self._fanout.check()

    def commit(self) -> None:
        self.finish()
        self.wait()

    def _wait(self, good_enough: Callable[[Lane], bool]) -> None:
        self._lanes = wait_for(self._fanout, self._lanes, self._changed, good_enough)

    def abort(self) -> None:
        """What a location cannot forget at once, it forgets later: nobody waits long for one that hangs."""
        if self._direct is not None:
            self._direct[1].abort()
        for lane in self._lanes:
            lane.abort()
        for lane in self._lanes:
            lane.join()
        self._lanes = []


C = t.TypeVar("C", bound=Calls)


def wait_for(
    fanout: Fanout, running: Sequence[C], changed: threading.Condition, good_enough: Callable[[C], bool]
) -> list[C]:
    """Wait until each has ended or is good enough, losing the locations of those that fail or hang.

    Returns those of locations that are still healthy. Raises the first error that is not a location's.
    """
    left = list(running)
    with changed:
        while True:
            for each in list(left):
                if isinstance(each.error, LocationError):
                    fanout.lose(each.location, each.error)
                elif each.error is None and each.seconds_in_call > fanout.stalled_seconds:
                    fanout.lose(each.location, _hangs(each.location, fanout.stalled_seconds))
                if fanout.is_lost(each.location):
                    each.abort()
                    left.remove(each)
            busy = [each for each in left if not (each.ended or good_enough(each))]
            if not busy:
                break
            changed.wait(1.0)
    for each in left:
        if each.error is not None:
            raise each.error
    return left


def _hangs(location: Location, seconds: float) -> LocationError:
    return LocationError(
        f"location {location.name!r} ({location.describe()}) has not come back from a call for {seconds:g} s",
        hint="Nothing half-written counts. A mount whose server is gone hangs like that: see to it, then run again.",
        id="location-down",
    )
