# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was measured, as a table and as JSON."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from .measure import Run

MEMORY_GOAL_BYTES = 300e6
START_GOAL_SECONDS = 0.060
BARE = "the same bytes, compressed only"
WHOLE = ("full backup", "restore", BARE)
"""Operations that move the whole database: those have a rate."""
RATIO_GOALS = {"full backup": 0.7, "restore": 0.7}
BARE_GOAL = 1.15


class Report:
    """All runs, by operation and program, in the order of the first ones."""

    def __init__(self, names: Sequence[str], database_bytes: int) -> None:
        self.database_bytes = database_bytes
        self.touched = 0
        self.facts: dict[str, str] = {}
        self._names = list(names)
        self._runs: dict[str, dict[str, list[Run]]] = {}

    def add(self, operation: str, name: str, run: Run) -> None:
        self._runs.setdefault(operation, {}).setdefault(name, []).append(run)

    def stored(self, operation: str, name: str, size: int) -> None:
        """How much the repository grew by the last run."""
        runs = self._runs[operation][name]
        runs[-1] = dataclasses.replace(runs[-1], stored_bytes=size)

    def as_dict(self) -> dict[str, Any]:
        runs = {
            operation: {name: [dataclasses.asdict(run) for run in found] for name, found in by_name.items()}
            for operation, by_name in self._runs.items()
        }
        return {
            "facts": self.facts,
            "database_bytes": self.database_bytes,
            "pages_changed": self.touched,
            "runs": runs,
        }

    def markdown(self) -> str:
        """For people: the machine, the runs, the goals."""
        facts = [f"- {name}: {value}" for name, value in self.facts.items()]
        facts.append(f"- database: {self.database_bytes / 1e6:.0f} MB, {self.touched} pages changed in each round")
        return "\n".join([*facts, "", *_table(self._rows()), "", *_table(self._goals())])

    def _rows(self) -> Iterator[Sequence[str]]:
        yield (
            *("operation", "program", "seconds", "range", "MB/s", "CPU s", "peak MB", "stored MB", "requests"),
            *("requests/GB", "others", "ratio"),
        )
        for operation, by_name in self._runs.items():
            for name, runs in by_name.items():
                yield self._row(operation, name, runs)

    def _row(self, operation: str, name: str, runs: Sequence[Run]) -> Sequence[str]:
        seconds = [run.seconds for run in runs]
        middle = statistics.median(seconds)
        stored = statistics.median(run.stored_bytes for run in runs)
        requests = statistics.median(run.requests for run in runs)
        cpu = statistics.median(run.cpu_seconds for run in runs)
        peak = max(run.peak_bytes for run in runs)
        per_gigabyte = requests / self.database_bytes * 1e9 if operation in WHOLE else 0
        ratio = self._ratio(operation) if name == self._names[0] else None
        return (
            operation,
            name,
            _seconds(middle),
            f"{_seconds(min(seconds))}–{_seconds(max(seconds))}",
            f"{self.database_bytes / middle / 1e6:.0f}" if operation in WHOLE else "",
            f"{cpu:.2f}" if cpu else "",
            f"{peak / 1e6:.0f}" if peak else "",
            f"{stored / 1e6:.1f}" if stored else "",
            f"{requests:.0f}" if requests else "",
            f"{per_gigabyte:.0f}" if per_gigabyte else "",
            f"{statistics.median(run.others for run in runs):.2f}" if peak else "",
            "" if ratio is None else f"{ratio:.2f}",
        )

    def _median(self, operation: str, name: str) -> float:
        return statistics.median(run.seconds for run in self._runs[operation][name])

    def _ratio(self, operation: str) -> float | None:
        """Time of the first program divided by that of the second."""
        by_name = self._runs.get(operation, {})
        if len(self._names) < 2 or any(name not in by_name for name in self._names):
            return None
        return self._median(operation, self._names[0]) / self._median(operation, self._names[1])

    def _goals(self) -> Iterator[Sequence[str]]:
        yield "goal", "measured", "met"
        ours = self._names[0]
        start = self._median("start (--version)", ours)
        yield (
            f"`{ours} --version` under {START_GOAL_SECONDS * 1000:.0f} ms",
            f"{start * 1000:.1f} ms",
            _met(start < START_GOAL_SECONDS),
        )
        for operation, by_name in self._runs.items():
            peak = max((run.peak_bytes for run in by_name.get(ours, [])), default=0)
            if operation.startswith(("full", "incremental", "restore", "delta")):
                goal = f"{operation} under {MEMORY_GOAL_BYTES / 1e6:.0f} MB resident"
                yield goal, f"{peak / 1e6:.0f} MB", _met(peak < MEMORY_GOAL_BYTES)
        for operation, limit in RATIO_GOALS.items():
            ratio = self._ratio(operation)
            if ratio is not None:
                goal = f"{operation} in at most {limit} of {self._names[1]}'s time"
                yield goal, f"{ratio:.2f}", _met(ratio <= limit)
        for name in self._runs.get(BARE, {}) if ours in self._runs.get("full backup", {}) else ():
            ratio = self._median("full backup", ours) / self._median(BARE, name)
            yield f"full backup in at most {BARE_GOAL} of {name}'s time", f"{ratio:.2f}", _met(ratio <= BARE_GOAL)


def _met(met: bool) -> str:
    return "yes" if met else "no"


def _seconds(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def _table(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Markdown that is also readable as it is: text to the left, everything else to the right."""
    lines = [list(row) for row in rows]
    widths = [max(len(row[column]) for row in lines) for column in range(len(lines[0]))]
    left = min(2, len(widths))

    def line(row: Sequence[str]) -> str:
        cells = (
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return f"| {' | '.join(cells)} |"

    yield line(lines[0])
    rules = ("-" * width if column < left else "-" * (width - 1) + ":" for column, width in enumerate(widths))
    yield f"| {' | '.join(rules)} |"
    for row in lines[1:]:
        yield line(row)
