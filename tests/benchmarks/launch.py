# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run one command as a user, and print how long it took and what it used, as a JSON object.

A program of its own, started with ``python -I -S``: the kernel carries the peak memory of a process over into
what it executes, so that a child of the benchmark itself would never seem smaller than the benchmark.

Peak memory is the larger of two: what the kernel says of the largest process, and the sum over all processes of the
command, looked at several times a second, with pages that they share counted once.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time

LOOK_SECONDS = 0.05
_PAGE = os.sysconf("SC_PAGE_SIZE")


def _become(user: str, output: str) -> None:
    if user:
        import pwd

        entry = pwd.getpwnam(user)
        os.initgroups(user, entry.pw_gid)
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    target = os.open(output, os.O_WRONLY)
    os.dup2(target, 1)
    os.dup2(target, 2)


def _descendants(pid: int) -> list[int]:
    """This process and all below it, as far as they live."""
    found = [pid]
    for process in found:
        try:
            for thread in os.listdir(f"/proc/{process}/task"):
                with open(f"/proc/{process}/task/{thread}/children") as file:
                    found += map(int, file.read().split())
        except OSError:  # ended meanwhile
            continue
    return found


def _resident(pid: int) -> int:
    """Bytes of memory of a process and all below it; of what is shared, the largest share only."""
    own = shared = 0
    for process in _descendants(pid):
        try:
            with open(f"/proc/{process}/statm") as file:
                _size, resident, common = map(int, file.read().split()[:3])
        except (OSError, ValueError):
            continue
        own += resident - common
        shared = max(shared, common)
    return (own + shared) * _PAGE


def _watch(pid: int) -> int:
    """Wait until the process has ended; the most memory that it and its descendants were seen to have, in bytes."""
    descriptor = os.pidfd_open(pid)
    most = 0
    while not select.select([descriptor], [], [], LOOK_SECONDS)[0]:
        most = max(most, _resident(pid))
    os.close(descriptor)
    return most


def main(user: str, output: str, *command: str) -> int:
    """``user``: name, or empty for the caller's. ``output``: an existing file that this user may write to."""
    started = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        try:
            _become(user, output)
            os.execv(command[0], command)
        finally:
            os._exit(127)
    together = _watch(pid)
    _unused, status, usage = os.wait4(pid, 0)
    seconds = time.perf_counter() - started
    json.dump(
        {
            "seconds": seconds,
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "peak_bytes": max(usage.ru_maxrss * 1024, together),
            "exit_code": os.waitstatus_to_exitcode(status),
        },
        sys.stdout,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
