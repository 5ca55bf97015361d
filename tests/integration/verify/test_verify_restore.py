# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups of a real cluster, verified on every rung of the ladder."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cryobackup.errors import ConfigError
from cryobackup.postgres.sandbox import find_programs
from tests.integration.backup.lab import SOURCE
from tests.lab import Cluster, FullDisk, Installation, Workspace, sample_data
from tests.lab.stores import away

from .lab import HOLD, VerifyLab, by_name, detail, wait_for

ALL_CHECKS = ("restore", "recovery", "databases", "amcheck", "visibility", "stop", "pg_checksums")


@pytest.fixture(scope="module")
def proven(shared_workspace: Workspace, runtime: Path, pg: Installation) -> VerifyLab:
    """A cluster with a tablespace and one backup, which the tests leave as they are."""
    cluster = shared_workspace.cluster(installation=pg)
    made = VerifyLab(shared_workspace, runtime, cluster)
    sample_data(cluster, 2)
    cluster.create_tablespace("elsewhere")
    cluster.execute("CREATE TABLE moved TABLESPACE elsewhere AS SELECT generate_series(1, 1000) AS n")
    made.backup()
    return made


@pytest.fixture
def own(workspace: Workspace, runtime: Path, cluster: Cluster) -> VerifyLab:
    """A cluster with one small backup, to be damaged."""
    made = VerifyLab(workspace, runtime, cluster)
    cluster.execute("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n")
    return made


def assertions(lab: VerifyLab, *queries: tuple[str, str | None]) -> None:
    listed = [
        {"database": "postgres", "query": query, **({} if expect is None else {"expect": expect})}
        for query, expect in queries
    ]
    lab.set(verify={"assertions": listed})


def test_every_rung(proven: VerifyLab) -> None:
    assert proven.verify("--level", "presence")["result"] == "ok"
    content = proven.verify()
    assert content["level"] == "content"
    assert content["findings"] == []
    assert content["locations"]["local"]["pages"] > 1000
    wal = proven.wal_files()
    backup = proven.rehearse()
    assert backup["result"] == "ok"
    assert by_name(backup) == dict.fromkeys(ALL_CHECKS, True)
    figures = backup["figures"]
    assert figures["databases"] == 2
    assert figures["tables"] == 2
    assert figures["recovery_seconds"] > 0
    assert figures["restore_seconds"] > 0
    assert figures["recovery_point"]["lsn"]
    assert proven.wal_files() == wal, "a sandbox archived something"
    (listed,) = proven.run_json("list", SOURCE)["backups"]
    assert listed["verified"]["level"] == "restore"
    assert listed["verified"]["result"] == "ok"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_root_runs_the_server_as_the_owner_of_the_cluster(proven: VerifyLab) -> None:
    """The keys are out of that user's reach, and what root leaves in the repository is not out of his."""
    backup = proven.rehearse(as_server=False)
    assert by_name(backup) == dict.fromkeys(ALL_CHECKS, True)
    assert proven.verify("--all")["result"] == "ok"


def told_of_identity(report: dict[str, Any]) -> int:
    return sum("who can read" in text and "data.identity" in text for text in report.get("warnings", []))


def test_a_server_that_could_read_the_identity_is_warned_of(proven: VerifyLab) -> None:
    """Once, and the result is as good."""
    report = proven.verify("--level", "restore")
    assert (report["result"], told_of_identity(report)) == ("ok", 1)
    assert told_of_identity(proven.verify()) == 0, "nothing is started at this level"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_keys_that_only_root_can_read(proven: VerifyLab) -> None:
    assert told_of_identity(proven.verify("--level", "restore", as_server=False)) == 1, "the server's user owns them"
    repository = proven.settings["repository"]
    keys, own = Path(repository["keys"]), proven.directory / "keys-of-root"
    shutil.copytree(keys, own)
    for path in (own, *own.iterdir()):
        os.chown(path, 0, 0)
    repository["keys"] = str(own)
    proven.write_config()
    try:
        report = proven.verify("--level", "restore", as_server=False)
    finally:
        repository["keys"] = str(keys)
        proven.write_config()
        shutil.rmtree(own)
    assert (report["result"], told_of_identity(report)) == ("ok", 0)


