# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run one command as a user, and print how long it took and what it used, as a JSON object.

A program of its own, started with ``python -I -S``: the kernel carries the peak memory of a process over into
what it executes, so that a child of the benchmark itself would never seem smaller than the benchmark.
"""

from __future__ import annotations

import json
import os
import sys
import time


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
    _unused, status, usage = os.wait4(pid, 0)
    seconds = time.perf_counter() - started
    json.dump(
        {
            "seconds": seconds,
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "peak_bytes": usage.ru_maxrss * 1024,
            "exit_code": os.waitstatus_to_exitcode(status),
        },
        sys.stdout,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
