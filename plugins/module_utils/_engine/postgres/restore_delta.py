# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of an existing file differs from the backup: found with the digests of the manifest alone."""

from __future__ import annotations

import os
import typing as t

from ..crypto import suite
from ..repository import extents as xt
from .restore_tree import write_at

if t.TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_READ_BYTES: t.Final = 4 << 20
_ZEROS: t.Final = bytes(1 << 20)


def differing(descriptor: int, extents: xt.Extents, key: bytes) -> tuple[npt.NDArray[np.bool_], int]:
    """Compare a run of extents, which follow each other, with what is in the file.

    Extents that are to be zero are made so at once. Returns which of the others must be fetched: those whose
    bytes differ, and those whose digest is not known. Second: bytes of zeros that were written.
    """
    import numpy as np

    fetch = np.zeros(len(extents), np.bool_)
    zeroed = 0
    reader = _Reader(descriptor)
    for index, (offset, length, field, _frame, _within, digest) in enumerate(extents.tolist()):
        if field == xt.ZEROS:
            zeroed += _make_zero(descriptor, reader, offset, length)
        elif digest == xt.UNKNOWN_DIGEST:
            fetch[index] = True
        else:
            fetch[index] = suite.keyed_digest(key, reader.read(offset, length))[:16] != digest
    return fetch, zeroed


class _Reader:
    """Reads a file from front to back in large pieces, whatever small ones are asked for."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self._start = 0
        self._size = 0

    def read(self, offset: int, length: int) -> memoryview:
        """The bytes there, fewer at the end of the file. Valid until the next call."""
        if length > _READ_BYTES:
            return memoryview(os.pread(self._descriptor, length, offset))
        if not self._start <= offset <= offset + length <= self._start + self._size:
            self._start = offset
            self._size = os.preadv(self._descriptor, [self._buffer], offset)
        at = offset - self._start
        return self._buffer[at : min(at + length, self._size)]


def _make_zero(descriptor: int, reader: _Reader, offset: int, length: int) -> int:
    """Returns the bytes that were written."""
    written = 0
    while length:
        part = min(length, len(_ZEROS))
        if reader.read(offset, part) != _ZEROS[:part]:
            write_at(descriptor, memoryview(_ZEROS)[:part], offset)
            written += part
        offset += part
        length -= part
    return written
