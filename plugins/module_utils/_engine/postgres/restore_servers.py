# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PostgreSQL servers that run on this host, and which directories are theirs.

``postmaster.pid`` is believed only as far as it goes: it is left over after a crash, its number may belong
to another process by now, and it may have been deleted under a running server. What cannot lie is the
working directory of a process: every PostgreSQL process works in its data directory
(``ChangeToDataDir`` in ``miscinit.c``).
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path

_PROCESS_NAME = re.compile(r"postgres|postmaster|edb-postgres")


@dataclasses.dataclass(frozen=True, slots=True)
class RunningServer:
    pid: int
    data_directory: Path
    certain: bool = True
    """False: the process could not be looked at, and only postmaster.pid says so."""


def server_of(data_directory: Path) -> RunningServer | None:
    """The server that runs on a directory, as far as this process may see.

    A process that ``postmaster.pid`` names, that is alive and that may not be looked at counts as one:
    better to refuse once too often.
    """
    for server in running_servers():
        # Through /proc, because in a container the directory has another name.
        if _same_directory(f"/proc/{server.pid}/cwd", data_directory):
            return server
    pid = _pid_in_file(data_directory)
    if pid is None or pid in (os.getpid(), os.getppid()) or not _is_alive(pid):
        return None
    if _working_directory(pid) is None and _may_be_postgres(pid):
        return RunningServer(pid, data_directory, certain=False)
    return None


def running_servers() -> Iterator[RunningServer]:
    """The processes of PostgreSQL whose data directory this process may see; one for each process."""
    for name in os.listdir("/proc"):
        if not name.isdigit() or not _may_be_postgres(int(name)):
            continue
        directory = _working_directory(int(name))
        if directory is not None:
            yield RunningServer(int(name), directory)


def _pid_in_file(data_directory: Path) -> int | None:
    # Its first line; negative for a server in single-user mode (src/include/utils/pidfile.h).
    try:
        with open(data_directory / "postmaster.pid", "rb") as file:
            first = file.readline(32).strip()
    except OSError:
        return None
    number = first.removeprefix(b"-")
    return int(number) if number.isdigit() else None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _working_directory(pid: int) -> Path | None:
    """None when the process is gone or belongs to somebody else."""
    try:
        return Path(os.readlink(f"/proc/{pid}/cwd"))
    except OSError:
        return None


def _may_be_postgres(pid: int) -> bool:
    # A process sets its title, not this name, which is that of its program, cut off at 15 bytes.
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return _PROCESS_NAME.match(file.read(15)) is not None
    except OSError:
        return False


def _same_directory(one: str | Path, other: str | Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
