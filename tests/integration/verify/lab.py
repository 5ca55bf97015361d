# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small cluster with backups, verified as its user does it."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryobackup.postgres.restore_servers import running_servers
from tests.integration.backup.lab import BackupLab

PATIENCE_SECONDS = 60.0
HOLD = "SELECT pg_sleep(600) IS NOT NULL"


def wait_for(what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited too long: {what}"
        time.sleep(0.02)


class VerifyLab(BackupLab):
    def verify(self, *words: str, exit_code: int = 0, as_server: bool = True) -> dict[str, Any]:
        result = self.workspace.run([*self.command, "--json", "verify", *words], as_server=as_server, check=False)
        assert result.returncode == exit_code, (result.stdout, result.stderr)
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    def rehearse(self, *words: str, exit_code: int = 0, as_server: bool = True) -> dict[str, Any]:
        """The one backup of the report of a sandbox; nothing is left of it."""
        report = self.verify("--level", "restore", *words, exit_code=exit_code, as_server=as_server)
        assert self.leftovers() == []
        (backup,) = report["backups"]
        return dict(backup)

    def run_json(self, *words: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("--json", *words, check=True).stdout)
        return found

    def error(self, *words: str, exit_code: int = 1) -> dict[str, str]:
        found: dict[str, str] = self.verify(*words, exit_code=exit_code)["error"]
        assert self.leftovers() == []
        return found

    @property
    def base(self) -> Path:
        return self.directory / "state" / "sandbox"

    def leftovers(self) -> list[Path]:
        return list(self.base.glob("pg-*"))

    def servers(self) -> list[int]:
        """Processes of PostgreSQL in any sandbox of ours."""
        return [server.pid for server in running_servers() if self.base in server.data_directory.parents]

    def wal_files(self) -> set[str]:
        (location,) = self.locations.values()
        return {path.name for path in (location / "wal").rglob("*") if path.is_file()}

    def interrupted(self, number: signal.Signals) -> int:
        """Begin a rehearsal, wait until its server is asked the assertion HOLD, send a signal. The exit code."""
        words = ["verify", "--level", "restore"]
        process = self.workspace.popen([*self.command, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for("the sandbox is held up by its assertion", self._is_held)
        process.send_signal(number)
        return int(process.wait(PATIENCE_SECONDS))

    def _is_held(self) -> bool:
        return any(b"SELECT" in _title(pid) for pid in self.servers())


def _title(pid: int) -> bytes:
    """What a backend says that it does."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def by_name(backup: dict[str, Any]) -> dict[str, Any]:
    return {check["name"]: check["ok"] for check in backup["checks"]}


def detail(backup: dict[str, Any], name: str) -> str:
    (found,) = [check["detail"] for check in backup["checks"] if check["name"] == name]
    return str(found)
