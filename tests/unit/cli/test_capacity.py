# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``capacity``: every byte that lies there is counted, under what it is, and what goes on is told from what was."""

from __future__ import annotations

import datetime as dt
import os
import typing as t
from pathlib import Path

import pytest

from cryobackup.config import load_config
from cryobackup.repository import extents, model, names
from cryobackup.repository.repository import Repository
from cryobackup.repository.session import BackupSession
from cryobackup.storage.base import put

from .conftest import Cli

SYSTEM = 7440000000000000001
NOW = dt.datetime.now(dt.UTC)
MB = 1 << 20


def backup(cli: Cli, days_ago: float, size: int = 64 << 10, source: str = "main", wal_start: int = 1) -> str:
    """A full backup of one file of random bytes, which holds twice as much as it stores."""
    started = NOW - dt.timedelta(days=days_ago)
    repository = Repository.open(load_config(cli.config).repository)
    with BackupSession(repository, source=source, parent=None, now=started, spool=cli.place) as made:
        data = os.urandom(size)
        sink = made.packs.sink()
        reference = sink.store(data)
        sink.close()
        where = extents.build([(0, len(data), reference.pack, reference.frame, 0, b"0" * 16)])
        made.add(model.Entry(b"base/1/1259", model.FILE, 0o600, 0, 0, len(data)), where)
        made.commit(
            model.BackupHeader(
                backup_id=made.backup_id,
                source=source,
                kind=model.FULL,
                parent=None,
                status="ok",
                label="",
                started_at=started.isoformat(timespec="microseconds"),
                finished_at=(started + dt.timedelta(minutes=2)).isoformat(timespec="microseconds"),
                host="db1",
                tool_version="0.1.0",
                postgres=postgres(wal_start),
                change_detection={"method": "full"},
                totals=model.Totals(files=1, bytes_source=2 * size, bytes_read=size),
            )
        )
        backup_id = made.backup_id
    at = started.timestamp()
    for location in load_config(cli.config).repository.locations.values():
        assert location.path is not None
        for key in (names.manifest(source, backup_id), names.pack(backup_id, 0)):
            os.utime(location.path / key, (at, at))
    return backup_id


def postgres(wal_start: int) -> model.PostgresInfo:
    segment = f"00000001000000000000{wal_start:04X}"
    return model.PostgresInfo(
        system_identifier=str(SYSTEM),
        version=170005,
        timeline=1,
        start_lsn="0/2000028",
        stop_lsn="0/2000120",
        checkpoint_lsn="0/2000060",
        wal_start=segment,
        wal_stop=segment,
        wal_segment_size=16 << 20,
        block_size=8192,
        segment_blocks=131072,
        page_checksums=True,
        from_standby=False,
        data_directory="/pg",
        next_oid=24576,
    )


def archive(cli: Cli, number: int, days_ago: float, size: int = 1000) -> None:
    """One object where WAL lies; what is in it does not matter to whoever counts."""
    key = names.wal(SYSTEM, f"00000001000000000000{number:04X}")
    at = (NOW - dt.timedelta(days=days_ago)).timestamp()
    for location in Repository.open(load_config(cli.config).repository).locations:
        put(location, key, os.urandom(size))
    for configured in load_config(cli.config).repository.locations.values():
        assert configured.path is not None
        os.utime(configured.path / key, (at, at))


def lying_there(directory: Path) -> tuple[int, int]:
    files = [path for path in directory.rglob("*") if path.is_file() and path.name != "repository.json"]
    return len(files), sum(path.stat().st_size for path in files)


def configure(cli: Cli, more: str = "", *, one: str = "") -> None:
    text = f"""\
repository:
  locations:
    one: {{type: posix, path: {cli.place}/one{one}}}
    two: {{type: posix, path: {cli.place}/two, required: false}}
  keys: {cli.keys}
clusters: {{main: {{data_directory: {cli.place}/pg, connection: dbname=x}}}}
state_directory: {cli.place}/state
{more}
"""
    cli.config.write_text(text)


@pytest.fixture
def site(cli: Cli) -> Cli:
    configure(cli)
    assert cli("init").code == 0
    return cli


def capacity(cli: Cli) -> dict[str, t.Any]:
    result = cli("capacity", "--json")
    assert result.code == 0, result.err
    return result.json


