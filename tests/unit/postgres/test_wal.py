# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""WAL files of a cluster that was promoted three times, and what must be found wrong with them."""

from __future__ import annotations

import collections.abc
import os
import re
import shutil
import signal
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryobackup.errors import SourceError
from cryobackup.postgres import control, wal
from cryobackup.postgres.lsn import MAX_LSN, format_lsn, segment_offset
from cryobackup.postgres.timeline import TimelineHistory, TimelineSwitch, parse_history
from cryobackup.postgres.wal import WalKind, WalName

from .conftest import SEGMENT_SIZE, Cluster, clone, new_root, run

SEGMENT_SIZES = st.sampled_from([1 << power for power in range(20, 31)])
PAGE = 8192


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("0000000A0000000100000003", WalName(WalKind.SEGMENT, 10, 1, 3)),
        ("000000010000000000000005.partial", WalName(WalKind.PARTIAL, 1, 0, 5)),
        ("00000002.history", WalName(WalKind.HISTORY, 2)),
        ("000000010000000000000002.00000028.backup", WalName(WalKind.BACKUP, 1, 0, 2, 0x28)),
    ],
)
def test_names(text: str, name: WalName) -> None:
    assert wal.match_wal_name(text) == name
    assert str(name) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00000001000000000000000",
        "0000000100000000000000010",
        "0000000a0000000100000003",
        "000000000000000100000003",
        "00000000.history",
        "00000002.history.gz",
        "0000000100000000000000AG",
        "000000010000000000000005.PARTIAL",
        "000000010000000000000002.28.backup",
        "000000010000000000000002.backup",
        "000000010000000000000001\n",
        "/000000010000000000000001",
        "archive_status",
        "xlogtemp.123",
        "RECOVERYXLOG",
        "٠٠٠٠٠٠٠١.history",
    ],
)
def test_other_names_are_refused(text: str) -> None:
    assert wal.match_wal_name(text) is None
    with pytest.raises(SourceError, match="not the name of a WAL file") as failure:
        wal.parse_wal_name(text)
    assert failure.value.id == "wal-name"


@pytest.mark.parametrize(
    ("text", "size", "possible"),
    [
        ("0000000100000000000000FF", 16 << 20, True),
        ("000000010000000000000100", 16 << 20, False),
        ("000000010000000000000FFF", 1 << 20, True),
        ("000000010000000000001000", 1 << 20, False),
        ("000000010000000000000003", 1 << 30, True),
        ("000000010000000000000004.partial", 1 << 30, False),
        ("000000010000000000000003.000FFFFF.backup", 1 << 20, True),
        ("000000010000000000000003.00100000.backup", 1 << 20, False),
        ("00000009.history", 1 << 30, True),
    ],
)
def test_names_that_the_segment_size_makes_impossible_are_refused(text: str, size: int, possible: bool) -> None:
    assert wal.parse_wal_name(text).fits(size) is possible
    if possible:
        wal.parse_wal_name(text, segment_size=size)
    else:
        with pytest.raises(SourceError, match="cannot be a WAL file"):
            wal.parse_wal_name(text, segment_size=size)


@given(st.integers(1, 2**32 - 1), st.integers(0, MAX_LSN), SEGMENT_SIZES)
def test_a_segments_name_leads_back_to_it(timeline: int, lsn: int, size: int) -> None:
    name = wal.parse_wal_name(wal.segment_name_at(timeline, lsn, size), segment_size=size)
    assert name.timeline == timeline
    assert name.start_lsn(size) <= lsn < name.start_lsn(size) + size
    assert str(name) == wal.segment_name(timeline, name.number(size), size)


@pytest.mark.parametrize(
    ("start", "stop", "names"),
    [
        (0x100028, 0x100100, ["000000010000000000000001"]),
        (0x100028, 0x200000, ["000000010000000000000001"]),
        (0x100028, 0x200001, ["000000010000000000000001", "000000010000000000000002"]),
        (0x100000, 0x100000, ["000000010000000000000001"]),
        (0xFFF00028, 0x100000100, ["000000010000000000000FFF", "000000010000000100000000"]),
    ],
)
def test_the_segments_of_a_backup(start: int, stop: int, names: list[str]) -> None:
    assert list(wal.segment_names(1, start, stop, 1 << 20)) == names


