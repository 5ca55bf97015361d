# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A long chain, measured: what hundreds of incrementals cost, and how fast the last of them restores.

``python -m tests.benchmarks.chain --help``; README.md says what is measured and how.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import random
import shlex
import signal
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.lab import Cluster, Installation, Lab, Runtime, Workspace, distribution, installation
from tests.lab.cleanup import remove_tree

from .database import PAGE, TABLES, archive_with, build, database_bytes
from .fragments import reads_of, shape_of
from .machine import describe
from .measure import Run, RunFailed, Stopwatch, set_page_cache, tree_bytes
from .session import say

HOT_RUNS = 3
"""Runs of neighbouring pages that each step changes, besides scattered ones."""


SOURCE = "main"


class Program:
    """The program, with a repository in a directory."""

    def __init__(self, workspace: Workspace, cluster: Cluster, program: Path, workers: int) -> None:
        home = workspace.directory("cryobackup")
        self.repository = home / "repository"
        self.config = home / "config.yml"
        self.version = workspace.run([program, "--version"]).stdout.strip().removeprefix("cryobackup ")
        connection = {"data_directory": str(cluster.data_dir), "connection": cluster.conninfo}
        settings = {
            "repository": {
                "locations": {"only": {"type": "posix", "path": str(self.repository)}},
                "keys": str(home / "keys"),
            },
            "clusters": {SOURCE: {**connection, "workers": workers}},
            "state_directory": str(home / "state"),
        }
        self.config.write_text(json.dumps(settings))
        workspace.account.own(self.config)
        self._command = [str(program), "--config", str(self.config)]
        self._workers = ["--workers", str(workers)]
        self.archive_command = f"{shlex.join(self._command)} wal-push %p"
        workspace.run([*self._command, "init"])

    def backup(self, kind: str) -> list[str]:
        return [*self._command, "--quiet", "--json", "backup", SOURCE, "--type", kind]

    def restore(self, target: Path, backup_id: str) -> list[str]:
        what = ["--target", str(target), "--backup", backup_id, "--immediate"]
        return [*self._command, "--quiet", "restore", SOURCE, *what, *self._workers]


