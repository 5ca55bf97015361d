# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A repository for a cluster of the laboratory, and the commands that archive into it and fetch from it."""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryobackup.config import Config, load_config
from cryobackup.storage.base import Location
from cryobackup.storage.open import open_location
from tests.lab import Cluster, Workspace
from tests.lab.stores import DirectoryStore, Store, StoredPath, away

DIRECTORY = "archive"


@dataclass(frozen=True)
class FinishedWal:
    """A stopped cluster with a few finished segments in pg_wal, none of which was archived."""

    cluster: Cluster
    segments: list[str]
    system_identifier: int

    @property
    def data_dir(self) -> Path:
        return self.cluster.data_dir

    def path(self, name: str) -> Path:
        return self.data_dir / "pg_wal" / name


class WalLab:
    """The configuration, its locations, and ``cryobackup`` run on it as the server's user.

    ``locations`` are names and whether they are required. They are of the workspace's kind, but for those whose
    directories lie where ``paths`` says.
    """

    def __init__(
        self,
        workspace: Workspace,
        runtime: Path,
        clusters: Mapping[str, Path],
        *,
        locations: Mapping[str, bool] | None = None,
        paths: Mapping[str, Path] | None = None,
        init: bool = True,
    ) -> None:
        self.workspace = workspace
        self.runtime = runtime
        self.directory = workspace.directory(DIRECTORY)
        self.config_path = self.directory / "config.yml"
        self.keys = self.directory / "keys"
        self.state = self.directory / "state"
        wanted = locations or {"local": True}
        self.stores: dict[str, Store] = {
            name: workspace.stores.make(self.directory / f"repo-{name}") for name in wanted if name not in (paths or {})
        } | {name: DirectoryStore(path) for name, path in (paths or {}).items()}
        self.paths: dict[str, StoredPath] = {name: store.root for name, store in self.stores.items()}
        self.settings: dict[str, Any] = {
            "repository": {
                "locations": {name: self.stores[name].settings(required=required) for name, required in wanted.items()},
                "keys": str(self.keys),
            },
            "clusters": {
                name: {"data_directory": str(path), "connection": "host=/nowhere"} for name, path in clusters.items()
            },
            "state_directory": str(self.state),
        }
        self.cluster: Cluster | None = None
        """For tests that share one."""
        self.write_config()
        if init:
            self.run("init", check=True)

    def write_config(self) -> None:
        self.config_path.write_text(json.dumps(self.settings))
        workspace = self.workspace
        workspace.account.own(self.config_path)

    def config(self) -> Config:
        return load_config(self.config_path)

    def open_location(self, name: str) -> Location:
        return open_location(self.config().repository.locations[name])

    def connect(self, name: str, cluster: Cluster) -> None:
        """Let ``check`` and the like find the server of a cluster."""
        self.settings["clusters"][name]["connection"] = cluster.conninfo
        self.write_config()

    def run(self, *words: str | Path, check: bool = False, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = [self.runtime, "--config", self.config_path, *words]
        return self.workspace.run(command, check=check, cwd=cwd)

    def json(self, *words: str | Path, cwd: Path | None = None) -> tuple[int, dict[str, Any]]:
        """Exit code and what is printed with --json."""
        result = self.run("--json", *words, cwd=cwd)
        return result.returncode, json.loads(result.stdout)

    def push(self, data_dir: Path, name: str, *options: str) -> subprocess.CompletedProcess[str]:
        """As PostgreSQL does it."""
        return self.run("wal-push", f"pg_wal/{name}", *options, cwd=data_dir)

    def get(self, name: str, destination: Path, *options: str, cwd: Path | None = None) -> int:
        return self.run("wal-get", name, destination, *options, cwd=cwd).returncode

    @property
    def archive_command(self) -> str:
        return f"{shlex.join([str(self.runtime), '--config', str(self.config_path)])} wal-push %p"

    def object(self, system_identifier: str | int, name: str, location: str | None = None) -> StoredPath:
        """Where an archived object is."""
        root = self.paths[location or next(iter(self.paths))]
        return root / "wal" / str(system_identifier) / name[:8] / name

    def left_overs(self, location: str | None = None) -> list[str]:
        """What writers began and did not finish."""
        return self.stores[location or next(iter(self.stores))].left_overs()

    def away(self, path: StoredPath) -> contextlib.AbstractContextManager[None]:
        """While inside, a location, a file or a directory is not there."""
        return away(path)
