# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""This project."""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.benchmarks.measure import peak_bytes
from tests.lab import wait_until

from .protocol import LEVEL, SOURCE, Ability, Command, Setting

NAME = "cryobackup"


class Cryobackup:
    """The program, with the archiver as a service of its own: only while WAL goes there, since it looks ahead."""

    key = NAME
    name = NAME
    brief = False
    archiver_bytes = 0
    cannot: Mapping[Ability, str] = {}

    def __init__(self, setting: Setting, program: Path) -> None:
        self._workspace = workspace = setting.workspace
        # For the archiver's socket.
        workspace.account.own(workspace.path)
        self.version = workspace.run([program, "--version"]).stdout.strip().removeprefix("cryobackup ")
        self.how = f"zstd {LEVEL}, AES-256-GCM, {setting.workers} threads, archiver with {setting.workers} threads"
        self.store = setting.store
        self._home = workspace.directory("cryobackup")
        self._program = program
        self._setting = setting
        self._workers = ["--workers", str(setting.workers)]
        self._socket = workspace.path / "archiver.sock"
        self._command = self._configured("config.yml", None)
        workspace.run([*self._command, "init"])

    def _configured(self, name: str, limit: int | None) -> Command:
        """The command with a configuration of this name, which limits backups to ``limit`` bytes a second."""
        limited = {} if limit is None else {"bandwidth_limit": f"{limit // 1024}kB/s"}
        cluster = self._setting.cluster
        settings = {
            "repository": {
                "locations": {"only": self.store.location()},
                "keys": str(self._home / "keys"),
                "compression_level": LEVEL,
            },
            "clusters": {
                SOURCE: {
                    "data_directory": str(cluster.data_dir),
                    "connection": cluster.conninfo,
                    "workers": self._setting.workers,
                    **limited,
                }
            },
            "state_directory": str(self._home / "state"),
        }
        config = self._home / name
        config.write_text(json.dumps(settings))
        self._workspace.account.own(config)
        return [str(self._program), "--config", str(config)]

    @contextlib.contextmanager
    def archiving(self) -> Iterator[str]:
        service = [*self._command, "--quiet", "wal-archiver", SOURCE, "--socket", str(self._socket), *self._workers]
        process = self._workspace.popen(service, stdout=subprocess.DEVNULL)
        try:
            wait_until(self._socket.exists, "the archiver")
            yield f"{shlex.join(self._client())} %p"
        finally:
            self.archiver_bytes = peak_bytes(process.pid)
            process.terminate()
            process.wait(30)

    def _client(self) -> Command:
        return [*self._command, "wal-push", "--socket", str(self._socket)]

    def drained(self) -> None:
        return None

    def backup(self, kind: str, *, limit: int | None = None) -> Command:
        command = self._command if limit is None else self._configured("limited.yml", limit)
        return [*command, "--quiet", "backup", SOURCE, "--type", kind]

    def restore(self, target: Path, *, delta: bool = False, lsn: str | None = None) -> Command:
        how = ["--delta"] if delta else []
        goal = ["--immediate"] if lsn is None else ["--to-lsn", lsn]
        return [*self._command, "--quiet", "restore", SOURCE, "--target", str(target), *goal, *self._workers, *how]

    def wal_push(self, segment: Path) -> Command:
        return [*self._command, "wal-push", str(segment)]

    def wal_ask(self, segment: Path) -> Command:
        return [*self._client(), str(segment)]
