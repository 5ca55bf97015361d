# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Incremental backups by WAL summaries, on real servers that have them.

The oracle of most tests: nothing writes while a backup runs, so every file of the backup must be the file on the
disk, byte for byte. Hint bits are logged in clusters with checksums, and so are no exception.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cryobackup.repository import extents as xt
from tests.lab import Cluster, Installation, LiveWriter, Workspace, golden_dump, prove_restore, sample_data
from tests.lab.installation import MajorUnavailable, installation
from tests.lab.majors import provide_version

from .lab import BackupLab
from .test_incremental import exact

SUMMARIES = {"summarize_wal": True, "autovacuum": False}


def programs(version: str) -> Installation:
    """Of a major, or of one minor version; where it cannot be had, the test is skipped."""
    try:
        return provide_version(version) if "." in version else installation(int(version))
    except MajorUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=["17", "18"], ids=lambda major: f"pg{major}")
def summarizing(request: pytest.FixtureRequest) -> Installation:
    return programs(request.param)


@pytest.fixture
def cluster(workspace: Workspace, summarizing: Installation) -> Cluster:
    return workspace.cluster(installation=summarizing, settings=SUMMARIES)


def by_summary(backups: BackupLab) -> dict[str, Any]:
    """Take an incremental, which has to be one by summaries and exact."""
    backup = backups.backup("incremental")
    assert backup["type"] == "incremental"
    detection = exact(backups, backup)
    assert detection["method"] == "wal-summary", detection
    return {**backup, **detection}


