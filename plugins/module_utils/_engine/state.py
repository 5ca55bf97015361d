# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files in the state directory, and what its failures are called."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import tempfile
import typing as t

from .errors import ConfigError, StateError

_NOT_OURS: t.Final = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR)


@contextlib.contextmanager
def state_errors(directory: pathlib.Path) -> t.Iterator[None]:
    """Turns errors of the system into ConfigError (it is the wrong place) or StateError (it fails now)."""
    try:
        yield
    except OSError as error:
        what = f"the state directory {directory} cannot be used: {os.strerror(error.errno or errno.EIO)}"
        if error.errno in _NOT_OURS:
            raise ConfigError(
                what, hint="Run as the user that owns it, or set `state_directory` in the configuration."
            ) from error
        raise StateError(what) from error


class Spool:
    """A file without a name in the state directory: gone with its process, however that ends. A context manager."""

    def __init__(self, directory: pathlib.Path) -> None:
        self._directory = directory
        with state_errors(directory):
            self._file = tempfile.TemporaryFile(dir=directory)

    def write(self, data: bytes, /) -> int:
        with state_errors(self._directory):
            return self._file.write(data)

    def seek(self, offset: int, /) -> int:
        with state_errors(self._directory):
            return self._file.seek(offset)

    def read(self, size: int, /) -> bytes:
        with state_errors(self._directory):
            return self._file.read(size)

    def __enter__(self) -> t.Self:
        return self

    def __exit__(self, *_unused: object) -> None:
        with contextlib.suppress(OSError):  # what could not be written is not wanted any more
            self._file.close()
