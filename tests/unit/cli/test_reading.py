# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``list``, ``info`` and ``status``: they show what is there, and never call it all when something is hidden."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import time
from collections.abc import Iterator

import pytest

from cryobackup.config import load_config
from cryobackup.crypto import suite
from cryobackup.repository import catalog, extents, lease, model, names
from cryobackup.repository.repository import Repository
from cryobackup.repository.session import BackupSession

from .conftest import Cli

START = dt.datetime(2026, 11, 20, 1, 0, tzinfo=dt.UTC)


@contextlib.contextmanager
def session(cli: Cli, source: str, started: dt.datetime) -> Iterator[BackupSession]:
    """A backup in the making."""
    repository = Repository.open(load_config(cli.config).repository)
    last = catalog.newest(catalog.Catalog.load(repository, source).backups)
    with BackupSession(repository, source=source, parent=last, now=started, spool=cli.place) as made:
        yield made


def backup(cli: Cli, source: str = "main", *, started: dt.datetime = START, status: str = "ok", label: str = "") -> str:
    """A backup of one file, two minutes long, that refers to the one before it if there is one."""
    with session(cli, source, started) as made:
        data = os.urandom(5000)
        if made.parent is None:
            sink = made.packs.sink()
            reference = sink.store(data)
            sink.close()
            digest = suite.keyed_digest(made.repository.keys.digest_key, data)[:16]
            where = extents.build([(0, len(data), reference.pack, reference.frame, 0, digest)])
        else:
            [entry] = made.parent_manifest().entries()
            where = made.refer(extents.unpack(entry.extents))
        made.add(model.Entry(b"base/1/1259", model.FILE, 0o600, 0, 0, len(data)), where)
        made.commit(
            model.BackupHeader(
                backup_id=made.backup_id,
                source=source,
                kind=model.INCREMENTAL if made.parent else model.FULL,
                parent=made.parent.id if made.parent else None,
                status=status,
                label=label,
                started_at=started.isoformat(timespec="microseconds"),
                finished_at=(started + dt.timedelta(minutes=2)).isoformat(timespec="microseconds"),
                host="db1",
                tool_version="0.1.0",
                postgres=POSTGRES,
                change_detection={"method": "page-lsn", "reason": "no WAL summaries", "files_unchanged": 12},
                totals=model.Totals(files=1, bytes_source=5000, bytes_read=4096),
                damage=[model.Damage("base/1/1259", [7, 9])] if status == "damaged" else [],
            )
        )
        return made.backup_id


POSTGRES = model.PostgresInfo(
    system_identifier="7440000000000000001",
    version=170005,
    timeline=3,
    start_lsn="0/2000028",
    stop_lsn="0/2000120",
    checkpoint_lsn="0/2000060",
    wal_start="000000030000000000000002",
    wal_stop="000000030000000000000002",
    wal_segment_size=16 << 20,
    block_size=8192,
    segment_blocks=131072,
    page_checksums=True,
    from_standby=False,
    data_directory="/var/lib/postgresql/17/main",
    next_oid=24576,
    tablespaces=[model.Tablespace(16384, "/srv/fast")],
    databases=[model.Database(5, "postgres"), model.Database(16385, "app")],
)


def verify(
    cli: Cli, backup_id: str, *, level: str, result: str, day: int = 21, locations: dict[str, str] | None = None
) -> None:
    repository = Repository.open(load_config(cli.config).repository)
    data = {"level": level, "result": result, **({"locations": locations} if locations else {})}
    note = model.Note(backup_id, "main", model.VERIFIED, f"2026-11-{day}T04:00:00+00:00", data)
    catalog.write_note(repository, note, names.new_id(START, os.urandom(4)))


@pytest.fixture
def two(cli: Cli) -> Cli:
    """Two locations, one cluster, a repository."""
    cli.write_config("one", "two", more=f"clusters: {{main: {{data_directory: {cli.place}/pg, connection: dbname=x}}}}")
    assert cli("init").code == 0
    return cli


def test_nothing_yet(two: Cli) -> None:
    result = two("list")
    assert (result.code, result.out) == (0, "There are no backups.\n")
    assert two("list", "main", "--json").json["backups"] == []
    result = two("status", "--json")
    assert result.code == 0
    assert result.json["attention"] == ["source main: there is no backup yet"]
    assert "there is no backup yet" in two("status").out


