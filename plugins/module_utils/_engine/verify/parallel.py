# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work in threads that ends when its reader does."""

from __future__ import annotations

import concurrent.futures as cf
import contextlib
import itertools
import threading
import typing as t

T = t.TypeVar("T")
R = t.TypeVar("R")
_WAITING_FOR_EACH: t.Final = 4


@contextlib.contextmanager
def in_parallel(
    tasks: t.Iterable[T], action: t.Callable[[T, threading.Event], R], workers: int
) -> t.Iterator[t.Iterator[R]]:
    """Results of ``action`` for each task, as they come; a bounded number is under way.

    On leaving, however that comes about, the event that actions get is set, what has not begun is dropped and what
    has is waited for.
    """
    stop = threading.Event()
    pool = cf.ThreadPoolExecutor(workers, thread_name_prefix="verify")

    def results() -> t.Iterator[R]:
        queue = iter(tasks)
        waiting: set[cf.Future[R]] = set()
        while True:
            for task in itertools.islice(queue, workers * _WAITING_FOR_EACH - len(waiting)):
                waiting.add(pool.submit(action, task, stop))
            if not waiting:
                return
            done, waiting = cf.wait(waiting, return_when=cf.FIRST_COMPLETED)
            for future in done:
                yield future.result()

    try:
        yield results()
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
