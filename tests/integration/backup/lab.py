# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A running cluster that archives into a repository, and backups of it taken as its user takes them."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryobackup.config import Config, load_config
from cryobackup.postgres.backup_label import TablespaceLink, format_tablespace_map
from cryobackup.repository import extents as xt
from cryobackup.repository import model, names
from cryobackup.repository.manifest import Manifest, open_manifest
from cryobackup.repository.model import Entry
from cryobackup.repository.packs import PackReader
from cryobackup.repository.repository import Repository
from tests.lab import Cluster, Workspace

SOURCE = "main"


class BackupLab:
    """A cluster, its configuration, its repository, and ``cryobackup`` run as the server's user.

    ``locations``: names, and whether they are required; all are of the workspace's kind. ``options``: more settings
    of the cluster in the configuration.
    """

    def __init__(
        self,
        workspace: Workspace,
        runtime: Path,
        cluster: Cluster,
        *,
        locations: Mapping[str, bool] | None = None,
        archive: bool = True,
        **options: Any,
    ) -> None:
        self.workspace = workspace
        self.cluster = cluster
        self.runtime = runtime
        self.directory = workspace.directory("cryobackup")
        self.config_path = self.directory / "config.yml"
        wanted = locations or {"local": True}
        self.stores = {name: workspace.stores.make(self.directory / name) for name in wanted}
        self.locations = {name: store.root for name, store in self.stores.items()}
        self.settings: dict[str, Any] = {
            "repository": {
                "locations": {name: self.stores[name].settings(required=required) for name, required in wanted.items()},
                "keys": str(self.directory / "keys"),
            },
            "clusters": {
                SOURCE: {
                    "data_directory": str(cluster.data_dir),
                    "connection": cluster.conninfo,
                    "workers": 2,
                    "archive_timeout": 60,
                    **options,
                }
            },
            "state_directory": str(self.directory / "state"),
        }
        self.write_config()
        self.run("init", check=True)
        if archive:
            cluster.enable_archiving(self.archive_command)

    def write_config(self) -> None:
        self.config_path.write_text(json.dumps(self.settings))
        self.workspace.account.own(self.config_path)

    def set(self, **options: Any) -> None:
        """Change settings of the cluster in the configuration."""
        self.settings["clusters"][SOURCE].update(options)
        self.write_config()

    @property
    def command(self) -> list[str]:
        return [str(self.runtime), "--config", str(self.config_path)]

    @property
    def archive_command(self) -> str:
        return f"{shlex.join(self.command)} wal-push %p"

    def config(self) -> Config:
        return load_config(self.config_path)

    def run(self, *words: str, check: bool = False) -> subprocess.CompletedProcess[str]:
        return self.workspace.run([*self.command, *words], check=check)

    def try_backup(self, kind: str = "full", *options: str) -> tuple[int, dict[str, Any], str]:
        """Exit code, the object that --json prints, standard error."""
        result = self.run("--json", "backup", SOURCE, "--type", kind, *options)
        assert result.stdout, result.stderr
        return result.returncode, json.loads(result.stdout), result.stderr

    def backup(self, kind: str = "full", *options: str, exit_code: int = 0) -> dict[str, Any]:
        code, result, errors = self.try_backup(kind, *options)
        assert code == exit_code, (result, errors)
        return result

    def refused(self, kind: str = "full", *options: str, exit_code: int = 1, leases: int = 0) -> dict[str, str]:
        """The error of a backup that must fail, and must leave nothing that looks like one.

        A lease stays in a location that failed; the next run retires it.
        """
        before = self.manifests()
        code, result, errors = self.try_backup(kind, *options)
        assert code == exit_code, (result, errors)
        assert self.manifests() == before
        assert len(self.leases()) == leases
        error: dict[str, str] = result["error"]
        assert error["hint"], error
        return error

    def settle(self) -> None:
        """Wait until the times of all files are old enough to prove something."""
        self.cluster.checkpoint()
        time.sleep(2.1)

    # What is in the repository

    def manifests(self, location: str | None = None) -> list[str]:
        """Their ids, oldest first."""
        return self._objects(f"manifests/{SOURCE}", location)

    def leases(self, location: str | None = None) -> list[str]:
        return self._objects(f"leases/{SOURCE}", location)

    def _objects(self, directory: str, location: str | None) -> list[str]:
        path = self.locations[location or next(iter(self.locations))] / directory
        if not path.is_dir():
            return []
        # An id counts whole seconds, and two backups of a small cluster may begin in one.
        found = sorted((each.name[:16], each.stat().st_mtime, each.name) for each in path.iterdir())
        return [name for _second, _modified, name in found]

    def repository(self) -> Repository:
        return Repository.open(self.config().repository, need_identity=True)

    def manifest(self, backup_id: str) -> Manifest:
        repository = self.repository()
        return open_manifest(repository.keys, repository.locations, SOURCE, backup_id)

    def entries(self, backup_id: str) -> dict[str, Entry]:
        """By path, in the manifest's order."""
        return {os.fsdecode(entry.path): entry for entry in self.manifest(backup_id).entries()}

    def contents(self, backup_id: str) -> Contents:
        return Contents(self.repository(), self.manifest(backup_id))

    def materialise(self, backup_id: str, name: str) -> Path:
        """The backup's files in a new directory of the workspace, ready for recovery to the end of the archive.

        Independent of the engine's own restore. Tablespaces go to directories beside it.
        """
        target = self.workspace.directory(name)
        contents = self.contents(backup_id)
        moved: list[TablespaceLink] = []
        for entry in contents.manifest.entries():
            if not entry.path.startswith(b".cryobackup"):
                _restore(entry, contents, target, moved)
        info = contents.manifest.header.postgres
        assert info is not None
        if moved:
            text = format_tablespace_map(moved, postgres_major=info.version // 10000)
            (target / "tablespace_map").write_bytes(os.fsencode(text))
        (target / "recovery.signal").touch()
        fetch = f"{shlex.join(self.command)} wal-get %f %p"
        with (target / "postgresql.auto.conf").open("a") as file:
            file.write(f"restore_command = '{fetch}'\nrecovery_target_timeline = 'latest'\n")
        self.workspace.account.own(target, recursive=True)
        return target


def _restore(entry: Entry, contents: Contents, target: Path, moved: list[TablespaceLink]) -> None:
    path = target / os.fsdecode(entry.path)
    if entry.type == model.DIRECTORY:
        path.mkdir()
    elif entry.type == model.SYMLINK:
        place = target.with_name(f"{target.name}-{path.name}")
        place.mkdir(mode=0o700)
        path.symlink_to(place)
        moved.append(TablespaceLink(int(path.name), str(place)))
    else:
        path.write_bytes(contents.read(entry))
    if entry.type != model.SYMLINK:
        path.chmod(entry.mode)
    os.chown(path, entry.uid, entry.gid)


class Contents:
    """Files of one backup, read without the engine's own restore."""

    def __init__(self, repository: Repository, manifest: Manifest) -> None:
        self.manifest = manifest
        self._repository = repository
        self._packs: dict[str, PackReader] = {}

    def read(self, entry: Entry) -> bytes:
        extents = xt.unpack(entry.extents)
        assert xt.covers(extents, entry.size), entry.path
        return b"".join(self._extent(*row) for row in extents.tolist())

    def _extent(self, _offset: int, length: int, pack: int, frame: int, start: int, _digest: bytes) -> bytes:
        if pack == xt.ZEROS:
            return bytes(length)
        header = self.manifest.header
        if pack >= xt.FOREIGN:
            row = header.foreign[pack - xt.FOREIGN]
            name = names.pack(row.backup_id, row.number)
        else:
            name = names.pack(header.backup_id, pack)
        if name not in self._packs:
            self._packs[name] = PackReader(self._repository.locations, self._repository.keys, name)
        data = self._packs[name].frame(frame)[start : start + length]
        assert len(data) == length
        return data