def test_assertions(proven: VerifyLab) -> None:
    assertions(proven, ("SELECT count(*) FROM moved", "1000"), ("SELECT max(n) > 0 FROM moved", None))
    try:
        backup = proven.rehearse()
        assert by_name(backup) == {**dict.fromkeys(ALL_CHECKS, True), "assertion 1": True, "assertion 2": True}
        assertions(
            proven,
            ("SELECT count(*) FROM moved", "999"),
            ("SELECT n FROM moved WHERE n < 0", None),
            ("SELECT * FROM no_such_table", None),
        )
        backup = proven.rehearse(exit_code=4)
    finally:
        proven.set(verify={})
    assert backup["result"] == "failed"
    assert detail(backup, "assertion 1") == "SELECT count(*) FROM moved: '1000', expected '999'"
    assert detail(backup, "assertion 2") == "SELECT n FROM moved WHERE n < 0: no row"
    assert "no_such_table" in detail(backup, "assertion 3")
    assert by_name(backup)["pg_checksums"] is True, "one failure must not hide what else is asked"


def test_a_sandbox_that_is_kept(proven: VerifyLab) -> None:
    report = proven.verify("--level", "restore", "--keep-sandbox")
    (kept,) = proven.leftovers()
    try:
        assert (kept / "data" / "PG_VERSION").is_file()
        proven.verify("--level", "restore")
        assert proven.leftovers() == [kept], "a later run removed it"
    finally:
        shutil.rmtree(kept)
    assert report["result"] == "ok"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_interrupted(proven: VerifyLab, number: signal.Signals) -> None:
    """No server outlives the process that started it; what a killed one leaves, the next one removes."""
    assertions(proven, (HOLD, None))
    try:
        code = proven.interrupted(number)
    finally:
        proven.set(verify={})
    wait_for("the server ends", lambda: not proven.servers())
    if number is signal.SIGKILL:
        assert code == -signal.SIGKILL
        assert len(proven.leftovers()) == 1
    else:
        assert code == 128 + number
        assert proven.leftovers() == []
    assert proven.rehearse()["result"] == "ok"


def test_programs_of_another_major(pg: Installation) -> None:
    """The cluster may have been upgraded since the backup was made."""
    assert find_programs(pg.major * 10000 + 1, pg.bin_dir) == pg.bin_dir
    with pytest.raises(ConfigError) as caught:
        find_programs(990001, pg.bin_dir)
    assert caught.value.id == "no-postgresql"
    assert "99" in caught.value.message


def test_no_room(proven: VerifyLab, full_disk: Callable[..., FullDisk]) -> None:
    disk = full_disk(megabytes=16)
    error = proven.error("--level", "restore", "--work-directory", str(disk.path / "work"))
    assert error["id"] == "target-space"
    assert "--work-directory" in error["hint"]
    assert list((disk.path / "work").iterdir()) == []


def snapshot(directory: Path) -> dict[str, tuple[int, int, int]]:
    """Everything below a directory, so that any change shows."""
    found = {}
    for path in directory.rglob("*"):
        status = path.lstat()
        found[str(path.relative_to(directory))] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return found


def test_wal_that_creates_tablespaces_stays_in_the_sandbox(own: VerifyLab) -> None:
    """Replayed as it is, it would make the sandbox write to the living cluster's tablespace."""
    cluster = own.cluster
    own.backup()
    place = cluster.create_tablespace("later")
    cluster.execute("CREATE TABLE living TABLESPACE later AS SELECT generate_series(1, 5000) AS n")
    cluster.execute("UPDATE living SET n = n + 1")
    cluster.wait_archived(cluster.switch_wal())
    cluster.execute("DELETE FROM living WHERE n % 2 = 0")
    cluster.checkpoint()
    before = snapshot(place)
    backup = own.rehearse("--to", "latest")
    assert snapshot(place) == before
    assert by_name(backup) == dict.fromkeys(ALL_CHECKS, True)
    assert str(place) in detail(backup, "recovery")
    assert cluster.value("SELECT count(*) FROM living") == 2500


def test_recovery_to_the_end_of_the_archive(own: VerifyLab) -> None:
    cluster = own.cluster
    own.backup()
    cluster.execute("INSERT INTO t SELECT generate_series(1, 500)")
    committed = cluster.value("SELECT clock_timestamp()::text")
    cluster.wait_archived(cluster.switch_wal())
    assertions(own, ("SELECT count(*) FROM t", "1500"))
    backup = own.rehearse("--to", "latest")
    assert backup["result"] == "ok"
    assert backup["figures"]["recovery_point"]["time"].replace("T", " ") <= committed.replace("+00", "+00:00")
    assert backup["figures"]["recovery_point"]["goal"] == "latest"
    assert own.rehearse(exit_code=4)["result"] == "failed", "at the end of the backup there were 1000 rows"