def test_a_restore_is_shown_beside_a_newer_look_at_the_content(two: Cli) -> None:
    made = backup(two)
    verify(two, made, level="restore", result="ok", day=21)
    verify(two, made, level="content", result="ok", day=22)
    [found] = two("list", "--json").json["backups"]
    assert (found["verified"]["level"], found["verified"]["at"][:10]) == ("content", "2026-11-22")
    assert (found["restored"]["level"], found["restored"]["at"][:10]) == ("restore", "2026-11-21")
    assert "  content, restore  " in two("list").out
    verify(two, made, level="content", result="damaged", day=23, locations={"one": "damaged", "two": "ok"})
    [found] = two("list", "--json").json["backups"]
    assert (found["verified"]["result"], found["restored"]) == ("damaged", None)
    assert "  content: damaged  " in two("list").out


def test_a_backup_that_a_location_lacks_is_degraded_until_it_has_it(two: Cli) -> None:
    made = backup(two)
    manifest = two.place / "two" / names.manifest("main", made)
    content = manifest.read_bytes()
    manifest.unlink()
    for words in (("list",), ("status",), ("info", made)):
        assert "degraded" in two(*words).out, words
    [found] = two("list", "--json").json["backups"]
    assert (found["status"], found["locations"]) == ("degraded", ["one"])
    assert "is degraded" in two("status", "--json").json["attention"][0]
    # Of a location that does not answer nobody can say what it lacks.
    (two.place / "two").rename(two.place / "away")
    assert two("list", "--json").json["backups"][0]["status"] == "ok"
    (two.place / "away").rename(two.place / "two")
    manifest.write_bytes(content)
    assert two("list", "--json").json["backups"][0]["status"] == "ok"


def test_list(two: Cli) -> None:
    first = backup(two, label="before the upgrade")
    second = backup(two, started=START + dt.timedelta(hours=6))
    other = backup(two, "another-host", started=START + dt.timedelta(hours=3))
    verify(two, first, level="content", result="ok")
    result = two("list", "--json")
    assert result.code == 0
    found = result.json["backups"]
    assert [each["backup_id"] for each in found] == [first, other, second]
    assert found[0]["type"] == "full"
    assert found[0]["parent"] is None
    assert found[0]["label"] == "before the upgrade"
    assert found[0]["status"] == "ok"
    assert found[0]["started_at"] == "2026-11-20T01:00:00.000000+00:00"
    assert found[0]["finished_at"] == "2026-11-20T01:02:00.000000+00:00"
    assert found[0]["bytes_source"] == 5000
    assert found[0]["bytes_stored"] > 5000
    assert found[0]["locations"] == ["one", "two"]
    assert found[0]["pinned"] is False
    assert found[0]["verified"] == {"at": "2026-11-21T04:00:00+00:00", "level": "content", "result": "ok"}
    assert (found[2]["type"], found[2]["parent"], found[2]["bytes_stored"]) == ("incremental", first, 0)
    assert found[2]["verified"] is None
    assert [each["backup_id"] for each in two("list", "main", "--json").json["backups"]] == [first, second]


def test_list_for_people(two: Cli) -> None:
    first = backup(two)
    second = backup(two, started=START + dt.timedelta(hours=6))
    verify(two, second, level="restore", result="failed")
    lines = two("list", env={"TZ": "Asia/Tokyo"}).out.splitlines()
    assert len(lines) == 3
    header = ["BACKUP", "SOURCE", "TYPE", "FINISHED", "SIZE", "STORED", "STATUS", "VERIFIED", "LOCATIONS"]
    assert lines[0].split() == header
    assert lines[1].startswith(f"{first}  main    full         2026-11-20T10:02:00+09:00  4.9 KiB")
    assert lines[2].startswith(f"{second}  main    incremental  2026-11-20T16:02:00+09:00")
    assert "restore: failed" in lines[2]
    assert lines[2].endswith("one,two")


def test_list_of_an_unknown_source(two: Cli) -> None:
    result = two("list", "mian", "--json")
    assert result.code == 2
    assert result.error["id"] == "unknown-source"
    assert "main" in result.error["hint"]
    assert two("list", "../x").code == 1


