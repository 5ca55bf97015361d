# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The worker threads of a backup, with a bounded queue in front of them."""

from __future__ import annotations

import concurrent.futures
import queue
import threading
import types
import typing as t

from .frames import FrameWriter
from .reader import Abandoned, FileReader, PageRules, Piece, PieceResult
from .throttle import Throttle

if t.TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..repository.packs import PackSet

_HEARTBEAT_SECONDS = 1.0

Results: t.TypeAlias = "concurrent.futures.Future[list[PieceResult]]"


class Readers:
    """Threads that read pieces of files and store them, each with a pack of its own.

    Use as a context manager from one thread. When it is left without ``finish``, the threads give up at once and
    what they stored is abandoned. ``heartbeat`` is called about every second while that one thread waits.
    """

    def __init__(
        self,
        packs: PackSet,
        *,
        workers: int,
        rules: PageRules,
        bandwidth_limit: int | None,
        digest_key: bytes,
        heartbeat: Callable[[], None],
    ) -> None:
        self._heartbeat = heartbeat
        self._stop = threading.Event()
        throttle = Throttle(bandwidth_limit, wait=self._stop.wait)
        self._readers = [
            FileReader(FrameWriter(packs.sink(), digest_key), rules, throttle, self._stop, digest_key)
            for _unused in range(workers)
        ]
        self._idle: queue.SimpleQueue[FileReader] = queue.SimpleQueue()
        for reader in self._readers:
            self._idle.put(reader)
        # Two tasks for each thread: one that it works on and one that waits.
        self._slots = threading.BoundedSemaphore(2 * workers)
        self._threads = concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="reader")
        self._failed: BaseException | None = None
        self._finished = False

    def __enter__(self) -> t.Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self._stop.set()
        self._threads.shutdown(wait=True, cancel_futures=True)
        if not self._finished:
            for reader in self._readers:
                reader.writer.abort()

    def submit(self, pieces: Sequence[Piece]) -> Results:
        """Have the pieces read, one behind the other, by the next free thread. Waits while the queue is full.

        Raises the error of a thread that failed, whichever it was.
        """
        while not self._slots.acquire(timeout=_HEARTBEAT_SECONDS):
            self._beat()
        self._check()
        future = self._threads.submit(self._read, pieces)
        future.add_done_callback(self._done)
        return future

    def result(self, future: Results) -> list[PieceResult]:
        """Wait for what ``submit`` returned. Raises as ``submit`` does."""
        while not concurrent.futures.wait([future], timeout=_HEARTBEAT_SECONDS).done:
            self._beat()
        self._check()
        return future.result()

    @property
    def writer(self) -> FrameWriter:
        """For the caller's own data, once all results are in."""
        return self._readers[0].writer

    def finish(self) -> None:
        """Complete the packs: everything stored is durable on return. All results must be in."""
        futures = [self._threads.submit(reader.writer.finish) for reader in self._readers]
        while concurrent.futures.wait(futures, timeout=_HEARTBEAT_SECONDS).not_done:
            self._heartbeat()
        for future in futures:
            future.result()
        self._finished = True

    def _read(self, pieces: Sequence[Piece]) -> list[PieceResult]:
        reader = self._idle.get()
        try:
            return reader.read_all(pieces)
        finally:
            self._idle.put(reader)

    def _done(self, future: Results) -> None:
        # Called by the thread that did it.
        self._slots.release()
        if future.cancelled():
            return
        error = future.exception()
        if error is not None and not isinstance(error, Abandoned) and self._failed is None:
            self._failed = error
            self._stop.set()

    def _beat(self) -> None:
        self._check()
        self._heartbeat()

    def _check(self) -> None:
        if self._failed is not None:
            raise self._failed
