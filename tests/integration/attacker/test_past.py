# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Somebody had the rights to delete and to write: the bucket is looked at as it was before."""

from __future__ import annotations

import datetime as dt
import time
from pathlib import Path

from tests.integration.backup.lab import BackupLab
from tests.lab import Cluster, LiveWriter, Workspace, golden_dump, prove_restore, sample_data
from tests.lab.ceph import Gateway

from .lab import SOURCE, LockedLab


def test_a_repository_that_is_deleted_and_written_over_is_restored_as_of_before(
    workspace: Workspace, runtime: Path, cluster: Cluster, s3: Gateway
) -> None:
    sample_data(cluster, 4)
    lab = LockedLab(workspace, runtime, cluster, s3)
    with LiveWriter(cluster) as rows:
        rows.wait_rows(50)
        first = lab.backup()
        rows.wait_rows(rows.count + 50)
        second = lab.backup("incremental")
        rows.wait_rows(rows.count + 50)
    golden = golden_dump(cluster)
    lab.archive_everything()
    time.sleep(1.1)  # versions are told apart by seconds
    before = dt.datetime.now(dt.UTC).isoformat()
    time.sleep(1.1)
    destroy(lab)

    code, result, _errors = lab.verifier.try_run("list")
    assert code == 1
    assert result["error"]["id"] == "not-initialised"
    as_of = "--as-of", before
    assert lab.listed(lab.verifier, *as_of) == {first, second}
    assert lab.verifier.run("info", second, *as_of)["backup_id"] == second
    assert lab.verifier.run("status", *as_of)["sources"][SOURCE]["backups"] == 2
    assert lab.verifier.run("verify", "--all", *as_of)["result"] == "ok"
    target = workspace.path / "as-of"
    restored = lab.verifier.run("restore", SOURCE, "--target", target, *as_of)
    assert restored["backup_id"] == second
    prove_restore(workspace, target, golden=golden, rows=rows.expect_all())
    assert lab.keys("notes/") == lab.keys("leases/") == []


def destroy(lab: LockedLab) -> None:
    """With the keeper's right to delete, and the writer's to create."""
    keeper, writer = lab.gateway.client(lab.keeper.user), lab.gateway.client(lab.writer.user)
    for key in lab.bucket.keys(""):
        keeper.delete_object(Bucket=lab.bucket.name, Key=key)
        if "/manifests/" in key or "/wal/" in key:
            writer.put_object(Bucket=lab.bucket.name, Key=key, Body=b"something else")


def test_the_time_must_be_one_and_have_come(workspace: Workspace, runtime: Path, cluster: Cluster, s3: Gateway) -> None:
    lab = LockedLab(workspace, runtime, cluster, s3)
    for text in ("yesterday", "2026-11-22T12:00:00", "2999-01-01T00:00:00+00:00"):
        code, result, _errors = lab.verifier.try_run("list", "--as-of", text)
        assert code != 0
        assert result["error"]["hint"]
    code, result, _errors = lab.verifier.try_run("list", "--as-of", "2020-01-01T00:00:00+00:00")
    assert code == 1
    assert result["error"]["id"] == "not-initialised"
    assert "as of 2020-01-01" in result["error"]["message"]


def test_where_no_versions_are_kept_there_is_no_past(
    workspace: Workspace, runtime: Path, cluster: Cluster, s3: Gateway
) -> None:
    lab = BackupLab(workspace, runtime, cluster, archive=False)
    now = dt.datetime.now(dt.UTC).isoformat()
    disk = {"type": "posix", "path": str(workspace.directory("disk"))}
    for location, exit_code in ((disk, 2), (s3.make_bucket("plain").config(), 1)):
        lab.settings["repository"]["locations"] = {"other": location}
        lab.write_config()
        result = lab.run("--json", "list", "--as-of", now)
        assert result.returncode == exit_code, result.stdout
        assert '"no-versions"' in result.stdout
