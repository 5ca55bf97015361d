# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One measured run of a command, with everything around it in a known state."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab import Workspace

LAUNCHER = Path(__file__).with_name("launch.py")
_READ_BYTES = 4 << 20
_IDLE_FIELDS = (3, 4)
"""idle and iowait in the first line of /proc/stat."""


class RunFailed(Exception):
    """A measured command failed; the message ends with its output."""


@dataclass(frozen=True)
class Run:
    """What one run took."""

    seconds: float
    cpu_seconds: float
    """User and system time of the process and of all that it waited for."""
    peak_bytes: int
    """Peak resident memory of all its processes together."""
    others: float
    """Cores that everything else on the machine kept busy meanwhile, PostgreSQL included."""
    stored_bytes: int = 0
    requests: int = 0
    """That the object store got, from whomever."""
    value: float | None = None
    """What is compared where that is not the seconds, in the operation's unit."""


def files_below(root: Path) -> Iterator[Path]:
    """All regular files, links not followed; what vanishes meanwhile is left out."""
    for folder, _unused, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink():
                yield path


def tree_bytes(root: Path, *, without: str = "") -> int:
    """Sum of the files' sizes; ``without``: a directory's name that does not count."""
    return sum(path.stat().st_size for path in files_below(root) if without not in path.relative_to(root).parts[:-1])


def set_page_cache(roots: Sequence[Path], *, warm: bool) -> None:
    """Write out what is dirty; then read all files, or let the kernel forget them."""
    os.sync()
    buffer = memoryview(bytearray(_READ_BYTES))
    for root in roots:
        for path in files_below(root):
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                continue
            try:
                if not warm:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                while warm and os.readv(descriptor, [buffer]):
                    pass
            finally:
                os.close(descriptor)


def _busy_seconds() -> float:
    with open("/proc/stat") as file:
        fields = [int(word) for word in file.readline().split()[1:9]]
    ticks = sum(value for number, value in enumerate(fields) if number not in _IDLE_FIELDS)
    return ticks / os.sysconf("SC_CLK_TCK")


def peak_bytes(pid: int) -> int:
    """Peak resident memory of a process that still runs; 0 when it has ended."""
    try:
        with open(f"/proc/{pid}/status") as file:
            lines = [line.split() for line in file if line.startswith("VmHWM:")]
    except FileNotFoundError:
        return 0
    return int(lines[0][1]) * 1024 if lines else 0


class Stopwatch:
    """Runs commands as the server's user in a workspace and measures them."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._output = workspace.path / "measured-output"
        self._output.touch(mode=0o600)
        workspace.account.own(self._output)

    def output(self) -> str:
        """What the last command wrote, standard error included."""
        return self._output.read_text()

    def run(self, command: Sequence[str | Path]) -> Run:
        """Measure one command. Raises RunFailed when it does not exit with 0."""
        account = self._workspace.account
        os.truncate(self._output, 0)
        user = account.name if account.switches else ""
        launcher = [sys.executable, "-I", "-S", LAUNCHER, user, self._output, *command]
        busy, started = _busy_seconds(), time.monotonic()
        process = self._workspace.popen(launcher, as_server=False, stdout=subprocess.PIPE, text=True)
        answer, _unused = process.communicate()
        elapsed, busy = time.monotonic() - started, _busy_seconds() - busy
        measured = json.loads(answer)
        if measured["exit_code"] != 0:
            words = " ".join(map(str, command))
            output = self._output.read_text(errors="replace")[-4000:]
            raise RunFailed(f"exit {measured['exit_code']}: {words}\n{output}")
        others = max(0.0, (busy - measured["cpu_seconds"]) / elapsed)
        return Run(measured["seconds"], measured["cpu_seconds"], measured["peak_bytes"], others)