def test_only_changed_blocks_are_read(backups: BackupLab) -> None:
    cluster = backups.cluster
    rows = sample_data(cluster, 60)
    backups.settle()
    backups.backup("full")
    cluster.execute("UPDATE orders SET amount = amount + 1 WHERE id %% %s = 0", rows // 20)
    made = by_summary(backups)
    assert made["files_by_wal_summary"] >= 2
    assert 20 <= made["pages_read"] < 300
    assert made["bytes_read"] < 6_000_000
    assert made["bytes_source"] > 60_000_000
    # Nothing happened since: nothing of a relation is opened.
    made = by_summary(backups)
    assert made["pages_read"] < 200
    assert made["bytes_read"] < 1_000_000


def test_all_kinds_of_changes(backups: BackupLab) -> None:
    """Files that shrink, grow, go, come back, move; databases that are copied as files."""
    cluster = backups.cluster
    rows = sample_data(cluster, 30)
    cluster.create_tablespace("elsewhere")
    cluster.create_database("first")
    cluster.execute("CREATE TABLE rows AS SELECT n FROM generate_series(1, 50000) n", dbname="first")
    cluster.execute("CREATE UNLOGGED TABLE light AS SELECT n FROM generate_series(1, 50000) n")
    backups.settle()
    backups.backup("full")
    copied = "CREATE DATABASE second TEMPLATE first STRATEGY file_copy OID = 77777"
    steps: list[list[str]] = [
        [f"DELETE FROM orders WHERE id > {rows // 2}"],
        ["VACUUM orders"],  # cuts the file
        [f"UPDATE orders SET amount = amount + 1 WHERE id % {rows // 10} = 7"],
        ["CREATE TABLE more AS TABLE orders", "INSERT INTO more TABLE orders"],
        ["VACUUM FREEZE orders"],
        ["CREATE INDEX ON orders (amount)"],
        ["REINDEX TABLE orders"],
        ["VACUUM FULL orders"],
        ["ALTER TABLE orders SET TABLESPACE elsewhere"],
        [copied],
        ["UPDATE rows SET n = -n"],
        ["DROP DATABASE second", copied],
        ["ALTER DATABASE second SET TABLESPACE elsewhere"],
        ["CREATE DATABASE third TEMPLATE first STRATEGY wal_log"],
        ["ALTER TABLE light SET LOGGED"],
        ["TRUNCATE orders"],
        ["DROP TABLE orders"],
    ]
    for step in steps:
        for statement in step:
            cluster.execute(statement, dbname="first" if " rows " in statement else "postgres")
        by_summary(backups)
    cluster.execute("UPDATE more SET amount = amount + 1 WHERE id % 1000 = 1")
    cluster.kill()
    cluster.start()
    by_summary(backups)
    cluster.restart()
    by_summary(backups)


def test_truncated_across_segments_and_grown_again(workspace: Workspace, runtime: Path) -> None:
    """PostgreSQL's own test 011: a relation of more than one segment file is cut back into its first."""
    cluster = workspace.cluster(installation=programs("17"), settings={**SUMMARIES, "max_wal_size": "4GB"})
    backups = BackupLab(workspace, runtime, cluster)
    cluster.execute("CREATE TABLE wide (n int, filler text) WITH (fillfactor = 10)")
    cluster.execute("ALTER TABLE wide ALTER filler SET STORAGE plain")
    # One row a page: 1 GiB is 131,072 of them. Their WAL is nobody's.
    cluster.configure(archive_command="/bin/true")
    cluster.execute("INSERT INTO wide SELECT n, repeat('x', 5000) FROM generate_series(1, 133000) n")
    cluster.configure(archive_command=backups.archive_command)
    backups.settle()
    backups.backup("full")
    cluster.execute("DELETE FROM wide WHERE n > 100")
    cluster.execute("VACUUM wide")
    by_summary(backups)
    cluster.execute("INSERT INTO wide SELECT n, repeat('y', 5000) FROM generate_series(1, 300) n")
    made = by_summary(backups)
    # The packs of what is gone are mostly dead by now: a part of what is needed of them is stored again.
    again = made["compaction"]["bytes"] // 8192
    assert made["pages_stored"] - again < 1000


def test_under_load_and_restored(workspace: Workspace, backups: BackupLab, summarizing: Installation) -> None:
    cluster = backups.cluster
    rows = sample_data(cluster, 30)
    with LiveWriter(cluster) as writer:
        writer.wait_rows(20)
        backups.backup("full")
        for number in range(3):
            cluster.execute("UPDATE orders SET amount = amount + 1 WHERE id %% %s = %s", rows // 50, number)
            cluster.execute("DELETE FROM orders WHERE id %% %s = %s", rows // 9, number)
            cluster.execute("VACUUM orders")
            made = backups.backup("incremental")
            assert made["change_detection"]["method"] == "wal-summary", made
    golden = golden_dump(cluster)
    cluster.wait_archived(cluster.switch_wal())
    cluster.stop()
    target = backups.materialise(made["backup_id"], "restored")
    prove_restore(workspace, target, golden=golden, rows=writer.expect_all(), installation=summarizing)


def test_many_changed_blocks(backups: BackupLab) -> None:
    """More than fit into one answer of the server, and so many of a file that it is read whole."""
    cluster = backups.cluster
    rows = sample_data(cluster, 60)
    cluster.execute("CREATE TABLE untouched AS SELECT n FROM generate_series(1, 200000) n")
    backups.settle()
    backups.backup("full")
    cluster.execute("UPDATE orders SET amount = amount + 1")
    made = by_summary(backups)
    assert made["pages_stored"] > 7000
    assert made["files_stored"] >= 1
    assert rows


def test_reasons_not_to(workspace: Workspace, runtime: Path) -> None:
    """Each falls back to another way, says why, and is exact all the same."""
    cluster = workspace.cluster(installation=programs("17"), settings=SUMMARIES)
    backups = BackupLab(workspace, runtime, cluster)
    sample_data(cluster, 4)

    def other() -> str:
        backups.settle()
        backup = backups.backup("incremental")
        detection = exact(backups, backup)
        assert detection["method"] in ("page-lsn", "content")
        return str(detection["wal_summary_not_used"])

    backups.settle()
    backups.backup("full")
    cluster.configure(summarize_wal=False)
    assert other() == "summarize_wal is off"
    # Turned on again: not everything since the parent is in a summary.
    cluster.execute("UPDATE orders SET amount = amount + 1 WHERE id % 100 = 3")
    cluster.configure(summarize_wal=True)
    backups.settle()
    backups.backup("incremental")
    cluster.execute("UPDATE orders SET amount = amount + 1 WHERE id % 100 = 4")
    made = by_summary(backups)
    assert "wal_summary_not_used" not in made
    # Somebody removes one.
    cluster.execute("UPDATE orders SET amount = amount + 1 WHERE id % 100 = 5")
    cluster.checkpoint()
    backups.settle()
    newest = max((cluster.data_dir / "pg_wal/summaries").iterdir())
    newest.unlink()
    assert "there is no WAL summary" in other()


@pytest.mark.parametrize("version", ["17.10", "18.4"])
def test_minors_that_forget_visibility_maps(workspace: Workspace, runtime: Path, version: str) -> None:
    """PostgreSQL's own test 012: a cleared bit of the map is in no summary before 17.11 and 18.6."""
    cluster = workspace.cluster(installation=programs(version), settings=SUMMARIES)
    backups = BackupLab(workspace, runtime, cluster)
    rows = sample_data(cluster, 30)
    cluster.execute("VACUUM FREEZE orders")
    backups.settle()
    backups.backup("full")
    cluster.execute("DELETE FROM orders WHERE id %% %s = 3", rows // 10)
    backups.settle()
    backup = backups.backup("incremental")
    detection = exact(backups, backup)  # the map as well
    assert detection["method"] == "wal-summary"


def test_parent_extents_stay_whole(backups: BackupLab) -> None:
    """What is not read is taken over as it lies there: every byte of every file once."""
    cluster = backups.cluster
    rows = sample_data(cluster, 10)
    backups.settle()
    backups.backup("full")
    for number in range(3):
        cluster.execute("UPDATE orders SET amount = amount + 1 WHERE id %% %s = %s", rows // 10, number)
        made = by_summary(backups)
        for entry in backups.manifest(made["backup_id"]).entries():
            assert xt.covers(xt.unpack(entry.extents), entry.size), entry.path
