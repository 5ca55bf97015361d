# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``wal-get`` in a recovery: what is asked for in advance, and what is left alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cryobackup.cli import _ahead_client, main, wal_ahead
from cryobackup.cli._ahead_client import Recovery, of_parents, parse

SEGMENT = "000000010000000000000002"
PARTIAL, BACKUP = f"{SEGMENT}.partial", f"{SEGMENT}.00000028.backup"


@pytest.mark.parametrize(
    "words",
    [
        f"wal-get {SEGMENT} pg_wal/X",
        f"wal-get {SEGMENT} pg_wal/X --retry-for 60",
        f"--config c.yml --quiet wal-get --system-identifier 7 --without far {SEGMENT} pg_wal/X",
    ],
)
def test_segments_are_asked_for(words: str) -> None:
    found = parse(words.split())
    assert found is not None
    assert (found.name, found.destination) == (SEGMENT, "pg_wal/X")
    assert found.words == words.replace(f" {SEGMENT} pg_wal/X", "").split()


@pytest.mark.parametrize(
    "words",
    [
        "wal-get 00000002.history pg_wal/X",
        f"wal-get {PARTIAL} pg_wal/X",
        f"wal-get {BACKUP} pg_wal/X",
        f"wal-get {SEGMENT}",
        f"wal-get {SEGMENT.lower()}a pg_wal/X",
        f"wal-get --no-look-ahead {SEGMENT} pg_wal/X",
        f"--json wal-get {SEGMENT} pg_wal/X",
        "wal-get --help",
        f"wal-push {SEGMENT} pg_wal/X",
        f"wal-ahead --after {SEGMENT} --segment-size 1 -- --quiet wal-get --cluster main",
    ],
)
def test_other_calls_are_not(words: str) -> None:
    assert parse(words.split()) is None


def test_there_is_a_recovery_only_below_the_server_of_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert of_parents() is None
    for text in ("", "-17\n", "1\n", "0\n", "99999999999\n", "no number\n", f"{os.getpid()}\n"):
        Path("postmaster.pid").write_text(text)
        assert of_parents() is None, text


def test_a_recovery_ends_with_its_process() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        recovery = Recovery(process.pid, int(fields[19]))
        assert recovery.goes_on
        assert not Recovery(process.pid, recovery.started + 1).goes_on
    finally:
        process.communicate(b"\n")
    assert not recovery.goes_on


def test_whatever_goes_wrong_is_not_the_end_of_the_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Python ends with 1 when something is raised, and PostgreSQL with the recovery, at 1."""

    def broken(*_words: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.chdir(tmp_path)
    for module in (_ahead_client, wal_ahead.wire):
        monkeypatch.setattr(module, "parse", broken)
    words = ["--config", str(tmp_path / "none.yml"), "wal-get", SEGMENT, "X"]
    assert _ahead_client.run(words) is None
    wal_ahead.start(words)
    assert main(words) == 200
    assert "none.yml" in capfd.readouterr().err
