# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Replaying archived WAL, measured: with looking ahead, without, and with ``cp`` from a directory of plain segments.

``python -m tests.benchmarks.look_ahead --help``. Prints a table in Markdown; nobody's time is asserted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

from cryobackup.postgres.archive_commands import restore_command
from tests.integration.wal.lab import WalLab
from tests.lab import Cluster, Lab, Workspace, wait_until
from tests.lab.cleanup import lab_processes, remove_tree

from .database import SETTINGS, archive_with
from .machine import describe
from .runner import command_of
from .session import say

FIRST, SECOND = "with looking ahead", "without (--no-look-ahead)"
FLOOR = "cp of plain segments"
ROWS = 150_000


class Replays:
    """A base backup, the WAL after it in an archive, and recoveries of it."""

    def __init__(self, workspace: Workspace, program: Path, segments: int) -> None:
        self._workspace = workspace
        cluster = workspace.cluster(settings={**SETTINGS, "wal_keep_size": "64GB"})
        self._archive = WalLab(workspace, program, {"main": cluster.data_dir})
        cluster.enable_archiving(self._archive.archive_command)
        self._base = workspace.path / "base"
        cluster.run("pg_basebackup", "-D", self._base, "-X", "none", "-c", "fast", "--no-sync")
        archive_with(cluster, "")
        first = _number(cluster)
        cluster.execute("CREATE TABLE rows (n int PRIMARY KEY, text text)")
        while _number(cluster) - first < segments:
            cluster.execute(
                f"INSERT INTO rows SELECT n, md5(n::text) FROM generate_series((SELECT count(*) FROM rows)::int + 1, "
                f"(SELECT count(*) FROM rows)::int + {ROWS}) n"
            )
            cluster.execute("UPDATE rows SET text = md5(text) WHERE n % 20 = 0")
        self.segments = _number(cluster) - first
        cluster.switch_wal()
        self._rows = cluster.value("SELECT count(*) FROM rows")
        with self._archiver():
            archive_with(cluster, f"{self._archive.archive_command.removesuffix('%p')} --socket {self._socket} %p")
        self._plain = workspace.directory("plain")
        for path in (cluster.data_dir / "pg_wal").glob("0*[0-9A-F]"):
            workspace.account.own(Path(shutil.copy(path, self._plain)))
        self._identifier = int(cluster.system_identifier)
        cluster.stop()

    @property
    def _socket(self) -> Path:
        return self._archive.directory / "archiver.sock"

    @contextlib.contextmanager
    def _archiver(self) -> Iterator[None]:
        archive = self._archive
        words = [archive.runtime, "--quiet", "--config", archive.config_path, "wal-archiver", "main"]
        process = self._workspace.popen([*words, "--socket", self._socket])
        wait_until(self._socket.exists, "the archiver")
        yield
        process.terminate()
        process.wait(30)

    def commands(self) -> dict[str, str]:
        command = restore_command(
            [str(self._archive.runtime)], self._archive.config_path, self._identifier, contain_tablespaces=True
        )
        without = command.replace(" %f", " --no-look-ahead %f")
        return {FIRST: command, SECOND: without, FLOOR: f"cp {self._plain}/%f %p"}

    def run(self, command: str) -> tuple[float, int]:
        """Seconds from the start of the server to the end of recovery, and the most bytes of who looked ahead."""
        target = self._workspace.path / "target"
        shutil.copytree(self._base, target, copy_function=shutil.copy)
        target.chmod(0o700)
        with (target / "postgresql.auto.conf").open("a") as file:
            file.write(f"restore_command = '{command}'\nallow_in_place_tablespaces = on\n")
        (target / "recovery.signal").touch()
        self._workspace.account.own(target, recursive=True)
        server = self._workspace.adopt(target)
        peak = Peak(self._workspace)
        with peak:
            began = time.monotonic()
            server.start(timeout=3600)
            wait_until(lambda: not server.value("SELECT pg_is_in_recovery()"), timeout=3600)
            seconds = time.monotonic() - began
        if server.value("SELECT count(*) FROM rows") != self._rows:
            raise AssertionError("rows are missing")
        server.stop()
        wait_until(lambda: not ahead(self._workspace), "nobody looks ahead")
        remove_tree(target)
        return seconds, peak.bytes


def _number(cluster: Cluster) -> int:
    return int(cluster.value("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn")) >> 24


def ahead(workspace: Workspace) -> list[int]:
    return [process.pid for process in lab_processes(workspace.path) if " wal-ahead --recovery " in process.command]


class Peak:
    """The largest resident size of who looks ahead, files in memory included, looked at now and then."""

    def __init__(self, workspace: Workspace) -> None:
        self.bytes = 0
        self._workspace = workspace
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            for pid in ahead(self._workspace):
                with contextlib.suppress(OSError, IndexError, ValueError):
                    status = Path(f"/proc/{pid}/status").read_text()
                    resident = int(status.partition("VmRSS:")[2].split()[0]) << 10
                    self.bytes = max(self.bytes, resident + _in_memory(pid))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join()


def _in_memory(pid: int) -> int:
    found = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if os.readlink(entry).startswith("/memfd:"):
                found += entry.stat().st_size
    return found


def table(replays: Replays, seconds: dict[str, list[float]], peaks: dict[str, int]) -> Iterator[str]:
    yield f"| {'restore_command':<26} | seconds | range | segments/s | peak MB |"
    yield f"| {'-' * 26} | ------: | ----: | ---------: | ------: |"
    for name, measured in seconds.items():
        median = statistics.median(measured)
        peak = f"{peaks[name] / 1e6:.0f}" if peaks[name] else ""
        ends = f"{min(measured):.1f}–{max(measured):.1f}"
        yield f"| {name:<26} | {median:.1f} | {ends} | {replays.segments / median:.1f} | {peak} |"


def measure(options: argparse.Namespace, out: Callable[[str], None]) -> None:
    with Lab() as lab, lab.workspace("replay") as workspace:
        say(f"writing {options.segments} segments in {workspace.path}")
        replays = Replays(workspace, command_of(lab), options.segments)
        commands = replays.commands()
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        peaks = dict.fromkeys(commands, 0)
        for number in range(options.rounds):
            for name in list(commands)[:: 1 if number % 2 == 0 else -1]:
                taken, peak = replays.run(commands[name])
                say(f"  {name:<26} {taken:8.2f} s, load {os.getloadavg()[0]:.2f}")
                seconds[name].append(taken)
                peaks[name] = max(peaks[name], peak)
        out(f"{replays.segments} segments of 16 MB, {options.rounds} rounds")
        out("; ".join(f"{name}: {value}" for name, value in describe(workspace.path).items()))
        for line in table(replays, seconds, peaks):
            out(line)


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.look_ahead", description=__doc__)
    parser.add_argument("--segments", type=int, default=100, help="of WAL, 16 MB each (default: 100)")
    parser.add_argument("--rounds", type=int, default=3, help="medians are of so many (default: 3)")
    options = parser.parse_args(words)
    # Like Ctrl-C: the laboratory then cleans up.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    measure(options, lambda text: print(text, flush=True))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
