# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The world in which hosts live: namespaces that end, with all that is in them, when whoever made them ends.

Processes, mounts, network and /run of the world are its own. Its first process ends when the command that it was
made for has ended, or when its owner has, by whatever signal; with it the kernel ends all others, and with the last
of them go mounts, networks, and the memory that hosts have their files in. What the kernel leaves are cgroups
without processes: they bear the checkout's name, and the next world of this checkout removes them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..majors import cache_directory, locked, run
from .base import CHECKOUT
from .machine import BRIDGE, GATEWAY, IDENTITY, LAB, make_key, remove_cgroup

CGROUPS = Path("/sys/fs/cgroup")
LIFELINE = "CRYOBACKUP_HOSTS_LIFELINE"
MEGABYTES = 8192
"""The most that the files of all hosts may take of the machine's memory."""


def cgroup_directories() -> tuple[Path, ...]:
    """Where the cgroups of this checkout's hosts lie: one directory in each hierarchy that systemd uses."""
    name = f"cryobackup-hosts-{hashlib.sha256(str(CHECKOUT).encode()).hexdigest()[:8]}"
    hybrid = [CGROUPS / kind for kind in ("systemd", "unified") if (CGROUPS / kind).is_dir()]
    return tuple(hierarchy / name for hierarchy in hybrid or [CGROUPS])


def run_in_world(command: Sequence[str]) -> int:
    """Make a world, run a command in it, and take it away; returns what the command ended with.

    One at a time for each checkout: another one waits.
    """
    with locked(cache_directory() / f".{cgroup_directories()[0].name}.lock"), _no_cgroups():
        read, write = os.pipe()
        process = subprocess.Popen(
            [
                *("unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"),
                *(sys.executable, "-m", __package__, "first", *command),
            ],
            pass_fds=[read],
            env={**os.environ, LIFELINE: str(read)},
        )
        os.close(read)
        try:
            with _deaf():
                return process.wait()
        finally:
            os.close(write)
            process.wait()


@contextlib.contextmanager
def _no_cgroups() -> Iterator[None]:
    for directory in cgroup_directories():
        remove_cgroup(directory)
    try:
        yield
    finally:
        for directory in cgroup_directories():
            remove_cgroup(directory)


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    # Ctrl-C is for the command; a polite end is for us, and by us for all of it.
    def stop(_number: int, _frame: object) -> None:
        raise SystemExit(143)

    before = signal.signal(signal.SIGINT, signal.SIG_IGN), signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])


def first(command: Sequence[str], links: Mapping[str, Path]) -> int:
    """What the first process of the world does: it makes the place, runs the command and collects the dead.

    ``links`` are names in the place, and where they lead to.
    """
    lifeline = int(os.environ.pop(LIFELINE))
    threading.Thread(target=_end_with_owner, args=(lifeline,), daemon=True).start()
    # A handler, unlike a signal that is ignored, is not inherited.
    signal.signal(signal.SIGINT, lambda _number, _frame: None)
    _make_place()
    for name, target in links.items():
        (LAB / name).parent.mkdir(exist_ok=True)
        (LAB / name).symlink_to(target)
    child = subprocess.Popen(command)
    while True:
        pid, status = os.wait()
        if pid == child.pid:
            return os.waitstatus_to_exitcode(status)


def _end_with_owner(lifeline: int) -> None:
    os.read(lifeline, 1)
    os._exit(143)


def _make_place() -> None:
    run("mount", "-t", "tmpfs", "-o", f"mode=755,size={MEGABYTES}m", "hosts", "/run")
    LAB.mkdir()
    make_key(IDENTITY)
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "addr", "add", f"{GATEWAY}/24", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")
