# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import collections.abc
import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryobackup.errors import SourceError
from cryobackup.postgres import backup_label, wal
from cryobackup.postgres.backup_label import BackupLabel, TablespaceLink
from cryobackup.postgres.lsn import parse_lsn

from .conftest import SEGMENT_SIZE, Cluster, clone, own

if TYPE_CHECKING:
    import psycopg2.extensions

LABEL = """\
START WAL LOCATION: 0/B00028 (file 00000001000000000000000B)
CHECKPOINT LOCATION: 0/B00060
BACKUP METHOD: streamed
BACKUP FROM: primary
START TIME: 2026-11-23 00:53:17 UTC
LABEL: nightly: the 3rd
START TIMELINE: 1
"""
PARSED = BackupLabel(
    start_lsn=0xB00028,
    start_segment="00000001000000000000000B",
    checkpoint_lsn=0xB00060,
    method="streamed",
    from_standby=False,
    start_time="2026-11-23 00:53:17 UTC",
    label="nightly: the 3rd",
    start_timeline=1,
)


class Backup:
    """What the server gave out for one backup."""

    def __init__(self, cluster: Cluster, label: str) -> None:
        start, stop = cluster.backup_functions()
        with contextlib.closing(cluster.connect()) as session, session.cursor() as cursor:
            cursor.execute(start, (label,))
            self.start_lsn = parse_lsn(self._row(cursor)[0])
            cursor.execute("CREATE TABLE IF NOT EXISTS during (i int)")
            cursor.execute(stop)
            stop_lsn, self.label_file, self.tablespace_map = self._row(cursor)
            self.stop_lsn = parse_lsn(stop_lsn)

    @staticmethod
    def _row(cursor: psycopg2.extensions.cursor) -> tuple[str, ...]:
        row = cursor.fetchone()
        assert row is not None
        return row


def test_what_the_server_gives_out(server: Cluster) -> None:
    backup = Backup(server, "with: colons, and ünïcode")
    parsed = backup_label.parse_backup_label(backup.label_file)
    assert parsed.start_lsn == backup.start_lsn
    assert parsed.start_segment == wal.segment_name_at(1, backup.start_lsn, SEGMENT_SIZE)
    assert parsed.start_lsn < parsed.checkpoint_lsn < backup.stop_lsn
    assert (parsed.method, parsed.from_standby, parsed.start_timeline) == ("streamed", False, 1)
    assert parsed.label == "with: colons, and ünïcode"
    assert parsed.start_time.endswith(" UTC")
    assert parsed.incremental_from_lsn is None
    assert backup.tablespace_map == ""


def test_the_backup_file_in_the_archive(server: Cluster) -> None:
    backup = Backup(server, "archived")
    start = wal.segment_name_at(1, backup.start_lsn, SEGMENT_SIZE)
    path = server.root / "archive" / f"{start}.{backup.start_lsn % SEGMENT_SIZE:08X}.backup"
    parsed = backup_label.parse_backup_history(path.read_text())
    assert parsed.start == backup_label.parse_backup_label(backup.label_file)
    assert parsed.stop_lsn == backup.stop_lsn
    assert parsed.stop_timeline == 1
    name = wal.parse_wal_name(path.name, segment_size=SEGMENT_SIZE)
    assert name.start_lsn(SEGMENT_SIZE) + (name.offset or 0) == backup.start_lsn
    *_unused, last = wal.segment_names(1, backup.start_lsn, backup.stop_lsn, SEGMENT_SIZE)
    assert parsed.stop_segment == last
    assert (server.root / "archive" / last).exists()


def test_an_example() -> None:
    assert backup_label.parse_backup_label(LABEL) == PARSED


def test_a_backup_from_a_standby() -> None:
    assert backup_label.parse_backup_label(LABEL.replace("primary", "standby")).from_standby


def test_an_incremental_backup_of_postgresql_17() -> None:
    text = LABEL + "INCREMENTAL FROM LSN: 0/A00028\nINCREMENTAL FROM TLI: 1\n"
    parsed = backup_label.parse_backup_label(text)
    assert (parsed.incremental_from_lsn, parsed.incremental_from_timeline) == (0xA00028, 1)


