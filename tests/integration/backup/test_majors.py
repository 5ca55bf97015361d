# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Full and incremental backups of every major that this machine can be given."""

from __future__ import annotations

from pathlib import Path

from tests.lab import DdlStorm, Installation, LiveWriter, Workspace, golden_dump, prove_restore, sample_data

from .lab import BackupLab


def test_full_and_incremental(workspace: Workspace, runtime: Path, pg_major: Installation) -> None:
    cluster = workspace.cluster(installation=pg_major, wal_segment_mb=4)
    backups = BackupLab(workspace, runtime, cluster)
    sample_data(cluster, 4)
    cluster.create_tablespace("elsewhere")
    cluster.execute("CREATE TABLE there TABLESPACE elsewhere AS SELECT n FROM generate_series(1, 1000) n")
    backups.settle()
    storm = DdlStorm(workspace, cluster)
    with storm, LiveWriter(cluster) as writer:
        writer.wait_rows(20)
        full = backups.backup("full")
        storm.wait_rounds(storm.rounds + 1)
        cluster.execute("UPDATE orders SET amount = amount + 1 WHERE id % 501 = 1")
        incremental = backups.backup("incremental")
    assert (full["status"], incremental["status"]) == ("ok", "ok")
    assert incremental["type"] == "incremental"
    assert incremental["change_detection"]["files_unchanged"] > 500
    assert incremental["change_detection"]["files_by_page_lsn"] > 0
    assert incremental["postgres_version"] // 10000 == pg_major.major
    golden = golden_dump(cluster)
    cluster.wait_archived(cluster.switch_wal())
    # Also that what is asked of every backup of a cluster is true of those of this major.
    backups.run("verify", "--all", "--level", "content", check=True)
    cluster.stop()
    target = backups.materialise(incremental["backup_id"], "restored")
    prove_restore(
        workspace,
        target,
        golden=golden,
        rows=writer.expect_all(),
        installation=pg_major,
    )