def test_info(two: Cli) -> None:
    first = backup(two)
    second = backup(two, started=START + dt.timedelta(hours=6), status="damaged", label="x")
    result = two("info", second, "--json")
    assert result.code == 0
    found = result.json
    assert found["backup_id"] == second
    assert found["seconds"] == 120.0
    assert found["damage"] == [{"path": "base/1/1259", "blocks": [7, 9]}]
    assert found["postgres"]["system_identifier"] == "7440000000000000001"
    assert found["postgres"]["databases"][1] == {"oid": 16385, "name": "app"}
    assert found["packs"]["own"] == {"count": 0, "bytes": 0, "bytes_live": 0}
    assert found["packs"]["of_earlier_backups"]["count"] == 1
    assert found["packs"]["of_earlier_backups"]["backups"] == [first]
    assert found["packs"]["of_earlier_backups"]["bytes_live"] == 5000
    assert found["change_detection"]["method"] == "page-lsn"
    text = two("info", second).out
    assert "PostgreSQL    17.5, system identifier 7440000000000000001" in text
    assert "0/2000028 to 0/2000120, timeline 3" in text
    assert "base/1/1259: blocks 7, 9" in text
    assert "/srv/fast" in text
    assert f"incremental, parent {first}" in text


def test_info_by_a_part_of_the_id(two: Cli) -> None:
    first = backup(two)
    second = backup(two, started=START + dt.timedelta(hours=6))
    assert two("info", first[-8:], "--json").json["backup_id"] == first
    assert two("info", second[:12], "--json").json["backup_id"] == second
    assert two("info", "--latest", "main", "--json").json["backup_id"] == second
    assert two("info", "20261120", "--json").error["id"] == "ambiguous-backup"
    assert two("info", "19990101", "--json").error["id"] == "no-such-backup"
    assert two("info", "--latest", "mian", "--json").error["id"] == "unknown-source"


def test_info_of_the_latest_when_there_is_none(two: Cli) -> None:
    error = two("info", "--latest", "main", "--json").error
    assert error["id"] == "no-such-backup"
    assert "cryobackup backup main" in error["hint"]


def test_status(two: Cli) -> None:
    first = backup(two)
    second = backup(two, started=START + dt.timedelta(hours=6))
    verify(two, first, level="content", result="ok")
    verify(two, second, level="presence", result="ok")
    result = two("status", "--json")
    assert result.code == 0
    source = result.json["sources"]["main"]
    assert source["backups"] == 2
    assert source["newest"]["backup_id"] == second
    assert source["newest_age_seconds"] > 0
    assert source["newest_verified"]["backup_id"] == first
    assert source["running"] == []
    assert result.json["attention"] == []
    assert list(result.json["locations"]) == ["one", "two"]
    one = result.json["locations"]["one"]
    assert (one["ok"], one["backups"], one["backups_missing"], one["required"]) == (True, 2, 0, True)
    assert one["bytes_free"] > 0
    assert one["where"] == f"{two.place}/one"
    assert second in two("status").out


def test_status_while_a_backup_runs(two: Cli) -> None:
    with session(two, "main", START) as running:
        [found] = two("status", "--json").json["sources"]["main"]["running"]
        assert found["backup_id"] == running.backup_id
        assert found["locations"] == ["one", "two"]
        assert running.backup_id in two("status").out
    assert two("status", "--json").json["sources"]["main"]["running"] == []


def test_status_after_a_backup_whose_lease_could_not_be_taken_away(two: Cli) -> None:
    """A host that may only add leaves it behind."""
    backup_id = backup(two)
    repository = Repository.open(load_config(two.config).repository)
    with lease.lease_held(repository.keys, repository.locations[0], lease.new_lease("main", backup_id, None, START)):
        assert two("status", "--json").json["sources"]["main"]["running"] == []


@pytest.mark.parametrize("purpose", [model.RESTORING, model.REPLICATING])
def test_status_while_something_else_runs(two: Cli, purpose: str) -> None:
    """It is no backup, and not shown as one."""
    backup_id = backup(two)
    repository = Repository.open(load_config(two.config).repository)
    held = lease.new_lease("main", names.new_id(START, b"abcd"), backup_id, START, purpose=purpose)
    prune = lease.new_lease("prune", names.new_id(START, b"efgh"), None, START, purpose=model.PRUNING)
    here = repository.locations[0]
    with lease.lease_held(repository.keys, here, held), lease.lease_held(repository.keys, here, prune):
        result = two("status", "--json").json
        [found] = result["sources"]["main"]["running"]
        assert (found["purpose"], found["backup_id"]) == (purpose, backup_id)
        assert list(result["sources"]) == ["main"]
        assert f"{purpose} {backup_id}" in two("status").out


