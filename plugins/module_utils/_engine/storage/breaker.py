# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which location a reader asks first, for one run: not again and again one that does not answer."""

from __future__ import annotations

import threading
import time
import typing as t

from ..errors import LocationError

if t.TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .base import Location

RETRY_SECONDS: t.Final = 5.0
_PROBE: t.Final = "repository.json"
_CERTAIN: t.Final = ("location-down", "location-denied")
"""Errors of a location as a whole: nothing needs to be asked to know that."""


class Breaker:
    """The order in which locations are asked. Thread-safe.

    A location that failed is asked after all others for the rest of the run, and then only when it was left alone for
    a moment: a store that is down takes minutes to say so, for every single request.
    """

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._again: dict[str, float] = {}
        """When each location that failed may be asked again."""
        self._failures: dict[str, LocationError] = {}
        self._read: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def failures(self) -> dict[str, LocationError]:
        """Locations that failed in this run, by name, with the first error of each."""
        with self._lock:
            return dict(self._failures)

    @property
    def read(self) -> dict[str, int]:
        """Bytes of frames that were used, by the location they came from."""
        with self._lock:
            return dict(self._read)

    def used(self, location: Location, stored: int) -> None:
        with self._lock:
            self._read[location.name] = self._read.get(location.name, 0) + stored

    def order(self, locations: Sequence[Location]) -> list[Location]:
        """The same locations, those that failed behind the others."""
        with self._lock:
            return sorted(locations, key=lambda location: location.name in self._failures)

    def wait(self, location: Location) -> None:
        """Return when the location may be asked: at once, or a moment after it failed."""
        with self._lock:
            left = self._again.get(location.name, 0.0) - self._clock()
        if left > 0:
            self._sleep(min(left, RETRY_SECONDS))

    def failed(self, location: Location, error: LocationError) -> None:
        """Note that a request failed, if it is the location and not only the one object that cannot be read."""
        if error.id not in _CERTAIN and _answers(location):
            return
        with self._lock:
            self._failures.setdefault(location.name, error)
            self._again[location.name] = self._clock() + RETRY_SECONDS


def _answers(location: Location) -> bool:
    try:
        return location.stat(_PROBE) is not None
    except LocationError:
        return False