def test_the_segments_of_a_backup_across_a_switch_of_timelines() -> None:
    history = TimelineHistory(3, (TimelineSwitch(1, 0x250000, ""), TimelineSwitch(2, 0x400000, "")))
    assert list(wal.history_segment_names(history, 0x100028, 0x500000, 1 << 20)) == [
        "000000010000000000000001",
        "000000020000000000000002",
        "000000020000000000000003",
        "000000030000000000000004",
    ]


def test_names_are_the_servers(server: Cluster) -> None:
    for lsn in (SEGMENT_SIZE + 1, (7 << 32) + 5 * SEGMENT_SIZE + 1, 2**63 + 1):
        assert wal.segment_name_at(1, lsn, SEGMENT_SIZE) == server.one(f"SELECT pg_walfile_name('{format_lsn(lsn)}')")


# Real promotions


class Lineage:
    """A cluster on timeline 4 and everything it archived on the way there."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.archive = cluster.root / "archive"
        self.system_identifier = control.read_control(cluster.data / "global/pg_control").system_identifier

    def history(self, timeline: int) -> TimelineHistory:
        if timeline == 1:
            return TimelineHistory(1)
        text = (self.cluster.data / "pg_wal" / wal.history_name(timeline)).read_text()
        return parse_history(text, timeline)

    def archived(self, *kinds: WalKind) -> list[tuple[WalName, Path]]:
        named = ((wal.parse_wal_name(path.name), path) for path in sorted(self.archive.iterdir()))
        return [(name, path) for name, path in named if name.kind in kinds]

    def first_segment(self, timeline: int) -> Path:
        switch = self.history(timeline).parents[-1].switch_lsn
        return self.archive / wal.segment_name_at(timeline, switch, SEGMENT_SIZE)


def promote(cluster: Cluster, *statements: str) -> None:
    """End the server like a crash, start it as a standby of nobody, promote it and run ``statements``."""
    cluster.stop(signal.SIGQUIT)
    (cluster.data / "standby.signal").touch()
    cluster.launch()
    cluster.wait_until("SELECT pg_is_in_recovery()")
    cluster.promote()
    cluster.sql(*statements)


@pytest.fixture(scope="module")
def lineage(template: Cluster) -> collections.abc.Iterator[Lineage]:
    """Left: timeline 1 some pages into a segment, 2 in the same segment, 3 on a segment's boundary."""
    cluster = clone(template, new_root())
    some_pages = "INSERT INTO t SELECT generate_series(1, 1000)"
    try:
        cluster.start(wal_recycle="on")
        cluster.sql("CREATE TABLE t (i int)", some_pages, "SELECT pg_switch_wal()", some_pages)
        promote(cluster, some_pages)
        promote(cluster, some_pages, "SELECT pg_switch_wal()", some_pages, "SELECT pg_switch_wal()")
        promote(cluster, some_pages, "CHECKPOINT", "SELECT pg_switch_wal()", some_pages)
        last = cluster.one("SELECT pg_walfile_name(pg_switch_wal())")
        cluster.wait_until(f"SELECT last_archived_wal >= '{last}' FROM pg_stat_archiver")
        cluster.stop()
        yield Lineage(cluster)
    finally:
        cluster.stop()
        shutil.rmtree(cluster.root)


def check(path: Path, lineage: Lineage, *, name: str | None = None, history: bool = True) -> wal.SegmentHeader:
    parsed = wal.parse_wal_name(name or path.name)
    with path.open("rb") as file:
        return wal.check_segment(
            file.read(wal.SEGMENT_HEADER_BYTES),
            path.stat().st_size,
            parsed,
            lineage.system_identifier,
            history=lineage.history(parsed.timeline) if history else None,
        )


def test_the_lineage_has_what_it_is_for(lineage: Lineage) -> None:
    switches = [parent.switch_lsn for parent in lineage.history(4).parents]
    assert len(switches) == 3
    assert switches[0] // SEGMENT_SIZE == switches[1] // SEGMENT_SIZE
    assert segment_offset(switches[0], SEGMENT_SIZE) > PAGE
    assert segment_offset(switches[2], SEGMENT_SIZE) == 0
    assert {name.timeline for name, _unused in lineage.archived(WalKind.SEGMENT)} == {1, 2, 3, 4} - {2}
    assert [str(name) for name, _unused in lineage.archived(WalKind.PARTIAL)] == [
        wal.segment_name_at(timeline, switches[0], SEGMENT_SIZE) + ".partial" for timeline in (1, 2)
    ]


