# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing to standard output and standard error when nobody may be there to read."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import typing as t

T = t.TypeVar("T")


def prepare() -> None:
    """Never fail on a character that the terminal's encoding does not have."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def write_result(text: str) -> bool:
    """Write to standard output; False if it could not be taken in full."""
    if not text or sys.stdout is None:  # None: it was closed before we began
        return True
    try:
        sys.stdout.write(text.rstrip("\n") + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # `cryobackup list | head` is not worth a word
        _abandon(sys.stdout)
        return False
    except OSError as error:
        _abandon(sys.stdout)
        Log().line(f"error: cannot write to standard output: {error.strerror}")
        return False
    return True


class Log:
    """Standard error. When its reader goes away the job goes on, and what is written goes nowhere.

    Has as much of a text file as rich asks for.
    """

    def __init__(self) -> None:
        self._stream: t.TextIO | None = sys.stderr
        self.encoding = self._stream.encoding if self._stream is not None else "utf-8"

    def line(self, text: str) -> None:
        self.write(text + "\n")
        self.flush()

    def write(self, text: str) -> int:
        return self._try(lambda stream: stream.write(text)) or len(text)

    def flush(self) -> None:
        self._try(lambda stream: stream.flush())

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def _try(self, action: t.Callable[[t.TextIO], T]) -> T | None:
        if self._stream is None:
            return None
        try:
            return action(self._stream)
        except OSError:
            _abandon(self._stream)
            return None


def _abandon(stream: t.TextIO) -> None:
    """Let all that is still to come go nowhere, also what the interpreter flushes when it exits."""
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
