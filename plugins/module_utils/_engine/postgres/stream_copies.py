# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is streamed goes to optional locations as well, as long as that holds up nothing.

Each has a thread and a short queue. What one does not take in time it never gets: the archive will have the whole
segment, and a recovery takes each part from whichever location has it.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
import typing as t

from ..errors import CryoError, LocationError
from ..storage.base import put
from .archive_lane import missing_module
from .archive_outages import Outages

if t.TYPE_CHECKING:
    from ..config import Config, RepositoryConfig
    from ..events import Reporter
    from .archiver_settings import Openings

_QUEUED_PARTS: t.Final = 4
_ENDING_SECONDS: t.Final = 5.0


class Copies:
    """The optional locations of one stream. For one thread."""

    def __init__(self, config: Config, required: RepositoryConfig, openings: Openings, reporter: Reporter) -> None:
        """``required``: those that get everything first, and are not among them."""
        outages = Outages(config.state_directory)
        self._copies = [
            _Copy(dataclasses.replace(config.repository, locations={name: place}), name, outages, openings, reporter)
            for name, place in config.repository.locations.items()
            if name not in required.locations
        ]

    def offer(self, key: str, encoded: bytes) -> None:
        """Never blocks."""
        for copy in self._copies:
            copy.offer(key, encoded)

    def close(self) -> None:
        """Wait a little for what is under way."""
        deadline = time.monotonic() + _ENDING_SECONDS
        for copy in self._copies:
            copy.end()
        for copy in self._copies:
            copy.thread.join(max(0.0, deadline - time.monotonic()))


class _Copy:
    def __init__(
        self, place: RepositoryConfig, name: str, outages: Outages, openings: Openings, reporter: Reporter
    ) -> None:
        self._place = place
        self._name = name
        self._outages = outages
        self._openings = openings
        self._reporter = reporter
        self._queue: queue.Queue[tuple[str, bytes] | None] = queue.Queue(_QUEUED_PARTS)
        self._ended = False
        self.thread = threading.Thread(target=self._run, name=f"stream to {name}", daemon=True)
        self.thread.start()

    def offer(self, key: str, encoded: bytes) -> None:
        if self._queue.full() or self._outages.waiting(self._name) is not None:
            return
        self._queue.put_nowait((key, encoded))

    def end(self) -> None:
        self._ended = True
        if not self._queue.full():
            self._queue.put_nowait(None)

    def _run(self) -> None:
        while True:
            item = self._queue.get()
            if item is not None:
                self._bring(*item)
            if self._ended and self._queue.empty():
                return

    def _bring(self, key: str, encoded: bytes) -> None:
        began = time.monotonic()
        known = self._outages.known(self._name)
        try:
            repository = self._openings.open(self._place)
            for lost in repository.lost.values():
                raise lost
            put(repository.locations[0], key, encoded)
        except ModuleNotFoundError as error:
            self._failed(missing_module(self._name, error), began, warn=known is None)
        except CryoError as error:
            self._failed(error, began, warn=known is None)
        else:
            if known is not None:
                self._outages.answered(self._name)

    def _failed(self, error: CryoError, began: float, *, warn: bool) -> None:
        if warn:
            self._reporter.warn(f"location {self._name} gets nothing of the stream for now: {error.message}")
        if isinstance(error, LocationError):
            self._outages.failed(self._name, error, time.monotonic() - began)
