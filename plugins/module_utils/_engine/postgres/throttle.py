# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A limit on bytes per second, shared by several threads."""

from __future__ import annotations

import threading
import time
import typing as t

if t.TYPE_CHECKING:
    from collections.abc import Callable

_BURST_SECONDS = 0.5


class Throttle:
    """A token bucket. Who takes more than there is goes into debt, and waits until it is paid.

    ``limit``: bytes a second, None for no limit. ``wait`` sleeps for at most so many seconds and may return
    early, to stop.
    """

    def __init__(
        self,
        limit: int | None,
        wait: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = limit
        self._wait = wait
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens = 0.0
        self._at = clock()

    def take(self, amount: int) -> None:
        """Wait until ``amount`` bytes may be read. Thread-safe."""
        if self._limit is None:
            return
        with self._lock:
            now = self._clock()
            burst = self._limit * _BURST_SECONDS
            self._tokens = min(burst, self._tokens + (now - self._at) * self._limit) - amount
            self._at = now
            debt = -self._tokens
        if debt > 0:
            self._wait(debt / self._limit)
