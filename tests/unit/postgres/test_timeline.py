# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryobackup.errors import SourceError
from cryobackup.postgres.lsn import format_lsn, parse_lsn
from cryobackup.postgres.timeline import TimelineHistory, TimelineSpan, TimelineSwitch, parse_history

# What a server wrote when it was promoted for the second time: the parent's file, an empty line, its own.
WRITTEN = '1\t0/C517F8\tno recovery target specified\n\n2\t0/D00000\tat restore point "before\tthe\tupgrade"\n'
HISTORY = TimelineHistory(
    3,
    (
        TimelineSwitch(1, 0xC517F8, "no recovery target specified"),
        TimelineSwitch(2, 0xD00000, 'at restore point "before\tthe\tupgrade"'),
    ),
)
SEGMENT_SIZE = 1 << 20


@st.composite
def histories(draw: st.DrawFn) -> TimelineHistory:
    timelines = sorted(draw(st.sets(st.integers(1, 50), max_size=6)))
    switches = sorted(draw(st.lists(st.integers(1, 1 << 30), min_size=len(timelines), max_size=len(timelines))))
    parents = tuple(TimelineSwitch(*pair, "") for pair in zip(timelines, switches, strict=True))
    return TimelineHistory((timelines[-1] if timelines else 0) + draw(st.integers(1, 3)), parents)


def test_what_a_server_wrote() -> None:
    assert parse_history(WRITTEN, 3) == HISTORY


def test_comments_and_empty_files() -> None:
    assert parse_history("", 1) == TimelineHistory(1)
    assert parse_history("# a comment\n  \n\t# another\n1 0/1", 2).parents == (TimelineSwitch(1, 1, ""),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("one\t0/1\treason\n", "make sense"),
        ("1\n", "make sense"),
        ("1\t01\treason\n", "make sense"),
        ("1\t0/1x\treason\n", "make sense"),
        ("2\t0/1\t\n1\t0/2\t\n", "timeline 1 comes after 2"),
        ("1\t0/1\t\n1\t0/2\t\n", "timeline 1 comes after 1"),
        ("1\t0/5\t\n2\t0/4\t\n", "timeline 2 was left at 0/4"),
        ("3\t0/1\t\n", "cannot be its ancestor"),
        ("4\t0/1\t\n", "cannot be its ancestor"),
    ],
)
def test_damaged_files_are_refused(text: str, words: str) -> None:
    with pytest.raises(SourceError, match=words) as failure:
        parse_history(text, 3)
    assert failure.value.id == "history-format"


def test_spans() -> None:
    assert HISTORY.spans() == (
        TimelineSpan(1, 0, 0xC517F8),
        TimelineSpan(2, 0xC517F8, 0xD00000),
        TimelineSpan(3, 0xD00000, None),
    )


@pytest.mark.parametrize(
    ("lsn", "timeline"),
    [("0/0", 1), ("0/C517F7", 1), ("0/C517F8", 2), ("0/CFFFFF", 2), ("0/D00000", 3), ("7/0", 3)],
)
def test_a_switch_position_belongs_to_the_child(lsn: str, timeline: int) -> None:
    position = parse_lsn(lsn)
    assert HISTORY.timeline_at(position) == timeline
    assert [HISTORY.is_ancestor(candidate, position) for candidate in (1, 2, 3, 4)] == [
        candidate == timeline for candidate in (1, 2, 3, 4)
    ]


def test_the_path_to_a_position() -> None:
    assert HISTORY.path_for(0) == ()
    assert HISTORY.path_for(0xC517F8) == (TimelineSpan(1, 0, 0xC517F8),)
    assert HISTORY.path_for(0xC517F9) == (TimelineSpan(1, 0, 0xC517F8), TimelineSpan(2, 0xC517F8, 0xC517F9))
    assert HISTORY.path_for(0xE00000)[-1] == TimelineSpan(3, 0xD00000, 0xE00000)


def test_the_way_between_two_positions() -> None:
    history = TimelineHistory(3, (TimelineSwitch(1, 100, ""), TimelineSwitch(2, 100, "")))
    assert history.way(50, 80) == (TimelineSpan(1, 50, 80),)
    assert history.way(50, 150) == (TimelineSpan(1, 50, 100), TimelineSpan(3, 100, 150))
    assert history.way(100, 150) == (TimelineSpan(3, 100, 150),)
    assert history.way(120, 120) == ()


@pytest.mark.parametrize(("number", "timeline"), [(0, 1), (0xB, 1), (0xC, 2), (0xD, 3), (0xFF, 3)])
def test_a_segment_with_a_switch_is_looked_for_on_the_child(number: int, timeline: int) -> None:
    assert HISTORY.timeline_of_segment(number, SEGMENT_SIZE) == timeline


@given(histories(), st.integers(1, 1 << 31))
def test_a_path_has_no_gaps_and_ends_where_asked(history: TimelineHistory, lsn: int) -> None:
    path = history.path_for(lsn)
    assert path[0].begin == 0
    assert path[-1].end == lsn
    assert all(before.end == after.begin for before, after in itertools.pairwise(path))
    assert history.timeline_at(lsn - 1) == path[-1].timeline


@given(histories())
def test_what_is_written_reads_back(history: TimelineHistory) -> None:
    text = "\n".join(f"{p.timeline}\t{format_lsn(p.switch_lsn)}\t{p.reason}\n" for p in history.parents)
    assert parse_history(text, history.timeline) == history


@given(histories(), st.integers(0, 1 << 11))
def test_a_segment_is_looked_for_where_its_last_byte_belongs(history: TimelineHistory, number: int) -> None:
    # So a file that lies in the archive under an older timeline is asked for only when it is whole.
    last_byte = (number + 1) * SEGMENT_SIZE - 1
    assert history.timeline_of_segment(number, SEGMENT_SIZE) == history.timeline_at(last_byte)