class Chain:
    """One cluster, one full backup, and what follows it."""

    def __init__(self, workspace: Workspace, cluster: Cluster, ours: Program, options: argparse.Namespace) -> None:
        self._workspace = workspace
        self._cluster = cluster
        self._ours = ours
        self._scattered = options.scattered / 100
        self._clustered = options.clustered / 100
        self._random = random.Random(1)
        self._stopwatch = Stopwatch(workspace)
        self._pages = {table: cluster.value(f"SELECT pg_relation_size('{table}') / {PAGE}") for table in TABLES}
        self.steps: list[dict[str, Any]] = []

    def backup(self, kind: str) -> tuple[Run, dict[str, Any]]:
        """One backup, and what it says."""
        archive_with(self._cluster, self._ours.archive_command)
        run = self._stopwatch.run(self._ours.backup(kind))
        return run, json.loads(self._stopwatch.output())

    def step(self, number: int) -> dict[str, Any]:
        """Change pages, then take an incremental."""
        changed = self._change()
        run, said = self.backup("incremental")
        if said["type"] != "incremental":
            raise RunFailed(f"step {number} became a full backup: {said['change_detection']['reason']}")
        step = {
            "number": number,
            "pages_changed": changed,
            "seconds": run.seconds,
            "peak_bytes": run.peak_bytes,
            "bytes_read": said["bytes_read"],
            "bytes_stored": said["bytes_stored"],
            "backup_id": said["backup_id"],
            "compaction": said.get("compaction"),
        }
        self.steps.append(step)
        return step

    def _change(self) -> int:
        """Lock rows: that marks them, in their pages and in WAL, and moves none."""
        changed = 0
        for table, count in self._pages.items():
            chosen = set(self._random.sample(range(count), round(count * self._scattered)))
            length = max(1, round(count * self._clustered / HOT_RUNS))
            for _unused in range(HOT_RUNS if self._clustered else 0):
                start = self._random.randrange(max(1, count - length))
                chosen.update(range(start, start + length))
            tids = ",".join(f"({page},1)" for page in sorted(chosen))
            locked = f"SELECT 1 FROM {table} WHERE ctid = ANY(string_to_array(%s, ';')::tid[]) FOR UPDATE"
            changed += self._cluster.value(
                f"WITH locked AS MATERIALIZED ({locked}) SELECT count(*) FROM locked", tids.replace("),", ");")
            )
        self._cluster.checkpoint()
        return changed

    def restores(self, name: str, backup_id: str, times: int) -> dict[str, Any]:
        """Restore a backup some times, and once to count what is read."""
        runs = [self._restored(backup_id) for _unused in range(times)]
        with self._target() as target:
            reads = reads_of(self._ours.restore(target, backup_id)[1:])
        shape = shape_of(self._ours.config, SOURCE, backup_id)
        return {
            "name": name,
            "backup_id": backup_id,
            "seconds": statistics.median(run.seconds for run in runs),
            "cpu_seconds": statistics.median(run.cpu_seconds for run in runs),
            "range": [min(run.seconds for run in runs), max(run.seconds for run in runs)],
            "others": statistics.median(run.others for run in runs),
            "peak_bytes": max(run.peak_bytes for run in runs),
            "reads": asdict(reads),
            "shape": asdict(shape),
        }

    def _restored(self, backup_id: str) -> Run:
        with self._target() as target:
            set_page_cache([self._ours.repository], warm=True)
            return self._stopwatch.run(self._ours.restore(target, backup_id))

    @contextlib.contextmanager
    def _target(self) -> Iterator[Path]:
        target = self._workspace.directory("restored")
        try:
            yield target
        finally:
            remove_tree(target)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The whole of it, from nothing to nothing."""
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(Lab())
        workspace = stack.enter_context(lab.workspace("chain"))
        chosen: Installation = installation(options.postgres) if options.postgres else distribution()
        say(f"building a cluster of about {options.gigabytes} GB with {chosen} in {workspace.path}")
        cluster = build(workspace, chosen, options.gigabytes)
        cluster.enable_archiving("")
        ours = Program(workspace, cluster, Runtime(lab).command(), options.workers)
        chain = Chain(workspace, cluster, ours, options)
        facts = {
            "measured": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
            **describe(workspace.path),
            "postgresql": chosen.version,
            "cryobackup": ours.version,
            "workers": str(options.workers),
            "load before": f"{os.getloadavg()[0]:.2f} (1 minute), {os.getloadavg()[2]:.2f} (15 minutes)",
        }
        first, said = chain.backup("full")
        say(f"full: {first.seconds:.2f} s, {said['bytes_stored'] / 1e6:.1f} MB")
        for number in range(1, options.steps + 1):
            step = chain.step(number)
            if number % 10 == 0 or number == options.steps:
                say(
                    f"  {number:4}: {step['seconds']:.2f} s, {step['bytes_stored'] / 1e6:.2f} MB stored, "
                    f"{step['peak_bytes'] / 1e6:.0f} MB, {step['compaction']}"
                )
        last, stored_before = chain.steps[-1], tree_bytes(ours.repository)
        again, full = chain.backup("full")
        restores = [
            chain.restores("last incremental", last["backup_id"], options.rounds),
            chain.restores("full of the same state", full["backup_id"], options.rounds),
        ]
        return {
            "facts": facts,
            "options": {name: value for name, value in vars(options).items() if name != "json"},
            "database_bytes": database_bytes(cluster),
            "full": {**asdict(again), "bytes_stored": full["bytes_stored"]},
            "stored_bytes_of_chain": stored_before,
            "steps": chain.steps,
            "restores": restores,
        }


def markdown(found: dict[str, Any]) -> str:
    """For people."""
    lines = [f"- {name}: {value}" for name, value in found["facts"].items()]
    pages = sum(step["pages_changed"] for step in found["steps"])
    lines.append(
        f"- database: {found['database_bytes'] / 1e6:.0f} MB; {len(found['steps'])} incrementals, {pages} pages "
        f"changed, that is {pages * PAGE / found['database_bytes']:.2f} times the database"
    )
    lines += ["", "| incrementals | median s | stored MB each | of which compaction MB | peak MB |"]
    lines += ["| --- | ---: | ---: | ---: | ---: |"]
    tenth = max(1, len(found["steps"]) // 10)
    for name, steps in (("first tenth", found["steps"][:tenth]), ("last tenth", found["steps"][-tenth:])):
        lines.append(
            f"| {name} | {statistics.median(step['seconds'] for step in steps):.2f} "
            f"| {statistics.mean(step['bytes_stored'] for step in steps) / 1e6:.2f} "
            f"| {statistics.mean(_compacted(step) for step in steps) / 1e6:.2f} "
            f"| {max(step['peak_bytes'] for step in steps) / 1e6:.0f} |"
        )
    lines += ["", "| restore of | seconds | range | CPU s | packs | reads | read MB | needed MB | decoded MB |"]
    lines[-1] += " extents | manifest kB | peak MB |"
    lines.append("| --- |" + " ---: |" * 11)
    for each in found["restores"]:
        shape, reads = each["shape"], each["reads"]
        lines.append(
            f"| {each['name']} | {each['seconds']:.2f} | {each['range'][0]:.2f}–{each['range'][1]:.2f} "
            f"| {each['cpu_seconds']:.2f} | {reads['packs']} | {reads['requests']} | {reads['bytes'] / 1e6:.1f} "
            f"| {shape['live_bytes'] / 1e6:.1f} | {shape['frame_bytes'] / 1e6:.1f} | {shape['extents']} "
            f"| {shape['manifest_bytes'] / 1e3:.0f} | {each['peak_bytes'] / 1e6:.0f} |"
        )
    chain, full = found["restores"]
    amplification = chain["shape"]["pack_bytes"] / full["shape"]["pack_bytes"]
    stored = sum(step["bytes_stored"] for step in found["steps"])
    lines += [
        "",
        f"- restore of the last incremental: {full['seconds'] / chain['seconds']:.2f} of the full's speed",
        f"- packs that the last incremental needs: {amplification:.2f} times the bytes of the full of its state",
        f"- the incrementals stored {stored / 1e6:.1f} MB, that is {stored / found['full']['bytes_stored']:.2f} fulls",
    ]
    return "\n".join(lines)


def _compacted(step: dict[str, Any]) -> int:
    done = step["compaction"]
    return 0 if done is None else int(done["bytes"])


def arguments(words: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.chain", description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=0.3, help="size of the cluster, 10^9 bytes (default: 0.3)")
    parser.add_argument("--steps", type=int, default=200, help="incrementals (default: 200)")
    parser.add_argument("--scattered", type=float, default=0.3, help="pages changed by each, %% of all (default: 0.3)")
    parser.add_argument("--clustered", type=float, default=0.3, help="the same, in runs of neighbours (default: 0.3)")
    parser.add_argument("--rounds", type=int, default=3, help="restores of each kind (default: 3)")
    parser.add_argument("--workers", type=int, default=2, help="threads (default: 2)")
    parser.add_argument("--postgres", type=int, metavar="MAJOR", help="default: the distribution's")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there, too")
    options = parser.parse_args(words)
    if options.gigabytes <= 0 or min(options.steps, options.rounds, options.workers) < 1:
        parser.error("--gigabytes, --steps, --rounds and --workers need positive numbers")
    return options


def main(words: Sequence[str]) -> int:
    """Exit code 0, 1 when something failed, 130 when interrupted."""
    options = arguments(words)
    # Like Ctrl-C: the laboratory then cleans up.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        found = measure(options)
    except RunFailed as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            say("interrupted; everything is cleaned up")
        return 130
    print(markdown(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
