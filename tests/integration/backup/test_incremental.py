# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an incremental takes over from its parent, and when it must not.

The oracle of most tests: nothing writes while a backup runs, so every file of the backup must be the file on the
disk, byte for byte.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from cryobackup.repository import model
from tests.lab import Cluster, Installation, Workspace, flip_byte, sample_data
from tests.lab.stores import away

from .lab import BackupLab


@pytest.fixture
def cluster(workspace: Workspace, pg: Installation) -> Cluster:
    """Nothing in it happens by itself."""
    return workspace.cluster(installation=pg, settings={"autovacuum": False})


def exact(backups: BackupLab, backup: dict[str, Any]) -> dict[str, Any]:
    """Check that the backup holds the files as they are on the disk now; returns its change detection."""
    contents = backups.contents(backup["backup_id"])
    compared = 0
    for entry in contents.manifest.entries():
        path = backups.cluster.data_dir / os.fsdecode(entry.path)
        of_relations = entry.path.startswith((b"base/", b"global/", b"pg_tblspc/"))
        if entry.type == model.FILE and of_relations and entry.path != b"global/pg_control":
            assert contents.read(entry) == path.read_bytes(), entry.path
            compared += 1
    assert compared > 500
    detection: dict[str, Any] = backup["change_detection"]
    return detection


def test_nothing_changed(backups: BackupLab) -> None:
    sample_data(backups.cluster, 4)
    backups.settle()
    full = backups.backup("full")
    incremental = backups.backup("incremental")
    assert (incremental["type"], incremental["parent"]) == ("incremental", full["backup_id"])
    detection = exact(backups, incremental)
    assert detection["method"] == "page-lsn"
    assert detection["files_unchanged"] > 900
    assert incremental["bytes_read"] < 200_000
    assert incremental["bytes_stored"] < 20_000
    assert incremental["bytes_source"] == full["bytes_source"]
    # It stands by itself: nothing in it points to its parent's manifest.
    header = backups.manifest(incremental["backup_id"]).header
    assert {row.backup_id for row in header.foreign} == {full["backup_id"]}
    assert all(row.live for row in header.foreign)


