# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is in a full backup, and what is not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from cryobackup.postgres.backup_label import parse_backup_label
from cryobackup.postgres.control import parse_control
from cryobackup.repository import model
from cryobackup.repository.extents import EXTENT_BYTES
from cryobackup.repository.model import Entry
from tests.lab import Cluster, Workspace, sample_data

from .lab import BackupLab


def _tree(root: Path) -> dict[str, Path]:
    """Everything below a directory, links to tablespaces followed."""
    found: dict[str, Path] = {}
    for directory, directories, files in os.walk(root, followlinks=True):
        for name in (*directories, *files):
            path = Path(directory, name)
            found[str(path.relative_to(root))] = path
    return found


def test_holds_what_a_base_backup_of_postgresql_holds(backups: BackupLab, workspace: Workspace) -> None:
    cluster = backups.cluster
    sample_data(cluster, 4)
    cluster.create_tablespace("elsewhere")
    cluster.execute("CREATE TABLE there TABLESPACE elsewhere AS SELECT n FROM generate_series(1, 1000) n")
    cluster.execute("CREATE TABLESPACE inside LOCATION ''")
    cluster.execute("CREATE TABLE here TABLESPACE inside AS SELECT n FROM generate_series(1, 1000) n")
    cluster.execute("CREATE UNLOGGED TABLE gone AS SELECT n FROM generate_series(1, 1000) n")
    _litter(cluster)
    backups.settle()

    backup = backups.backup()
    theirs = workspace.directory("theirs")
    moved = workspace.path / "theirs-elsewhere"
    place = cluster.data_dir.parent / f"{cluster.data_dir.name}-tablespace-elsewhere"
    cluster.run("pg_basebackup", "-D", theirs, "-X", "none", "--no-manifest", "-T", f"{place}={moved}", "-c", "fast")
    expected = _tree(theirs)

    entries = backups.entries(backup["backup_id"])
    contents = backups.contents(backup["backup_id"])
    # pg_basebackup makes the links itself, and has no need of a map.
    assert contents.read(entries.pop("tablespace_map")).decode().rstrip("\n").endswith(str(place))
    assert set(entries) == set(expected)
    for name, entry in entries.items():
        path = expected[name]
        assert (entry.type == model.FILE) == path.is_file(), name
        assert (entry.type == model.SYMLINK) == path.is_symlink(), name
        assert entry.mode == path.stat().st_mode & 0o7777, name
        assert entry.uid == path.stat().st_uid, name
        # The two backups differ in where they start, and in nothing else.
        if entry.type == model.FILE and name not in ("backup_label", "global/pg_control"):
            assert contents.read(entry) == path.read_bytes(), name
    oid = cluster.value("SELECT oid::text FROM pg_tablespace WHERE spcname = 'elsewhere'")
    assert entries[f"pg_tblspc/{oid}"].target == os.fsencode(place)
    info = contents.manifest.header.postgres
    assert info is not None
    assert [(str(space.oid), space.path) for space in info.tablespaces] == [(oid, str(place))]


def _litter(cluster: Cluster) -> None:
    """Files that a running server has, or may have, and that no backup should."""
    data = cluster.data_dir
    (data / "base/pgsql_tmp").mkdir(exist_ok=True)
    for name in (
        "base/pgsql_tmp/pgsql_tmp123.0",
        "base/5/t3_16999",
        "base/5/t3_16999_fsm",
        "backup_label.old",
        "postgresql.auto.conf.tmp",
        "current_logfiles.tmp",
        "pg_stat_tmp/db_0.stat",
        "pg_replslot/slot",
        "pg_notify/0001",
        "base/.DS_Store",
    ):
        (data / name).write_text("litter")
        cluster.account.own(data / name)
    cluster.account.own(data / "base/pgsql_tmp")


def test_last_entries_and_their_order(backups: BackupLab) -> None:
    backup = backups.backup("full", "--label", "before the migration")
    manifest = backups.manifest(backup["backup_id"])
    header = manifest.header
    info = header.postgres
    assert info is not None
    entries = list(manifest.entries())
    assert [entry.path for entry in entries[-2:]] == [b"backup_label", b"global/pg_control"]
    sorted_part = [entry.path for entry in entries[:-2]]
    assert sorted_part == sorted(sorted_part, key=model.sort_key)

    contents = backups.contents(backup["backup_id"])
    label_file = contents.read(entries[-2]).decode()
    label = parse_backup_label(label_file)
    assert label_file.endswith("\n")
    assert label.label == f"cryobackup {backup['backup_id']}"
    control = parse_control(contents.read(entries[-1]))
    assert str(control.system_identifier) == backup["system_identifier"] == backups.cluster.system_identifier

    assert header.label == backup["label"] == "before the migration"
    assert header.kind == backup["type"] == "full"
    assert info.wal_start == backup["wal_start"] == label.start_segment
    assert info.settings["max_connections"] == "40"
    assert info.page_checksums
    assert {database.name for database in info.databases} == {"postgres", "template0", "template1"}
    assert header.owners.users[entries[0].uid] == backups.cluster.account.name
    assert header.totals.files == backup["files"] == sum(entry.type == model.FILE for entry in entries)
    assert header.totals.bytes_source == sum(entry.size for entry in entries)
    for directory in ("pg_wal", "pg_wal/archive_status"):
        assert os.fsencode(directory) in sorted_part
    assert not any(path.startswith(b"pg_wal/0") for path in sorted_part)
    # Nothing of it is ever written into the living data directory.
    assert not (backups.cluster.data_dir / "backup_label").exists()


