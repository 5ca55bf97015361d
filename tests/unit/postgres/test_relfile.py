# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import collections.abc
import contextlib
import os
import shutil
from pathlib import Path

import pytest

from cryobackup.postgres import relfile
from cryobackup.postgres.relfile import FileKind, Fork, RelationFile, RelationName, Treatment

from .conftest import Cluster, clone, new_root, own, run

VERSION_DIRECTORY = "PG_15_202209061"


def walk(data: Path, tablespace_directory: str) -> tuple[set[str], set[str]]:
    """Files and directories that a backup takes, by the rules under test."""
    files: set[str] = set()
    directories: set[str] = set()

    def descend(folder: str) -> None:
        names = os.listdir(data / folder)
        unlogged = relfile.unlogged_relations(names) if relfile.is_database_directory(folder) else frozenset[int]()
        for name in names:
            path = f"{folder}/{name}".lstrip("/")
            is_dir = (data / path).is_dir()
            treatment = relfile.treatment(path, is_dir, tablespace_directory=tablespace_directory)
            if treatment is Treatment.SKIP or relfile.is_unlogged_data(name, unlogged):
                continue
            if not is_dir:
                files.add(path)
                continue
            directories.add(path)
            if treatment is Treatment.COPY:
                descend(path)

    descend("")
    return files, directories


@pytest.fixture(scope="module")
def busy(template: Cluster) -> collections.abc.Iterator[Cluster]:
    """A running cluster with one of everything that a backup leaves out, and a second tablespace."""
    cluster = clone(template, new_root())
    try:
        for folder in ("space", "space/PG_9_1_201105231"):
            (cluster.root / folder).mkdir()
            own(cluster.root / folder)
        (cluster.root / "space/PG_9_1_201105231/PG_VERSION").write_text("9.1\n")
        cluster.start(logging_collector="on")
        cluster.sql(
            f"CREATE TABLESPACE space LOCATION '{cluster.root}/space'",
            "CREATE DATABASE elsewhere TABLESPACE space",
            "CREATE TABLE kept AS SELECT generate_series(1, 3000) AS i",
            "CREATE TABLE kept_elsewhere (i int PRIMARY KEY) TABLESPACE space",
            "CREATE UNLOGGED TABLE scratch (i int PRIMARY KEY, t text)",
            "INSERT INTO scratch SELECT generate_series(1, 3000)",
            "CREATE UNLOGGED TABLE scratch_elsewhere (i int PRIMARY KEY) TABLESPACE space",
            "INSERT INTO scratch_elsewhere SELECT generate_series(1, 3000)",
            "VACUUM",
            "SELECT pg_create_physical_replication_slot('slot')",
        )
        for name in (
            "backup_label.old",
            "base/pgsql_tmp/pgsql_tmp1.0",
            "base/pgsql_tmp_is_a_prefix",
            "base/1/t3_99999",
            "base/1/t3_99999_fsm.1",
            "base/1/t3_99999_other",
            "base/1/notes",
            "base/1/99998_init",
            "base/1/99998.1",
            "base/1/99998_vm",
            "base/1/99998_foo",
            "global/t3_99997",
            "pg_stat_tmp/db_0.stat",
            "pg_subtrans/0001",
            "log/pg_notify/lost",
            "log/pg_internal.init.77",
            "pg_wal/archive_status/x.ready",
            "postgresql.auto.conf.tmp",
            "current_logfiles.tmp",
            "backup_manifest",
            "recovery.done",
        ):
            path = cluster.data / name
            path.parent.mkdir(exist_ok=True)
            own(path.parent)
            path.write_bytes(b"")
            own(path)
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(cluster.root)


def test_what_is_taken_is_what_pg_basebackup_takes(busy: Cluster, roots: collections.abc.Callable[[], Path]) -> None:
    root = roots()
    with contextlib.closing(busy.connect()) as session, session.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE passing AS SELECT generate_series(1, 100) AS i")
        cursor.execute("CREATE TEMPORARY TABLE passing_elsewhere (i int PRIMARY KEY) TABLESPACE space")
        version_directory = tablespace_directory(busy)
        files, directories = walk(busy.data, version_directory)
        run(
            *("pg_basebackup", "-d", busy.conninfo, "-D", root / "data", "-X", "none", "-c", "fast"),
            *("--no-sync", "-T", f"{busy.root}/space={root}/space"),
        )
    taken = {
        str(Path(folder, name).relative_to(root / "data")): Path(folder, name).is_dir()
        for folder, folders, names in os.walk(root / "data", followlinks=True)
        for name in (*folders, *names)
    }
    given_out = {"backup_label", "backup_manifest"}
    subdirectories = relfile.wal_subdirectories(int(version_directory.split("_")[1]))
    assert files == {path for path, is_dir in taken.items() if not is_dir} - given_out
    assert directories | set(subdirectories) == {path for path, is_dir in taken.items() if is_dir}


def tablespace_directory(cluster: Cluster) -> str:
    """The name that the server itself has given to its directory."""
    (name,) = [
        name for name in os.listdir(cluster.root / "space") if not name.startswith("PG_9_1") and name.startswith("PG_")
    ]
    return name


def test_the_tablespace_directory_has_the_name_that_the_server_gives(busy: Cluster) -> None:
    major, catalog = busy.sql(
        "SELECT current_setting('server_version_num')::int / 10000, catalog_version_no FROM pg_control_system()"
    )[0]
    assert relfile.version_directory(major, catalog) == tablespace_directory(busy)


