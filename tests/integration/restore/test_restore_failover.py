# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One of two locations is lost in the middle of a backup, and in the middle of a restore: both finish."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryobackup.events import Silent
from cryobackup.postgres import backup as backup_module
from cryobackup.postgres.backup import take_backup
from cryobackup.postgres.restore import RestoreRequest, restore_cluster
from cryobackup.repository import names
from cryobackup.repository import packs as packs_module
from cryobackup.storage import open as storage_open
from cryobackup.storage.open import open_location
from cryobackup.storage.posix import PosixLocation
from cryobackup.storage.s3.location import S3Location
from tests.integration.backup.lab import SOURCE
from tests.lab import Cluster, LiveWriter, Workspace, prove_restore, sample_data, wait_until
from tests.lab.moto import MotoServer

from .lab import RestoreLab

# Buckets come in here by themselves, with a store that can be killed.
pytestmark = pytest.mark.only_on("posix")


class Vanishing(PosixLocation):
    """Its directory is taken away before its n-th call of one kind: packs begun, or reads of packs."""

    def __init__(self, name: str, path: Path, required: bool, *, create: int = -1, read: int = -1) -> None:
        super().__init__(name, path, required=required)
        self._left = {"create": create, "read": read}

    def _count(self, kind: str, key: str) -> None:
        if key.startswith("packs/"):
            self._left[kind] -= 1
            if self._left[kind] == 0:
                self.path.rename(self.path.with_name(f"{self.path.name}.lost"))

    def create(self, key: str):
        self._count("create", key)
        return super().create(key)

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        self._count("read", key)
        return super().read(key, offset, length)


@pytest.fixture
def twofold(workspace: Workspace, runtime: Path, cluster: Cluster) -> RestoreLab:
    made = RestoreLab(workspace, runtime, cluster, locations={"near": True, "far": False})
    sample_data(cluster, 24)
    return made


def let_vanish(lab: RestoreLab, monkeypatch: pytest.MonkeyPatch, name: str, **when: int) -> None:
    """The next repository that is opened in this process loses that location."""
    original = storage_open.open_location

    def open_location(config):
        if config.name != name:
            return original(config)
        return Vanishing(name, lab.locations[name], config.required, **when)

    monkeypatch.setattr("cryobackup.repository.repository.open_location", open_location)


