# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Numbers and tables for people."""

from __future__ import annotations

import datetime as dt
import typing as t

from ..words import counted, format_bytes

if t.TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["counted", "format_bytes", "format_duration", "format_table", "format_time"]


def format_duration(seconds: float) -> str:
    """``0.25`` → ``0.2 s``, ``75`` → ``1 min 15 s``, ``7300`` → ``2 h 1 min``, ``200000`` → ``2 d 7 h``."""
    if seconds < 59.95:  # what rounds to 60.0 is a minute
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, below, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // below} {smaller}"
    return f"{whole} s"


def format_time(moment: dt.datetime) -> str:
    """ISO 8601 with offset, whole seconds, in this host's zone. ``moment`` must be aware."""
    return moment.astimezone().isoformat(timespec="seconds")


def format_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()) -> str:
    """Columns as wide as their content; those whose header stands in ``right`` are right-aligned."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def fit(line: Sequence[str]) -> str:
        cells = (
            cell.rjust(width) if title in right else cell.ljust(width)
            for cell, width, title in zip(line, widths, header, strict=True)
        )
        return "  ".join(cells).rstrip()

    return "\n".join(fit(line) for line in lines)