def test_every_relation_is_recognised_by_its_path(busy: Cluster) -> None:
    rows = busy.sql(
        "SELECT pg_relation_filepath(oid), pg_relation_filenode(oid), reltablespace, relisshared"
        " FROM pg_class WHERE pg_relation_filepath(oid) IS NOT NULL"
    )
    database, default = busy.sql("SELECT oid, dattablespace FROM pg_database WHERE datname = current_database()")[0]
    assert len(rows) > 100
    for path, filenode, tablespace, shared in rows:
        assert relfile.relation_file(path) == RelationFile(
            tablespace or default, 0 if shared else database, RelationName(filenode, Fork.MAIN, 0, None)
        )
        assert relfile.classify(path) is FileKind.RELATION


def test_unlogged_relations_are_those_the_catalogue_calls_so(busy: Cluster) -> None:
    expected = {
        filenode
        for (filenode,) in busy.sql(
            "SELECT pg_relation_filenode(oid) FROM pg_class WHERE relpersistence = 'u' AND reltablespace = 0"
        )
    }
    database = busy.one("SELECT oid FROM pg_database WHERE datname = current_database()")
    names = os.listdir(busy.data / f"base/{database}")
    unlogged = relfile.unlogged_relations(names)
    assert unlogged == expected
    assert expected
    forks = {name for name in names if relfile.is_unlogged_data(name, unlogged)}
    assert {str(filenode) for filenode in expected} <= forks
    assert not any(name.endswith("_init") for name in forks)


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("16384", RelationName(16384, Fork.MAIN, 0, None)),
        ("16384.17", RelationName(16384, Fork.MAIN, 17, None)),
        ("16384_fsm", RelationName(16384, Fork.FSM, 0, None)),
        ("16384_vm.1", RelationName(16384, Fork.VM, 1, None)),
        ("4294967295_init", RelationName(4294967295, Fork.INIT, 0, None)),
        ("t3_16384", RelationName(16384, Fork.MAIN, 0, 3)),
        ("t12_16384_fsm.2", RelationName(16384, Fork.FSM, 2, 12)),
        ("", None),
        ("16384_", None),
        ("16384_main", None),
        ("16384.", None),
        ("16384.1.2", None),
        ("16384_fsm_vm", None),
        ("12345678901", None),
        ("t_16384", None),
        ("16384 ", None),
        ("16384\n", None),
        ("١٦", None),
        ("pg_filenode.map", None),
    ],
)
def test_names_of_relation_files(name: str, parsed: RelationName | None) -> None:
    assert relfile.parse_relation_name(name) == parsed


@pytest.mark.parametrize(
    ("path", "kind", "has_checksums"),
    [
        ("base/5/16384", FileKind.RELATION, True),
        ("base/5/16384_init", FileKind.RELATION, True),
        ("base/5/t3_16384", FileKind.TEMPORARY_RELATION, True),
        ("global/1262_fsm", FileKind.RELATION, True),
        (f"pg_tblspc/16400/{VERSION_DIRECTORY}/5/16384.3", FileKind.RELATION, True),
        ("global/t3_16384", FileKind.OTHER, False),
        ("base/16384", FileKind.OTHER, False),
        ("base/5/sub/16384", FileKind.OTHER, False),
        ("pg_tblspc/16400/16384", FileKind.OTHER, False),
        ("pg_multixact/members/0000", FileKind.OTHER, False),
        ("global/pg_control", FileKind.CONTROL, False),
        ("global/pg_filenode.map", FileKind.RELATION_MAP, False),
        ("base/5/pg_internal.init", FileKind.RELATION_CACHE, False),
        ("base/5/PG_VERSION", FileKind.VERSION, False),
        ("PG_VERSION", FileKind.VERSION, False),
        ("pg_wal/000000010000000000000001", FileKind.WAL, False),
        ("postgresql.auto.conf", FileKind.OTHER, False),
    ],
)
def test_kinds_of_files(path: str, kind: FileKind, has_checksums: bool) -> None:
    assert relfile.classify(path) is kind
    assert relfile.has_page_checksums(path) is has_checksums


@pytest.mark.parametrize(
    ("path", "is_dir", "expected"),
    [
        ("global/pg_control", False, Treatment.COPY_LAST),
        ("log/pg_control", False, Treatment.COPY),
        ("pg_wal", True, Treatment.CREATE_EMPTY),
        ("log/pg_wal", True, Treatment.COPY),
        ("log/pg_snapshots", True, Treatment.CREATE_EMPTY),
        ("pg_replslot", True, Treatment.CREATE_EMPTY),
        ("base/5/pg_internal.init.12", False, Treatment.SKIP),
        ("base/pgsql_tmp", True, Treatment.SKIP),
        ("postmaster.pid", False, Treatment.SKIP),
        ("postmaster.pid.old", False, Treatment.COPY),
        ("standby.signal", False, Treatment.COPY),
        ("base/5/t3_1", False, Treatment.SKIP),
        ("t3_1", False, Treatment.COPY),
        (f"pg_tblspc/16400/{VERSION_DIRECTORY}", True, Treatment.COPY),
        ("pg_tblspc/16400/PG_14_202107181", True, Treatment.SKIP),
        ("pg_tblspc/16400", True, Treatment.COPY),
    ],
)
def test_treatment(path: str, is_dir: bool, expected: Treatment) -> None:
    assert relfile.treatment(path, is_dir, tablespace_directory=VERSION_DIRECTORY) is expected


def test_without_the_clusters_own_directory_all_are_taken() -> None:
    assert relfile.treatment("pg_tblspc/16400/PG_14_202107181", True) is Treatment.COPY


def test_first_blocks() -> None:
    file = relfile.relation_file("base/5/16384_vm.3")
    assert file is not None
    assert file.first_block(131072) == 393216


def test_pg_wal_of_a_restored_cluster() -> None:
    assert relfile.wal_subdirectories(16) == ("pg_wal/archive_status",)
    assert relfile.wal_subdirectories(17) == ("pg_wal/archive_status", "pg_wal/summaries")