def test_positions_as_postgresql_19_prints_them() -> None:
    text = LABEL.replace("0/B00028", "0/00B00028").replace("0/B00060", "0/00B00060")
    assert backup_label.parse_backup_label(text) == PARSED


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("START WAL LOCATION", "START LOCATION"),
        ("0/B00028 (file", "0/B00028 (fil"),
        ("0/B00028", "0B00028"),
        ("0/B00028", "0/123456789"),
        ("file 0000000100", "file 0000000000"),
        ("CHECKPOINT LOCATION: 0/B00060\n", ""),
        ("0/B00060", "somewhere"),
        ("BACKUP METHOD: streamed\n", ""),
        ("BACKUP FROM: primary\n", ""),
        ("START TIMELINE: 1", "START TIMELINE: 2"),
        ("START TIMELINE: 1", "START TIMELINE: one"),
        ("START TIMELINE: 1\n", ""),
    ],
)
def test_what_recovery_would_stumble_over_is_refused(old: str, new: str) -> None:
    assert old in LABEL
    with pytest.raises(SourceError, match="backup_label is invalid") as failure:
        backup_label.parse_backup_label(LABEL.replace(old, new))
    assert failure.value.id == "backup-label-format"


def test_a_backup_label_is_no_backup_history() -> None:
    with pytest.raises(SourceError, match="STOP WAL LOCATION is missing"):
        backup_label.parse_backup_history(LABEL)


# tablespace_map

AWKWARD = ("plain", "with space", " leading", "back\\slash", "trailing\\", "new\nline", "carriage\rreturn", "\\\n", "ü")


def test_awkward_locations_are_read_as_the_server_writes_them(
    template: Cluster, roots: collections.abc.Callable[[], Path]
) -> None:
    cluster = clone(template, roots())
    cluster.start()
    # PostgreSQL 13 loses a backslash at the end: it escapes none, and the line goes on.
    names = [name for name in AWKWARD if cluster.major > 13 or not name.startswith(("trailing", "\\"))]
    locations = [cluster.root / name for name in names]
    try:
        for number, location in enumerate(locations):
            location.mkdir()
            own(location)
            with contextlib.closing(cluster.connect()) as session, session.cursor() as cursor:
                cursor.execute(f"CREATE TABLESPACE space{number} LOCATION %s", (str(location),))
        oids = dict(cluster.sql("SELECT spcname, oid FROM pg_tablespace"))
        text = Backup(cluster, "awkward").tablespace_map
    finally:
        cluster.stop()
    links = backup_label.parse_tablespace_map(text, postgres_major=cluster.major)
    expected = {TablespaceLink(oids[f"space{n}"], str(location)) for n, location in enumerate(locations)}
    assert set(links) == expected
    assert backup_label.format_tablespace_map(links, postgres_major=cluster.major) == text


@given(st.lists(st.builds(TablespaceLink, st.integers(1, 2**32 - 1), st.text(min_size=1))))
def test_what_is_written_reads_back(links: list[TablespaceLink]) -> None:
    text = backup_label.format_tablespace_map(links, postgres_major=14)
    assert backup_label.parse_tablespace_map(text, postgres_major=14) == tuple(links)


@given(st.text(st.sampled_from("ab\\\n\r "), min_size=1))
def test_backslashes_of_postgresql_13_are_only_special_before_line_ends(path: str) -> None:
    links = (TablespaceLink(16400, "/" + path + "end"),)
    text = backup_label.format_tablespace_map(links, postgres_major=13)
    if re.search(r"\\[\r\n]", path) is None:
        assert backup_label.parse_tablespace_map(text, postgres_major=13) == links


def test_line_ends_of_another_system() -> None:
    assert backup_label.parse_tablespace_map("16400 /a\r\n16401 /b\r\n", postgres_major=14) == (
        TablespaceLink(16400, "/a"),
        TablespaceLink(16401, "/b"),
    )


@pytest.mark.parametrize("text", ["16400 /a", "16400 /a\\", "16400\n", "16400 \n", " /a\n", "x /a\n", "16400 /a\\\n"])
def test_damaged_maps_are_refused(text: str) -> None:
    with pytest.raises(SourceError, match="tablespace_map is invalid") as failure:
        backup_label.parse_tablespace_map(text, postgres_major=15)
    assert failure.value.id == "tablespace-map-format"
