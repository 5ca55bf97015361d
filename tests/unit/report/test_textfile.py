# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prometheus' text format, and files that are replaced at once."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cryobackup.report.textfile import COUNTER, GAUGE, Family, Sample, of_writer, render, write

NASTY = 'a "quoted" \\ name\nof two lines, \u00e9'


def test_escaped() -> None:
    text = render(
        [
            Family("cryobackup_up", GAUGE, "One.\nTwo \\.", [Sample({"location": NASTY}, 1)]),
            Family("cryobackup_nothing", GAUGE, "Left out.", []),
            Family("cryobackup_failures_total", COUNTER, "x", [Sample({"a": "b", "c": "d"}, 1764345600.25)]),
        ]
    )
    assert text.splitlines() == [
        "# HELP cryobackup_up One.\\nTwo \\\\.",
        "# TYPE cryobackup_up gauge",
        'cryobackup_up{location="a \\"quoted\\" \\\\ name\\nof two lines, \u00e9"} 1',
        "# HELP cryobackup_failures_total x",
        "# TYPE cryobackup_failures_total counter",
        'cryobackup_failures_total{a="b",c="d"} 1764345600.25',
    ]
    assert text.endswith("\n")
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_each_writer_has_a_file_of_its_own() -> None:
    assert of_writer(Path("/m/cryobackup.prom"), "archiver-main") == Path("/m/cryobackup-archiver-main.prom")


def test_replaced_at_once_and_readable(tmp_path: Path) -> None:
    path = tmp_path / "x.prom"
    before = os.umask(0o077)
    try:
        write(path, "one\n")
        with path.open() as reading:
            write(path, "two\n")
            assert reading.read() == "one\n"
    finally:
        os.umask(before)
    assert path.read_text() == "two\n"
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written(tmp_path: Path) -> None:
    """What was there stays, and nothing is left beside it."""
    (tmp_path / "x.prom").mkdir()
    with pytest.raises(IsADirectoryError):
        write(tmp_path / "x.prom", "one\n")
    assert [path.name for path in tmp_path.iterdir()] == ["x.prom"]
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "nowhere/x.prom", "one\n")
