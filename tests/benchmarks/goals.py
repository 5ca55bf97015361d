# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What this project wants to reach, and whether it did."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from . import operations as known
from .report import Operation, Report

MEMORY_BYTES = 300e6
START_SECONDS = 0.060
ASK_MILLISECONDS = 25.0
BARE_RATIO = 1.15
PEER = "pgBackRest, tuned"
"""The ratios are to this one."""
RATIOS: dict[Operation, float] = {
    known.FULL: 0.7,
    known.INCREMENTALS[known.FIRST_CHANGE]: 0.2,
    known.RESTORE: 0.7,
    known.DRAIN: 1 / 1.5,
}


def goals(report: Report) -> Iterator[Sequence[str]]:
    """Rows of a table, its heading first: goal, measured, met."""
    yield "goal", "measured", "met"
    ours = report.names[0]
    yield from _limit(report, known.START, f"`{ours} --version`", START_SECONDS * 1000)
    yield from _limit(report, known.ASK, "a segment that is archived already", ASK_MILLISECONDS)
    peaks = {
        operation.name: max(run.peak_bytes for run in report.runs(operation, ours))
        for operation in report.operations
        if report.runs(operation, ours)
    }
    if any(peaks.values()):
        most = max(peaks, key=lambda name: peaks[name])
        goal = f"every operation under {MEMORY_BYTES / 1e6:.0f} MB resident"
        yield goal, f"{peaks[most] / 1e6:.0f} MB ({most})", _met(peaks[most] < MEMORY_BYTES)
    for operation, limit in RATIOS.items():
        ratio = report.ratio(operation, PEER)
        if ratio is not None:
            goal = f"{operation.name}: at most {limit:.2g} of the time of {PEER}"
            yield goal, f"{ratio:.2f}", _met(ratio <= limit)
    full = report.median(known.FULL, ours)
    for name in report.programs(known.BARE):
        bare = report.median(known.BARE, name)
        if full is not None and bare:
            goal = f"full backup in at most {BARE_RATIO} of {name}'s time"
            yield goal, f"{full / bare:.2f}", _met(full / bare <= BARE_RATIO)


def _limit(report: Report, operation: Operation, words: str, milliseconds: float) -> Iterator[Sequence[str]]:
    value = report.median(operation, report.names[0])
    if value is not None:
        yield f"{words} under {milliseconds:.0f} ms", f"{value:.1f} ms", _met(value < milliseconds)


def _met(met: bool) -> str:
    return "yes" if met else "no"
