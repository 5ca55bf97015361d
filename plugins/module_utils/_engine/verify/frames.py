# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One frame against what backups need of it. Pure."""

from __future__ import annotations

import dataclasses
import typing as t

from ..crypto import suite
from ..postgres.lsn import MAX_LSN
from ..postgres.page import page_lsns, verify_pages
from ..repository import extents as xt
from .needs import NO_PAGES

if t.TYPE_CHECKING:
    from collections.abc import Iterator

    from .needs import Rows

_UPPER: t.Final = slice(14, 16)  # pd_upper, bufpage.h; 0 on a page that is new


@dataclasses.dataclass(frozen=True, slots=True)
class BadExtent:
    """Bytes that are not what a manifest says, in a frame that is what was written."""

    frame: int
    offset: int
    length: int
    digest: bytes
    """What they should have."""


@dataclasses.dataclass(frozen=True, slots=True)
class BadPage:
    """A page that PostgreSQL would call damaged."""

    frame: int
    offset: int
    lsn: int
    is_new: bool
    """It says that it is empty and is not: wrong whatever its LSN."""
    block: int
    """The number that it should have within its relation."""
    checksums: bool
    """Whether it should have a checksum."""


def bad_extents(number: int, plain: bytes, rows: Rows, digest_key: bytes) -> list[BadExtent]:
    """Those of ``rows`` (of this frame) that reach beyond it, or whose bytes have another digest."""
    view = memoryview(plain)
    bad = []
    for offset, length, digest in zip(
        rows["frame_offset"].tolist(), rows["length"].tolist(), rows["digest"], strict=True
    ):
        wanted = digest.tobytes()
        inside = offset + length <= len(plain)
        if inside and wanted == xt.UNKNOWN_DIGEST:
            continue
        if not inside or suite.keyed_digest(digest_key, view[offset : offset + length])[:16] != wanted:
            bad.append(BadExtent(number, offset, length, wanted))
    return bad


def beyond(rows: Rows) -> list[BadExtent]:
    """``rows`` of frames that there are not."""
    columns = (rows["frame"].tolist(), rows["frame_offset"].tolist(), rows["length"].tolist())
    return [
        BadExtent(*row, digest.tobytes())
        for row, digest in zip(zip(*columns, strict=True), rows["digest"], strict=True)
    ]


def bad_pages(number: int, plain: bytes, rows: Rows, block_size: int, start_lsn: int) -> tuple[list[BadPage], int]:
    """Broken pages in those of ``rows`` that hold pages, and how many pages were looked at.

    A page with an LSN from ``start_lsn`` on may be torn: WAL rewrites it.
    """
    bad: list[BadPage] = []
    pages = 0
    for offset, length, block, checksums in _runs(rows, block_size):
        view = memoryview(plain)[offset : offset + length]
        scan = verify_pages(view, block, MAX_LSN, block_size=block_size, checksums=checksums)
        pages += scan.pages
        for found in scan.suspect.tolist():
            at = (found - block) * block_size
            page = view[at : at + block_size]
            lsn = int(page_lsns(page, block_size=block_size)[0])
            is_new = not any(page[_UPPER])
            if is_new or lsn < start_lsn:
                bad.append(BadPage(number, offset + at, lsn, is_new, found, checksums))
    return bad, pages


def _runs(rows: Rows, block_size: int) -> Iterator[tuple[int, int, int, bool]]:
    """(offset, length, first block, checksums) of whole pages, each page once though several extents share it."""
    import numpy as np

    rows = rows[(rows["block"] != NO_PAGES) & (rows["length"] >= block_size)]
    if not len(rows):
        return
    starts = rows["frame_offset"].astype(np.int64)
    lengths = rows["length"].astype(np.int64) // block_size * block_size
    # Extents with this number in common see the same pages at the same places.
    shift = starts - rows["block"] * block_size
    order = np.lexsort((starts, shift, rows["checksums"]))
    run: tuple[int, int, int, bool] | None = None
    last_shift = 0
    for at in order.tolist():
        start, end = int(starts[at]), int(starts[at] + lengths[at])
        checksums = bool(rows["checksums"][at])
        if run is not None and run[3] == checksums and shift[at] == last_shift and start <= run[0] + run[1]:
            run = (run[0], max(run[1], end - run[0]), run[2], checksums)
            continue
        if run is not None:
            yield run
        run, last_shift = (start, end - start, int(rows["block"][at]), checksums), int(shift[at])
    if run is not None:
        yield run
