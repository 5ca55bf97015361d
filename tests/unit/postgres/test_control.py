# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import calendar
import collections.abc
import contextlib
import struct
import subprocess
import threading
import time
from pathlib import Path

import pytest

from cryobackup.errors import SourceError
from cryobackup.postgres import control
from cryobackup.postgres.control import ControlFile
from cryobackup.postgres.lsn import format_lsn, parse_lsn
from cryobackup.postgres.wal import segment_names

from .conftest import SEGMENT_SIZE, Cluster, clone, init, own, run

# offsetof() of the fields, as a C compiler gave them for the structures of PostgreSQL 13 to 17.
OFFSETS_13 = {
    "system_identifier": 0,
    "state": 16,
    "modified_at": 24,
    "checkpoint_lsn": 32,
    "redo_lsn": 40,
    "full_page_writes": 56,
    "next_oid": 72,
    "checkpoint_at": 104,
    "oldest_active_xid": 120,
    "unlogged_lsn": 128,
    "min_recovery_lsn": 136,
    "backup_end_required": 168,
    "wal_level": 172,
    "track_commit_timestamp": 200,
    "max_align": 204,
    "float_format": 208,
    "block_size": 216,
    "wal_segment_size": 228,
    "checksum_version": 252,
    "mock_authentication_nonce": 256,
}
OFFSETS_18 = {**OFFSETS_13, "default_char_signedness": 256, "mock_authentication_nonce": 257}
OFFSETS = {1300: (OFFSETS_13, 288), 1700: (OFFSETS_13, 288), 1800: (OFFSETS_18, 292)}


def reported(data: Path) -> dict[str, str]:
    lines = (line.partition(":") for line in run("pg_controldata", "-D", data).splitlines())
    return {key: value.strip() for key, _unused, value in lines}


def on_off(value: bool) -> str:
    return "on" if value else "off"


def controldata_time(seconds: int) -> str:
    return time.strftime("%a %b %e %H:%M:%S %Y", time.gmtime(seconds))


def as_reported(control_file: ControlFile) -> dict[str, str]:
    """What pg_controldata would say, from our reading."""
    c = control_file
    return {
        "pg_control version number": str(c.control_version),
        "Catalog version number": str(c.catalog_version),
        "Database system identifier": str(c.system_identifier),
        "Database cluster state": c.state,
        "pg_control last modified": controldata_time(c.modified_at),
        "Latest checkpoint location": format_lsn(c.checkpoint_lsn),
        "Latest checkpoint's REDO location": format_lsn(c.redo_lsn),
        "Latest checkpoint's TimeLineID": str(c.timeline),
        "Latest checkpoint's PrevTimeLineID": str(c.previous_timeline),
        "Latest checkpoint's full_page_writes": on_off(c.full_page_writes),
        "Latest checkpoint's NextXID": f"{c.next_full_xid >> 32}:{c.next_full_xid & 0xFFFFFFFF}",
        "Latest checkpoint's NextOID": str(c.next_oid),
        "Latest checkpoint's NextMultiXactId": str(c.next_multi_xid),
        "Latest checkpoint's NextMultiOffset": str(c.next_multi_offset),
        "Latest checkpoint's oldestXID": str(c.oldest_xid),
        "Latest checkpoint's oldestMultiXid": str(c.oldest_multi_xid),
        "Time of latest checkpoint": controldata_time(c.checkpoint_at),
        "Fake LSN counter for unlogged rels": format_lsn(c.unlogged_lsn),
        "Minimum recovery ending location": format_lsn(c.min_recovery_lsn),
        "Min recovery ending loc's timeline": str(c.min_recovery_timeline),
        "Backup start location": format_lsn(c.backup_start_lsn),
        "Backup end location": format_lsn(c.backup_end_lsn),
        "End-of-backup record required": "yes" if c.backup_end_required else "no",
        "wal_level setting": c.wal_level,
        "wal_log_hints setting": on_off(c.wal_log_hints),
        "max_connections setting": str(c.max_connections),
        "max_worker_processes setting": str(c.max_worker_processes),
        "max_wal_senders setting": str(c.max_wal_senders),
        "max_prepared_xacts setting": str(c.max_prepared_transactions),
        "max_locks_per_xact setting": str(c.max_locks_per_transaction),
        "track_commit_timestamp setting": on_off(c.track_commit_timestamp),
        "Database block size": str(c.block_size),
        "Blocks per segment of large relation": str(c.relation_segment_blocks),
        "WAL block size": str(c.wal_block_size),
        "Bytes per WAL segment": str(c.wal_segment_size),
        "Data page checksum version": str(c.checksum_version),
    }


def check_against_pg_controldata(data: Path) -> ControlFile:
    ours = control.read_control(data / "global/pg_control")
    theirs = reported(data)
    expected = as_reported(ours)
    assert {key: theirs[key] for key in expected} == expected
    return ours


