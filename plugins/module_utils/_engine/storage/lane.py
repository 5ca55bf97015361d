# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What one location does for a run, in a thread of its own: see ``fanout``.

The threads are daemons: one that hangs in a dead mount must not keep the process.
"""

from __future__ import annotations

import collections
import threading
import time
import typing as t

from .caught import Caught

if t.TYPE_CHECKING:
    from collections.abc import Callable

    from .base import Location, ObjectWriter

_FORGET_SECONDS: t.Final = 15.0
"""How long an aborted object is waited for."""


class Calls:
    """Calls to one location. ``changed`` guards everything that another thread looks at, and tells of changes."""

    def __init__(self, location: Location, changed: threading.Condition) -> None:
        self.location = location
        self.error: BaseException | None = None
        """What ended it, if it did not end well."""
        self.ended = False
        self._changed = changed
        self._began: float | None = time.monotonic()
        self._thread = threading.Thread(target=self._main, name=f"location {location.name}", daemon=True)

    @property
    def seconds_in_call(self) -> float:
        return time.monotonic() - self._began if self._began is not None and not self.ended else 0.0

    def _main(self) -> None:
        with Caught() as caught:
            self._run()
        with self._changed:
            self.error, self.ended = caught.error, True
            self._changed.notify_all()

    def _run(self) -> None:
        raise NotImplementedError

    def abort(self) -> None:
        """Nobody waits for it any more."""

    def join(self) -> None:
        self._thread.join(_FORGET_SECONDS)


class Task(Calls):
    """One call."""

    def __init__(self, location: Location, action: Callable[[Location], object], changed: threading.Condition) -> None:
        super().__init__(location, changed)
        self._action = action
        self._thread.start()

    def _run(self) -> None:
        self._action(self.location)


class Lane(Calls):
    """One object, from its creation to its commit: writes what waits for it, at the pace of its location."""

    def __init__(self, location: Location, key: str, changed: threading.Condition) -> None:
        super().__init__(location, changed)
        self._key = key
        self._waiting: collections.deque[bytes] = collections.deque()
        self._complete = False
        self._aborted = False
        self.waiting_bytes = 0
        """Not written yet. Read with ``changed`` held."""
        self._thread.start()

    def put(self, data: bytes) -> None:
        """To be written next. ``data`` must not change any more."""
        with self._changed:
            self._waiting.append(data)
            self.waiting_bytes += len(data)
            self._changed.notify_all()

    def finish(self) -> None:
        """Commit when everything is written."""
        with self._changed:
            self._complete = True
            self._changed.notify_all()

    def abort(self) -> None:
        """Forget it, as soon as the call under way has ended. Does nothing when it has ended."""
        with self._changed:
            self._aborted = True
            self._changed.notify_all()

    def _run(self) -> None:
        writer: ObjectWriter | None = None
        try:
            writer = self.location.create(self._key)
            while (data := self._next()) is not None:
                writer.write(data)
                with self._changed:
                    self.waiting_bytes -= len(data)
            if not self._aborted:
                writer.commit()
        finally:
            if writer is not None:
                writer.abort()

    def _next(self) -> bytes | None:
        """The next bytes; None at the end, or when nobody wants them."""
        with self._changed:
            self._began = None
            self._changed.notify_all()
            while not (self._waiting or self._complete or self._aborted):
                self._changed.wait()
            self._began = time.monotonic()
            return self._waiting.popleft() if self._waiting and not self._aborted else None
