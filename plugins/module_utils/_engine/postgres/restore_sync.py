# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Making a whole tree last: everything written to it is on the disk on return."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import typing as t
from pathlib import Path

from .restore_tree import errors

# Since Linux 5.8 syncfs() reports that an earlier write could not be done (syncfs(2)); before, only
# fsync() of the file itself did.
_SYNCFS_TELLS: t.Final = (5, 8)
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


def _syncfs(descriptor: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.syncfs(descriptor) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


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
