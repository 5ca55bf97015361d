# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The heart, measured: backup, restore and WAL archive of a PostgreSQL cluster, beside pgBackRest.

``python -m tests.benchmarks.heart --help``; README.md says what is measured and how.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import datetime
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tests.lab import Cluster, Installation, Lab, Runtime, Workspace, distribution, installation
from tests.lab.cleanup import remove_tree
from tests.lab.peers import PeerUnavailable, provide_pgbackrest
from tests.lab.runtime import ENGINE
from tests.lab.workspace import CHECKOUT

from .contenders import LEVEL, Contender, Cryobackup, PgBackRest
from .database import (
    archive_with,
    build,
    damage_pages,
    database_bytes,
    settle,
    touch_pages,
    write_segments,
)
from .machine import describe
from .measure import Run, RunFailed, Stopwatch, set_page_cache, tree_bytes
from .stores import Stores
from .table import BARE, Report

CHANGED = 0.001
"""Share of pages that change before an incremental backup and before a delta restore."""
STARTS = 20
PUSHES = 5
DRAINED = 32
QUIET_LOAD = 0.7
SIGNIFICANT = 0.95
"""A restored directory with less than this share of the bytes is not a restore. (Shared memory, statistics and
caches in files are in no backup.)"""


class Interrupted(KeyboardInterrupt):
    """Somebody lost patience; ``args[0]`` is the report of what was measured until then."""


class Benchmark:
    """One cluster, the contenders, and the rounds."""

    def __init__(
        self, workspace: Workspace, cluster: Cluster, contenders: Sequence[Contender], *, workers: int, warm: bool
    ) -> None:
        self._workspace = workspace
        self._cluster = cluster
        self._contenders = list(contenders)
        self._workers = workers
        self._warm = warm
        self._stopwatch = Stopwatch(workspace)
        self.report = Report([contender.name for contender in contenders], database_bytes(cluster))

    def _turns(self, number: int) -> list[Contender]:
        """Who goes first alternates."""
        return self._contenders[:: 1 if number % 2 == 0 else -1]

    def _measure(self, operation: str, contender: Contender, command: Sequence[str], *read: Path) -> None:
        before = contender.store.requests()
        run = self._run(operation, contender.name, command, *read)
        self.report.add(operation, contender.name, replace(run, requests=contender.store.requests() - before))

    def _run(self, operation: str, name: str, command: Sequence[str], *read: Path) -> Run:
        set_page_cache(read, warm=self._warm)
        run = self._stopwatch.run(command)
        say(f"  {operation:<32} {name:<11} {run.seconds:8.3f} s, {run.peak_bytes / 1e6:4.0f} MB")
        return run

    def starts(self, program: Path) -> None:
        for _unused in range(STARTS):
            self.report.add("start (--version)", "cryobackup", self._stopwatch.run([program, "--version"]))

    def round(self, number: int) -> None:
        turns = self._turns(number)
        self._compress_only()
        for contender in turns:
            self._backup("full backup", "full", contender)
        for contender in turns:
            self._restores(contender, number)
        self.report.touched = touch_pages(self._cluster, CHANGED, number * 37 + 1)
        for operation in ("incremental, 0.1 % changed", "incremental, nothing changed"):
            for contender in turns:
                self._backup(operation, "incremental", contender)
        segments = write_segments(self._cluster, PUSHES)
        for segment in segments:
            for contender in turns:
                self._measure("wal-push, one segment", contender, contender.wal_push(segment), segment.parent)
        for contender in turns:
            self._drain(contender)

    def _drain(self, contender: Contender) -> None:
        """Segments that have piled up, until PostgreSQL knows the last of them to be archived."""
        count = len(write_segments(self._cluster, DRAINED))
        operation = f"{DRAINED} segments drained"
        with contender.archiving_ahead() as command:
            started = time.monotonic()
            archive_with(self._cluster, command)
            seconds = (time.monotonic() - started) * DRAINED / count
        say(f"  {operation:<32} {contender.name:<11} {seconds:8.3f} s")
        self.report.add(operation, contender.name, Run(seconds, 0.0, 0, 0.0))

    def _compress_only(self) -> None:
        """What compression alone costs, on the same cores."""
        if shutil.which("zstd") is None:
            return
        program = f"zstd -{LEVEL} -T{self._workers}"
        files = f"find {self._cluster.data_dir} -path '*/pg_wal/*' -o -type f -print0"
        # Nothing is written: a lower bound for every program that compresses at this level.
        pipe = f"{files} | xargs -0 cat | {program} --quiet --stdout > /dev/null"
        self.report.add(BARE, program, self._run(BARE, program, ["/bin/sh", "-c", pipe], self._cluster.data_dir))

    def _backup(self, operation: str, kind: str, contender: Contender) -> None:
        archive_with(self._cluster, contender.archive_command)
        settle()
        before = contender.store.stored_bytes()
        self._measure(operation, contender, contender.backup(kind), self._cluster.data_dir)
        self.report.stored(operation, contender.name, contender.store.stored_bytes() - before)

    def _restores(self, contender: Contender, number: int) -> None:
        target = self._workspace.directory(f"restored-{contender.name}")
        self._measure("restore", contender, contender.restore(target, delta=False), *contender.store.files)
        self._check(contender, target)
        damage_pages(target, CHANGED, number)
        command = contender.restore(target, delta=True)
        self._measure("delta restore, 0.1 % changed", contender, command, *contender.store.files, target)
        self._check(contender, target)
        remove_tree(target)

    def _check(self, contender: Contender, target: Path) -> None:
        restored = tree_bytes(target, without="pg_wal")
        if restored < self.report.database_bytes * SIGNIFICANT:
            raise RunFailed(f"{contender.name} restored {restored} of {self.report.database_bytes} bytes")


