# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All that was measured: runs by operation and program, their medians, and how programs compare."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .measure import Run


@dataclasses.dataclass(frozen=True)
class Operation:
    """Something that each program does.

    Attributes:
        unit: Of what is compared. Seconds are those of a run; everything else is its ``value``.
        more_is_better: As for a rate.
        whole: Moves the whole database, so that the time makes a rate.
    """

    name: str
    unit: str = "s"
    more_is_better: bool = False
    whole: bool = False


class Report:
    """All runs, by operation and program, in the order of the first ones.

    ``names``: of the programs as tables have them; the first is the one that the others are compared with.
    """

    def __init__(self, names: Sequence[str], database_bytes: int) -> None:
        self.names = list(names)
        self.database_bytes = database_bytes
        self.facts: dict[str, str] = {}
        self._operations: dict[str, Operation] = {}
        self._runs: dict[str, dict[str, list[Run]]] = {}
        self._cannot: dict[str, dict[str, str]] = {}

    @property
    def operations(self) -> list[Operation]:
        """Those that were measured, or that somebody could not do."""
        return list(self._operations.values())

    def add(self, operation: Operation, name: str, run: Run) -> None:
        self._operations.setdefault(operation.name, operation)
        self._runs.setdefault(operation.name, {}).setdefault(name, []).append(run)

    def cannot(self, operation: Operation, name: str, reason: str) -> None:
        """Note why a program has no figure for this."""
        self._operations.setdefault(operation.name, operation)
        self._cannot.setdefault(operation.name, {})[name] = reason

    def reason(self, operation: Operation, name: str) -> str | None:
        """Why there is no figure; None where there is one, or no reason either."""
        return None if self.runs(operation, name) else self._cannot.get(operation.name, {}).get(name)

    def runs(self, operation: Operation, name: str) -> list[Run]:
        return self._runs.get(operation.name, {}).get(name, [])

    def programs(self, operation: Operation) -> list[str]:
        """Those that were measured, in the order of the columns; then those that have none."""
        there = self._runs.get(operation.name, {})
        return [name for name in self.names if name in there] + [name for name in there if name not in self.names]

    def median(self, operation: Operation, name: str, what: Callable[[Run], float] | None = None) -> float | None:
        """Median of what is compared, or of ``what``; None without a run."""
        runs = self.runs(operation, name)
        return statistics.median((what or compared)(run) for run in runs) if runs else None

    def ratio(self, operation: Operation, peer: str) -> float | None:
        """The first program's share of the peer's time, or the peer's share of its rate: below 1 it is the better."""
        ours, theirs = self.median(operation, self.names[0]), self.median(operation, peer)
        if peer == self.names[0] or ours is None or theirs is None:
            return None
        above, below = (theirs, ours) if operation.more_is_better else (ours, theirs)
        return above / below if below else None

    def worse(self) -> Iterator[tuple[Operation, str, float]]:
        """Where the first program is not as good as another: operation, that other, ratio. Worst first."""
        found = [
            (operation, peer, ratio)
            for operation in self.operations
            for peer in self.names[1:]
            if (ratio := self.ratio(operation, peer)) is not None and ratio > 1
        ]
        yield from sorted(found, key=lambda entry: -entry[2])

    def as_dict(self) -> dict[str, Any]:
        runs = {
            operation: {name: [dataclasses.asdict(run) for run in found] for name, found in by_name.items()}
            for operation, by_name in self._runs.items()
        }
        return {
            "facts": self.facts,
            "database_bytes": self.database_bytes,
            "programs": self.names,
            "operations": {operation.name: dataclasses.asdict(operation) for operation in self.operations},
            "runs": runs,
            "cannot": self._cannot,
        }


def compared(run: Run) -> float:
    """The figure of a run that its operation is about."""
    return run.seconds if run.value is None else run.value
