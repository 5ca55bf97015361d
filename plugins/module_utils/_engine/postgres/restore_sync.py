# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Making a whole tree last: everything written to it is on the disk on return."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import re
import typing as t
from pathlib import Path

from .restore_tree import errors

# Since Linux 5.8 syncfs() reports that an earlier write could not be done (syncfs(2)); before, only
# fsync() of the file itself did.
_SYNCFS_TELLS: t.Final = (5, 8)
_SYNC_FILE_RANGE_WRITE: t.Final = 2
_WORTH_BYTES: t.Final = 256 << 10
"""Single pages are better left to the kernel, which joins them."""
_DIRECTORY: t.Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def sync_trees(roots: t.Iterable[Path]) -> None:
    """Sync each tree and the directory it lies in. Raises RestoreError when anything could not be written.

    One ``syncfs`` takes the place of an fsync for every file where the kernel reports errors from it.
    """
    for root in roots:
        with errors(root):
            descriptor = os.open(root, _DIRECTORY)
            try:
                if _kernel() >= _SYNCFS_TELLS:
                    _syncfs(descriptor)
                else:
                    _sync_each(descriptor)
            finally:
                os.close(descriptor)
            parent = os.open(root.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(parent)
            finally:
                os.close(parent)


def _kernel() -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", platform.release())
    return (int(match[1]), int(match[2])) if match else (0, 0)


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(None, use_errno=True)
    library.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return library


def _syncfs(descriptor: int) -> None:
    if _library().syncfs(descriptor) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def begin_writing(descriptor: int, offset: int, length: int) -> None:
    """Have what was just written go to the disk while more is fetched, so that the sync at the end has little to do.

    A hint, which makes nothing last: where the system cannot do it, nothing happens. Waits when the disk has
    more to do than it can.
    """
    if length >= _WORTH_BYTES:
        _library().sync_file_range(descriptor, offset, length, _SYNC_FILE_RANGE_WRITE)


def _sync_each(directory: int) -> None:
    """fsync all files below, then the directory."""
    for entry in list(os.scandir(directory)):
        if entry.is_dir(follow_symlinks=False):
            below = os.open(entry.name, _DIRECTORY, dir_fd=directory)
            try:
                _sync_each(below)
            finally:
                os.close(below)
        elif entry.is_file(follow_symlinks=False):
            file = os.open(entry.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            try:
                os.fsync(file)
            finally:
                os.close(file)
    os.fsync(directory)
