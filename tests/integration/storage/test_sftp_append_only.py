# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine on an SFTP server whose account can only add, as docs/sftp.md recommends it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.restore.lab import RestoreLab
from tests.lab import Cluster, LiveWriter, Workspace, prove_restore, sample_data
from tests.lab.sshd import APPEND_ONLY
from tests.lab.stores import Stores

pytestmark = pytest.mark.only_on("posix")  # it makes its own server


def test_backups_wal_and_restores(workspace: Workspace, runtime: Path, cluster: Cluster) -> None:
    workspace.stores = Stores(workspace, "sftp")
    lab = RestoreLab(workspace, runtime, cluster)
    server = workspace.stores.server()
    server.deny(*APPEND_ONLY)
    sample_data(cluster, 4)
    with LiveWriter(cluster) as writer:
        writer.wait_rows(50)
        made = [lab.backup(), lab.backup("incremental")]
        writer.wait_rows(writer.count + 50)
    lab.archive_everything()
    assert [backup["status"] for backup in made] == ["ok", "ok"]
    assert made[1]["parent"] == made[0]["backup_id"]
    report = json.loads(lab.run("--json", "verify", "--all", check=True).stdout)
    assert report["result"] == "ok"
    assert lab.run("check").returncode == 0

    # Nothing could be removed, and prune says so instead of pretending.
    assert lab.run("--json", "prune", "--grace", "0", "--yes").returncode != 0
    before = lab.manifests()

    # From where deleting is allowed, what was left is cleaned up, and the backups stay.
    server.deny()
    for _unused in range(2):
        done = lab.run("--json", "prune", "--grace", "0", "--yes")
        assert done.returncode == 0, (done.stdout, done.stderr)
    assert lab.manifests() == before
    assert lab.leases() == []
    target = lab.place("restored")
    lab.restore(target)
    prove_restore(workspace, target, rows=writer.expect_all())
