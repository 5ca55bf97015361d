# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Gaps and reach, over every shape of archive: compared with a count by hand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cryobackup.postgres.archive_index import ArchivedFile, Gap, WalIndex, missing_segments, reachable
from cryobackup.postgres.timeline import TimelineHistory, TimelineSwitch
from cryobackup.postgres.wal import parse_wal_name, segment_name

SIZE = 16 << 20
# Timeline 2 leaves timeline 1 in the middle of segment 10, timeline 3 leaves 2 at the boundary before segment 20.
HISTORY = TimelineHistory(3, (TimelineSwitch(1, 10 * SIZE + 4096, ""), TimelineSwitch(2, 20 * SIZE, "")))


def timeline_of(number: int) -> int:
    return 1 if number < 10 else 2 if number < 20 else 3


def index_of(names: list[str]) -> WalIndex:
    files = {name: ArchivedFile(parse_wal_name(name), 1, 0.0, ("a",)) for name in sorted(names)}
    return WalIndex(1, files, ("a", "b"), {})


@given(st.sets(st.integers(1, 30)), st.integers(1, 30), st.integers(1, 30))
def test_gaps_are_what_is_not_there(present: set[int], start: int, length: int) -> None:
    index = index_of([segment_name(timeline_of(number), number, SIZE) for number in present])
    stop = start + length
    gaps = missing_segments(index, HISTORY, start * SIZE + 17, stop * SIZE, SIZE)
    wanted = [number for number in range(start, stop) if number not in present]
    assert sum(gap.segments for gap in gaps) == len(wanted)
    found = []
    for gap in gaps:
        first = parse_wal_name(gap.first).number(SIZE)
        found.extend(range(first, first + gap.segments))
        assert parse_wal_name(gap.last).number(SIZE) == first + gap.segments - 1
        assert gap.first == segment_name(timeline_of(first), first, SIZE)
    assert found == wanted


@given(st.sets(st.integers(1, 30)), st.integers(1, 30))
def test_recovery_reaches_the_first_gap(present: set[int], start: int) -> None:
    index = index_of([segment_name(timeline_of(number), number, SIZE) for number in present])
    reach = reachable(index, HISTORY, start * SIZE + 17, SIZE)
    end = start
    while end in present:
        end += 1
    if end == start:
        assert (reach.last_segment, reach.end_lsn) == (None, start * SIZE + 17)
    else:
        assert reach.last_segment == segment_name(timeline_of(end - 1), end - 1, SIZE)
        assert reach.end_lsn == end * SIZE


def test_the_newest_segment_on_the_way_ends_an_open_search() -> None:
    names = [segment_name(1, 9, SIZE), segment_name(2, 12, SIZE), segment_name(1, 25, SIZE)]
    gaps = missing_segments(index_of(names), HISTORY, 9 * SIZE, None, SIZE)
    # Segment 25 of timeline 1 was written after timeline 2 had left it: it does not lie on the way.
    assert gaps == [Gap(segment_name(2, 10, SIZE), segment_name(2, 11, SIZE), 2)]
    assert missing_segments(index_of([]), HISTORY, 9 * SIZE, None, SIZE) == []


def test_partial_and_old_timelines_are_no_substitute() -> None:
    names = [segment_name(1, 10, SIZE), segment_name(2, 10, SIZE) + ".partial", segment_name(2, 11, SIZE)]
    assert missing_segments(index_of(names), HISTORY, 10 * SIZE, 12 * SIZE, SIZE) == [
        Gap(segment_name(2, 10, SIZE), segment_name(2, 10, SIZE), 1)
    ]


def test_a_gap_reads_well() -> None:
    assert str(Gap("A", "A", 1)) == "A"
    assert str(Gap("A", "C", 3)) == "A to C (3 segments)"
