# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Progress: plain lines in a log, a bar on a terminal, and figures that read well."""

from __future__ import annotations

import datetime as dt
import os
import pty
import subprocess
import sys

import pytest

from cryobackup.cli._text import format_bytes, format_duration, format_table, format_time
from cryobackup.cli.progress import StandardErrorReporter

JOB = """\
from cryobackup.cli.progress import StandardErrorReporter
reporter = StandardErrorReporter(quiet=QUIET)
reporter.note("[begin]")
reporter.phase("data files", 3 << 20)
reporter.advance(1 << 20)
reporter.warn("base/1/2 vanished")
reporter.advance(1 << 20)
reporter.phase("waiting for WAL")
reporter.close()
reporter.close()
reporter.note("done")
"""


def on_a_terminal(program: str) -> str:
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen([sys.executable, "-c", program], stderr=slave, env=environment)
    os.close(slave)
    seen = b""
    try:
        while part := os.read(master, 4096):
            seen += part
    except OSError:  # how Linux says that the other side is closed
        pass
    os.close(master)
    assert process.wait() == 0
    return seen.decode()


def test_lines(capsys: pytest.CaptureFixture[str]) -> None:
    exec(JOB.replace("QUIET", "False"), {})
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[:3] == ["[begin]", "data files (3.0 MiB)", "warning: base/1/2 vanished"]
    assert lines[3].startswith("data files: 2.0 MiB in ")
    assert lines[4:] == ["waiting for WAL", "done"]


def test_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    exec(JOB.replace("QUIET", "True"), {})
    assert capsys.readouterr().err == "warning: base/1/2 vanished\n"


def test_warnings_are_kept() -> None:
    reporter = StandardErrorReporter(quiet=True)
    reporter.warn("one")
    reporter.warn("two")
    assert reporter.warnings == ["one", "two"]


def test_bar() -> None:
    seen = on_a_terminal(JOB.replace("QUIET", "False"))
    assert "data files" in seen
    assert "[begin]" in seen
    assert "warning: base/1/2 vanished" in seen
    assert "2.0/2.0 MiB" in seen
    assert seen.count("\x1b[?25l") == seen.count("\x1b[?25h") == 1  # the cursor is back
    assert seen.endswith("done\r\n")


def test_no_bar_when_quiet() -> None:
    assert on_a_terminal(JOB.replace("QUIET", "True")) == "warning: base/1/2 vanished\r\n"


def test_terminal_that_goes_away() -> None:
    """The job does not fail because nobody looks at its bar any more."""
    master, slave = pty.openpty()
    program = JOB.replace("QUIET", "False").replace("reporter.advance", "input()\nreporter.advance", 1)
    process = subprocess.Popen(
        [sys.executable, "-c", program], stderr=slave, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    os.close(slave)
    assert os.read(master, 1)
    os.close(master)
    process.communicate(b"\n")
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (50 << 20, "50.0 MiB"),
        (3 << 60, "3072.0 PiB"),
        (-2048, "-2.0 KiB"),
    ],
)
def test_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (59.94, "59.9 s"),
        (59.97, "1 min 0 s"),
        (60, "1 min 0 s"),
        (3599.6, "1 h 0 min"),
        (7300, "2 h 1 min"),
        (86399.9, "1 d 0 h"),
        (200_000, "2 d 7 h"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_time() -> None:
    zone = dt.timezone(dt.timedelta(hours=9))
    text = format_time(dt.datetime(2026, 11, 20, 10, 2, 0, 999, tzinfo=zone))
    assert dt.datetime.fromisoformat(text) == dt.datetime(2026, 11, 20, 10, 2, tzinfo=zone)


def test_table() -> None:
    assert format_table(("A", "B"), [("long", "1"), ("x", "100")], right=("B",)).splitlines() == [
        "A       B",
        "long    1",
        "x     100",
    ]