def test_a_running_cluster(server: Cluster) -> None:
    ours = check_against_pg_controldata(server.data)
    assert ours.state == "in production"
    assert ours.postgres_major == server.one("SELECT current_setting('server_version_num')::int / 10000")
    assert ours.has_checksums
    assert not ours.checkpoint_invalidated


def test_unusual_settings(roots: collections.abc.Callable[[], Path]) -> None:
    root = roots()
    without_checksums = ["--no-data-checksums"] if "no-data-checksums" in run("initdb", "--help") else []
    cluster = init(root, "--wal-segsize=64", *without_checksums)
    assert not check_against_pg_controldata(cluster.data).has_checksums
    cluster.start(
        wal_level="logical",
        wal_log_hints="on",
        max_connections="23",
        max_worker_processes="5",
        max_wal_senders="3",
        max_prepared_transactions="7",
        max_locks_per_transaction="99",
        track_commit_timestamp="on",
        full_page_writes="off",
    )
    cluster.sql("CREATE UNLOGGED TABLE t (p point)", "CREATE INDEX ON t USING gist (p)", "CHECKPOINT")
    ours = check_against_pg_controldata(cluster.data)
    assert (ours.wal_level, ours.max_locks_per_transaction, ours.wal_segment_size) == ("logical", 99, 64 << 20)
    cluster.stop()
    assert check_against_pg_controldata(cluster.data).state == "shut down"


def test_a_standby(template: Cluster, roots: collections.abc.Callable[[], Path]) -> None:
    standby = clone(template, roots())
    standby.data.joinpath("standby.signal").touch()
    standby.launch()
    standby.wait_until("SELECT pg_is_in_recovery()")
    assert check_against_pg_controldata(standby.data).state == "in archive recovery"
    standby.stop()
    ours = check_against_pg_controldata(standby.data)
    assert ours.state == "shut down in recovery"
    assert ours.min_recovery_lsn > 0


@pytest.mark.parametrize("version", OFFSETS)
def test_offsets_of_every_release(version: int) -> None:
    layout = control._LAYOUTS[version]
    expected, crc = OFFSETS[version]
    assert {name: layout.offsets[name][0] for name in expected} == expected
    assert layout.crc == crc


def made_for(data: bytes, version: int, catalog: int) -> bytes:
    """The contents of ``data`` as another release would write them, where nothing moved."""
    layout = control._LAYOUTS[version]
    changed = bytearray(data)
    struct.pack_into("<II", changed, 8, version, catalog)
    struct.pack_into("<I", changed, layout.crc, control._crc32c(bytes(changed[: layout.crc])))
    return bytes(changed)


@pytest.mark.parametrize(
    ("version", "catalog", "major"),
    [
        (1300, 202007201, 13),
        (1300, 202107181, 14),
        (1300, 202209061, 15),
        (1300, 202307071, 16),
        (1700, 202406281, 17),
        (1800, 202506291, 18),
        (1800, 202507011, None),
    ],
)
def test_every_release_is_told_apart(template: Cluster, version: int, catalog: int, major: int | None) -> None:
    data = (template.data / "global/pg_control").read_bytes()
    ours = control.parse_control(made_for(data, version, catalog))
    assert ours.postgres_major == major
    assert ours.wal_segment_size == 1 << 20


@pytest.mark.parametrize(
    ("damage", "id", "words"),
    [
        (lambda data: data[:-1], "control-size", "8191 bytes"),
        (lambda data: b"", "control-size", "0 bytes"),
        (lambda data: data[:33] + bytes([data[33] ^ 1]) + data[34:], "control-crc", "CRC"),
        (lambda data: data[:8] + struct.pack("<I", 2100) + data[12:], "control-version", "version 2100"),
        (lambda data: data[:8] + struct.pack("<I", 1201) + data[12:], "control-version", "version 1201"),
        (lambda data: data[:8] + struct.pack(">I", 1300) + data[12:], "control-version", "byte order"),
    ],
)
def test_damage_is_told_precisely(
    template: Cluster, damage: collections.abc.Callable[[bytes], bytes], id: str, words: str
) -> None:
    data = (template.data / "global/pg_control").read_bytes()
    with pytest.raises(SourceError, match=words) as failure:
        control.parse_control(damage(data))
    assert failure.value.id == id
    assert failure.value.hint


def test_what_follows_the_crc_does_not_matter(template: Cluster) -> None:
    data = (template.data / "global/pg_control").read_bytes()
    assert control.parse_control(data[:-1] + b"x") == control.parse_control(data)


