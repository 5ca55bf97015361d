# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write once, to every location: the same bytes, in the same pass.

A location that fails is left out for the rest of the run and remembered with its error; the others
go on. Only when none is left does the run fail.
"""

from __future__ import annotations

import contextlib
import threading
import typing as t

from ..errors import LocationError
from .base import Buffer, Location, ObjectWriter, put


class Fanout:
    """The locations of one run. Thread-safe."""

    def __init__(self, locations: t.Sequence[Location]) -> None:
        self._locations = list(locations)
        self._lost: dict[str, LocationError] = {}
        self._lock = threading.Lock()

    @property
    def healthy(self) -> list[Location]:
        with self._lock:
            return [location for location in self._locations if location.name not in self._lost]

    @property
    def lost(self) -> dict[str, LocationError]:
        """Locations that failed in this run, by name, with the first error of each."""
        with self._lock:
            return dict(self._lost)

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

    def each(self, action: t.Callable[[Location], object]) -> None:
        """Do something in every healthy location, losing those that fail.

        Raises the last LocationError when no location is left; other errors pass at once.
        """
        for location in self.healthy:
            try:
                action(location)
            except LocationError as error:
                self.lose(location, error)
        self.check()

    def check(self) -> None:
        """Raises the error of a lost location when none is healthy."""
        if not self.healthy:
            raise next(reversed(self.lost.values()))


class FanoutWriter:
    """One object in the making, in every healthy location. Same contract as ObjectWriter."""

    def __init__(self, fanout: Fanout, key: str) -> None:
        self._fanout = fanout
        self._key = key
        self._writers: dict[str, tuple[Location, ObjectWriter]] = {}
        try:
            for location in fanout.healthy:
                with self._losing(location):
                    self._writers[location.name] = (location, location.create(key))
            fanout.check()
        except BaseException:
            self.abort()
            raise

    def write(self, data: Buffer) -> None:
        for location, writer in list(self._writers.values()):
            with self._losing(location):
                writer.write(data)
        self._fanout.check()

    def commit(self) -> None:
        for location, writer in list(self._writers.values()):
            with self._losing(location):
                writer.commit()
        self._fanout.check()

    def abort(self) -> None:
        for _location, writer in self._writers.values():
            writer.abort()

    @contextlib.contextmanager
    def _losing(self, location: Location) -> t.Iterator[None]:
        try:
            yield
        except LocationError as error:
            self._fanout.lose(location, error)
            dropped = self._writers.pop(location.name, None)
            if dropped is not None:
                dropped[1].abort()
