# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which blocks of which relations WAL changed, as WAL summaries tell it. Pure.

The server keeps the same in its block reference table (``src/common/blkreftable.c``). A *limit block* of a fork
says that it was cut to so many blocks, or made anew (0), at some time: nothing at or beyond it may be taken from
an older copy. A limit block of relation 0 stands for a whole database in a tablespace that was made by copying
files, or dropped (``dbase_redo`` and ``SummarizeDbaseRecord`` in ``walsummarizer.c``).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import typing as t

if t.TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Blocks: t.TypeAlias = npt.NDArray[np.int64]
    Rows: t.TypeAlias = npt.NDArray[np.void]

NO_LIMIT: t.Final = 1 << 32
_CHUNK_BITS: t.Final = 16
_CHUNK_BLOCKS: t.Final = 1 << _CHUNK_BITS
_LISTED_AT_MOST: t.Final = 4096
"""Blocks of a chunk that are kept as a list; more take less room as a bitmap."""


class Locator(t.NamedTuple):
    """One fork of a relation. ``fork`` as PostgreSQL counts: 0 main, 1 fsm, 2 vm, 3 init."""

    tablespace: int
    database: int
    relfilenode: int
    fork: int


@functools.cache
def row_dtype() -> np.dtype[np.void]:
    """A row of ``pg_wal_summary_contents``."""
    import numpy as np

    return np.dtype(
        [
            ("relfilenode", "u4"),
            ("tablespace", "u4"),
            ("database", "u4"),
            ("fork", "u2"),
            ("block", "i8"),
            ("is_limit", "?"),
        ]
    )


@dataclasses.dataclass(slots=True)
class _Fork:
    limit: int = NO_LIMIT
    chunks: dict[int, npt.NDArray[t.Any]] = dataclasses.field(default_factory=dict)
    """By number: a sorted list of 16-bit block numbers, or a bitmap (8-bit) of a chunk with many."""

    def cut(self, limit: int) -> None:
        """Forget blocks at and beyond ``limit``: what they held was cut off."""
        self.limit = min(self.limit, limit)
        last, within = divmod(limit, _CHUNK_BLOCKS)
        for number in [number for number in self.chunks if number >= last]:
            blocks = _listed(self.chunks.pop(number))
            if number == last and within:
                self.mark(number, blocks[blocks < within])

    def mark(self, number: int, blocks: npt.NDArray[t.Any]) -> None:
        """Add blocks of a chunk."""
        import numpy as np

        known = self.chunks.get(number)
        if known is not None:
            blocks = np.union1d(_listed(known), blocks)
        if not len(blocks):
            return
        if len(blocks) <= _LISTED_AT_MOST:
            self.chunks[number] = np.unique(blocks).astype(np.uint16)
            return
        bits = np.zeros(_CHUNK_BLOCKS, np.bool_)
        bits[blocks] = True
        self.chunks[number] = np.packbits(bits)

    def between(self, start: int, stop: int) -> Blocks:
        import numpy as np

        parts = [
            _listed(self.chunks[number]) + (number << _CHUNK_BITS)
            for number in range(start >> _CHUNK_BITS, ((stop - 1) >> _CHUNK_BITS) + 1)
            if number in self.chunks
        ]
        blocks = np.concatenate(parts) if parts else np.zeros(0, np.int64)
        return blocks[(blocks >= start) & (blocks < stop)]


def _listed(chunk: npt.NDArray[t.Any]) -> Blocks:
    import numpy as np

    if chunk.dtype == np.uint8:
        return np.flatnonzero(np.unpackbits(chunk)).astype(np.int64)
    return chunk.astype(np.int64)


class ChangedBlocks:
    """Collects summaries, oldest first; then says what a file needs. Memory: about a bit to two bytes a block."""

    def __init__(self) -> None:
        self._forks: dict[Locator, _Fork] = {}
        self.blocks = 0
        """Rows that were taken in, blocks of several summaries counted several times."""

    def add(self, rows: Rows) -> None:
        """Part of a summary, in the order the server gives it: of each fork the limit block first."""
        import numpy as np

        if not len(rows):
            return
        self.blocks += len(rows)
        new = np.zeros(len(rows), np.bool_)
        new[0] = True
        for name in ("relfilenode", "tablespace", "database", "fork"):
            column = rows[name]
            new[1:] |= column[1:] != column[:-1]
        borders = [*np.flatnonzero(new).tolist(), len(rows)]
        for first, last in itertools.pairwise(borders):
            row = rows[first]
            locator = Locator(int(row["tablespace"]), int(row["database"]), int(row["relfilenode"]), int(row["fork"]))
            self._add_fork(self._forks.setdefault(locator, _Fork()), rows[first:last])

    @staticmethod
    def _add_fork(fork: _Fork, rows: Rows) -> None:
        import numpy as np

        for limit in rows["block"][rows["is_limit"]].tolist():
            fork.cut(limit)
        blocks = rows["block"][~rows["is_limit"]]
        numbers = blocks >> _CHUNK_BITS
        for number in np.unique(numbers).tolist():
            fork.mark(number, blocks[numbers == number] & (_CHUNK_BLOCKS - 1))

    def is_new_database(self, tablespace: int, database: int) -> bool:
        """Whether files of that directory came there without WAL of their own."""
        return Locator(tablespace, database, 0, 0) in self._forks

    def needed(self, locator: Locator, start: int, stop: int, known: int) -> Blocks | None:
        """What is to be read of the blocks ``start`` … ``stop`` (of one segment file, counted within the fork).

        ``known``: blocks below it are in the older copy of the file. None when nothing of that copy may be used
        (``GetFileBackupMethod`` in ``basebackup_incremental.c``). Blocks that are read for nothing do no harm: those
        beyond what the copy has, and beyond a limit block, are always read, logged or not, because relations are
        also extended without WAL.
        """
        import numpy as np

        if self.is_new_database(locator.tablespace, locator.database):
            return None
        fork = self._forks.get(locator)
        limit = NO_LIMIT if fork is None else fork.limit
        if limit <= start:
            return None
        sure = max(start, min(known, limit, stop))
        changed = fork.between(start, sure) if fork is not None else np.zeros(0, np.int64)
        return np.concatenate([changed, np.arange(sure, stop, dtype=np.int64)])
