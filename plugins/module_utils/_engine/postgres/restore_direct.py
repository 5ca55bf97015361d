# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing large new files past the page cache (``O_DIRECT``, open(2)).

Half of the processor time of a restore went into copying to the page cache, which is also flushed of everything else
then, for data that has to go to the disk before the restore counts. A file is written this way altogether or not at
all: the kernel promises nothing to those who mix both ways in one page. It has to be synced like any other.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import threading
import typing as t

if t.TYPE_CHECKING:
    from ..repository import extents as xt

_LEAST_BYTES: t.Final = 1 << 20
"""Of a file."""
_LEAST_MEAN_BYTES: t.Final = 256 << 10
"""Of its extents: many small writes are better gathered by the page cache."""
_ALIGNED_BYTES: t.Final = max(4096, mmap.PAGESIZE)
_REFUSALS: t.Final = (errno.EINVAL, errno.EOPNOTSUPP)


def worth_it(extents: xt.Extents) -> bool:
    """Whether a new file of these extents should and can be written past the page cache. Pure."""
    import numpy as np

    if not len(extents):
        return False
    size = int(extents["length"].sum(dtype="u8"))
    if size < _LEAST_BYTES or size < _LEAST_MEAN_BYTES * len(extents):
        return False
    return not np.any((extents["offset"] | extents["length"]) % _ALIGNED_BYTES)


class DirectWriter:
    """For many threads; each file descriptor is one thread's."""

    def __init__(self) -> None:
        self._local = threading.local()
        self._refusing = set[int]()
        """The devices of file systems that do not do it: a tablespace may lie on one, and the rest go on."""

    def write(self, descriptor: int, data: memoryview | bytes, offset: int) -> bool:
        """Write all of ``data``, at ``offset``, both aligned. False, and nothing is written, where that cannot be.

        Raises OSError as any writing does.
        """
        import fcntl

        device = os.fstat(descriptor).st_dev
        if device in self._refusing:
            return False
        buffer = self._buffer(len(data))
        buffer[: len(data)] = data
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        done = 0
        try:
            if not flags & os.O_DIRECT:
                fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT)
            while done < len(data):
                done += os.pwrite(descriptor, buffer[done : len(data)], offset + done)
        except OSError as error:
            if done or error.errno not in _REFUSALS:
                raise
            self._refusing.add(device)
            with contextlib.suppress(OSError):
                fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
            return False
        return True

    def _buffer(self, size: int) -> memoryview:
        """Memory of this thread at the beginning of a page, which the kernel asks for."""
        found: memoryview | None = getattr(self._local, "buffer", None)
        if found is None or len(found) < size:
            found = self._local.buffer = memoryview(mmap.mmap(-1, max(size, _LEAST_BYTES)))
        return found
