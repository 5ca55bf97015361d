# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backup and restore by PostgreSQL's own means: what the engine is compared with, and what tries the oracle."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .cluster import Setting, setting_text

if TYPE_CHECKING:
    from .cluster import Cluster
    from .workspace import Workspace


class ReferenceArchive:
    """A WAL archive filled by ``cp``: the directory, and the two commands."""

    def __init__(self, workspace: Workspace, name: str = "reference-archive") -> None:
        self.path = workspace.directory(name)

    @property
    def archive_command(self) -> str:
        """For ``Cluster.enable_archiving``; the copy appears under its name only when it is whole."""
        target = f"{self.path}/%f"
        return f"test ! -f {target} && cp %p {target}.part && mv {target}.part {target}"

    @property
    def restore_command(self) -> str:
        """Fails for a segment that is not there."""
        return f"cp {self.path}/%f %p"


@dataclass
class ReferenceRestore:
    """A data directory that is ready to be started."""

    data_dir: Path
    tablespaces: dict[str, Path] = field(default_factory=dict)
    """Directory by oid, in decimal."""


class ReferenceBackup:
    """A backup without WAL, made by pg_basebackup, as tar files in a directory of the workspace."""

    def __init__(self, workspace: Workspace, cluster: Cluster, name: str = "reference-backup") -> None:
        self.path = workspace.directory(name)
        self._workspace = workspace
        options = ["--format=tar", "--checkpoint=fast", "--no-sync", "--wal-method=none", "--no-manifest"]
        cluster.run("pg_basebackup", "--pgdata", self.path, *options)

    def restore(self, name: str, restore_command: str, **settings: Setting) -> ReferenceRestore:
        """Unpack into new directories and prepare recovery with these settings (``recovery_target_…``)."""
        made = ReferenceRestore(self._unpack(self.path / "base.tar", name))
        for archive in self.path.glob("[0-9]*.tar"):
            made.tablespaces[archive.stem] = self._unpack(archive, f"{name}-{archive.stem}")
        links = made.data_dir / "tablespace_map"
        if links.exists():
            lines = [line.split(" ", 1)[0] for line in links.read_text().splitlines()]
            links.write_text("".join(f"{oid} {made.tablespaces[oid]}\n" for oid in lines))
        prepare_recovery(self._workspace, made.data_dir, restore_command, **settings)
        return made

    def _unpack(self, archive: Path, name: str) -> Path:
        target = self._workspace.directory(name)
        self._workspace.run(["tar", "--extract", "--file", archive, "--directory", target])
        return target


def prepare_recovery(workspace: Workspace, data_dir: Path, restore_command: str, **settings: Setting) -> None:
    """Make PostgreSQL recover ``data_dir`` when it is started, with these recovery settings."""
    with open(data_dir / "postgresql.auto.conf", "a") as file:
        for name, value in {"restore_command": restore_command, **settings}.items():
            quoted = setting_text(value).replace("'", "''")
            file.write(f"{name} = '{quoted}'\n")
    signal_file = data_dir / "recovery.signal"
    signal_file.touch()
    workspace.account.own(signal_file)