def test_nothing_yet(site: Cli) -> None:
    found = capacity(site)
    assert found["sources"] == {}
    one = found["locations"]["one"]
    assert (one["ok"], one["packs"]["bytes"], one["ratio"], one["bytes_prunable"]) == (True, 0, None, 0)
    assert one["forecast"]["state"] == "unknown"
    assert "less than a day" in one["forecast"]["reason"]
    assert "unknown: there is less than a day of history" in site("capacity").out


def test_every_byte_is_counted(site: Cli) -> None:
    for days in range(4):
        backup(site, days)
    archive(site, 1, 3)
    archive(site, 2, 0, 500)
    found = capacity(site)
    objects, size = lying_there(site.place / "one")
    one = found["locations"]["one"]
    assert (one["objects"], one["bytes_used"]) == (objects, size)
    assert one["wal"] == {"objects": 2, "bytes": 1500}
    assert one["packs"]["objects"] == 4
    assert 1.9 < one["ratio"] < 2.0
    main = found["sources"]["main"]
    assert main["kinds"]["full"]["backups"] == 4
    assert main["bytes_source"] == 4 * 2 * (64 << 10)
    assert main["bytes_stored"] == one["packs"]["bytes"]
    stat = os.statvfs(site.place)
    assert one["bytes_total"] == stat.f_blocks * stat.f_frsize
    assert one["bytes_room"] == one["bytes_free"]
    assert one["costs"] is None
    text = site("capacity").out
    assert "main    full        4  512.0 KiB" in text
    assert "COSTS" not in text


def test_growth_and_the_day_it_is_full(site: Cli) -> None:
    """Four daily backups of 64 KiB and a quota of 2 MiB: without rules it takes 28 more."""
    for days in range(4):
        backup(site, days)
    configure(site, one=", quota: 2MB")
    one = capacity(site)["locations"]["one"]
    written = one["bytes_written_per_day"]
    assert (64 << 10) <= written < (66 << 10)
    assert written * 0.95 <= one["bytes_growth_per_day"] <= written * 1.05
    assert one["quota"] == 2 * MB
    assert one["bytes_room"] == 2 * MB - one["bytes_used"]
    forecast = one["forecast"]
    assert forecast["state"] == "fills"
    days = (dt.datetime.fromisoformat(forecast["full_at"]) - NOW).days
    assert 26 <= days <= 35
    assert 26 <= (dt.datetime.fromisoformat(forecast["full_at_without_prune"]) - NOW).days <= 29
    two = capacity(site)["locations"]["two"]
    assert two["forecast"]["state"] == "does-not-fill"
    assert forecast["full_at"][:10] in site("capacity").out


def test_a_location_that_was_seeded_lately_grows_as_the_others_do(site: Cli) -> None:
    """`replicate` brought it at once the WAL of three weeks: as much will not come every day."""
    for days in range(4):
        backup(site, days)
    for days in range(21):
        archive(site, 100 - days, days, size=100 << 10)
    two = load_config(site.config).repository.locations["two"].path
    assert two is not None
    lately = (NOW - dt.timedelta(hours=2)).timestamp()
    for path in two.rglob("wal/*/*/*"):
        os.utime(path, (lately, lately))
    prices = "put_1000: 1000"
    configure(site, one=f", prices: {{{prices}}}")
    text = site.config.read_text()
    site.config.write_text(text.replace("required: false", f"required: false, prices: {{{prices}}}"))
    found = capacity(site)["locations"]
    written = found["two"]["bytes_written_per_day"]
    assert written == found["one"]["bytes_written_per_day"]
    assert (164 << 10) * 0.9 < written < (164 << 10) * 1.1
    assert found["two"]["bytes_growth_per_day"] < written * 1.1
    assert found["two"]["costs"]["requests_month"] == pytest.approx(found["one"]["costs"]["requests_month"])
    # Where nobody has seen more, it tells what it can.
    (site.place / "one").rename(site.place / "away")
    assert site("capacity", "--json").json["locations"]["two"]["bytes_written_per_day"] > 4 * written


def test_rules_hold_it(site: Cli) -> None:
    for days in range(10):
        backup(site, days)
    configure(site, "retention: {full: {keep_within: 9d}, minimum: 1, grace: 0}", one=", quota: 2MB")
    one = capacity(site)["locations"]["one"]
    assert one["forecast"]["state"] == "does-not-fill"
    assert one["forecast"]["full_at"] is None
    assert one["forecast"]["full_at_without_prune"] is not None
    assert one["bytes_prunable"] == 0
    assert "not before" in site("capacity").out