def test_an_index_that_does_not_match_its_table(own: VerifyLab) -> None:
    """Every checksum is right, and every object what was written: only asking the cluster shows it."""
    cluster = own.cluster
    cluster.execute("CREATE INDEX t_n ON t (n)")
    cluster.checkpoint()
    path = cluster.relation_path("t_n")
    cluster.stop()
    old = path.read_bytes()
    cluster.start()
    cluster.execute("INSERT INTO t SELECT generate_series(2000, 2100)")
    cluster.checkpoint()
    cluster.stop()
    path.write_bytes(old)
    cluster.start()
    own.backup()
    assert own.verify()["result"] == "ok"
    backup = own.rehearse(exit_code=4)
    assert backup["result"] == "failed"
    failed = {name for name, ok in by_name(backup).items() if ok is False}
    assert failed == {"amcheck"}
    assert "t_n" in detail(backup, "amcheck")


@pytest.mark.every_location
def test_missing_wal(own: VerifyLab) -> None:
    made = own.backup()
    (location,) = own.locations.values()
    (path,) = (location / "wal").rglob(made["wal_start"])
    path.unlink()
    name = str(path.relative_to(location))
    for level in ("presence", "content"):
        report = own.verify("--level", level, exit_code=4)
        (finding,) = report["backups"][0]["findings"]
        assert (finding["kind"], finding["object"], finding["location"]) == ("missing", name, "local")
    backup = own.rehearse(exit_code=4)
    assert made["wal_start"] in detail(backup, "wal")


@pytest.mark.every_location
def test_a_missing_pack(own: VerifyLab) -> None:
    own.backup()
    (location,) = own.locations.values()
    path = min((location / "packs").rglob("*.pack"))
    path.unlink()
    backup = own.rehearse(exit_code=4)
    assert backup["result"] == "damaged"
    assert {finding["object"] for finding in backup["findings"]} == {str(path.relative_to(location))}
    assert by_name(backup) == {"restore": False}


@pytest.mark.every_location
def test_one_of_two_locations_is_down(workspace: Workspace, runtime: Path, cluster: Cluster) -> None:
    """What the other one has is proven, and that something is missing from the proof is said."""
    own = VerifyLab(workspace, runtime, cluster, locations={"one": True, "two": False})
    own.backup()
    with away(own.locations["one"]):
        backup = own.rehearse(exit_code=3)
    assert by_name(backup) == dict.fromkeys(ALL_CHECKS, True)
    assert backup["locations"] == {"one": "lost", "two": "ok"}


def test_an_unusual_cluster(workspace: Workspace, runtime: Path, cluster: Cluster) -> None:
    """Nobody is called postgres, and databases and roles have settings that get in the way."""
    own = VerifyLab(workspace, runtime, cluster)
    trace = workspace.directory("traces") / "trace"
    cluster.create_database("app")
    cluster.execute("CREATE TABLE sums AS SELECT generate_series(1, 100000) AS n", dbname="app")
    cluster.execute("ALTER DATABASE app SET default_transaction_read_only = on")
    cluster.execute("ALTER DATABASE app SET statement_timeout = 1")
    cluster.execute("ALTER DATABASE app SET session_preload_libraries = 'no_such_library'")
    cluster.configure(synchronous_commit="local")
    cluster.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
    cluster.execute(f"ALTER SYSTEM SET recovery_end_command = 'touch {trace}'")
    cluster.execute("ALTER SYSTEM SET shared_preload_libraries = 'no_such_library'")
    cluster.execute("CREATE ROLE boss SUPERUSER LOGIN")
    cluster.run("psql", "-U", "boss", "-c", "ALTER ROLE postgres RENAME TO nobody_knows")
    try:
        own.set(
            connection=cluster.conninfo.replace("user=postgres", "user=boss"),
            verify={"assertions": [{"database": "app", "query": "SELECT sum(n) FROM sums", "expect": "5000050000"}]},
        )
        own.backup()
        backup = own.rehearse()
    finally:
        cluster.run("psql", "-U", "boss", "-c", "ALTER ROLE nobody_knows RENAME TO postgres")
    assert by_name(backup) == {**dict.fromkeys(ALL_CHECKS, True), "assertion 1": True}
    assert not trace.exists()


def test_every_major(workspace: Workspace, runtime: Path, pg_major: Installation) -> None:
    cluster = workspace.cluster(installation=pg_major)
    own = VerifyLab(workspace, runtime, cluster, bin_directory=str(pg_major.bin_dir))
    sample_data(cluster, 1)
    own.backup()
    cluster.execute("CREATE TABLE later AS SELECT 1 AS n")
    own.backup("incremental")
    report: dict[str, Any] = own.verify("--all", "--level", "restore")
    assert [backup["result"] for backup in report["backups"]] == ["ok", "ok"]
    assert [backup["figures"]["tables"] for backup in report["backups"]] == [1, 2]
