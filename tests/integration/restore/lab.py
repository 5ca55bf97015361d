# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Restores as a user makes them, and a cluster with a past to restore."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.integration.backup.lab import SOURCE, BackupLab
from tests.lab import Cluster, Golden, LiveWriter, Moment, golden_dump, sample_data

TABLESPACE = "side"


class RestoreLab(BackupLab):
    """A cluster with backups, and ``cryobackup restore`` run as the server's user."""

    def try_restore(self, target: Path, *options: str | Path) -> tuple[int, dict[str, Any], str]:
        """Exit code, the object that --json prints, standard error."""
        result = self.run("--json", "restore", SOURCE, "--target", str(target), *map(str, options))
        assert result.stdout, result.stderr
        return result.returncode, json.loads(result.stdout), result.stderr

    def restore(self, target: Path | str, *options: str | Path, exit_code: int = 0) -> dict[str, Any]:
        """A restore into the workspace's directory of that name (or a path) that must end with this exit code."""
        code, result, errors = self.try_restore(self.place(target), *options)
        assert code == exit_code, (result, errors)
        assert "error" not in result
        return result

    def place(self, target: Path | str) -> Path:
        return self.workspace.path / target

    def refused_restore(self, target: Path | str, *options: str | Path, id: str, exit_code: int = 1) -> dict[str, str]:
        """The error of a restore that must not happen: the target is as it was before."""
        path = self.place(target)
        before = snapshot(path)
        code, result, errors = self.try_restore(path, *options)
        assert code == exit_code, (result, errors)
        error: dict[str, str] = result["error"]
        assert error["id"] == id, error
        assert error["hint"], error
        assert snapshot(path) == before
        assert self.leases() == []
        return error

    def archive_everything(self) -> None:
        """All WAL that the cluster has written up to now is archived on return."""
        self.cluster.wait_archived(self.cluster.switch_wal())


def wait_promoted(cluster: Cluster, timeout: float = 60.0) -> None:
    """Wait until recovery has ended and the server takes writes."""
    deadline = time.monotonic() + timeout
    while cluster.value("SELECT pg_is_in_recovery()"):
        assert time.monotonic() < deadline, cluster.log_tail()
        time.sleep(0.02)


def snapshot(path: Path) -> dict[str, tuple[Any, ...]] | None:
    """Everything below a directory, so that any change shows; None when it does not exist."""
    if not os.path.lexists(path):
        return None
    found: dict[str, tuple[Any, ...]] = {}
    for directory, folders, names in os.walk(path):
        for name in [".", *folders, *names]:
            each = Path(directory) / name
            status = each.lstat()
            content = each.read_bytes() if each.is_file() and not each.is_symlink() else b""
            link = os.readlink(each) if each.is_symlink() else ""
            found[str(each)] = (status.st_mode, status.st_uid, status.st_ino, status.st_mtime_ns, link, content)
    return found


def content(path: Path, skip: Callable[[str], bool] = lambda name: False) -> dict[str, tuple[Any, ...]]:
    """What two restored directories must have in common: names, modes, owners, content, links."""
    found: dict[str, tuple[Any, ...]] = {}
    for directory, folders, names in os.walk(path):
        for name in [*folders, *names]:
            each = Path(directory) / name
            relative = str(each.relative_to(path))
            if skip(relative):
                continue
            status = each.lstat()
            data = each.read_bytes() if each.is_file() and not each.is_symlink() else b""
            link = os.readlink(each) if each.is_symlink() else ""
            found[relative] = (status.st_mode, status.st_uid, status.st_gid, link, data)
    return found


@dataclass
class Story:
    """A cluster with a past: two backups, and moments before, between and after them."""

    lab: RestoreLab
    writer: LiveWriter
    full: str
    incremental: str
    before: Moment
    """Before the end of every backup."""
    first: Moment
    """Between the two backups, with a restore point ``first``."""
    second: Moment
    """After both, with a restore point ``second``."""
    golden: Golden
    """The end."""
    tablespace: Path


def tell(lab: RestoreLab) -> Story:
    """Let it happen. The cluster goes on running, with everything archived and nobody writing."""
    cluster = lab.cluster
    tablespace = cluster.create_tablespace(TABLESPACE)
    sample_data(cluster, 8)
    cluster.execute(f"CREATE TABLE aside TABLESPACE {TABLESPACE} AS SELECT n FROM generate_series(1, 50000) n")
    cluster.create_database("other")
    with LiveWriter(cluster) as writer:
        writer.wait_rows(50)
        before = writer.moment()
        full = lab.backup()["backup_id"]
        writer.wait_rows(writer.count + 100)
        first = writer.moment("first")
        writer.wait_rows(writer.count + 100)
        incremental = lab.backup("incremental")["backup_id"]
        writer.wait_rows(writer.count + 100)
        second = writer.moment("second")
        writer.wait_rows(writer.count + 100)
    golden = golden_dump(cluster)
    lab.archive_everything()
    return Story(lab, writer, full, incremental, before, first, second, golden, tablespace)