def command_of(lab: Lab) -> Path:
    """The program as an installation has it: with its bytecode, which the server's user could not write."""
    program = Runtime(lab).command()
    for folder in (CHECKOUT / ENGINE, *program.parent.glob("venv")):
        compileall.compile_dir(folder, quiet=2)
    return program


def say(words: str) -> None:
    """A line about progress."""
    print(words, file=sys.stderr, flush=True)


def wait_for_quiet(minutes: float) -> None:
    """Until others leave the machine alone; measured anyway when they do not, and the report says so."""
    deadline = time.monotonic() + minutes * 60
    while os.getloadavg()[0] > QUIET_LOAD and time.monotonic() < deadline:
        time.sleep(5)


def run(options: argparse.Namespace) -> Report:
    """The whole benchmark, from nothing to nothing."""
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(Lab())
        workspace = stack.enter_context(lab.workspace("benchmark"))
        chosen: Installation = installation(options.postgres) if options.postgres else distribution()
        say(f"building a cluster of about {options.gigabytes} GB with {chosen} in {workspace.path}")
        cluster = build(workspace, chosen, options.gigabytes)
        cluster.enable_archiving("")
        program = command_of(lab)
        stores = stack.enter_context(Stores(workspace, options.storage))
        contenders: list[Contender] = [
            Cryobackup(workspace, cluster, program, options.workers, stores.store("cryobackup"))
        ]
        if not options.skip_pgbackrest:
            program_of_peer = provide_pgbackrest()
            store = stores.store("pgbackrest")
            contenders.append(PgBackRest(workspace, cluster, program_of_peer, options.workers, store))
        warm = options.cache == "warm"
        benchmark = Benchmark(workspace, cluster, contenders, workers=options.workers, warm=warm)
        report = benchmark.report
        wait_for_quiet(options.wait)
        report.facts = {
            "measured": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
            **describe(workspace.path),
            "postgresql": chosen.version,
            **{contender.name: contender.version for contender in contenders},
            "workers": str(options.workers),
            "rounds": str(options.rounds),
            "page cache": options.cache,
            "repositories": stores.description,
            "load before": f"{os.getloadavg()[0]:.2f} (1 minute), {os.getloadavg()[2]:.2f} (15 minutes)",
        }
        benchmark.starts(program)
        for number in range(options.rounds):
            say(f"round {number + 1} of {options.rounds}, load {os.getloadavg()[0]:.2f}")
            try:
                benchmark.round(number)
            except KeyboardInterrupt:
                report.facts["rounds"] = f"{number} of {options.rounds}, then interrupted"
                raise Interrupted(report) from None
        return report


def arguments(words: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.heart", description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=3.0, help="size of the cluster, 10^9 bytes (default: 3)")
    parser.add_argument("--rounds", type=int, default=3, help="medians are of so many rounds (default: 3)")
    parser.add_argument("--workers", type=int, default=2, help="threads or processes of each program (default: 2)")
    parser.add_argument("--postgres", type=int, metavar="MAJOR", help="default: the distribution's")
    parser.add_argument(
        "--storage",
        choices=("posix", "s3"),
        default="posix",
        help="where the repositories are: in directories, or in buckets of an object store on this machine, "
        "which keeps them in memory: choose fewer --gigabytes",
    )
    parser.add_argument("--cache", choices=("warm", "cold"), default="warm", help="the page cache before each run")
    parser.add_argument(
        "--wait",
        type=float,
        default=0.0,
        metavar="MINUTES",
        help="wait so long at most for a quiet machine (default: 0)",
    )
    parser.add_argument("--skip-pgbackrest", action="store_true", help="measure cryobackup only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single run there, too")
    options = parser.parse_args(words)
    if options.gigabytes <= 0 or options.rounds < 1 or options.workers < 1:
        parser.error("--gigabytes, --rounds and --workers need positive numbers")
    needed = options.gigabytes * 1e9 * (3 + options.rounds)
    base = os.environ.get("LAB_DIR") or tempfile.gettempdir()
    free = shutil.disk_usage(base if os.path.isdir(base) else "/").free
    if free < needed:
        parser.error(
            f"{base} needs {needed / 1e9:.0f} GB free and has {free / 1e9:.0f}; LAB_DIR names another directory"
        )
    return options


def main(words: Sequence[str]) -> int:
    """Exit code 0, 1 when something failed, 130 when interrupted."""
    options = arguments(words)
    # Like Ctrl-C: the laboratory then cleans up.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        report = run(options)
    except (RunFailed, PeerUnavailable) as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt as stop:
        with contextlib.suppress(OSError):
            say("interrupted; everything is cleaned up")
        if isinstance(stop, Interrupted):
            publish(stop.args[0], options.json)
        return 130
    publish(report, options.json)
    return 0


def publish(report: Report, file: Path | None) -> None:
    """To standard output, and to a file if there is one."""
    print(report.markdown())
    if file:
        file.write_text(json.dumps(report.as_dict(), indent=2) + "\n")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
