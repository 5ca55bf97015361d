# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading files of a living data directory: what a worker thread of a backup does.

A file is read in chunks of one frame's size, each of which is looked at as pages, compared or chosen from, and
stored, while it is still in the processor's cache.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import stat
import threading
import time
import typing as t

from ..crypto.suite import keyed_digest
from ..errors import CryoError
from ..repository import extents as xt
from ..repository.packs import FRAME_TARGET_BYTES
from . import page
from .changes import Method
from .frames import UNIT_BYTES, FrameWriter, Row, join_zeros, store_blocks, store_units
from .walk import unreadable

if t.TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    import numpy.typing as npt

    from .throttle import Throttle

CHUNK_BYTES: t.Final = FRAME_TARGET_BYTES
_GATHERED_BYTES = 256 << 10
_REREADINGS = 4
_REREAD_PAUSE_SECONDS = 0.02
_UNSETTLED_AT_MOST = 10_000


class Abandoned(CryoError):
    """Another thread failed, or the run was stopped: nobody waits for this result."""

    id = "abandoned"


@dataclasses.dataclass(frozen=True, slots=True)
class PageRules:
    """What the cluster's pages look like, and where the backup started."""

    block_size: int
    start_lsn: int
    checksums: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """One whole small file, or a part of a large one that begins on a chunk's border."""

    source: bytes
    start: int
    stop: int
    device: int
    inode: int
    first_block: int | None = None
    """Number of the *file's* first block within its relation; None for a file without pages."""
    method: Method = Method.STORE
    whole: bool = False
    """A small file: its size and identity are looked up again when it is opened."""
    since_lsn: int = 0
    """For PAGE_LSN: pages below it are taken from the parent."""
    parent_size: int = 0
    """For PAGE_LSN: the parent has so many bytes of the file."""
    parent_extents: xt.Extents | None = None
    """For CONTENT: what the parent has of this piece."""
    blocks: npt.NDArray[np.int64] | None = None
    """For WAL_SUMMARY: the numbers, within the file, of the blocks to be read, ascending."""
    again: npt.NDArray[np.int64] | None = None
    """Numbers of blocks that are stored although the parent has them: compaction."""
    block_size: int = 0

    @property
    def bytes_to_read(self) -> int:
        return self.stop - self.start if self.blocks is None else len(self.blocks) * self.block_size


class _Gathered(t.NamedTuple):
    """A small file that lies in the common buffer."""

    number: int
    piece: Piece
    at: int


@dataclasses.dataclass(slots=True)
class PieceResult:
    """What became of a piece. ``extents`` has what was stored; the rest is as in the parent."""

    extents: xt.Extents = dataclasses.field(default_factory=xt.empty)
    vanished: bool = False
    replaced: bool = False
    """Another file of that name was found: nothing of the parent may be taken over."""
    status: os.stat_result | None = None
    """Of a small file, when it was opened."""
    seen_ns: int = 0
    size: int = 0
    bytes_read: int = 0
    bytes_stored: int = 0
    """Of the plaintext."""
    pages: int = 0
    pages_stored: int = 0
    damaged: list[int] = dataclasses.field(default_factory=list)
    """Numbers, within the relation, of blocks that are broken for sure."""
    unsettled: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    """(block, LSN) of broken pages whose LSN lies after the backup's start: if WAL has such an LSN at all, it
    writes the whole page again, and nothing is lost."""
    pages_kept: int = 0
    """Broken pages that the parent has sound, and that stay as they are there."""
    partial_page: bool = False
    """The file does not end on a page's border."""


