# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What surely does not fit is not begun; what may fit is; and nothing is lost either way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.lab import Cluster, FullDisk, Workspace
from tests.lab.data import sample_data

from .lab import BackupLab

KIB = 1 << 10


def stored(location: Path) -> int:
    return sum(path.stat().st_size for path in location.rglob("*") if path.is_file())


def configure(lab: BackupLab, location: str, **settings: Any) -> None:
    lab.settings["repository"]["locations"][location].update(settings)
    lab.write_config()


def on_disk(lab: BackupLab, location: str, disk: FullDisk) -> None:
    """Move a location to that disk; it is empty there."""
    lab.locations[location] = disk.path / "repository"
    configure(lab, location, path=str(lab.locations[location]))
    lab.run("init", "--new", location, check=True)


@pytest.fixture
def small(
    workspace: Workspace, runtime: Path, cluster: Cluster, full_disk: Callable[..., FullDisk]
) -> tuple[BackupLab, FullDisk]:
    """A repository on a disk of 96 MB."""
    lab = BackupLab(workspace, runtime, cluster, archive=False)
    disk = full_disk(megabytes=96)
    on_disk(lab, "local", disk)
    cluster.enable_archiving(lab.archive_command)
    return lab, disk


@pytest.mark.only_on("posix")
def test_a_full_backup_that_cannot_fit(small: tuple[BackupLab, FullDisk]) -> None:
    lab, disk = small
    first = lab.backup()
    sample_data(lab.cluster, 24)
    lab.cluster.checkpoint()
    lab.cluster.execute("SELECT pg_switch_wal()")
    disk.fill(leave_bytes=2 << 20)
    packs = sorted(disk.path.rglob("*.pack"))
    error = lab.refused()
    assert error["id"] == "no-room"
    assert "location 'local' has no room for a full backup of main" in error["message"]
    assert " are free" in error["message"]
    assert "; a prune would free " in error["message"]
    assert "--no-space-check" in error["hint"]
    assert sorted(disk.path.rglob("*.pack")) == packs, "not one pack was begun"
    # The disk is as full as it was for whoever insists; nothing is lost then either.
    lab.refused("full", "--no-space-check", leases=1)
    assert lab.manifests() == [first["backup_id"]]
    disk.release()
    assert lab.backup()["status"] == "ok"


@pytest.mark.only_on("posix")
def test_an_incremental_that_fits_is_begun(small: tuple[BackupLab, FullDisk]) -> None:
    """Though the whole cluster would not."""
    lab, disk = small
    lab.backup()
    lab.cluster.execute("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n")
    disk.fill(leave_bytes=4 << 20)
    lab.settle()
    assert lab.backup("incremental")["type"] == "incremental"
    lab.cluster.execute("INSERT INTO t SELECT 1")
    lab.settle()
    assert lab.backup("incremental")["type"] == "incremental"
    disk.fill(leave_bytes=1 << 20)
    assert lab.refused("full")["id"] == "no-room"


@pytest.mark.only_on("posix")
def test_the_first_backup_of_all(small: tuple[BackupLab, FullDisk]) -> None:
    lab, disk = small
    disk.fill(leave_bytes=1 << 20)
    error = lab.refused()
    assert error["id"] == "no-room"
    disk.release()
    assert lab.backup()["status"] == "ok"


def test_what_prune_would_free(workspace: Workspace, runtime: Path, cluster: Cluster) -> None:
    lab = BackupLab(workspace, runtime, cluster)
    for _number in range(3):
        lab.backup()
    lab.settings["retention"] = {"full": {"keep_last": 1}, "minimum": 1, "max_delete_share": 1}
    used = stored(lab.locations["local"])
    configure(lab, "local", quota=used + 100 * KIB)
    error = lab.refused()
    assert error["id"] == "no-room"
    assert "its quota of" in error["message"]
    freed = error["message"].rpartition("would free ")[2]
    assert freed.endswith("MiB")
    lab.run("prune", "--grace", "0", check=True)
    assert used - stored(lab.locations["local"]) == pytest.approx(float(freed.split()[0]) * (1 << 20), rel=0.02)
    assert lab.backup()["status"] == "ok"


def test_an_optional_location_is_left_out(workspace: Workspace, runtime: Path, cluster: Cluster) -> None:
    lab = BackupLab(workspace, runtime, cluster, locations={"near": True, "far": False})
    first = lab.backup()
    configure(lab, "far", quota=stored(lab.locations["far"]) + 200 * KIB)
    made = lab.backup(exit_code=3)
    assert made["status"] == "degraded"
    assert made["locations"]["near"]["status"] == "ok"
    assert made["locations"]["far"]["error"]["id"] == "no-room"
    assert len(lab.manifests("near")) == 2
    assert len(lab.manifests("far")) == 1
    # An incremental fits there, based on what is there.
    lab.settle()
    after = lab.backup("incremental")
    assert (after["status"], after["type"], after["parent"]) == ("ok", "incremental", first["backup_id"])
    # It is not kept from taking part by those who want it to.
    assert lab.backup("full", "--no-space-check")["status"] == "ok"


def test_a_role_that_may_not_ask_for_sizes(workspace: Workspace, runtime: Path, cluster: Cluster) -> None:
    """Then the newest backup tells the size."""
    lab = BackupLab(workspace, runtime, cluster)
    cluster.execute("CREATE ROLE keeper LOGIN")
    lab.set(connection=cluster.conninfo.replace("user=postgres", "user=keeper"))
    for grant in (f"GRANT {part.rstrip('; ')}" for part in lab.refused()["hint"].split("GRANT ")[1:]):
        cluster.execute(grant)
    lab.backup()
    configure(lab, "local", quota=stored(lab.locations["local"]) + (1 << 20))
    assert lab.refused()["id"] == "no-room"
    configure(lab, "local", quota=1 << 30)
    assert lab.backup()["status"] == "ok"


def test_a_quota_that_is_reached_on_the_way(workspace: Workspace, runtime: Path, cluster: Cluster) -> None:
    """The first backup of all takes more than could be expected at least."""
    lab = BackupLab(workspace, runtime, cluster, locations={"near": True, "far": False})
    size = int(cluster.value("SELECT sum(pg_tablespace_size(oid))::int8 FROM pg_tablespace"))
    quota = stored(lab.locations["far"]) + size // 10 + (64 << 10)
    configure(lab, "far", quota=max(quota, 1 << 20))
    made = lab.backup(exit_code=3)
    assert made["locations"]["near"]["status"] == "ok"
    assert made["locations"]["far"]["error"]["id"] == "location-full"
    assert "its quota was reached" in made["locations"]["far"]["error"]["message"]
    assert lab.manifests("far") == []
    configure(lab, "near", quota=max(stored(lab.locations["near"]) + size // 10, 1 << 20))
    assert lab.refused()["id"] == "no-room"
    assert lab.manifests("near") == [made["backup_id"]]