def test_lost_in_the_middle_of_a_backup_and_of_a_restore(twofold: RestoreLab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = twofold
    monkeypatch.setattr(packs_module, "PACK_TARGET_BYTES", 1 << 20)
    monkeypatch.setattr(packs_module, "JOINED_BYTES", 1 << 20)
    config = lab.config()
    with LiveWriter(lab.cluster) as writer:
        writer.wait_rows(50)
        with monkeypatch.context() as patch:
            let_vanish(lab, patch, "far", create=4)
            result = take_backup(config, config.cluster(SOURCE), reporter=Silent())
        assert result.status == "degraded"
        assert result.exit_code == 3
        assert (result.locations["near"], result.locations["far"] is None) == (None, False)
        assert lab.manifests("near") == [result.backup_id]
        lost = lab.locations["far"].with_name("far.lost")
        assert not (lost / "manifests").exists()
        lost.rename(lab.locations["far"])
        # A second backup goes to both. It is restored while the first location goes away.
        lab.workspace.account.own(lab.directory, recursive=True)
        backup = lab.backup()
        writer.wait_rows(writer.count + 50)
    lab.archive_everything()
    target = lab.place("restored")
    request = RestoreRequest(target, without=("near",), workers=1)
    with monkeypatch.context() as patch:
        let_vanish(lab, patch, "near", read=6)
        restored = restore_cluster(
            lab.config(), SOURCE, request, reporter=Silent(), clock=lambda: dt.datetime.now(dt.UTC)
        )
    assert restored.backup_id == backup["backup_id"]
    assert restored.status == "ok"
    assert restored.locations["near"]["status"] == "failed"
    assert restored.locations["near"]["bytes_read"] > 0
    assert restored.locations["near"]["error"]["message"]
    assert restored.locations["far"]["status"] == "ok"
    assert restored.locations["far"]["bytes_read"] > restored.locations["near"]["bytes_read"]
    assert any("near failed during the restore" in warning for warning in restored.warnings)
    prove_restore(lab.workspace, target, rows=writer.expect_all())


def test_a_required_location_is_lost_in_the_middle_of_a_restore(
    workspace: Workspace, runtime: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The restore finishes, and says what recovery will want to know; named, recovery gets to the end."""
    lab = RestoreLab(workspace, runtime, cluster, locations={"near": True, "far": True})
    sample_data(cluster, 24)
    monkeypatch.setattr(packs_module, "JOINED_BYTES", 1 << 20)
    with LiveWriter(cluster) as writer:
        writer.wait_rows(50)
        lab.backup()
        writer.wait_rows(writer.count + 50)
    lab.archive_everything()
    target = lab.place("restored")
    with monkeypatch.context() as patch:
        let_vanish(lab, patch, "near", read=6)
        restored = restore_cluster(
            lab.config(),
            SOURCE,
            RestoreRequest(target, workers=1),
            reporter=Silent(),
            clock=lambda: dt.datetime.now(dt.UTC),
        )
    assert (restored.status, restored.locations["near"]["status"]) == ("ok", "failed")
    assert any("--delta --without near" in warning for warning in restored.warnings)
    workspace.account.own(target, recursive=True)
    lab.restore(target, "--delta", "--without", "near")
    prove_restore(workspace, target, rows=writer.expect_all())


def vanishes_before(monkeypatch: pytest.MonkeyPatch, function: str, path: Path) -> None:
    """The directory is taken away right before the backup calls that function for the first time."""
    original = getattr(backup_module, function)

    def call(*arguments: object, **more: object) -> object:
        if path.exists():
            path.rename(path.with_name(f"{path.name}.lost"))
        return original(*arguments, **more)

    monkeypatch.setattr(backup_module, function, call)


@pytest.mark.parametrize("when", ["copying", "copied", "waiting"])
def test_a_required_location_is_lost_in_the_middle_of_a_backup(
    workspace: Workspace, runtime: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """PostgreSQL archives nothing from then on: the backup itself brings its WAL to the location that is left."""
    lab = RestoreLab(workspace, runtime, cluster, locations={"near": True, "far": True})
    lab.set(archive_timeout=10)
    sample_data(cluster, 24)
    monkeypatch.setattr(packs_module, "PACK_TARGET_BYTES", 1 << 20)
    config = lab.config()
    with LiveWriter(cluster) as writer:
        writer.wait_rows(50)
        with monkeypatch.context() as patch:
            if when == "copying":
                let_vanish(lab, patch, "far", create=4)
            else:
                function = {"copied": "segment_names", "waiting": "wait_for_wal"}[when]
                vanishes_before(patch, function, lab.locations["far"])
            result = take_backup(config, config.cluster(SOURCE), reporter=Silent())
    assert (result.status, result.exit_code) == ("degraded", 3)
    assert (result.locations["near"], result.locations["far"] is None) == (None, False)
    workspace.account.own(lab.directory, recursive=True)
    target = lab.place("restored")
    lab.restore(target, "--immediate", "--without", "far")
    prove_restore(workspace, target)
    # The location comes back, and with it the archive: nothing is in the way of what PostgreSQL still owes.
    far = lab.locations["far"]
    far.with_name("far.lost").rename(far)
    lab.archive_everything()
    lab.restore("end", "--without", "far")
    prove_restore(workspace, lab.place("end"), rows=writer.expect_all())


@pytest.fixture
def server(workspace: Workspace) -> Iterator[MotoServer]:
    made = MotoServer(workspace.path / "moto", workspace.account)
    yield made
    made.close()


@pytest.fixture
def clouded(workspace: Workspace, runtime: Path, cluster: Cluster, server: MotoServer) -> RestoreLab:
    """A directory, and an optional bucket that is read first."""
    made = RestoreLab(workspace, runtime, cluster, locations={"near": True}, archive=False)
    bucket = server.make_bucket().config(required=False, priority=1, attempts=2, timeout="5s", create_only="check")
    made.settings["repository"]["locations"]["cloud"] = bucket
    made.write_config()
    made.run("init", "--new", "cloud", check=True)
    cluster.enable_archiving(made.archive_command)
    sample_data(cluster, 24)
    return made


def kill_at(monkeypatch: pytest.MonkeyPatch, server: MotoServer, method: str, number: int) -> None:
    """The server's process is killed before the n-th call of that kind for a pack."""
    left = [number]
    original = getattr(S3Location, method)

    def call(self: S3Location, key: str, *arguments: object, **more: object) -> object:
        if key.startswith("packs/"):
            left[0] -= 1
            if left[0] == 0:
                server.close()
        return original(self, key, *arguments, **more)

    monkeypatch.setattr(S3Location, method, call)


def test_an_object_store_that_is_killed_in_the_middle_of_a_restore(
    clouded: RestoreLab, server: MotoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = clouded
    monkeypatch.setattr(packs_module, "JOINED_BYTES", 1 << 20)
    with LiveWriter(lab.cluster) as writer:
        writer.wait_rows(50)
        backup = lab.backup()
        assert set(backup["locations"]) == {"near", "cloud"}
        writer.wait_rows(writer.count + 50)
    lab.archive_everything()
    target = lab.place("restored")
    with monkeypatch.context() as patch:
        kill_at(patch, server, "read", 6)
        restored = restore_cluster(
            lab.config(),
            SOURCE,
            RestoreRequest(target, workers=1),
            reporter=Silent(),
            clock=lambda: dt.datetime.now(dt.UTC),
        )
    assert restored.locations["cloud"]["status"] == "failed"
    assert restored.locations["cloud"]["bytes_read"] > 0
    assert restored.locations["near"]["bytes_read"] > 0
    # Recovery to the end of the WAL, with the bucket gone: the required location knows where that is.
    prove_restore(lab.workspace, target, rows=writer.expect_all())


def test_an_object_store_that_is_killed_in_the_middle_of_a_backup(
    clouded: RestoreLab, server: MotoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = clouded
    monkeypatch.setattr(packs_module, "PACK_TARGET_BYTES", 1 << 20)
    config = lab.config()
    with LiveWriter(lab.cluster) as writer:
        writer.wait_rows(50)
        with monkeypatch.context() as patch:
            kill_at(patch, server, "create", 4)
            result = take_backup(config, config.cluster(SOURCE), reporter=Silent())
        assert (result.status, result.exit_code) == ("degraded", 3)
        assert result.locations["near"] is None
        assert result.locations["cloud"] is not None
        lab.workspace.account.own(lab.directory, recursive=True)
        writer.wait_rows(writer.count + 50)
    lab.archive_everything()
    target = lab.place("restored")
    lab.restore(target, "--without", "cloud")
    prove_restore(lab.workspace, target, rows=writer.expect_all())


def test_recovery_waits_for_what_only_the_bucket_has(clouded: RestoreLab) -> None:
    """The directory was down when the host died: the newest rows are in the optional bucket alone."""
    lab = clouded
    near = lab.locations["near"]
    with LiveWriter(lab.cluster) as writer:
        writer.wait_rows(50)
        lab.backup()
        lab.archive_everything()
        writer.wait_rows(writer.count + 20)
        near.rename(near.with_name("away"))
        writer.wait_rows(writer.count + 50)
        writer.stop()
    last = lab.cluster.switch_wal()
    cloud = open_location(lab.config().repository.locations["cloud"])
    wait_until(lambda: cloud.stat(names.wal(int(lab.cluster.system_identifier), last)) is not None)
    lab.cluster.kill()
    near.with_name("away").rename(near)
    target = lab.place("restored")
    lab.restore(target)
    assert "--required-suffice" not in (target / "postgresql.auto.conf").read_text()
    prove_restore(lab.workspace, target, rows=writer.expect_all())


def test_a_required_location_that_is_down_stops_a_backup_at_once(workspace: Workspace, runtime: Path, cluster: Cluster):
    """Not after the minutes that PostgreSQL would be waited for in vain."""
    lab = RestoreLab(workspace, runtime, cluster, locations={"near": True, "far": True})
    lab.set(archive_timeout=3600)
    lab.locations["far"].rename(lab.locations["far"].with_name("away"))
    error = lab.refused()
    assert error["message"].startswith("required location far does not answer: ")
    assert "location 'far'" not in error["message"]
    assert "`required: false`" in error["hint"]
