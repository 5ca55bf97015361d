# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A recovery that asks for what a test tells it to: the processes of a server, without the server."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from cryobackup.cli._ahead_client import sealed
from cryobackup.postgres.archive_commands import restore_command
from tests.lab import wait_until
from tests.lab.cleanup import lab_processes

from .lab import WalLab

# What matters of PostgreSQL: it says in its directory who it is, and a child of it starts restore_command in a shell.
SERVER = """
import json, os, subprocess, sys
os.chdir(sys.argv[1])
with open("postmaster.pid", "w") as file:
    file.write(f"{os.getpid()}\\n")
child = os.fork()
if child:
    os.waitpid(child, 0)
    sys.exit()
print(os.getpid(), flush=True)
for line in sys.stdin:
    done = subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True)
    print(json.dumps([done.returncode, done.stdout + done.stderr]), flush=True)
"""
WANTED = "RECOVERYXLOG"


def is_sealed(path: Path) -> bool:
    """Whether a file in memory is finished."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return sealed(descriptor)
    finally:
        os.close(descriptor)


class Replay:
    """Asks for segments of one cluster, as a recovery in a directory of its own does."""

    def __init__(
        self,
        archive: WalLab,
        system_identifier: int,
        *options: str,
        name: str = "target",
        directory: Path | None = None,
    ) -> None:
        self.archive = archive
        self.directory = directory or archive.workspace.directory(name)
        self.said = ""
        """What the last command wrote."""
        self._command = restore_command([str(archive.runtime)], archive.config_path, system_identifier)
        self.options(*options)
        (self.directory / "pg_wal").mkdir()
        archive.workspace.account.own(self.directory / "pg_wal")
        self._process: subprocess.Popen[Any] = archive.workspace.popen(
            ["/usr/bin/python3", "-c", SERVER, self.directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = int(self._process.stdout.readline())  # type: ignore[union-attr]

    def options(self, *words: str) -> None:
        """Give wal-get more options from now on."""
        self.restore_command = self._command.replace(" %f", "".join(f" {word}" for word in words) + " %f")

    @property
    def destination(self) -> Path:
        return self.directory / "pg_wal" / WANTED

    def ask(self, name: str) -> int:
        """Exit code of wal-get; what it fetched is at ``destination``."""
        self.destination.unlink(missing_ok=True)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        command = self.restore_command.replace("%f", name).replace("%p", f"pg_wal/{WANTED}")
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        code, self.said = json.loads(self._process.stdout.readline())
        left = {path.name for path in self.destination.parent.iterdir()}
        assert left == ({WANTED} if code == 0 else set()), left
        return int(code)

    def delivers(self, name: str, content: bytes) -> bool:
        return self.ask(name) == 0 and self.destination.read_bytes() == content

    def helpers(self) -> list[int]:
        """Who looks ahead for this recovery."""
        sign = f" wal-ahead --recovery {self.pid}:"
        return [process.pid for process in lab_processes(self.archive.workspace.path) if sign in process.command]

    def helper(self) -> int:
        wait_until(lambda: len(self.helpers()) == 1, "somebody looks ahead")
        return self.helpers()[0]

    def kept(self) -> dict[str, Path]:
        """The segments that wait, and where they can be seen."""
        found = {}
        for pid in self.helpers():
            with contextlib.suppress(OSError):
                for entry in Path(f"/proc/{pid}/fd").iterdir():
                    with contextlib.suppress(OSError):
                        target = os.readlink(entry)
                        if target.startswith("/memfd:") and is_sealed(entry):
                            found[target.removeprefix("/memfd:").removesuffix(" (deleted)")] = entry
        return found

    def wait_kept(self, *names: str) -> None:
        wait_until(lambda: {*names} <= {*self.kept()}, f"{', '.join(names)} in memory")

    def kill_helper(self) -> None:
        pid = self.helper()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: pid not in self.helpers(), "it is dead")

    def end(self) -> None:
        """The end of the recovery. What looked ahead for it ends by itself."""
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait(30)
        wait_until(lambda: not self.helpers(), "nobody looks ahead any more")
