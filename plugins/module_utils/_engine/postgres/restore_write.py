# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing the content of files, in the order in which it lies in the packs.

Files are collected in batches; the extents of a batch are sorted by pack and frame, so that each frame
is read, decrypted and unpacked once, however many files it holds, and packs are read from front to
back. A batch is bounded by its number of extents and files, never by the size of the cluster: so is
memory. Each worker holds the frames of one request at a time, and those of the next, which is under way.
"""

from __future__ import annotations

import concurrent.futures as cf
import dataclasses
import functools
import os
import threading
import types
import typing as t

from ..errors import DamageError
from ..repository import extents as xt
from .restore_delta import differing
from .restore_direct import DirectWriter, worth_it
from .restore_fetch import PackShelf, cut
from .restore_sync import begin_writing
from .restore_tree import Handles, Tree, errors, write_at

if t.TYPE_CHECKING:
    import numpy as np

    from ..events import Reporter

    Rows: t.TypeAlias = xt.Extents

BATCH_EXTENTS: t.Final = 1 << 17
BATCH_FILES: t.Final = 1 << 14
_TASK_BYTES: t.Final = 32 << 20
_WAITING_TASKS: t.Final = 4
"""For each worker: enough to keep it busy, few enough to stop soon."""


@functools.cache
def row_dtype() -> np.dtype[np.void]:
    """An extent, and the number of its file in the batch."""
    import numpy as np

    return np.dtype([("file", "<u4"), ("extent", xt.dtype())])


@dataclasses.dataclass(slots=True)
class Counters:
    """Bytes of plaintext."""

    compared: int = 0
    """Read from files that were there."""
    fetched: int = 0
    """Taken from frames."""
    written: int = 0
    frames: int = 0

    def add(self, other: Counters) -> None:
        self.compared += other.compared
        self.fetched += other.fetched
        self.written += other.written
        self.frames += other.frames


@dataclasses.dataclass(frozen=True, slots=True)
class Damaged:
    """A file that lacks bytes, and why."""

    path: bytes
    reason: str


@dataclasses.dataclass(slots=True)
class _Done:
    """What a task has to say."""

    settled: int = 0
    """Bytes that are as they should be now."""
    counters: Counters = dataclasses.field(default_factory=Counters)
    damaged: list[Damaged] = dataclasses.field(default_factory=list)
    rows: Rows | None = None
    """Extents that differ (of a comparison)."""


class _Job(t.NamedTuple):
    path: bytes
    extents: xt.Extents
    compare: bool
    direct: bool
    """Past the page cache, all of it: see ``restore_direct``."""


class ContentWriter:
    """Fills files. Used as a context manager, by one thread; it starts its own.

    The files must exist, with their right sizes, before they are added. ``durable``: they are going to be synced.
    """

    def __init__(
        self,
        tree: Tree,
        packs: PackShelf,
        digest_key: bytes,
        *,
        workers: int,
        reporter: Reporter,
        durable: bool = False,
    ) -> None:
        self._tree = tree
        self._durable = durable
        self._packs = packs
        self._digest_key = digest_key
        self._workers = max(1, workers)
        self._reporter = reporter
        self._batch: list[_Job] = []
        self._extents = 0
        self._stop = threading.Event()
        self._local = threading.local()
        self._direct = DirectWriter()
        self._handles: list[Handles] = []
        self._lock = threading.Lock()
        self.counters = Counters()
        self.damaged: dict[bytes, Damaged] = {}

    def __enter__(self) -> t.Self:
        # While some wait for the disk others compare or unpack, but never more of them than there are workers.
        self._busy = threading.Semaphore(self._workers)
        self._pool = cf.ThreadPoolExecutor(2 * self._workers, thread_name_prefix="restore")
        self._ahead = cf.ThreadPoolExecutor(self._workers, thread_name_prefix="fetch")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        """Ends the threads, soon also after a failure."""
        self._stop.set()
        # First those that wait for the others.
        for pool in (self._pool, self._ahead):
            pool.shutdown(wait=True, cancel_futures=True)
        self._close_handles()

    def _close_handles(self) -> None:
        with self._lock:
            for handles in self._handles:
                handles.close()

    def add(self, path: bytes, extents: xt.Extents, *, compare: bool) -> None:
        """A file to be filled. ``compare``: it has a content already, of which only what differs is replaced."""
        direct = self._durable and not compare and worth_it(extents)
        self._batch.append(_Job(path, extents, compare, direct))
        self._extents += len(extents)
        if self._extents >= BATCH_EXTENTS or len(self._batch) >= BATCH_FILES:
            self.flush()

    def flush(self) -> None:
        """Write everything added so far. Not synced.

        Damage is collected in ``damaged`` and does not stop anything. Raises LocationError when no location answers,
        RestoreError when the target cannot be written.
        """
        import numpy as np

        jobs, self._batch, self._extents = self._batch, [], 0
        rows = np.concatenate([self._of_new_files(jobs), *self._compare(jobs)])
        extents = rows["extent"]
        order = np.lexsort((extents["frame_offset"], extents["frame"], extents["pack"]))
        for done in self._run(self._write, ((part, jobs) for part in _tasks(rows[order]))):
            self.counters.add(done.counters)
            for damaged in done.damaged:
                self.damaged.setdefault(damaged.path, damaged)
            self._reporter.advance(done.settled)
        self._close_handles()

    def _of_new_files(self, jobs: t.Sequence[_Job]) -> Rows:
        """Rows of the files that are new: all but zeros, which a new file consists of already."""
        import numpy as np

        new = [(number, job.extents) for number, job in enumerate(jobs) if not job.compare]
        lengths = [len(extents) for _unused, extents in new]
        rows = np.zeros(sum(lengths), row_dtype())
        if new:
            rows["file"] = np.repeat([number for number, _unused in new], lengths)
            rows["extent"] = xt.concatenate([extents for _unused, extents in new])
        zeros = rows["extent"]["pack"] == xt.ZEROS
        self._reporter.advance(int(rows["extent"]["length"][zeros].sum(dtype="u8")))
        found: Rows = rows[~zeros]
        return found

    def _compare(self, jobs: t.Sequence[_Job]) -> list[Rows]:
        """Rows of existing files that differ from the backup."""
        parts = []
        for number, job in enumerate(jobs):
            if job.compare:
                parts += [(number, job.path, run) for run in _runs(job.extents)]
        found = []
        for done in self._run(self._differing, parts):
            self.counters.add(done.counters)
            self._reporter.advance(done.settled)
            if done.rows is not None and len(done.rows):
                found.append(done.rows)
        return found

    def _differing(self, number: int, path: bytes, extents: xt.Extents) -> _Done:
        """Task: compare a run of a file with the backup."""
        import numpy as np

        descriptor = self._my_handles().file(path)
        done = _Done()
        with self._busy, errors(self._tree.real(path)):
            keep, zeroed = differing(descriptor, extents, self._digest_key)
        lengths = extents["length"].astype(np.int64)
        done.rows = _rows(number, extents[keep])
        done.counters.compared = int(lengths.sum())
        done.counters.written = zeroed
        done.settled = done.counters.compared - int(lengths[keep].sum())
        return done

    def _write(self, rows: Rows, jobs: t.Sequence[_Job]) -> _Done:
        """Task: fetch and write a run of extents of one pack."""
        import numpy as np

        done = _Done()
        field = int(rows["extent"]["pack"][0])
        frames = rows["extent"]["frame"]
        starts = np.flatnonzero(np.concatenate([[True], frames[1:] != frames[:-1]]))
        found = self._packs.reader(field).read(frames[starts].tolist(), self._ahead)
        for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(rows)], strict=True):
            if self._stop.is_set():
                break
            with self._busy:
                _unused, frame = next(found)
            part = rows[start:end]
            if not isinstance(frame, bytes):
                done.damaged += [Damaged(jobs[number].path, frame.message) for number in set(part["file"].tolist())]
                continue
            done.counters.frames += 1
            done.counters.fetched += len(frame)
            self._place(done, frame, part, jobs)
        return done

    def _place(self, done: _Done, frame: bytes, rows: Rows, jobs: t.Sequence[_Job]) -> None:
        """Write the extents that lie in one frame."""
        handles = self._my_handles()
        name = self._packs.name(int(rows["extent"]["pack"][0]))
        for number, extent in zip(rows["file"].tolist(), rows["extent"].tolist(), strict=True):
            offset, length, _pack, _frame, within, digest = extent
            path, _unused, there, direct = jobs[number]
            try:
                part = cut(frame, within, length, digest, self._digest_key, name)
            except DamageError as error:
                done.damaged.append(Damaged(path, error.message))
                continue
            descriptor = handles.file(path)
            with errors(self._tree.real(path)):
                # What has no digest could not be compared without its frame.
                if direct and self._direct.write(descriptor, part, offset):
                    done.counters.written += length
                elif not (there and digest == xt.UNKNOWN_DIGEST and os.pread(descriptor, length, offset) == part):
                    write_at(descriptor, part, offset)
                    done.counters.written += length
                    if self._durable:
                        begin_writing(descriptor, offset, length)
            done.settled += length

    def _my_handles(self) -> Handles:
        handles = getattr(self._local, "handles", None)
        if handles is None:
            handles = self._local.handles = Handles(self._tree)
            with self._lock:
                self._handles.append(handles)
        return t.cast(Handles, handles)

    def _run(self, task: t.Callable[..., _Done], arguments: t.Iterable[tuple[t.Any, ...]]) -> t.Iterator[_Done]:
        """Results of tasks as they come, with a bounded number of them under way."""
        waiting: set[cf.Future[_Done]] = set()
        for each in arguments:
            waiting.add(self._pool.submit(task, *each))
            if len(waiting) >= self._workers * _WAITING_TASKS:
                finished, waiting = cf.wait(waiting, return_when=cf.FIRST_COMPLETED)
                for future in finished:
                    yield future.result()
        for future in cf.as_completed(waiting):
            yield future.result()


def _rows(number: int, extents: xt.Extents) -> Rows:
    import numpy as np

    rows = np.zeros(len(extents), row_dtype())
    rows["file"] = number
    rows["extent"] = extents
    return rows


def _runs(extents: xt.Extents) -> t.Iterator[xt.Extents]:
    """A file's extents, cut where a task becomes too large."""
    import numpy as np

    ends = np.cumsum(extents["length"].astype(np.int64))
    start = 0
    while start < len(extents):
        before = int(ends[start - 1]) if start else 0
        end = max(start + 1, int(np.searchsorted(ends, before + _TASK_BYTES, side="right")))
        yield extents[start:end]
        start = end


def _tasks(rows: Rows) -> t.Iterator[Rows]:
    """Rows in the order of packs and frames, cut at packs, and between frames where a task becomes too large."""
    import numpy as np

    if not len(rows):
        return
    extents = rows["extent"]
    new_pack = extents["pack"][1:] != extents["pack"][:-1]
    new_frame = new_pack | (extents["frame"][1:] != extents["frame"][:-1])
    ends = np.cumsum(extents["length"].astype(np.int64))
    cuts = np.concatenate([[0], np.flatnonzero(new_frame) + 1])
    pack_starts = set((np.flatnonzero(new_pack) + 1).tolist())
    start = 0
    for cut_at in [*cuts[1:].tolist(), len(rows)]:
        size = int(ends[cut_at - 1]) - (int(ends[start - 1]) if start else 0)
        if cut_at in pack_starts or cut_at == len(rows) or size >= _TASK_BYTES:
            yield rows[start:cut_at]
            start = cut_at