def test_changed_pages_alone_are_stored(backups: BackupLab) -> None:
    cluster = backups.cluster
    rows = sample_data(cluster, 30)
    backups.settle()
    backups.backup("full")
    cluster.execute("UPDATE orders SET amount = amount + 1 WHERE id %% %s = 0", rows // 10)
    backups.settle()
    first = exact(backups, backups.backup("incremental"))
    assert first["files_by_page_lsn"] >= 2
    assert 10 <= first["pages_stored"] < 200
    assert first["pages_read"] > 3000

    # And again, on extents that are cut to pieces by now; the table shrinks, grows, and has holes.
    cluster.execute("DELETE FROM orders WHERE id > %s", rows // 2)
    cluster.execute("VACUUM orders")
    cluster.execute("UPDATE orders SET amount = amount + 1 WHERE id %% %s = 7", rows // 10)
    backups.settle()
    exact(backups, backups.backup("incremental"))
    cluster.execute("INSERT INTO orders SELECT * FROM (TABLE orders LIMIT 20000) AS part ON CONFLICT DO NOTHING")
    cluster.execute("TRUNCATE orders")
    backups.settle()
    exact(backups, backups.backup("incremental"))


def test_files_too_young_prove_nothing(backups: BackupLab) -> None:
    sample_data(backups.cluster, 2)
    backups.backup("full")
    detection = exact(backups, backups.backup("incremental"))
    assert detection["files_by_content"] + detection["files_by_page_lsn"] > 10
    entries = backups.entries(backups.manifests()[0])
    assert any(entry.flags & model.RACY for entry in entries.values())


def test_content_with_its_old_times_is_noticed(backups: BackupLab) -> None:
    """Somebody copies a file back and restores its times: all but the time of its inode."""
    cluster = backups.cluster
    cluster.execute("CREATE TABLE rows AS SELECT n FROM generate_series(1, 1000) n")
    path = cluster.relation_path("rows")
    other = cluster.data_dir / "pg_ident.conf"
    backups.settle()
    backups.backup("full")
    for changed in (path, other):
        before = changed.stat()
        content = changed.read_bytes()
        changed.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    incremental = backups.backup("incremental", exit_code=3)
    contents = backups.contents(incremental["backup_id"])
    entries = backups.entries(incremental["backup_id"])
    assert contents.read(entries["pg_ident.conf"]) == other.read_bytes()
    # The page's LSN is old, its checksum is wrong: what is on the disk is stored, and called what it is.
    assert contents.read(entries[str(path.relative_to(cluster.data_dir))]) == path.read_bytes()
    assert incremental["damage"] == [{"path": str(path.relative_to(cluster.data_dir)), "blocks": [4]}]


def test_database_made_again_under_its_old_number(backups: BackupLab) -> None:
    """Its files have the names of those before, and pages that are older than the parent."""
    cluster = backups.cluster
    for name in ("one", "two"):
        cluster.create_database(name)
    # The same file name in both, with other contents.
    cluster.execute("CREATE TABLE rows AS SELECT n FROM generate_series(1, 5000) n", dbname="template1")
    cluster.execute("CREATE DATABASE first TEMPLATE template1 STRATEGY file_copy")
    cluster.execute("UPDATE rows SET n = -n", dbname="template1")
    cluster.execute("CREATE DATABASE second TEMPLATE template1 STRATEGY file_copy")
    cluster.execute("CREATE DATABASE copy OID = 77777 TEMPLATE first STRATEGY file_copy")
    backups.settle()
    before = backups.contents(backups.backup("full")["backup_id"])
    cluster.drop_database("copy")
    cluster.execute("CREATE DATABASE copy OID = 77777 TEMPLATE second STRATEGY file_copy")
    name = str(cluster.relation_path("rows", dbname="copy").relative_to(cluster.data_dir))
    backups.settle()
    incremental = backups.backup("incremental")
    assert incremental["change_detection"]["method"] == "page-lsn"
    exact(backups, incremental)
    after = backups.contents(incremental["backup_id"])
    old = {os.fsdecode(entry.path): entry for entry in before.manifest.entries()}
    new = {os.fsdecode(entry.path): entry for entry in after.manifest.entries()}
    assert before.read(old[name]) != after.read(new[name])


@pytest.mark.parametrize("wal_log_hints", [False, True])
def test_without_checksums(workspace: Workspace, runtime: Path, pg: Installation, wal_log_hints: bool) -> None:
    settings = {"autovacuum": False, "wal_log_hints": wal_log_hints}
    cluster = workspace.cluster(installation=pg, checksums=False, settings=settings)
    backups = BackupLab(workspace, runtime, cluster)
    cluster.execute("CREATE TABLE rows AS SELECT n FROM generate_series(1, 50000) n")
    backups.settle()
    backups.backup("full")
    # Hint bits and PD_ALL_VISIBLE: pages change, and without wal_log_hints their LSNs do not.
    cluster.execute("SELECT count(*) FROM rows")
    cluster.execute("VACUUM rows")
    backups.settle()
    detection = exact(backups, backups.backup("incremental"))
    assert detection["method"] == ("page-lsn" if wal_log_hints else "content")
    assert ("page_lsn_not_trusted" in detection) != wal_log_hints
    if wal_log_hints:
        cluster.restart()
        backups.settle()
        detection = exact(backups, backups.backup("incremental"))
        assert detection["method"] == "content"
        assert "anew" in detection["page_lsn_not_trusted"]
        assert detection["files_unchanged"] > 500


def test_damage_is_reported_until_it_is_mended(backups: BackupLab) -> None:
    cluster = backups.cluster
    cluster.execute("CREATE TABLE rows AS SELECT n, md5(n::text) AS text FROM generate_series(1, 50000) n")
    path = cluster.relation_path("rows")
    name = str(path.relative_to(cluster.data_dir))
    backups.settle()
    backups.backup("full")
    flip_byte(path, 8192 * 3 + 5000)
    backups.settle()
    expected = [{"path": name, "blocks": [3]}]
    assert backups.backup("incremental", exit_code=3)["damage"] == expected
    again = backups.backup("incremental", exit_code=3)
    assert (again["status"], again["damage"]) == ("damaged", expected)
    exact(backups, again)
    flip_byte(path, 8192 * 3 + 5000)
    backups.settle()
    mended = backups.backup("incremental")
    assert mended["damage"] == []
    exact(backups, mended)


def test_parents_that_will_not_do(backups: BackupLab, workspace: Workspace) -> None:
    def reason(**expected: object) -> str:
        backup = backups.backup("incremental")
        assert (backup["requested"], backup["type"], backup["parent"]) == ("incremental", "full", None)
        assert backup["change_detection"]["method"] == "full"
        return str(backup["change_detection"]["reason"])

    assert "no earlier backup" in reason()

    # A parent whose manifest is damaged, in the only place it is in.
    manifest = backups.locations["local"] / "manifests/main" / backups.manifests()[-1]
    flip_byte(manifest, -2000)
    assert "cannot be read" in reason()

    # Another cluster under the same name.
    other = workspace.cluster("other")
    other.enable_archiving(backups.archive_command)
    backups.set(data_directory=str(other.data_dir), connection=other.conninfo)
    assert "another cluster" in reason()


@pytest.mark.every_location
def test_parent_must_be_in_all_locations(workspace: Workspace, runtime: Path, cluster: Cluster) -> None:
    backups = BackupLab(workspace, runtime, cluster, locations={"near": True, "far": False})
    first = backups.backup("full")
    backups.settle()
    with away(backups.locations["far"]):
        degraded = backups.backup("full", exit_code=3)
    assert degraded["status"] == "degraded"
    assert degraded["locations"]["near"]["status"] == "ok"
    assert degraded["locations"]["far"]["error"]["id"].startswith("location")
    # The newest is in one place only; the one before is in both.
    incremental = backups.backup("incremental")
    assert incremental["parent"] == first["backup_id"]
    assert "far" in incremental["change_detection"]["reason"]
    assert {name: place["status"] for name, place in incremental["locations"].items()} == {"near": "ok", "far": "ok"}
    assert backups.manifests("near") == sorted([first["backup_id"], degraded["backup_id"], incremental["backup_id"]])
    assert backups.manifests("far") == sorted([first["backup_id"], incremental["backup_id"]])