def test_everything_archived_passes_with_and_without_the_history(lineage: Lineage) -> None:
    files = lineage.archived(WalKind.SEGMENT, WalKind.PARTIAL)
    assert len(files) > 5
    for _unused, path in files:
        header = check(path, lineage)
        assert header == check(path, lineage, history=False)
        assert header.postgres_major == control.read_control(lineage.cluster.data / "global/pg_control").postgres_major
        assert (header.segment_size, header.block_size) == (SEGMENT_SIZE, PAGE)


def test_the_first_segment_of_a_timeline_begins_with_a_copy_of_its_ancestors_pages(lineage: Lineage) -> None:
    # Timeline 3 was split off in the segment in which 2 had been, and where 1 had ended.
    path = lineage.first_segment(3)
    assert check(path, lineage).timeline == 1
    data = path.read_bytes()
    headers = [struct.unpack_from("<HHIQ", data, at) for at in range(0, len(data), PAGE)]
    written = [(tli, address) for magic, _unused, tli, address in headers if magic]
    assert sorted({tli for tli, _unused in written}) == [1, 2, 3]
    history = lineage.history(3)
    assert [tli for tli, _unused in written] == [history.timeline_at(address) for _unused, address in written]


def test_the_first_segment_after_a_switch_on_a_boundary_begins_with_the_new_timeline(lineage: Lineage) -> None:
    assert check(lineage.first_segment(4), lineage).timeline == 4


def test_headers_are_those_pg_waldump_sees(lineage: Lineage) -> None:
    for name, path in lineage.archived(WalKind.SEGMENT):
        report = run("pg_waldump", "--stats", "--timeline", str(name.timeline), path)
        start = re.search(r"from (\S+) to", report)
        if start is not None:
            high, _unused, low = start[1].partition("/")
            first_record = int(high, 16) << 32 | int(low, 16)
            assert check(path, lineage).start_lsn == first_record // SEGMENT_SIZE * SEGMENT_SIZE


def refused(path: Path, lineage: Lineage, id: str, *, name: str | None = None, history: bool = True) -> str:
    with pytest.raises(SourceError) as failure:
        check(path, lineage, name=name, history=history)
    assert failure.value.id == id
    assert failure.value.hint
    return failure.value.message


def test_renamed_segments_are_refused(lineage: Lineage) -> None:
    paths = [path for name, path in lineage.archived(WalKind.SEGMENT) if name.timeline == 3]
    earlier, later = paths[0], paths[1]
    assert "still holds" in refused(earlier, lineage, "wal-recycled", name=later.name)
    assert "but its name says" in refused(later, lineage, "wal-address", name=earlier.name)


def test_segments_of_another_timeline_are_refused(lineage: Lineage) -> None:
    boundary = lineage.first_segment(4)
    for timeline in (1, 2, 3):
        name = f"{timeline:08X}{boundary.name[8:]}"
        assert "timeline 4" in refused(boundary, lineage, "wal-timeline", name=name, history=False)
    # Timeline 1 ended before: its WAL under timeline 4's name comes from a server that was not promoted.
    stale = bytearray(boundary.read_bytes())
    struct.pack_into("<I", stale, 4, 1)
    path = lineage.archive.parent / boundary.name
    path.write_bytes(stale)
    assert "exactly 4" in refused(path, lineage, "wal-timeline")
    assert check(path, lineage, history=False).timeline == 1


def test_a_history_of_another_timeline_is_no_help(lineage: Lineage) -> None:
    path = lineage.first_segment(4)
    with pytest.raises(ValueError, match="says nothing"):
        wal.check_segment(
            path.read_bytes(),
            SEGMENT_SIZE,
            wal.parse_wal_name(path.name),
            lineage.system_identifier,
            history=TimelineHistory(3),
        )


