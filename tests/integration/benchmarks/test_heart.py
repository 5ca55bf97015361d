# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The benchmark still runs, and measures what it says: no assertion here is about time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.lab import Workspace
from tests.lab.workspace import CHECKOUT

MEGABYTE = 1_000_000


@pytest.mark.parametrize("storage", ["posix", "s3"])
def test_heart_measures_every_operation(
    workspace: Workspace, tmp_path: Path, storage: str, request: pytest.FixtureRequest
) -> None:
    if storage == "s3":
        request.getfixturevalue("s3")  # skipped where there can be none
    result = tmp_path / "result.json"
    small = ["--gigabytes", "0.04", "--rounds", "1", "--skip-pgbackrest", "--json", str(result), "--storage", storage]
    # A laboratory of its own, within this one, so that whatever it leaves is found here.
    done = workspace.run(
        [sys.executable, "-m", "tests.benchmarks.heart", *small],
        as_server=False,
        cwd=CHECKOUT,
        env={"LAB_DIR": str(workspace.directory("inner", mode=0o755))},
    )
    measured = json.loads(result.read_text())
    runs = {
        operation: by_name["cryobackup"] for operation, by_name in measured["runs"].items() if "cryobackup" in by_name
    }
    assert {operation: len(found) for operation, found in runs.items()} == {
        "start (--version)": 20,
        "full backup": 1,
        "restore": 1,
        "delta restore, 0.1 % changed": 1,
        "incremental, 0.1 % changed": 1,
        "incremental, nothing changed": 1,
        "wal-push, one segment": 5,
        "32 segments drained": 1,
    }
    [full] = runs["full backup"]
    # The launcher's own few megabytes would mean that another process was measured.
    assert full["peak_bytes"] > 30 * MEGABYTE
    assert full["cpu_seconds"] > 0
    assert MEGABYTE < full["stored_bytes"] < measured["database_bytes"]
    assert runs["incremental, nothing changed"][0]["stored_bytes"] < full["stored_bytes"] / 4
    assert (full["requests"] > 0) == (storage == "s3")
    assert measured["pages_changed"] > 0
    assert "| full backup " in done.stdout
    assert not list((workspace.path / "inner").iterdir())
