# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Data pages: checksums, LSNs and header sanity, for buffers of many pages at a time.

Every function takes any readable buffer of whole pages, neither copies nor changes it, and may be
called from several threads at once. The page layout is that of ``src/include/storage/bufpage.h``
(unchanged from PostgreSQL 8.3 to 19), the checksum that of ``src/include/storage/checksum_impl.h``.

numpy is imported on the first call: a command that looks at no page does not pay for it.
"""

from __future__ import annotations

import functools
import typing as t
from dataclasses import dataclass

from .lsn import MAX_LSN

if t.TYPE_CHECKING:
    import numpy as np
    from _typeshed import ReadableBuffer
    from numpy.typing import NDArray

    BoolArray = NDArray[np.bool_]
    BlockArray = NDArray[np.int64]
    Words = NDArray[np.uint32]

BLOCK_SIZE_DEFAULT = 8192
PAGE_HEADER_BYTES = 24
PAGE_LAYOUT_VERSION = 4
PAGE_VALID_FLAGS = 0x0007

_LANES = 32
_ROW_BYTES = 4 * _LANES
_FNV_PRIME = 16777619
# Pages hashed at a time: the two scratch arrays, 128 bytes a page each, stay in the second-level cache.
_BATCH_PAGES = 1024
# pg_checksum_block starts every one of its 32 lanes with a value of its own.
_LANE_OFFSETS = (
    0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C,
    0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB,
    0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4,
    0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
)  # fmt: skip

# The header as 32-bit words: 0 and 1 are pd_lsn (high, low), 2 is checksum and flags, 3 is lower and
# upper, 4 is special and size-with-version, 5 is pd_prune_xid.
_WORD_CHECKSUM = 2


@dataclass(frozen=True, slots=True)
class PageScan:
    """What a look at a run of pages found.

    Block numbers count from the beginning of the relation, not of the buffer or segment file.
    ``suspect`` must be read again before it is believed: a page that PostgreSQL is writing at this
    moment can look torn.
    """

    pages: int
    """Whole pages looked at."""
    suspect: BlockArray
    """Numbers, ascending, of pages with a wrong checksum or a bad header, or new but not empty."""
    newer: int
    """Pages not judged because WAL since ``start_lsn`` rewrites them."""
    highest_lsn: int
    """The highest LSN on any page, 0 when all are new. Above the end of WAL, the page is damaged."""
    trailing_bytes: int
    """Bytes after the last whole page: 0 unless the file was being extended or is damaged."""


def page_lsns(buffer: ReadableBuffer, *, block_size: int = BLOCK_SIZE_DEFAULT) -> NDArray[np.uint64]:
    """``pd_lsn`` of every whole page; 0 for new pages."""
    return _lsns(_words(buffer, block_size))


def page_checksums(
    buffer: ReadableBuffer, first_block: int, *, block_size: int = BLOCK_SIZE_DEFAULT
) -> NDArray[np.uint16]:
    """The checksum that every whole page ought to carry, wherever its stored checksum says otherwise.

    ``first_block`` is the number of the buffer's first page within the relation, all segment files
    counted. Like ``pg_checksum_page``, meaningless for new pages.
    """
    return _checksums(_words(buffer, block_size), first_block)


def changed_since(buffer: ReadableBuffer, lsn: int, *, block_size: int = BLOCK_SIZE_DEFAULT) -> BoolArray:
    """For every whole page, whether it may have changed since ``lsn``.

    True for an LSN at or above ``lsn`` and for pages without an LSN (new pages, and pages of forks or
    relations that are not WAL-logged): those cannot be judged. False means only that no WAL-logged
    change happened; hint bits, the free space map and pages copied from another relation need the
    guards of the change detection.
    """
    lsns = page_lsns(buffer, block_size=block_size)
    changed: BoolArray = (lsns >= lsn) | (lsns == 0)
    return changed


def verify_pages(
    buffer: ReadableBuffer,
    first_block: int,
    start_lsn: int,
    *,
    block_size: int = BLOCK_SIZE_DEFAULT,
    checksums: bool = True,
) -> PageScan:
    """Look for damaged pages as PostgreSQL's own base backup does, and a little harder.

    ``first_block`` as in :func:`page_checksums`. ``start_lsn`` is where the backup started: a page with
    an LSN at or above it may be torn, and is rewritten by the WAL that belongs to the backup
    (``verify_page_checksum`` in ``src/backend/backup/basebackup.c``). For files that nobody writes, pass
    ``MAX_LSN``.

    Besides wrong checksums, a page without line pointers area (``pd_upper`` = 0, which PostgreSQL takes
    for new) is suspect unless it is zero throughout (``PageIsVerified`` in ``bufpage.c``), and so is a
    page whose header does not add up. With ``checksums=False`` (a cluster without them) only the latter
    two are looked for.
    """
    import numpy as np

    words = _words(buffer, block_size)
    lsns = _lsns(words)
    suspect, newer = _suspect_pages(words, lsns, first_block, start_lsn, block_size, checksums)
    return PageScan(
        pages=len(words),
        suspect=np.flatnonzero(suspect) + first_block,
        newer=int(np.count_nonzero(newer)),
        highest_lsn=int(lsns.max(initial=0)),
        trailing_bytes=memoryview(buffer).nbytes % block_size,
    )


def suspect_pages(
    buffer: ReadableBuffer, blocks: BlockArray, *, block_size: int = BLOCK_SIZE_DEFAULT, checksums: bool = True
) -> BoolArray:
    """For every whole page, whether :func:`verify_pages` would suspect it, whatever its LSN.

    ``blocks`` has the number of each within its relation: the pages may be of several. Looking at the pages of
    many small files together takes hardly longer than at those of one.
    """
    words = _words(buffer, block_size)
    suspect, _unused = _suspect_pages(words, _lsns(words), blocks, MAX_LSN, block_size, checksums)
    return suspect


def _suspect_pages(
    words: Words,
    lsns: NDArray[np.uint64],
    blocks: int | BlockArray,
    start_lsn: int,
    block_size: int,
    checksums: bool,
) -> tuple[BoolArray, BoolArray]:
    """(suspect, not judged because newer), for every page."""
    import numpy as np

    new = (words[:, 3] >> np.uint32(16)) == 0
    newer = (lsns >= start_lsn) & ~new
    suspect = np.zeros(len(words), dtype=np.bool_)
    suspect[new] = words[new].any(axis=1)
    judged = ~new & ~newer
    suspect |= judged & ~_headers_sane(words, block_size)
    if checksums and judged.any():
        stored = (words[:, _WORD_CHECKSUM] & np.uint32(0xFFFF)).astype(np.uint16)
        suspect |= judged & (stored != _checksums(words, blocks))
    return suspect, newer


def _checksums(words: Words, blocks: int | BlockArray) -> NDArray[np.uint16]:
    import numpy as np

    if isinstance(blocks, int):
        blocks = np.arange(blocks, blocks + len(words), dtype=np.int64)
    folded = np.empty(len(words), dtype=np.uint32)
    for start in range(0, len(words), _BATCH_PAGES):
        _fold_pages(words[start : start + _BATCH_PAGES], folded[start : start + _BATCH_PAGES])
    folded ^= blocks.astype(np.uint32)
    folded %= np.uint32(65535)
    folded += np.uint32(1)
    return folded.astype(np.uint16)


def _words(buffer: ReadableBuffer, block_size: int) -> Words:
    """The buffer's whole pages as rows of little-endian 32-bit words, without a copy."""
    import numpy as np

    if block_size < 1024 or block_size & (block_size - 1):
        raise ValueError(f"not a PostgreSQL block size: {block_size}")
    words_per_page = block_size // 4
    view = memoryview(buffer)
    pages = view.nbytes // block_size
    if pages == 0:
        return np.empty((0, words_per_page), dtype=np.uint32)
    flat: Words = np.frombuffer(view, dtype="<u4", count=pages * words_per_page)
    return flat.reshape(pages, words_per_page)