def test_status_says_how_far_a_location_is_behind(two: Cli) -> None:
    first = backup(two)
    second = backup(two, started=START + dt.timedelta(hours=6))
    (two.place / "two" / names.manifest("main", second)).unlink()
    for name, segments in (("one", (1, 2, 3)), ("two", (1,))):
        wal = two.place / name / "wal/7440000000000000001/00000003"
        wal.mkdir(parents=True)
        for number in segments:
            file = wal / f"0000000300000000{number:08X}"
            file.write_bytes(b"x" * 100)
            # What is young is on its way, and not missing.
            age = 10 if number == 3 else 1000
            os.utime(file, times=(time.time() - age, time.time() - age))
    locations = two("status", "--json").json["locations"]
    assert locations["one"]["lag"]["backups"] == []
    lag = locations["two"]["lag"]
    assert lag["backups"] == [second]
    assert lag["newest"] == {"main": {"backup_id": first, "anywhere": second}}
    assert lag["wal_files"] == 1
    assert lag["bytes"] == 100
    [timeline] = lag["wal"]["7440000000000000001"].values()
    assert timeline["newest"].endswith("01")
    assert timeline["newest_anywhere"].endswith("03")
    assert timeline["missing"] == 1
    assert locations["two"]["wal_missing_from"].endswith("02")
    assert "cryobackup replicate" in two("status").out


def test_status_names_what_needs_attention(two: Cli) -> None:
    newest = backup(two, status="damaged", started=dt.datetime.now(dt.UTC) + dt.timedelta(days=1))
    verify(two, newest, level="content", result="damaged")
    (two.place / "two" / names.manifest("main", newest)).unlink()
    attention = two("status", "--json").json["attention"]
    assert attention == [
        f"source main: the newest backup, {newest}, is damaged",
        f"source main: the newest backup, {newest}, did not pass its verification",
        "source main: no backup has been verified (level content or restore)",
        f"source main: the newest backup, {newest}, is dated in the future: compare the clocks",
        "location two: it lacks 1 backup",
        "location two: `cryobackup replicate` brings it what it lacks, 0 B and manifests",
    ]


@pytest.mark.parametrize("words", [["list"], ["status"], ["info", "--latest", "main"]])
def test_location_that_is_not_mounted(two: Cli, words: list[str]) -> None:
    """What one location shows may not be all: never an unqualified success."""
    backup_id = backup(two)
    (two.place / "two").rename(two.place / "elsewhere")
    result = two(*words, "--json")
    assert result.code == 3
    assert backup_id in result.out
    assert f"{two.place}/two is not there" in result.out
    assert two(*words).code == 3


def test_no_location_is_mounted(two: Cli) -> None:
    for name in ("one", "two"):
        (two.place / name).rename(two.place / f"{name}-elsewhere")
    for words in (["list"], ["status"], ["info", "x"]):
        result = two(*words, "--json")
        assert result.code == 1
        assert result.error["id"] == "location"


def test_damaged_manifest(two: Cli) -> None:
    """Damaged in one location, it is read from the other; in both, it is named and the others still show."""
    first = backup(two)
    second = backup(two, started=START + dt.timedelta(hours=6))
    name = names.manifest("main", first)
    damage(two, "one", name)
    result = two("list", "--json")
    assert [each["backup_id"] for each in result.json["backups"]] == [first, second]
    damage(two, "two", name)
    result = two("list", "--json")
    assert result.code == 4
    assert [each["backup_id"] for each in result.json["backups"]] == [second]
    assert [each["name"] for each in result.json["unreadable"]] == [name]
    assert any(name in each for each in result.json["warnings"])
    assert f"warning: {name} cannot be read" in two("list").err
    status = two("status", "--json")
    assert status.code == 4
    assert any(name in each for each in status.json["attention"])


def damage(cli: Cli, location: str, name: str) -> None:
    path = cli.place / location / name
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(100)
        byte = file.read(1)
        file.seek(100)
        file.write(bytes([byte[0] ^ 1]))
