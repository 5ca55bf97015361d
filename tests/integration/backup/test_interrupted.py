# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups that are stopped, killed, cut off from the server, or lose a location on the way."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab import Cluster, FullDisk, Workspace, sample_data

from .lab import BackupLab

SLOWLY = 2 << 20
"""Bytes a second: the copying takes long enough to be caught at it."""


def start(backups: BackupLab, kind: str = "full") -> subprocess.Popen[str]:
    return backups.workspace.popen(
        [*backups.command, "--json", "backup", "main", "--type", kind],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def sessions(cluster: Cluster) -> int:
    return int(
        cluster.value("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE %s", "cryobackup backup%")
    )


def wait_for_copying(backups: BackupLab, process: subprocess.Popen[str]) -> None:
    """Until packs are being written."""
    root = next(iter(backups.locations.values()))

    def copying() -> bool:
        if isinstance(root, Path):
            return any(path.stat().st_size > 10_000 for path in (root / ".tmp").iterdir())
        # Small packs show in a bucket only when they are done.
        return bool(backups.leases())

    while not copying():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def gone(cluster: Cluster) -> bool:
    for _unused in range(500):
        if not sessions(cluster):
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.every_location
def test_stopped_by_a_signal(backups: BackupLab, number: signal.Signals) -> None:
    backups.set(bandwidth_limit=SLOWLY)
    sample_data(backups.cluster, 4)
    process = start(backups)
    wait_for_copying(backups, process)
    assert sessions(backups.cluster) == 1
    process.send_signal(number)
    output, _unused = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert json.loads(output)["error"]["id"] == "stopped"
    assert (backups.manifests(), backups.leases()) == ([], [])
    assert gone(backups.cluster)
    # What archive_command is writing meanwhile is not ours.
    backups.cluster.wait_archived(backups.cluster.switch_wal())
    assert backups.stores["local"].left_overs() == []
    backups.set(bandwidth_limit=None)
    assert backups.backup()["status"] == "ok"


def test_stopped_while_the_server_makes_its_checkpoint(backups: BackupLab) -> None:
    """Without asking for haste, PostgreSQL takes minutes; nobody has to wait for it."""
    cluster = backups.cluster
    cluster.configure(checkpoint_timeout=600, checkpoint_completion_target=0.9)
    sample_data(cluster, 20)
    process = backups.workspace.popen(
        [*backups.command, "backup", "main", "--spread-checkpoint"], stderr=subprocess.PIPE, text=True
    )
    while not cluster.value("SELECT count(*) FROM pg_stat_activity WHERE query LIKE %s", "SELECT pg_backup_start%"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert gone(cluster)
    assert backups.backup()["status"] == "ok"


def test_killed(backups: BackupLab) -> None:
    backups.backup()
    backups.set(bandwidth_limit=SLOWLY)
    sample_data(backups.cluster, 4)
    process = start(backups, "incremental")
    wait_for_copying(backups, process)
    process.kill()
    process.communicate()
    assert len(backups.leases()) == 1
    assert gone(backups.cluster)
    backups.set(bandwidth_limit=None)
    # The next run clears away what is in its way by itself.
    incremental = backups.backup("incremental")
    assert incremental["type"] == "incremental"
    assert backups.leases() == []
    assert len(backups.manifests()) == 2


def test_the_server_ends_the_session(backups: BackupLab) -> None:
    backups.set(bandwidth_limit=SLOWLY)
    sample_data(backups.cluster, 4)
    process = start(backups)
    wait_for_copying(backups, process)
    backups.cluster.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE %s", "cryobackup backup%"
    )
    output, _unused = process.communicate(timeout=120)
    assert process.returncode == 1
    assert json.loads(output)["error"]["id"] == "connection-lost"
    assert (backups.manifests(), backups.leases()) == ([], [])


@pytest.mark.only_on("posix")
def test_location_that_is_full(
    workspace: Workspace, runtime: Path, cluster: Cluster, full_disk: Callable[..., FullDisk]
) -> None:
    disk = full_disk(megabytes=48)
    (disk.path / "repository").mkdir()
    workspace.account.own(disk.path / "repository")
    backups = BackupLab(workspace, runtime, cluster, archive=False, locations={"near": True, "far": False})
    backups.settings["repository"]["locations"]["far"]["path"] = str(disk.path / "repository")
    backups.locations["far"] = disk.path / "repository"
    backups.write_config()
    backups.run("init", "--new", "far", check=True)
    cluster.enable_archiving(backups.archive_command)
    sample_data(cluster, 8)
    disk.fill(leave_bytes=2 << 20)
    backup = backups.backup("full", "--no-space-check", exit_code=3)
    assert backup["status"] == "degraded"
    assert backup["locations"]["near"]["status"] == "ok"
    assert backup["locations"]["far"]["error"]["id"] in ("location-full", "location")
    assert backups.manifests("near") == [backup["backup_id"]]
    assert backups.manifests("far") == []
    disk.release()
    cluster.wait_archived(cluster.switch_wal())
    assert backups.backup()["status"] == "ok"


@pytest.mark.only_on("posix")
def test_every_location_is_full(
    workspace: Workspace, runtime: Path, cluster: Cluster, full_disk: Callable[..., FullDisk]
) -> None:
    disk = full_disk(megabytes=96)
    (disk.path / "repository").mkdir()
    workspace.account.own(disk.path / "repository")
    backups = BackupLab(workspace, runtime, cluster, archive=False)
    backups.settings["repository"]["locations"]["local"]["path"] = str(disk.path / "repository")
    backups.locations["local"] = disk.path / "repository"
    backups.write_config()
    backups.run("init", "--new", "local", check=True)
    cluster.enable_archiving(backups.archive_command)
    first = backups.backup()
    cluster.wait_archived(cluster.switch_wal())
    sample_data(cluster, 8)
    disk.fill(leave_bytes=1 << 20)
    error = backups.refused("full", "--no-space-check", leases=1)
    assert error["id"] == "location-full"
    assert "Earlier backups are untouched" in error["hint"]
    disk.release()
    assert backups.manifests() == [first["backup_id"]]
    assert backups.backup()["status"] == "ok"
    assert backups.leases() == []
