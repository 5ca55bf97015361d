# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A root that servers run in: private mounts and process ids, gone without a trace however its owner ends.

Whatever is written goes to a file system in memory that only the enclosure's processes see. The first process of
the process namespace waits for the end of its standard input, whose other end only the owner holds: when the
owner dies, by whatever signal, that process ends, the kernel kills all others with it, and with the last of them
the mounts go.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .cleanup import descendants, kill_processes

# The host's shell mounts, then the root's own Python stays as the first process of the namespace. It ignores
# the death of children, which the kernel then collects by itself.
MOUNT = """
set -eu
mount -t tmpfs -o "size=$2,mode=755" enclosure "$3"
mkdir "$3/upper" "$3/work" "$3/root"
mount -t overlay -o "lowerdir=$1,upperdir=$3/upper,workdir=$3/work" enclosure "$3/root"
mkdir -p "$3/root/proc" "$3/root/dev"
mount -t proc proc "$3/root/proc"
mount --rbind /dev "$3/root/dev"
if [ -n "$5" ]; then
    mkdir -p "$3/root$5"
    mount --bind "$4" "$3/root$5"
fi
shift 5
exec chroot "$@"
"""
WAIT = """
import os, signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
os.write(1, b"ready")
while os.read(0, 4096):
    pass
"""


class EnclosureFailed(Exception):
    """The enclosure, or a server in it, did not start; the message has what it wrote."""


class Enclosure:
    """A writable copy of a root, with servers in it that share the machine's network.

    Args:
        root: The root to start from; it is not modified.
        folder: An empty directory to mount at, in a mount namespace that only the enclosure sees.
        megabytes: The most that its files may take of the machine's memory.
        on_disk: A directory of the enclosure that lies in ``folder`` instead of memory: for servers that need
            attributes of files, which kernels before 6.6 do not keep in memory.
    """

    def __init__(self, root: Path, folder: Path, *, megabytes: int = 8192, on_disk: str = "") -> None:
        self.folder = folder
        self._servers: dict[str, subprocess.Popen[bytes]] = {}
        self._log = folder / "logs"
        self._log.mkdir(parents=True)
        mounted = folder / "mounted"
        mounted.mkdir()
        disk = folder / "disk"
        disk.mkdir()
        command: list[str | Path] = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--"]
        command += ["/bin/sh", "-c", MOUNT, "enclosure", root, f"{megabytes}m", mounted, disk, on_disk]
        command += [mounted / "root", "/usr/bin/python3", "-I", "-S", "-c", WAIT]
        with open(self._log / "enclosure", "wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd="/", start_new_session=True
            )
        if self._stdout().read(5) != b"ready":
            self.close()
            raise EnclosureFailed(f"the enclosure of {root} did not start: {self.log('enclosure')}")
        self._first = descendants(self._process.pid)[0]

    def _stdout(self) -> Any:
        return self._process.stdout

    def path(self, inside: str) -> Path:
        """Where a file of the enclosure can be read and written from outside."""
        return Path(f"/proc/{self._first}/root") / inside.lstrip("/")

    def write(self, inside: str, text: str, *, mode: int = 0o600) -> None:
        """Write a file in the enclosure, with its directories."""
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def _argv(self, command: Sequence[str | Path]) -> list[str]:
        entered = ["nsenter", f"--target={self._first}", "--mount", "--pid", "--root", "--wd", "--"]
        return entered + [str(word) for word in command]

    def run(self, command: Sequence[str | Path], *, timeout: float = 60.0, env: Mapping[str, str] | None = None) -> str:
        """Run a command of the root to its end; returns what it printed. Raises EnclosureFailed."""
        words = " ".join(map(str, command))
        try:
            result = subprocess.run(
                self._argv(command),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                env={**os.environ, "LC_ALL": "C", **(env or {})},
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise EnclosureFailed(f"{words} did not end within {timeout} s") from error
        if result.returncode != 0:
            raise EnclosureFailed(f"{words} exited {result.returncode}: {result.stderr.strip()[-2000:]}")
        return result.stdout

    def start(self, name: str, command: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> None:
        """Start a server that stays in the foreground; what it writes goes to its log."""
        with open(self._log / name, "ab") as log:
            self._servers[name] = subprocess.Popen(
                self._argv(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "LC_ALL": "C", **(env or {})},
                start_new_session=True,
            )

    def running(self, name: str) -> bool:
        """Whether a server still runs."""
        return self._servers[name].poll() is None

    def pid(self, name: str) -> int:
        """Process id of a server, as seen from outside. Raises EnclosureFailed when it does not run."""
        below = descendants(self._servers[name].pid)
        if not below:
            raise EnclosureFailed(f"{name} has ended: {self.log(name)}")
        return below[0]

    def stop(self, name: str, *, how: signal.Signals = signal.SIGTERM, timeout: float = 10.0) -> None:
        """Signal a server and wait until it has ended; it is killed when it takes longer than ``timeout``."""
        process = self._servers.pop(name)
        for pid in descendants(process.pid)[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, how)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            kill_processes(descendants(process.pid))
            process.wait(timeout)

    def log(self, name: str) -> str:
        """The end of what a server wrote."""
        try:
            return (self._log / name).read_text(errors="replace")[-4000:]
        except FileNotFoundError:
            return ""

    def close(self) -> None:
        """End everything at once; nothing is left. The servers are not asked first."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(20)
        for process in self._servers.values():
            process.wait(20)
        self._servers.clear()
        if self._process.stdout is not None:
            self._process.stdout.close()


def wait_for_server(enclosure: Enclosure, name: str, ready: Any, *, timeout: float = 60.0) -> None:
    """Return when ``ready()`` holds. Raises EnclosureFailed, with its log, when the server ends or takes too long."""
    deadline = time.monotonic() + timeout
    while not ready():
        if not enclosure.running(name):
            raise EnclosureFailed(f"{name} has ended: {enclosure.log(name)}")
        if time.monotonic() > deadline:
            raise EnclosureFailed(f"{name} did not answer within {timeout} s: {enclosure.log(name)}")
        time.sleep(0.05)
