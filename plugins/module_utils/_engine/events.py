# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a running job tells the world: progress, notes and warnings, never logic.

The engine calls a ``Reporter``; the command line draws it, the modules collect it, tests record
it. Methods are called from one thread only (the one that runs the job).
"""

from __future__ import annotations

import typing as t


class Reporter(t.Protocol):
    def phase(self, name: str, total_bytes: int | None = None) -> None:
        """A new phase of the job begins; ``total_bytes`` is the expected work, if known."""

    def advance(self, done_bytes: int) -> None:
        """``done_bytes`` more of the current phase are done."""

    def note(self, text: str) -> None:
        """Something worth a line in the log."""

    def warn(self, text: str) -> None:
        """Something that does not fail the job and that a person should read."""


class Silent:
    """A reporter that keeps warnings and drops the rest."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def phase(self, name: str, total_bytes: int | None = None) -> None:
        pass

    def advance(self, done_bytes: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        self.warnings.append(text)