class FileReader:
    """Reads, checks and stores. For one thread at a time."""

    def __init__(
        self, writer: FrameWriter, rules: PageRules, throttle: Throttle, stop: threading.Event, digest_key: bytes
    ) -> None:
        self.writer = writer
        self._rules = rules
        self._throttle = throttle
        self._stop = stop
        self._digest_key = digest_key
        self._buffer = memoryview(bytearray(CHUNK_BYTES))
        self._together = memoryview(bytearray(CHUNK_BYTES))

    def read_all(self, pieces: Sequence[Piece]) -> list[PieceResult]:
        """As ``read``, for several. Small files of relations are looked at together, which costs a fraction."""
        results = [PieceResult() for _unused in pieces]
        gathered: list[_Gathered] = []
        filled = 0
        for number, piece in enumerate(pieces):
            gathers = piece.whole and piece.first_block is not None and 0 < piece.stop <= _GATHERED_BYTES
            if gathers and filled + piece.stop > CHUNK_BYTES:
                self._store_gathered(gathered, filled, results)
                gathered, filled = [], 0
            if gathers and self._gather(piece, filled, results[number]):
                gathered.append(_Gathered(number, piece, filled))
                filled += piece.stop
            elif not results[number].vanished:
                results[number] = self.read(piece)
        self._store_gathered(gathered, filled, results)
        return results

    def _gather(self, piece: Piece, at: int, result: PieceResult) -> bool:
        """Read a file into the common buffer. False for one that needs a closer look, or is not there any more."""
        result.size = piece.stop
        with self._opened(piece, result) as descriptor:
            if descriptor is None or result.size != piece.stop or piece.stop % self._rules.block_size:
                return False
            if self._stop.is_set():
                raise Abandoned("the backup was given up")
            self._throttle.take(piece.stop)
            with _Advice(descriptor, 0, piece.stop):
                result.bytes_read = _read_at(piece.source, descriptor, self._together[at : at + piece.stop], 0)
            return result.bytes_read == piece.stop

    def _store_gathered(self, gathered: list[_Gathered], filled: int, results: list[PieceResult]) -> None:
        import numpy as np

        if not gathered:
            return
        size = self._rules.block_size
        blocks = np.concatenate(
            [np.arange(file.piece.stop // size) + (file.piece.first_block or 0) for file in gathered]
        )
        suspect = page.suspect_pages(self._together[:filled], blocks, block_size=size, checksums=self._rules.checksums)
        for file in gathered:
            result, end = results[file.number], file.at + file.piece.stop
            mine = suspect[file.at // size : end // size]
            if mine.any():
                results[file.number] = self.read(file.piece)
                continue
            method = Method.STORE if result.replaced else file.piece.method
            rows = self._store(file.piece, method, 0, self._together[file.at : end], mine, result)
            result.extents = xt.build(join_zeros(rows))

    def read(self, piece: Piece) -> PieceResult:
        """Raises SourceError for what cannot be read, RepositoryError for what cannot be stored."""
        result = PieceResult(size=piece.stop)
        with self._opened(piece, result) as descriptor:
            if descriptor is None:
                return result
            if piece.blocks is not None:
                result.extents = xt.build(join_zeros(self._read_blocks(piece, piece.blocks, descriptor, result)))
                return result
            stop = result.size if piece.whole else piece.stop
            method = Method.STORE if result.replaced else piece.method
            rows: list[Row] = []
            with _Advice(descriptor, piece.start, stop):
                for offset in range(piece.start, stop, CHUNK_BYTES):
                    data = self._fill(piece, descriptor, offset, min(CHUNK_BYTES, stop - offset), result)
                    rows += self._chunk(piece, method, descriptor, offset, data, result)
        result.extents = xt.build(join_zeros(rows))
        return result

    def _read_blocks(
        self, piece: Piece, blocks: npt.NDArray[np.int64], descriptor: int, result: PieceResult
    ) -> list[Row]:
        """Read and store blocks that may lie far from each other, as many at a time as the buffer holds."""
        size = self._rules.block_size
        at_once = CHUNK_BYTES // size
        rows: list[Row] = []
        for start in range(0, len(blocks), at_once):
            some = blocks[start : start + at_once]
            data = self._fill_blocks(piece, descriptor, some, result)
            bad = self._check_blocks(piece, descriptor, some, data, result)
            result.pages += len(some)
            kept = _in_both(piece.again, some[bad])
            if len(kept):
                some, data = self._without(some, data, kept)
                result.pages_kept += len(kept)
            rows += store_blocks(self.writer, some, data, size)
        result.pages_stored = result.pages - result.pages_kept
        result.bytes_stored = sum(row[1] for row in rows if row[2] != xt.ZEROS)
        return rows

    def _without(
        self, blocks: npt.NDArray[np.int64], data: memoryview, kept: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], memoryview]:
        """The other blocks, and their bytes: what the parent has sound is not replaced by what is broken."""
        import numpy as np

        stays = ~np.isin(blocks, kept)
        pages = np.frombuffer(data, np.uint8).reshape(len(blocks), self._rules.block_size)
        return blocks[stays], memoryview(pages[stays].tobytes())

    def _fill_blocks(
        self, piece: Piece, descriptor: int, blocks: npt.NDArray[np.int64], result: PieceResult
    ) -> memoryview:
        """As ``_fill``. The disk is told of all before the first is waited for."""
        import numpy as np

        if self._stop.is_set():
            raise Abandoned("the backup was given up")
        size = self._rules.block_size
        data = self._buffer[: len(blocks) * size]
        self._throttle.take(len(data))
        borders = [0, *(np.flatnonzero(np.diff(blocks) != 1) + 1).tolist(), len(blocks)]
        runs = [(int(blocks[first]) * size, first * size, last * size) for first, last in itertools.pairwise(borders)]
        with contextlib.ExitStack() as stack:
            for offset, start, stop in runs:
                stack.enter_context(_Advice(descriptor, offset, offset + stop - start))
            for offset, start, stop in runs:
                got = _read_at(piece.source, descriptor, data[start:stop], offset)
                result.bytes_read += got
                if got < stop - start:
                    data[start + got : stop] = bytes(stop - start - got)
        return data

    @contextlib.contextmanager
    def _opened(self, piece: Piece, result: PieceResult) -> t.Iterator[int | None]:
        """The open file, or None when it has vanished."""
        result.seen_ns = time.time_ns()
        try:
            descriptor = os.open(piece.source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            result.vanished = True
            yield None
            return
        except OSError as error:
            raise unreadable(piece.source, error) from error
        try:
            status = os.fstat(descriptor)
            result.replaced = (status.st_dev, status.st_ino) != (piece.device, piece.inode)
            # Parts of a large file that are not of one file make no file. It went, as far as we are concerned.
            result.vanished = not stat.S_ISREG(status.st_mode) or (result.replaced and not piece.whole)
            if piece.whole:
                result.status, result.size = status, status.st_size
            yield None if result.vanished else descriptor
        finally:
            os.close(descriptor)

    def _fill(self, piece: Piece, descriptor: int, offset: int, length: int, result: PieceResult) -> memoryview:
        """Exactly ``length`` bytes. Beyond the end of a file that was cut off meanwhile there are zeros: WAL
        tells the rest (``sendFile`` in ``basebackup.c``)."""
        if self._stop.is_set():
            raise Abandoned("the backup was given up")
        self._throttle.take(length)
        data = self._buffer[:length]
        got = _read_at(piece.source, descriptor, data, offset)
        result.bytes_read += got
        if got < length:
            data[got:] = bytes(length - got)
        return data

    def _chunk(
        self, piece: Piece, method: Method, descriptor: int, offset: int, data: memoryview, result: PieceResult
    ) -> list[Row]:
        import numpy as np

        suspect = np.zeros(-(-len(data) // self._unit(piece)), np.bool_)
        if piece.first_block is not None:
            self._check_pages(piece, descriptor, offset, data, result, suspect)
        return self._store(piece, method, offset, data, suspect, result)

    def _unit(self, piece: Piece) -> int:
        return UNIT_BYTES if piece.first_block is None else self._rules.block_size

    def _store(
        self,
        piece: Piece,
        method: Method,
        offset: int,
        data: memoryview,
        suspect: npt.NDArray[np.bool_],
        result: PieceResult,
    ) -> list[Row]:
        """Store what is wanted of a chunk; what is suspect is."""
        import numpy as np

        unit = self._unit(piece)
        if method is Method.PAGE_LSN:
            wanted = suspect | self._changed_pages(piece, offset, data)
            first = offset // unit
            wanted[_in_both(piece.again, np.arange(first, first + len(wanted))) - first] = True
        elif method is Method.CONTENT:
            wanted = self._changed_content(piece, offset, data, unit)
        else:
            wanted = np.ones(len(suspect), np.bool_)
        rows = store_units(self.writer, offset, data, wanted, unit)
        result.bytes_stored += sum(row[1] for row in rows if row[2] != xt.ZEROS)
        if piece.first_block is not None:
            result.pages += len(suspect)
            result.pages_stored += int(np.count_nonzero(wanted))
        return rows

    # Which pages are wanted

    def _changed_pages(self, piece: Piece, offset: int, data: memoryview) -> npt.NDArray[np.bool_]:
        """Pages that the parent does not have as they are now, a page that is cut off included."""
        import numpy as np

        size = self._rules.block_size
        changed = np.ones(-(-len(data) // size), np.bool_)
        by_lsn = page.changed_since(data, piece.since_lsn, block_size=size)
        in_parent = max(0, min(piece.parent_size - offset, len(data)) // size)
        changed[:in_parent] = by_lsn[:in_parent]
        return changed

    def _changed_content(self, piece: Piece, offset: int, data: memoryview, unit: int) -> npt.NDArray[np.bool_]:
        """Units that are not part of a run of bytes which the parent has, byte for byte."""
        import numpy as np

        changed = np.ones(-(-len(data) // unit), np.bool_)
        for start, length, digest in self._parents_runs(piece, offset, len(data)):
            if keyed_digest(self._digest_key, data[start : start + length])[:16] == digest:
                end = start + length
                last = len(changed) if end == len(data) else end // unit
                changed[-(-start // unit) : last] = False
        return changed

    @staticmethod
    def _parents_runs(piece: Piece, offset: int, length: int) -> Iterator[tuple[int, int, bytes]]:
        """(start, length, digest) within the chunk of the parent's extents that lie in it and can be compared."""
        if piece.parent_extents is None:
            return
        for row in xt.cut(piece.parent_extents, offset, offset + length):
            digest = row["digest"].tobytes()
            if digest != xt.UNKNOWN_DIGEST and row["pack"] != xt.ZEROS:
                yield int(row["offset"]) - offset, int(row["length"]), digest

    # Whether pages are sound

    def _check_pages(
        self,
        piece: Piece,
        descriptor: int,
        offset: int,
        data: memoryview,
        result: PieceResult,
        suspect: npt.NDArray[np.bool_],
    ) -> None:
        """Note broken pages in the result, and in ``suspect`` by their place in the chunk."""
        import numpy as np

        size = self._rules.block_size
        first = offset // size
        blocks = np.arange(first, first + len(data) // size, dtype=np.int64)
        suspect[self._check_blocks(piece, descriptor, blocks, data, result)] = True
        result.partial_page = result.partial_page or len(data) % size != 0

    def _check_blocks(
        self, piece: Piece, descriptor: int, blocks: npt.NDArray[np.int64], data: memoryview, result: PieceResult
    ) -> list[int]:
        """Note in the result which of the file's ``blocks``, that ``data`` holds, are broken; their places in it."""
        import numpy as np

        size, first = self._rules.block_size, piece.first_block or 0
        bad = np.flatnonzero(self._suspects(data, first + blocks)).tolist()
        for attempt in range(_REREADINGS):
            if not bad:
                break
            # PostgreSQL may be writing it this moment. Pages are written in less time than this.
            self._stop.wait(_REREAD_PAUSE_SECONDS * attempt)
            bad = [at for at in bad if not self._is_sound_now(piece, descriptor, blocks[at : at + 1], data, at)]
        for at in bad:
            block = first + int(blocks[at])
            lsn = int(page.page_lsns(data[at * size : (at + 1) * size], block_size=size)[0])
            if lsn < self._rules.start_lsn:
                result.damaged.append(block)
            elif len(result.unsettled) < _UNSETTLED_AT_MOST:
                result.unsettled.append((block, lsn))
        return bad

    def _suspects(self, data: memoryview, blocks: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        return page.suspect_pages(data, blocks, block_size=self._rules.block_size, checksums=self._rules.checksums)

    def _is_sound_now(
        self, piece: Piece, descriptor: int, block: npt.NDArray[np.int64], data: memoryview, at: int
    ) -> bool:
        """Read one page of the chunk again, in place."""
        size = self._rules.block_size
        one = data[at * size : (at + 1) * size]
        got = _read_at(piece.source, descriptor, one, int(block[0]) * size)
        if got < size:
            one[got:] = bytes(size - got)
        return not self._suspects(one, (piece.first_block or 0) + block).any()


def _in_both(again: npt.NDArray[np.int64] | None, blocks: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Of the blocks of a chunk, those that compaction alone wants."""
    import numpy as np

    if again is None:
        return np.zeros(0, np.int64)
    return np.intersect1d(again, blocks, assume_unique=True)


def _read_at(source: bytes, descriptor: int, data: memoryview, offset: int) -> int:
    """Fill ``data`` from the file; the bytes there were."""
    got = 0
    try:
        while got < len(data):
            count = os.preadv(descriptor, [data[got:]], offset + got)
            if count == 0:
                break
            got += count
    except OSError as error:
        raise unreadable(source, error) from error
    return got


class _Advice:
    """Tell the kernel what a piece is read for, and leave its page cache as PostgreSQL had it.

    Pages that were in memory before stay there; pages that only we brought in go again. Advice is worth no error.
    """

    def __init__(self, descriptor: int, start: int, stop: int) -> None:
        self._descriptor = descriptor
        self._start = start
        self._length = stop - start
        self._cold = False

    def __enter__(self) -> None:
        if self._length <= 0:
            return
        self._cold = self._is_cold()
        if self._cold:
            with contextlib.suppress(OSError):
                os.posix_fadvise(self._descriptor, self._start, self._length, os.POSIX_FADV_WILLNEED)

    def _is_cold(self) -> bool:
        """Whether the piece's last byte would have to be read from the disk."""
        try:
            os.preadv(self._descriptor, [bytearray(1)], self._start + self._length - 1, os.RWF_NOWAIT)
        except BlockingIOError:
            return True
        except OSError:  # not every file system can tell
            return False
        return False

    def __exit__(self, *_error: object) -> None:
        if self._cold:
            with contextlib.suppress(OSError):
                os.posix_fadvise(self._descriptor, self._start, self._length, os.POSIX_FADV_DONTNEED)
