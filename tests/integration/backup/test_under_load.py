# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups of a cluster that is busy: what comes back is the cluster, whole, without exception."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab import (
    DdlStorm,
    Installation,
    LiveWriter,
    Pgbench,
    Workspace,
    golden_dump,
    prove_restore,
    sample_data,
)

from .lab import BackupLab
from .test_wal_summaries import programs


@pytest.mark.parametrize(
    ("major", "tablespaces", "checksums", "method"),
    [
        ("15", "directory", True, "page-lsn"),
        ("15", "in_place", False, "content"),
        ("17", "directory", True, "wal-summary"),
    ],
    ids=["tablespaces", "in-place-tablespaces-no-checksums", "summaries"],
)
def test_every_backup_under_load_restores(
    workspace: Workspace, runtime: Path, major: str, tablespaces: str, checksums: bool, method: str
) -> None:
    settings = {"summarize_wal": True} if method == "wal-summary" else {}
    cluster = workspace.cluster(installation=programs(major), checksums=checksums, settings=settings)
    backups = BackupLab(workspace, runtime, cluster)
    sample_data(cluster, 8)
    storm = DdlStorm(workspace, cluster, tablespaces=tablespaces)
    with LiveWriter(cluster) as writer, Pgbench(workspace, cluster, rate=200), storm:
        storm.wait_rounds(1)
        taken = [backups.backup("full")]
        for _unused in range(3):
            storm.wait_rounds(storm.rounds + 2)
            taken.append(backups.backup("incremental"))
    assert [backup["type"] for backup in taken] == ["full", *["incremental"] * 3]
    assert {backup["status"] for backup in taken} == {"ok"}
    assert taken[-1]["change_detection"]["method"] == method
    golden = golden_dump(cluster)
    cluster.wait_archived(cluster.switch_wal())
    cluster.stop()
    for number in (0, 2, 3):
        target = backups.materialise(taken[number]["backup_id"], f"restored-{number}")
        prove_restore(workspace, target, golden=golden, rows=writer.expect_all())


def test_pages_by_lsn_under_load(workspace: Workspace, runtime: Path, pg: Installation) -> None:
    """Many incrementals in a row, each from the last, of tables whose pages, forks and hint bits keep changing."""
    settings = {"autovacuum_naptime": 1, "autovacuum_vacuum_cost_delay": 0, "autovacuum_vacuum_threshold": 10}
    cluster = workspace.cluster(installation=pg, settings=settings)
    backups = BackupLab(workspace, runtime, cluster)
    sample_data(cluster, 8)
    bench = Pgbench(workspace, cluster, rate=300).prepare()
    cluster.execute("CREATE SEQUENCE numbers")
    backups.settle()
    taken = [backups.backup("full")]
    with bench, LiveWriter(cluster) as writer:
        for number in range(6):
            cluster.execute(
                "UPDATE orders SET amount = amount + 1 WHERE id %% 501 = %s; SELECT nextval('numbers')", number
            )
            cluster.execute("SELECT count(note) FROM orders")
            backups.settle()
            taken.append(backups.backup("incremental"))
    by_lsn = [backup["change_detection"]["files_by_page_lsn"] for backup in taken[1:]]
    assert all(by_lsn), taken
    last = taken[-1]
    assert 0 < last["change_detection"]["pages_stored"] < last["change_detection"]["pages_read"]
    golden = golden_dump(cluster)
    cluster.wait_archived(cluster.switch_wal())
    cluster.stop()
    for number in (3, 6):
        target = backups.materialise(taken[number]["backup_id"], f"restored-{number}")
        prove_restore(workspace, target, golden=golden, rows=writer.expect_all())
