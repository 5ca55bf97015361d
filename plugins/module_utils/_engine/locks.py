# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Locks of one host: freed by the kernel when their holder is gone, however it went."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import typing as t

from .errors import BusyError
from .state import state_errors


@contextlib.contextmanager
def locked(state_directory: pathlib.Path, name: str, what: str) -> t.Iterator[None]:
    """Hold the lock ``name``; ``what`` says for people what it stands for.

    Raises BusyError at once when another process holds it, ConfigError or StateError when the state
    directory cannot be used.
    """
    path = state_directory / "locks" / f"{name}.lock"
    with state_errors(state_directory):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise BusyError(
                f"{what} is running already (process {holder})",
                hint="Wait until it is done. The lock goes with its process, so it is never left over.",
            ) from error
        # For people only: a prune must run where there is no room left.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