def test_links_become_what_they_stand_for(backups: BackupLab, workspace: Workspace) -> None:
    cluster = backups.cluster
    data = cluster.data_dir
    cluster.stop()
    elsewhere = workspace.directory("elsewhere")
    for name in ("pg_wal", "pg_xact"):
        shutil.move(data / name, elsewhere / name)
        (data / name).symlink_to(elsewhere / name)
    (elsewhere / "file").write_text("content")
    (elsewhere / "logs").mkdir()
    (data / "server.key").symlink_to(elsewhere / "file")
    (data / "log").symlink_to(elsewhere / "logs")
    (data / "nowhere").symlink_to(elsewhere / "nothing")
    workspace.account.own(elsewhere, recursive=True)
    cluster.start()

    backup = backups.backup()
    entries = backups.entries(backup["backup_id"])
    contents = backups.contents(backup["backup_id"])
    types = {name: entries[name].type for name in ("pg_wal", "pg_xact", "server.key", "log", "nowhere")}
    assert types == {
        "pg_wal": model.DIRECTORY,
        "pg_xact": model.DIRECTORY,
        "server.key": model.FILE,
        "log": model.SYMLINK,
        "nowhere": model.SYMLINK,
    }
    assert contents.read(entries["server.key"]) == b"content"
    assert entries["pg_xact/0000"].size > 0
    assert entries["pg_wal/archive_status"].type == model.DIRECTORY
    assert len([name for name in entries if name.startswith("pg_wal/")]) == 1
    assert any("log" in warning and "link" in warning for warning in backup["warnings"])


def test_tablespace_inside_the_data_directory_is_copied_once(backups: BackupLab) -> None:
    cluster = backups.cluster
    place = cluster.data_dir / "inside"
    place.mkdir(mode=0o700)
    cluster.account.own(place)
    cluster.execute(f"CREATE TABLESPACE inside LOCATION '{place}'")
    cluster.execute("CREATE TABLE there TABLESPACE inside AS SELECT n FROM generate_series(1, 1000) n")
    entries = backups.entries(backups.backup()["backup_id"])
    oid = cluster.value("SELECT oid::text FROM pg_tablespace WHERE spcname = 'inside'")
    assert entries["inside"].type == model.DIRECTORY
    assert not [name for name in entries if name.startswith("inside/")]
    assert [name for name in entries if name.startswith(f"pg_tblspc/{oid}/PG_")]


@pytest.mark.parametrize("user", ["postgres", "keeper"])
def test_configuration_outside_the_data_directory(backups: BackupLab, workspace: Workspace, user: str) -> None:
    """Also of a role that may not ask the server which files it includes."""
    cluster = backups.cluster
    place = workspace.directory("etc")
    (place / "conf.d").mkdir()
    (place / "conf.d/more.conf").write_text("work_mem = '5MB'\n")
    shutil.copy(cluster.data_dir / "pg_hba.conf", place / "hba.conf")
    cluster.configure(reload=False, include_dir=str(place / "conf.d"))
    workspace.account.own(place, recursive=True)
    cluster.overrides["hba_file"] = str(place / "hba.conf")
    cluster.restart()
    assert cluster.value("SHOW work_mem") == "5MB"
    if user != "postgres":
        cluster.execute(f"CREATE ROLE {user} LOGIN")
        backups.set(connection=cluster.conninfo.replace("user=postgres", f"user={user}"))
        for grant in (f"GRANT {part.rstrip('; ')}" for part in backups.refused()["hint"].split("GRANT ")[1:]):
            cluster.execute(grant)

    backup = backups.backup()
    entries = backups.entries(backup["backup_id"])
    below = {name: entry for name, entry in entries.items() if name.split("/")[0] == ".cryobackup"}
    files = {name for name, entry in below.items() if entry.type == model.FILE}
    assert files == {f".cryobackup/config{place}/hba.conf", f".cryobackup/config{place}/conf.d/more.conf"}
    assert all(str(Path(name).parent) in below for name in below if "/" in name)
    contents = backups.contents(backup["backup_id"])
    name = f".cryobackup/config{place}/conf.d/more.conf"
    assert contents.read(below[name]) == b"work_mem = '5MB'\n"


def test_zeros_take_no_room(backups: BackupLab) -> None:
    (backups.cluster.data_dir / "large").write_bytes(b"begin" + bytes(40 << 20) + b"end")
    backups.cluster.account.own(backups.cluster.data_dir / "large")
    backup = backups.backup()
    entry = backups.entries(backup["backup_id"])["large"]
    assert len(entry.extents) < 10 * EXTENT_BYTES
    assert backups.contents(backup["backup_id"]).read(entry) == b"begin" + bytes(40 << 20) + b"end"


@pytest.mark.parametrize("size", [0, 1, 8191, 8192, (1 << 20) - 1, 1 << 20, (1 << 21) + 1, (8 << 20) + 17])
def test_files_of_any_size(size: int, shared: BackupLab) -> None:
    path = shared.cluster.data_dir / f"sized-{size}"
    path.write_bytes(os.urandom(size))
    shared.cluster.account.own(path)
    backup = shared.backup()
    entry: Entry = shared.entries(backup["backup_id"])[path.name]
    assert shared.contents(backup["backup_id"]).read(entry) == path.read_bytes()


@pytest.fixture(scope="module")
def shared(shared_workspace: Workspace, runtime: Path) -> BackupLab:
    return BackupLab(shared_workspace, runtime, shared_workspace.cluster())
