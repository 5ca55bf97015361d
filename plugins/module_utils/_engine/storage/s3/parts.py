# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parts of objects on their way to the store: the threads that send them, and the memory that all of them may take.

The threads are daemons, which those of ``concurrent.futures`` are not: a store that says nothing must not keep a
process that is done. What is not sent by then has no name.
"""

from __future__ import annotations

import queue
import threading
import typing as t

from ..caught import Caught

if t.TYPE_CHECKING:
    from concurrent.futures import Future

THREADS = 8
IDLE_SECONDS = 30.0
PART_BYTES = 8 << 20
"""Every part but the last one is as long as this: some stores insist on parts of equal length, and on 5 MiB."""
MOST_PARTS = 10_000
MEMORY_BYTES = 64 << 20
"""Being filled and being sent, of one location, however many writers it has."""

T = t.TypeVar("T")


class PartSender:
    """One for each location. Thread-safe."""

    def __init__(self, name: str, memory: int = MEMORY_BYTES) -> None:
        self._name = name
        self._memory = memory
        self._taken = 0
        self._flying = 0
        self._changed = threading.Condition()
        self._work: queue.SimpleQueue[_Work] = queue.SimpleQueue()
        self._threads = 0

    def take(self, size: int) -> None:
        """Wait until there is room for so many bytes in a buffer.

        Only what is being sent makes room. While nothing is, waiting would not help, and might never end:
        each of the writers then goes over the limit by what it needs to fill its part.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._taken + size <= self._memory or self._flying == 0)
            self._taken += size

    def give_back(self, size: int) -> None:
        with self._changed:
            self._taken -= size
            self._changed.notify_all()

    def send(self, size: int, work: t.Callable[[], T]) -> Future[T]:
        """Do ``work`` in the background, in the order of the calls. Its bytes are given back at the end."""

        def done(_future: Future[T]) -> None:
            with self._changed:
                self._flying -= 1
                self._taken -= size
                self._changed.notify_all()

        from concurrent.futures import Future

        future: Future[T] = Future()
        future.add_done_callback(done)  # also of one that is cancelled before it began
        with self._changed:
            if self._threads < THREADS and self._threads <= self._flying:
                name = f"s3-{self._name}-{self._threads}"
                threading.Thread(target=self._serve, name=name, daemon=True).start()
                self._threads += 1
            self._flying += 1
            self._work.put(lambda: _do(future, work))
        return future

    def _serve(self) -> None:
        """One of the threads; it ends when there was nothing to do for a while."""
        while True:
            try:
                self._work.get(timeout=IDLE_SECONDS)()
            except queue.Empty:
                with self._changed:
                    if self._work.empty():
                        self._threads -= 1
                        return


_Work: t.TypeAlias = t.Callable[[], None]


def _do(future: Future[T], work: t.Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    result: list[T] = []
    with Caught() as caught:
        result.append(work())
    if caught.error is not None:
        future.set_exception(caught.error)
    else:
        future.set_result(result[0])
