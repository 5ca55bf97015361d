# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finding and removing what a laboratory made: processes, mounts, shared memory, directories.

Only the standard library is used, because the guard process runs this after the test run has died.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MARKER = "CRYOBACKUP_LAB"
"""Environment variable that every process of a laboratory inherits; its value is the session's directory."""


@dataclass(frozen=True)
class LabProcess:
    """A process that belongs to a laboratory."""

    pid: int
    parent: int
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command})"


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _parent_and_state(pid: int) -> tuple[int, str]:
    # The command name, in parentheses, may contain blanks: the fields begin after the last parenthesis.
    fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return (int(fields[1]), fields[0].decode()) if len(fields) > 1 else (0, "X")


def _is_below(path: str, root: Path) -> bool:
    return path == str(root) or path.startswith(f"{root}/")


def _belongs(pid: int, root: Path, marker: bytes) -> bool:
    # A PostgreSQL child overwrites its environment with its title, but it always sits in its data directory.
    try:
        cwd = os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        cwd = ""
    if _is_below(cwd.removesuffix(" (deleted)"), root):
        return True
    return any(
        _is_below(entry.decode(errors="replace"), root)
        for word in _read(f"/proc/{pid}/environ").split(b"\0")
        if word.startswith(marker)
        for entry in [word[len(marker) :]]
    )


def lab_processes(root: Path, *, exclude: Iterable[int] = ()) -> list[LabProcess]:
    """The living processes that belong to the laboratory (or the part of it) whose directory is ``root``."""
    ours = {os.getpid(), *exclude}
    marker = f"{MARKER}=".encode()
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in ours:
            continue
        pid = int(name)
        parent, state = _parent_and_state(pid)
        if state in "ZX" or not _belongs(pid, root, marker):
            continue
        command = _read(f"/proc/{pid}/cmdline").replace(b"\0", b" ").decode(errors="replace").strip()
        found.append(LabProcess(pid, parent, command))
    return found


def descendants(pid: int) -> list[int]:
    """The process ids of all living descendants of ``pid``, nearest first."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            children.setdefault(_parent_and_state(int(name))[0], []).append(int(name))
    found: list[int] = []
    queue = [pid]
    while queue:
        below = children.get(queue.pop(0), [])
        found += below
        queue += below
    return found


def is_alive(pid: int) -> bool:
    """Whether a process runs (one that has ended and only waits to be collected does not)."""
    return _parent_and_state(pid)[1] not in "ZX"


def kill_processes(pids: Iterable[int], *, timeout: float = 10.0) -> None:
    """SIGKILL each process and wait until none of them runs."""
    waiting = list(pids)
    for pid in waiting:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + timeout
    while any(is_alive(pid) for pid in waiting):
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes survive SIGKILL: {[pid for pid in waiting if is_alive(pid)]}")
        time.sleep(0.01)


def mounts_below(root: Path) -> list[Path]:
    """Mount points at or below ``root``, deepest first."""
    points = []
    for line in _read("/proc/self/mounts").decode(errors="replace").splitlines():
        point = line.split(" ")[1].replace("\\040", " ")
        if _is_below(point, root):
            points.append(Path(point))
    return sorted(points, key=lambda point: len(point.parts), reverse=True)


def unmount(point: Path) -> None:
    """Unmount ``point``; a process that still sits in it cannot prevent that. Raises CalledProcessError."""
    subprocess.run(["umount", "--lazy", str(point)], check=True, capture_output=True, text=True)


def remove_shared_memory(data_dir: Path) -> None:
    """Remove the System V segment that a killed postmaster left, as told by its ``postmaster.pid``.

    A server removes it at its next start only. Nothing happens while a process is attached to the segment.
    """
    lines = _read(str(data_dir / "postmaster.pid")).decode(errors="replace").splitlines()
    if len(lines) < 7:
        return
    # Line 7 is "<key> <shared memory id>": src/include/utils/pidfile.h.
    identifier = lines[6].split()[-1:]
    segments = _read("/proc/sysvipc/shm").decode().splitlines()[1:]
    for fields in (line.split() for line in segments):
        if [fields[1]] == identifier and fields[6] == "0":
            subprocess.run(["ipcrm", "--shmem-id", fields[1]], check=False, capture_output=True)


def remove_tree(root: Path) -> None:
    """Delete ``root`` and everything below it; nothing happens when it is not there. Raises OSError."""
    if root.is_symlink() or root.is_file():
        root.unlink()
        return
    with contextlib.suppress(PermissionError):
        shutil.rmtree(root, onerror=_ignore_missing)
        return
    # Only an owner other than root meets directories that it may not write to.
    for folder, directories, _unused in os.walk(root):
        for path in (folder, *(os.path.join(folder, name) for name in directories)):
            if not os.path.islink(path):
                os.chmod(path, 0o700)
    shutil.rmtree(root, onerror=_ignore_missing)


def _ignore_missing(_function: object, _path: str, failure: tuple[object, BaseException, object]) -> None:
    if not isinstance(failure[1], FileNotFoundError):
        raise failure[1]


def clean(root: Path) -> list[str]:
    """End and remove everything that belongs to ``root``; returns words for each process and mount found."""
    processes = lab_processes(root)
    kill_processes(process.pid for process in processes)
    mounts = mounts_below(root)
    for point in mounts:
        unmount(point)
    if root.is_dir():
        for folder, directories, files in os.walk(root):
            if "postmaster.pid" in files:
                remove_shared_memory(Path(folder))
                directories.clear()
    remove_tree(root)
    return [str(process) for process in processes] + [f"mount {point}" for point in mounts]
