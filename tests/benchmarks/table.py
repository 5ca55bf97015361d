# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A report in Markdown that is also readable as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import median

from .goals import goals
from .measure import Run
from .report import Operation, Report, compared

DASH = "–"
EXPLANATION = (
    "Medians. In brackets: what share of the other program's time {ours} needs (of a rate: what share of its rate the "
    "other has). Below 1 {ours} is the better one, above 1 the worse."
)


def markdown(report: Report) -> str:
    """For people: the machine, the comparison, what is worse, the goals, all runs."""
    facts = [f"- {name}: {value}" for name, value in report.facts.items()]
    facts.append(f"- database: {report.database_bytes / 1e6:.0f} MB")
    sections = [
        "\n".join(facts),
        EXPLANATION.format(ours=report.names[0]),
        *comparison(report),
        _worse(report),
        *_resources(report),
        _text(goals(report)),
        _text(_details(report)),
    ]
    return "\n\n".join(section for section in sections if section)


def comparison(report: Report) -> Iterator[str]:
    """The table of medians and ratios, and its footnotes."""
    notes: list[str] = []
    rows: list[list[str]] = [["operation", "unit", *report.names]]
    for operation in report.operations:
        # What was measured of something else than the programs, such as bare compression, is among the details.
        if not any(report.runs(operation, name) or report.reason(operation, name) for name in report.names):
            continue
        cells = [_cell(report, operation, name, notes) for name in report.names]
        rows.append([operation.name, operation.unit, *cells])
    yield _text(rows)
    yield "\n".join(f"{number}. {note}" for number, note in enumerate(notes, 1))


def _cell(report: Report, operation: Operation, name: str, notes: list[str]) -> str:
    value = report.median(operation, name)
    if value is None:
        reason = report.reason(operation, name)
        if reason is None:
            return DASH
        if reason not in notes:
            notes.append(reason)
        return f"{DASH} [{notes.index(reason) + 1}]"
    ratio = report.ratio(operation, name)
    return figure(value) if ratio is None else f"{figure(value)} ({ratio:.2f})"


def _worse(report: Report) -> str:
    lines = [
        f"- {operation.name}: {ratio:.2f} against {peer}, "
        f"{figure(report.median(operation, report.names[0]) or 0)} to "
        f"{figure(report.median(operation, peer) or 0)} {operation.unit}"
        for operation, peer, ratio in report.worse()
    ]
    if len(report.names) < 2:
        return ""
    return "\n".join([f"Where {report.names[0]} is worse:", "", *(lines or ["- nowhere in this table"])])


def _resources(report: Report) -> Iterator[str]:
    """One table for each of what the programs use beside time; those without a figure are left out."""
    of_interest: dict[str, tuple[Callable[[Run], float], Callable[[Sequence[float]], float], str]] = {
        "peak memory, MB": (lambda run: run.peak_bytes / 1e6, max, "{:.0f}"),
        "bytes stored, MB": (lambda run: run.stored_bytes / 1e6, median, "{:.1f}"),
        "processor time, s": (lambda run: run.cpu_seconds, median, "{:.2f}"),
        "requests": (lambda run: run.requests, median, "{:.0f}"),
    }
    for title, (what, which, form) in of_interest.items():
        rows = [[title, *report.names]]
        for operation in report.operations:
            cells = []
            for name in report.names:
                values = [what(run) for run in report.runs(operation, name)]
                cells.append(form.format(which(values)) if any(values) else DASH)
            if any(cell != DASH for cell in cells):
                rows.append([operation.name, *cells])
        if len(rows) > 1:
            yield _text(rows, left=1)


def _details(report: Report) -> Iterator[Sequence[str]]:
    yield ("all runs", "program", "unit", "median", "range", "runs", "MB/s", "requests/GB", "others")
    for operation in report.operations:
        for name in report.programs(operation):
            yield _detail(report, operation, name, report.runs(operation, name))


def _detail(report: Report, operation: Operation, name: str, runs: Sequence[Run]) -> Sequence[str]:
    values = [compared(run) for run in runs]
    requests = median(run.requests for run in runs) / report.database_bytes * 1e9 if operation.whole else 0
    others = median(run.others for run in runs)
    return (
        *(operation.name, name, operation.unit),
        figure(median(values)),
        f"{figure(min(values))}–{figure(max(values))}",
        str(len(values)),
        f"{report.database_bytes / median(run.seconds for run in runs) / 1e6:.0f}" if operation.whole else "",
        f"{requests:.0f}" if requests else "",
        f"{others:.2f}" if any(run.peak_bytes for run in runs) else "",
    )


def figure(value: float) -> str:
    """With about three digits that mean something."""
    for limit, digits in ((100, 0), (10, 1), (1, 2)):
        if abs(value) >= limit:
            return f"{value:.{digits}f}"
    return f"{value:.3f}"


def _text(rows: Iterable[Sequence[str]], left: int = 2) -> str:
    """The first row is the heading; ``left``: so many columns are set to the left, the others to the right."""
    lines = [list(row) for row in rows]
    widths = [max(len(row[column]) for row in lines) for column in range(len(lines[0]))]

    def line(row: Sequence[str]) -> str:
        cells = (
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return f"| {' | '.join(cells)} |"

    rules = ("-" * width if column < left else "-" * (width - 1) + ":" for column, width in enumerate(widths))
    return "\n".join([line(lines[0]), f"| {' | '.join(rules)} |", *map(line, lines[1:])])