def test_segments_of_another_cluster_are_refused(lineage: Lineage) -> None:
    path = lineage.first_segment(4)
    foreign = bytearray(path.read_bytes())
    struct.pack_into("<Q", foreign, 24, lineage.system_identifier + 1)
    copy = lineage.archive.parent / path.name
    copy.write_bytes(foreign)
    message = refused(copy, lineage, "wal-foreign")
    assert str(lineage.system_identifier) in message
    assert str(lineage.system_identifier + 1) in message


@pytest.mark.parametrize("change", [-1, -SEGMENT_SIZE // 2, 1, SEGMENT_SIZE])
def test_segments_of_the_wrong_size_are_refused(lineage: Lineage, change: int) -> None:
    path = lineage.first_segment(4)
    copy = lineage.archive.parent / path.name
    copy.write_bytes(path.read_bytes())
    os.truncate(copy, SEGMENT_SIZE + change)
    assert str(SEGMENT_SIZE + change) in refused(copy, lineage, "wal-size")


def test_names_for_another_segment_size_are_refused(lineage: Lineage) -> None:
    refused(lineage.first_segment(4), lineage, "wal-name", name="000000040000000000001000")


def patched(lineage: Lineage, at: int, code: str, value: int) -> bytes:
    data = bytearray(lineage.first_segment(4).read_bytes()[: wal.SEGMENT_HEADER_BYTES])
    struct.pack_into(code, data, at, value)
    return bytes(data)


@pytest.mark.parametrize(
    ("at", "code", "value"),
    [
        (0, "<H", 0x8B1F),
        (0, "<H", 0x10D1),
        (2, "<H", 0),
        (2, "<H", 0x0100 | 2),
        (4, "<I", 0),
        (8, "<Q", 123),
        (32, "<I", 12345),
        (32, "<I", 0),
        (36, "<I", 0),
        (36, "<I", 1 << 20),
    ],
)
def test_what_is_not_wal_is_refused(lineage: Lineage, at: int, code: str, value: int) -> None:
    with pytest.raises(SourceError, match="not a WAL segment") as failure:
        wal.parse_segment_header(patched(lineage, at, code, value))
    assert failure.value.id == "wal-not-wal"


def test_short_empty_and_old_files_are_refused(lineage: Lineage) -> None:
    for data, expected in (
        (b"", "wal-not-wal"),
        (lineage.first_segment(4).read_bytes()[:39], "wal-not-wal"),
        (bytes(SEGMENT_SIZE), "wal-empty"),
        (patched(lineage, 0, "<H", 0xD101), "wal-version"),
    ):
        with pytest.raises(SourceError) as failure:
            wal.parse_segment_header(data)
        assert failure.value.id == expected


@pytest.mark.parametrize(
    ("magic", "major"),
    [
        (0xD106, 13),
        (0xD10D, 14),
        (0xD110, 15),
        (0xD113, 16),
        (0xD116, 17),
        (0xD118, 18),
        (0xD119, None),
        (0xD200, None),
    ],
)
def test_formats_of_every_release_and_of_newer_ones(lineage: Lineage, magic: int, major: int | None) -> None:
    header = wal.parse_segment_header(patched(lineage, 0, "<H", magic))
    assert (header.magic, header.postgres_major) == (magic, major)


def test_files_that_are_not_segments_are_not_checked(lineage: Lineage) -> None:
    data = lineage.first_segment(4).read_bytes()
    with pytest.raises(ValueError, match="not a WAL segment"):
        wal.check_segment(data, SEGMENT_SIZE, WalName(WalKind.HISTORY, 4), lineage.system_identifier)


def test_files_made_in_advance_are_recognised(lineage: Lineage) -> None:
    # What lies in pg_wal after the last segment written: recycled ones, and ones filled with zeros.
    waiting = []
    last = max(str(name) for name, _unused in lineage.archived(WalKind.SEGMENT))
    for path in (lineage.cluster.data / "pg_wal").iterdir():
        name = wal.match_wal_name(path.name)
        if name is not None and name.kind is WalKind.SEGMENT and path.name > last:
            try:
                check(path, lineage)
            except SourceError as error:
                waiting.append(error.id)
    assert set(waiting) <= {"wal-recycled", "wal-empty"}
    assert waiting
