# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The benchmark still runs, and measures what it says: no assertion here is about time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.benchmarks.operations import INCREMENTALS, REPLAY_RATE, START
from tests.lab import Workspace
from tests.lab.workspace import CHECKOUT

MEGABYTE = 1_000_000
ONCE = ["full backup", "restore of a full backup", "delta restore, 0.1 % changed"]
ON_DISK = [
    *(operation.name for operation in INCREMENTALS.values()),
    *("incremental, nothing changed", "restore of the last incremental"),
    *("WAL drained", REPLAY_RATE.name),
    *("full backup under pgbench", "pgbench during a full backup"),
    *("limited full backup under pgbench", "pgbench during a limited full backup"),
]


@pytest.mark.parametrize("storage", ["posix", "s3"])
def test_every_operation_is_measured_and_nothing_is_left(
    workspace: Workspace, tmp_path: Path, storage: str, request: pytest.FixtureRequest
) -> None:
    options = ["--gigabytes", "0.04", "--rounds", "1", "--tools", "cryobackup", "--storage", storage]
    if storage == "s3":
        request.getfixturevalue("s3")  # skipped where there can be none
        options += ["--only", "start,full,restore"]
    result = tmp_path / "result.json"
    # A laboratory of its own, within this one, so that whatever it leaves is found here.
    done = workspace.run(
        [sys.executable, "-m", "tests.benchmarks", *options, "--json", str(result)],
        as_server=False,
        cwd=CHECKOUT,
        env={"LAB_DIR": str(workspace.directory("inner", mode=0o755))},
    )
    measured = json.loads(result.read_text())
    runs = {
        operation: by_name["cryobackup"] for operation, by_name in measured["runs"].items() if "cryobackup" in by_name
    }
    expected = {START.name: 20, **dict.fromkeys(ONCE, 1)}
    if storage == "posix":
        expected |= dict.fromkeys(ON_DISK, 1) | {"a segment, one process": 5, "a segment, archived already": 20}
    assert {operation: len(found) for operation, found in runs.items()} == expected
    [full] = runs["full backup"]
    # The launcher's own few megabytes would mean that another process was measured.
    assert full["peak_bytes"] > 30 * MEGABYTE
    assert full["cpu_seconds"] > 0
    assert MEGABYTE < full["stored_bytes"] < measured["database_bytes"]
    assert (full["requests"] > 0) == (storage == "s3")
    if storage == "posix":
        assert runs["incremental, nothing changed"][0]["stored_bytes"] < full["stored_bytes"] / 4
        assert "(0.1 % scattered)" in measured["facts"]["pages changed"]
    assert "| full backup " in done.stdout
    assert not list((workspace.path / "inner").iterdir())