def test_a_torn_read_is_repeated_until_the_file_is_whole(template: Cluster, tmp_path: Path) -> None:
    data = (template.data / "global/pg_control").read_bytes()
    torn = data[:100] + bytes(412) + data[512:]
    path = tmp_path / "pg_control"
    path.write_bytes(torn)
    pauses: list[float] = []

    def heal(pause: float) -> None:
        pauses.append(pause)
        if len(pauses) == 3:
            path.write_bytes(data)

    assert control.read_control_bytes(path, pause=0.25, sleep=heal) == data
    assert pauses == [0.25] * 3

    path.write_bytes(torn)
    pauses = [0.0] * 10
    with pytest.raises(SourceError, match="CRC"):
        control.read_control(path, attempts=4, sleep=heal)
    assert len(pauses) == 13


def test_a_server_that_writes_all_the_time_is_read(server: Cluster) -> None:
    path = server.data / "global/pg_control"
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.append(control.read_control(path, attempts=50, pause=0.001).checkpoint_lsn)

    seen: list[int] = []
    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _unused in range(20):
            server.sql("SELECT pg_switch_wal()", "CHECKPOINT")
    finally:
        done.set()
        reader.join()
    assert seen == sorted(seen)
    assert len(set(seen)) > 1


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist") as failure:
        control.read_control(tmp_path / "pg_control")
    assert failure.value.id == "control-missing"
    with pytest.raises(SourceError, match="cannot be read") as failure:
        control.read_control(tmp_path)
    assert failure.value.id == "control-unreadable"


LEFT_OUT = frozenset({"pg_wal", "postmaster.pid", "postmaster.opts"})


def low_level_copy(source: Cluster, copy: Cluster) -> str:
    """Copy a running cluster between the start and the stop of a backup, with the WAL; the backup_label."""
    start, stop = source.backup_functions()
    with contextlib.closing(source.connect()) as session, session.cursor() as cursor:
        cursor.execute(start, ("copy",))
        ((start_lsn,),) = cursor.fetchall()
        copy.data.mkdir(mode=0o700)
        # What lies in pg_wal comes and goes meanwhile.
        copied = [str(path) for path in source.data.iterdir() if path.name not in LEFT_OUT]
        subprocess.run(["cp", "-a", *copied, str(copy.data)], check=True)
        cursor.execute(stop)
        ((stop_lsn, label, _unused),) = cursor.fetchall()
    (copy.data / "pg_wal/archive_status").mkdir(parents=True)
    for path in (copy.data, copy.data / "pg_wal", copy.data / "pg_wal/archive_status"):
        own(path)
    for name in segment_names(1, parse_lsn(start_lsn), parse_lsn(stop_lsn), SEGMENT_SIZE):
        subprocess.run(["cp", "-a", str(source.root / "archive" / name), str(copy.data / "pg_wal")], check=True)
    return str(label)


def test_with_an_invalidated_checkpoint_a_copy_starts_from_its_label_only(
    server: Cluster, roots: collections.abc.Callable[[], Path]
) -> None:
    copy = Cluster(roots())
    label = low_level_copy(server, copy)
    path = copy.data / "global/pg_control"
    original = path.read_bytes()
    path.write_bytes(control.invalidate_checkpoint(original))
    settings = {"unix_socket_directories": str(copy.root), "archive_command": "true"}

    assert reported(copy.data)["Latest checkpoint location"] == "0/DEAD"
    copy.launch(**settings)
    assert copy.wait() != 0
    assert "could not locate a valid checkpoint record" in copy.log
    assert control.read_control(path).checkpoint_invalidated

    (copy.data / "backup_label").write_text(label)
    own(copy.data / "backup_label")
    copy.start(**settings)
    assert copy.one("SELECT count(*) FROM rows") == server.one("SELECT count(*) FROM rows")
    assert not control.read_control(path).checkpoint_invalidated
    copy.stop()


def test_invalidating_changes_the_checkpoint_and_nothing_else(template: Cluster) -> None:
    data = (template.data / "global/pg_control").read_bytes()
    invalid = control.invalidate_checkpoint(data)
    changed = {at for at in range(len(data)) if data[at] != invalid[at]}
    assert changed <= {*range(32, 40), *range(288, 296)}
    assert control.invalidate_checkpoint(invalid) == invalid
    before, after = control.parse_control(data), control.parse_control(invalid)
    assert after.checkpoint_lsn == control.INVALID_CHECKPOINT_LSN
    assert after.redo_lsn == before.redo_lsn
    with pytest.raises(SourceError, match="CRC"):
        control.invalidate_checkpoint(data[:40] + b"x" + data[41:])


def test_times_are_seconds_since_1970(server: Cluster) -> None:
    ours = control.read_control(server.data / "global/pg_control")
    epoch = server.one("SELECT extract(epoch FROM checkpoint_time)::bigint FROM pg_control_checkpoint()")
    assert abs(ours.checkpoint_at - epoch) < calendar.timegm((1970, 1, 1, 1, 0, 0))
