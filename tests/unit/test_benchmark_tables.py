# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The benchmark's tables: medians, ratios either way round, dashes with their reasons, and what is worse."""

from __future__ import annotations

import json

import pytest

from tests.benchmarks.goals import goals
from tests.benchmarks.measure import Run
from tests.benchmarks.operations import ASK, DRAIN, FULL, RESTORE
from tests.benchmarks.report import Operation, Report
from tests.benchmarks.table import DASH, comparison, figure, markdown

OURS, PEER, OTHER = "cryobackup", "pgBackRest, tuned", "pg_basebackup"
RATE = Operation("rate", "MB/s", more_is_better=True)


def run(seconds: float, *, peak: int = 0, stored: int = 0, value: float | None = None) -> Run:
    return Run(seconds, 0.0, peak, 0.0, stored_bytes=stored, value=value)


@pytest.fixture
def report() -> Report:
    """Faster than one peer in a full backup, slower than the other; better in the rate; and one reason."""
    made = Report([OURS, PEER, OTHER], 2_000_000_000)
    for seconds in (9.0, 2.0, 4.0):
        made.add(FULL, OURS, run(seconds, peak=int(seconds * 1e7), stored=int(seconds * 1e6)))
    made.add(FULL, PEER, run(8.0))
    made.add(FULL, OTHER, run(1.5))
    made.add(FULL, OTHER, run(2.5))
    made.add(RATE, OURS, run(1.0, value=200.0))
    made.add(RATE, PEER, run(1.0, value=50.0))
    made.cannot(RATE, OTHER, "It has no archive.")
    return made


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_median_is_of_what_is_compared(report: Report) -> None:
    assert report.median(FULL, OURS) == 4.0
    assert report.median(FULL, OTHER) == 2.0
    assert report.median(RATE, OURS) == 200.0
    assert report.median(RATE, OTHER) is None
    assert report.median(FULL, OURS, lambda each: each.stored_bytes) == 4_000_000


def test_ratio_below_one_is_better_for_times_and_for_rates(report: Report) -> None:
    assert report.ratio(FULL, PEER) == 0.5
    assert report.ratio(FULL, OTHER) == 2.0
    assert report.ratio(RATE, PEER) == 0.25
    assert report.ratio(RATE, OTHER) is None
    assert report.ratio(FULL, OURS) is None
    assert report.ratio(RESTORE, PEER) is None


def test_table_has_medians_ratios_and_dashes_with_numbered_reasons(report: Report) -> None:
    report.add(RESTORE, OURS, run(12.34))
    report.cannot(RESTORE, OTHER, "It has no archive.")
    table, notes = comparison(report)
    heading, _rule, *rows = table.splitlines()
    assert cells(heading) == ["operation", "unit", OURS, PEER, OTHER]
    assert [cells(row) for row in rows] == [
        ["full backup", "s", "4.00", "8.00 (0.50)", "2.00 (2.00)"],
        ["rate", "MB/s", "200", "50.0 (0.25)", f"{DASH} [1]"],
        ["restore of a full backup", "s", "12.3", DASH, f"{DASH} [1]"],
    ]
    assert notes == "1. It has no archive."
    assert len({len(line) for line in table.splitlines()}) == 1


def test_a_reason_gives_way_to_a_figure(report: Report) -> None:
    report.cannot(FULL, PEER, "failed in the second round")
    assert report.reason(FULL, PEER) is None
    assert "failed" not in markdown(report)


def test_an_operation_without_any_figure_of_ours_still_shows_the_peers() -> None:
    report = Report([OURS, PEER], 1000)
    report.add(FULL, PEER, run(1.0))
    assert report.ratio(FULL, PEER) is None
    table, _notes = comparison(report)
    assert cells(table.splitlines()[-1]) == ["full backup", "s", DASH, "1.00"]


def test_what_is_worse_is_told_worst_first(report: Report) -> None:
    report.add(ASK, OURS, run(0.03, value=30.0))
    report.add(ASK, PEER, run(0.01, value=10.0))
    assert [(operation, peer) for operation, peer, _ratio in report.worse()] == [(ASK, PEER), (FULL, OTHER)]
    assert "- a segment, archived already: 3.00 against pgBackRest, tuned, 30.0 to 10.0 ms" in markdown(report)


def test_goals_are_of_the_tuned_peer(report: Report) -> None:
    report.add(ASK, OURS, run(0.03, value=30.0))
    report.add(DRAIN, OURS, run(3.0, value=160.0))
    report.add(DRAIN, PEER, run(4.0, value=120.0))
    met = {goal: (measured, reached) for goal, measured, reached in goals(report)}
    assert met["full backup: at most 0.7 of the time of pgBackRest, tuned"] == ("0.50", "yes")
    assert met["WAL drained: at most 0.67 of the time of pgBackRest, tuned"] == ("0.75", "no")
    assert met["a segment that is archived already under 25 ms"] == ("30.0 ms", "no")
    assert met["every operation under 300 MB resident"] == ("90 MB (full backup)", "yes")


def test_memory_is_the_most_and_stored_bytes_are_the_median(report: Report) -> None:
    text = markdown(report)
    rows = {cells(line)[0]: cells(line) for line in text.split("peak memory, MB")[1].splitlines()[:3]}
    assert rows["full backup"] == ["full backup", "90", DASH, DASH]
    stored = text.split("bytes stored, MB")[1].splitlines()[2]
    assert cells(stored) == ["full backup", "4.0", DASH, DASH]


def test_everything_survives_as_json(report: Report) -> None:
    kept = json.loads(json.dumps(report.as_dict()))
    assert [each["seconds"] for each in kept["runs"]["full backup"][OURS]] == [9.0, 2.0, 4.0]
    assert kept["cannot"] == {"rate": {OTHER: "It has no archive."}}
    assert kept["operations"]["rate"]["more_is_better"]


@pytest.mark.parametrize(
    ("value", "text"), [(1234.5, "1234"), (99.94, "99.9"), (9.994, "9.99"), (0.0123, "0.012"), (0.0, "0.000")]
)
def test_figures_have_about_three_digits(value: float, text: str) -> None:
    assert figure(value) == text