def _lsns(words: Words) -> NDArray[np.uint64]:
    # PageXLogRecPtr is two 32-bit halves, the high one first whatever the byte order of the machine.
    import numpy as np

    lsns = words[:, 0].astype(np.uint64)
    lsns <<= np.uint64(32)
    lsns |= words[:, 1]
    return lsns


def _headers_sane(words: Words, block_size: int) -> BoolArray:
    """What ``PageIsVerified`` demands of a page that is not new, and the page size and layout version."""
    import numpy as np

    low, high = np.uint32(0xFFFF), np.uint32(16)
    lower, upper = words[:, 3] & low, words[:, 3] >> high
    special, size_and_version = words[:, 4] & low, words[:, 4] >> high
    sane: BoolArray = (
        (words[:, _WORD_CHECKSUM] >> high <= PAGE_VALID_FLAGS)
        & (lower >= PAGE_HEADER_BYTES)
        & (lower <= upper)
        & (upper <= special)
        & (special <= block_size)
        & (special % 8 == 0)
        & (size_and_version == (block_size & 0xFF00 | PAGE_LAYOUT_VERSION))
    )
    return sane


@functools.cache
def _lane_offsets() -> Words:
    import numpy as np

    return np.array(_LANE_OFFSETS, dtype=np.uint32)


def _fold_pages(words: Words, out: Words) -> None:
    """``pg_checksum_block`` for every row of ``words``, as if its stored checksum were zero."""
    import numpy as np

    prime, shift = np.uint32(_FNV_PRIME), np.uint32(17)
    rows = words.reshape(len(words), -1, _LANES)
    first = rows[:, 0, :].copy()
    first[:, _WORD_CHECKSUM] &= np.uint32(0xFFFF0000)
    sums = first ^ _lane_offsets()
    shifted = np.empty_like(sums)
    for row in range(1, rows.shape[1]):
        np.right_shift(sums, shift, out=shifted)
        np.multiply(sums, prime, out=sums)
        np.bitwise_xor(sums, shifted, out=sums)
        np.bitwise_xor(sums, rows[:, row, :], out=sums)
    # The last row's round is still open, and two more follow with zero as the value.
    for _unused in range(3):
        np.right_shift(sums, shift, out=shifted)
        np.multiply(sums, prime, out=sums)
        np.bitwise_xor(sums, shifted, out=sums)
    np.bitwise_xor.reduce(sums, axis=1, out=out)
