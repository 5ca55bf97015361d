# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the groups of measurements share: the cluster, the programs, whose turn it is, and the state before each run."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.lab import Cluster, Workspace
from tests.lab.cleanup import remove_tree

from .database import IDLE_ARCHIVING, archive_with, database_bytes
from .measure import Run, RunFailed, Stopwatch, set_page_cache, tree_bytes
from .operations import BRIEF, TOO_SLOW
from .report import Operation, Report
from .tools import Ability, Tool

SIGNIFICANT = 0.95
"""A restored directory with less than this share of the bytes is not a restore. (Shared memory, statistics and
caches in files are in no backup.)"""

FAILURES = (RunFailed, AssertionError, TimeoutError, subprocess.SubprocessError)
"""What a program that does not work, or the laboratory that waits for it, may raise."""


@dataclass(frozen=True)
class Conditions:
    """What is the same for all.

    Attributes:
        gigabytes: Size of the cluster that was asked for, 10^9 bytes.
        workers: Threads or processes of each program.
        warm: Whether files are in the page cache before they are read.
        thorough: Whether also slow programs do everything in every round.
    """

    gigabytes: float
    workers: int
    warm: bool
    thorough: bool = False


class Session:
    """One cluster, the programs, and what was measured of them."""

    def __init__(
        self, workspace: Workspace, cluster: Cluster, program: Path, tools: Sequence[Tool], conditions: Conditions
    ) -> None:
        self.workspace = workspace
        self.cluster = cluster
        self.program = program
        self.conditions = conditions
        self.stopwatch = Stopwatch(workspace)
        self.report = Report([tool.name for tool in tools], database_bytes(cluster))
        self.failures: list[str] = []
        self._tools = list(tools)
        self._newest: dict[str, str] = {}
        self._restores = 0

    # Turns

    def turns(self, number: int) -> Iterator[Tool]:
        """The programs of a round (from 0), each time beginning with another one."""
        if not self._tools:
            return
        first = number // 2 % len(self._tools)
        order = self._tools[first:] + self._tools[:first]
        for tool in order[:: 1 if number % 2 == 0 else -1]:
            if (number == 0 or not self._is_brief(tool)) and tool in self._tools:
                yield tool

    @contextlib.contextmanager
    def turn(self, tool: Tool, operation: Operation) -> Iterator[None]:
        """What is done inside belongs to one program. Where it fails, that program has no more turns."""
        try:
            yield
        except FAILURES as error:
            self.failures.append(f"{tool.name}: {error}")
            self._tools.remove(tool)
            words = f"{type(error).__name__}: {error}".splitlines()[0]
            self.report.cannot(operation, tool.name, f"{tool.name} failed in {operation.name!r}: {words}")
            say(f"error: {self.failures[-1]}")

    def _is_brief(self, tool: Tool) -> bool:
        return tool.brief and not self.conditions.thorough

    def can(self, tool: Tool, operation: Operation, *needed: Ability) -> bool:
        """Whether the program has all that, and the time; if not, the reason goes into the report."""
        if self._is_brief(tool) and operation not in BRIEF:
            self.report.cannot(operation, tool.name, TOO_SLOW.format(name=tool.name))
            return False
        for ability in needed:
            if ability in tool.cannot:
                self.report.cannot(operation, tool.name, tool.cannot[ability])
                return False
        return True

    @contextlib.contextmanager
    def archiving(self, tool: Tool) -> Iterator[None]:
        """PostgreSQL's WAL goes to this program, if it has an archive."""
        if Ability.ARCHIVE in tool.cannot:
            archive_with(self.cluster, IDLE_ARCHIVING)
            yield
            return
        # What piled up before belongs to nobody.
        archive_with(self.cluster, IDLE_ARCHIVING)
        with tool.archiving() as command:
            archive_with(self.cluster, command)
            yield
            archive_with(self.cluster, IDLE_ARCHIVING)

    # Runs

    def run(self, operation: Operation, name: str, command: Sequence[str | Path], *read: Path) -> Run:
        """One run, after everything is written out and the files that it reads are in the cache, or are not."""
        set_page_cache(read, warm=self.conditions.warm)
        run = self.stopwatch.run(command)
        say(f"  {operation.name:<36} {name:<20} {run.seconds:8.3f} s, {run.peak_bytes / 1e6:4.0f} MB")
        return run

    def measure(self, operation: Operation, tool: Tool, command: Sequence[str | Path], *read: Path) -> Run:
        """One run of a program, for the report."""
        requests, stored = tool.store.requests(), tool.store.stored_bytes()
        run = self.run(operation, tool.name, command, *read)
        run = replace(
            run,
            requests=tool.store.requests() - requests,
            stored_bytes=max(0, tool.store.stored_bytes() - stored),
            value=run.seconds * 1000 if operation.unit == "ms" else None,
        )
        self.report.add(operation, tool.name, run)
        return run

    def backup(self, operation: Operation, kind: str, tool: Tool) -> None:
        """A measured backup; WAL has to go to the program already (``archiving``)."""
        self.measure(operation, tool, tool.backup(kind), self.cluster.data_dir)
        self._newest[tool.key] = kind

    def plain_backup(self, kind: str, tool: Tool, *, limit: int | None = None) -> Run:
        """A backup that is not for the report, or not as ``backup`` would put it there. ``limit``: bytes a second."""
        run = self.stopwatch.run(tool.backup(kind, limit=limit))
        self._newest[tool.key] = kind
        return run

    def prepare_backup(self, tool: Tool, *kinds: str) -> None:
        """See to it that the newest backup is of one of these kinds; not measured."""
        if self._newest.get(tool.key) not in kinds:
            self.plain_backup(kinds[0], tool)

    @contextlib.contextmanager
    def target(self) -> Iterator[Path]:
        """An empty directory to restore into, removed at the end."""
        self._restores += 1
        path = self.workspace.directory(f"restored-{self._restores}")
        try:
            yield path
        finally:
            remove_tree(path)

    def check(self, tool: Tool, target: Path) -> None:
        """Raises RunFailed where a restored directory is no restore."""
        restored = tree_bytes(target, without="pg_wal")
        if restored < self.report.database_bytes * SIGNIFICANT:
            raise RunFailed(f"{tool.name} restored {restored} of {self.report.database_bytes} bytes")


def say(words: str) -> None:
    """A line about progress."""
    print(words, file=sys.stderr, flush=True)