def test_what_prune_takes_away_is_what_was_foretold(site: Cli) -> None:
    for days in range(10):
        backup(site, days, wal_start=20 - days)
    for number in range(1, 21):
        archive(site, number, (20 - number) / 2)
    (site.place / "one/packs/20200101T000000Z-00000000").mkdir()
    (site.place / "one/packs/20200101T000000Z-00000000/000000.pack").write_bytes(b"x" * 5000)
    configure(site, "retention: {full: {keep_within: 3d}, minimum: 1, max_delete_share: 1}")
    foretold = capacity(site)["locations"]["one"]["bytes_prunable"]
    before = lying_there(site.place / "one")[1]
    assert site("prune", "--grace", "0").code == 0
    after = lying_there(site.place / "one")[1]
    assert foretold == before - after > 4 * (64 << 10)
    assert capacity(site)["locations"]["one"]["bytes_prunable"] == 0


def test_a_quota_that_is_used_up(site: Cli) -> None:
    backup(site, 2, size=2 * MB)
    configure(site, one=", quota: 1MB")
    found = capacity(site)
    assert found["locations"]["one"]["bytes_room"] == 0
    assert found["locations"]["one"]["forecast"]["state"] == "full"
    assert found["attention"] == ["location one: its quota is used up, or it is full"]


def test_costs(site: Cli) -> None:
    for days in range(4):
        backup(site, days)
    archive(site, 1, 6.9)
    configure(site, one=", prices: {storage_gb_month: 1000, put_1000: 1, get_1000: 0.5, egress_gb: 2000}")
    found = capacity(site)["locations"]
    assert found["two"]["costs"] is None
    costs, used = found["one"]["costs"], found["one"]["bytes_used"]
    assert costs["currency"] == "USD"
    assert costs["storage_month"] == pytest.approx(used / 10**9 * 1000, abs=0.001)
    # A backup a day: a pack and twelve small requests that write, as many that read. WAL: one file in a week.
    assert costs["requests_month"] == pytest.approx(
        30 * (13 * 1 + 13 * 0.5) / 1000 + 30 / 7 * (2 * 1 + 3 * 0.5) / 1000, abs=0.01
    )
    assert costs["month"] == pytest.approx(costs["storage_month"] + costs["requests_month"], abs=0.001)
    assert costs["restore"] == pytest.approx(2000 * (64 << 10) / 10**9, rel=0.3)
    assert "A RESTORE" in site("capacity").out


def test_a_location_that_does_not_answer(site: Cli) -> None:
    backup(site, 1)
    (site.place / "two").rename(site.place / "away")
    result = site("capacity", "--json")
    assert result.code == 3
    found = result.json
    assert found["locations"]["one"]["ok"] is True
    two = found["locations"]["two"]
    assert two["ok"] is False
    assert "bytes_used" not in two
    assert "is not there" in found["attention"][0]
    assert "lost" in site("capacity").out


def test_prune_names_what_it_does_and_nothing_else(site: Cli) -> None:
    backup(site, 3)
    backup(site, 2)
    configure(site, "retention: {full: {keep_last: 1}, minimum: 1, max_delete_share: 1}")
    (site.place / "two").rename(site.place / "away")
    last = site("prune", "--dry-run").out.splitlines()
    assert "location one: 2 objects would be marked, to be deleted after the grace" in last
    assert "location two: not pruned: " + f"{site.place}/two is not there" in last
    (site.place / "away").rename(site.place / "two")
    assert site("prune").code == 0
    assert "location one: 2 objects marked before, and waiting" in site("prune").out.splitlines()
    [line] = [each for each in site("prune", "--grace", "0").out.splitlines() if each.startswith("location one")]
    assert line.startswith("location one: 1 manifest, 1 pack deleted (")
    assert "location one: nothing to delete" in site("prune").out.splitlines()


def test_status_tells_when_the_next_full_backup_would_not_fit(site: Cli) -> None:
    backup(site, 1, size=2 * MB)
    configure(site, one=", quota: 5MB")
    one = site("status", "--json").json["locations"]["one"]
    assert (one["quota"], one["bytes_room"] < 3 * MB) == (5 * MB, True)
    assert not any("room" in text for text in site("status", "--json").json["attention"])
    configure(site, one=", quota: 3MB")
    found = site("status", "--json").json
    [text] = [text for text in found["attention"] if "room" in text]
    assert text.startswith("location one: there is room for ")
    assert text.endswith("and the newest full backup of main took 2.0 MiB")
    assert "LOCATION  STATE  BACKUPS" in site("status").out
