# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Progress, notes and warnings on standard error: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
import typing as t

from ._streams import Log
from ._text import format_bytes, format_duration

if t.TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class StandardErrorReporter:
    """A ``Reporter`` (see events.py). ``close`` must be called; afterwards it only collects.

    A reader of standard error that goes away never fails the job.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.warnings: list[str] = []
        self._log = Log()
        self._quiet = quiet
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._phase = ""
        self._done = 0
        self._began = 0.0

    def phase(self, name: str, total_bytes: int | None = None) -> None:
        self._end_phase()
        self._phase, self._done, self._began = name, 0, time.monotonic()
        if self._quiet:
            return
        if self._log.isatty():
            self._show_bar(name, total_bytes)
        else:
            self._line(name if total_bytes is None else f"{name} ({format_bytes(total_bytes)})")

    def advance(self, done_bytes: int) -> None:
        self._done += done_bytes
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, done_bytes)

    def note(self, text: str) -> None:
        if not self._quiet:
            self._line(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        self._line(f"warning: {text}")

    def close(self) -> None:
        """Leave the terminal as it was. Idempotent."""
        self._end_phase()
        self._phase = ""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _end_phase(self) -> None:
        if not self._phase or self._quiet:
            return
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, total=self._done, completed=self._done)
            self._bar.stop_task(self._task)
            self._task = None
        elif self._done:
            seconds = time.monotonic() - self._began
            self._line(f"{self._phase}: {format_bytes(self._done)} in {format_duration(seconds)}")

    def _line(self, text: str) -> None:
        if self._bar is None:
            self._log.line(text)
        else:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _show_bar(self, name: str, total_bytes: int | None) -> None:
        if self._bar is None:
            self._bar = _make_bar(self._log)
            self._bar.start()
        self._task = self._bar.add_task(name, total=total_bytes)


def _make_bar(log: Log) -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(file=t.cast("t.IO[str]", log)),
    )
