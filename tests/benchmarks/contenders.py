# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The programs that are compared, set up as equally as they can be."""

from __future__ import annotations

import contextlib
import json
import secrets
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from tests.lab import Cluster, Workspace, wait_until

from .stores import Store

SOURCE = "main"
LEVEL = 3
"""zstd."""


class Contender(Protocol):
    """A program with a repository of its own; the methods give command lines."""

    name: str
    version: str
    store: Store
    archive_command: str

    def backup(self, kind: str) -> list[str]:
        """``kind``: full or incremental."""

    def restore(self, target: Path, *, delta: bool) -> list[str]:
        """The newest backup, to its own end."""

    def wal_push(self, segment: Path) -> list[str]:
        """As ``archive_command`` does it."""

    def archiving_ahead(self) -> contextlib.AbstractContextManager[str]:
        """What archives several segments at a time, made ready; gives the ``archive_command`` for it."""


class Cryobackup:
    """This project."""

    name = "cryobackup"

    def __init__(self, workspace: Workspace, cluster: Cluster, program: Path, workers: int, store: Store) -> None:
        self._workspace = workspace
        # For the archiver's socket.
        workspace.account.own(workspace.path)
        self.program = program
        self.version = workspace.run([program, "--version"]).stdout.strip().removeprefix("cryobackup ")
        home = workspace.directory("cryobackup")
        self.store = store
        self._workers = workers
        settings = {
            "repository": {
                "locations": {"only": store.location()},
                "keys": str(home / "keys"),
                "compression_level": LEVEL,
            },
            "clusters": {
                SOURCE: {
                    "data_directory": str(cluster.data_dir),
                    "connection": cluster.conninfo,
                    "workers": workers,
                }
            },
            "state_directory": str(home / "state"),
        }
        config = home / "config.yml"
        config.write_text(json.dumps(settings))
        workspace.account.own(config)
        self._command = [str(program), "--config", str(config)]
        self.archive_command = f"{shlex.join(self._command)} wal-push %p"
        workspace.run([*self._command, "init"])

    def backup(self, kind: str) -> list[str]:
        return [*self._command, "--quiet", "backup", SOURCE, "--type", kind]

    def restore(self, target: Path, *, delta: bool) -> list[str]:
        how = ["--delta"] if delta else []
        goal = ["--immediate", "--workers", str(self._workers)]
        return [*self._command, "--quiet", "restore", SOURCE, "--target", str(target), *goal, *how]

    def wal_push(self, segment: Path) -> list[str]:
        return [*self._command, "wal-push", str(segment)]

    @contextlib.contextmanager
    def archiving_ahead(self) -> Iterator[str]:
        where = self._workspace.path / "archiver.sock"
        socket = ["--socket", str(where)]
        service = [*self._command, "--quiet", "wal-archiver", SOURCE, *socket, "--workers", str(self._workers)]
        process = self._workspace.popen(service)
        try:
            wait_until(where.exists, "the archiver")
            yield f"{shlex.join([*self._command, 'wal-push', *socket])} %p"
        finally:
            process.terminate()
            process.wait()


class PgBackRest:
    """pgBackRest, tuned: bundles and block incremental backups where this version has them."""

    name = "pgBackRest"

    def __init__(self, workspace: Workspace, cluster: Cluster, program: Path, workers: int, store: Store) -> None:
        self.program = program
        self.version = workspace.run([program, "version"]).stdout.strip().removeprefix("pgBackRest ")
        home = workspace.directory("pgbackrest")
        self.store = store
        config = home / "pgbackrest.conf"
        settings = {
            **store.pgbackrest(),
            "repo1-cipher-type": "aes-256-cbc",
            "repo1-cipher-pass": secrets.token_urlsafe(48),
            "repo1-bundle": "y",
            "repo1-block": "y",
            "repo1-retention-full": 99,
            "compress-type": "zst",
            "compress-level": LEVEL,
            "process-max": workers,
            "start-fast": "y",
            "archive-async": "n",
            # cryobackup does not prune in a backup either.
            "expire-auto": "n",
            "log-level-console": "warn",
            "log-level-file": "off",
            "lock-path": home / "lock",
            "log-path": home / "log",
            "spool-path": home / "spool",
        }
        stanza = {"pg1-path": cluster.data_dir, "pg1-socket-path": cluster.socket_dir, "pg1-user": "postgres"}
        lines = ["[global]", *(f"{key}={value}" for key, value in settings.items())]
        lines += [f"[{SOURCE}]", *(f"{key}={value}" for key, value in stanza.items()), f"pg1-port={cluster.port}"]
        config.write_text("\n".join(lines) + "\n")
        config.chmod(0o600)
        workspace.account.own(config)
        self._command = [str(program), f"--config={config}", f"--stanza={SOURCE}"]
        self.archive_command = f"{shlex.join(self._command)} archive-push %p"
        workspace.run([*self._command, "stanza-create"])

    def backup(self, kind: str) -> list[str]:
        return [*self._command, f"--type={'incr' if kind == 'incremental' else kind}", "backup"]

    def restore(self, target: Path, *, delta: bool) -> list[str]:
        how = ["--delta"] if delta else []
        return [*self._command, f"--pg1-path={target}", "--type=immediate", *how, "restore"]

    def wal_push(self, segment: Path) -> list[str]:
        return [*self._command, "archive-push", str(segment)]

    @contextlib.contextmanager
    def archiving_ahead(self) -> Iterator[str]:
        yield f"{shlex.join([*self._command, '--archive-async', 'archive-push'])} %p"
