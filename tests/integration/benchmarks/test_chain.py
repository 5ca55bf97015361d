# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The benchmark of long chains still runs, and measures what it says: no assertion here is about time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.lab import Workspace
from tests.lab.workspace import CHECKOUT


def test_chain_measures_every_step(workspace: Workspace, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    small = ["--gigabytes", "0.04", "--steps", "3", "--rounds", "1", "--json", str(result)]
    # A laboratory of its own, within this one, so that whatever it leaves is found here.
    done = workspace.run(
        [sys.executable, "-m", "tests.benchmarks.chain", *small],
        as_server=False,
        cwd=CHECKOUT,
        env={"LAB_DIR": str(workspace.directory("inner", mode=0o755))},
    )
    measured = json.loads(result.read_text())
    assert [step["number"] for step in measured["steps"]] == [1, 2, 3]
    assert all(step["pages_changed"] > 0 for step in measured["steps"])
    last, full = measured["restores"]
    assert last["backup_id"] == measured["steps"][-1]["backup_id"]
    for restore in (last, full):
        shape, reads = restore["shape"], restore["reads"]
        assert reads["packs"] == shape["packs_own"] + shape["packs_foreign"]
        assert reads["requests"] >= reads["packs"]
        assert shape["live_bytes"] <= shape["frame_bytes"] <= shape["plain_bytes"]
    assert last["shape"]["packs_foreign"] > full["shape"]["packs_foreign"] == 0
    assert "of the full's speed" in done.stdout
    assert not list((workspace.path / "inner").iterdir())
