# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a verification found damaged is not built upon, and not restored while there is something better."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.lab import Cluster, Workspace, flip_byte, prove_restore, sample_data

from .lab import RestoreLab

QUICK: dict[str, Any] = {"amcheck": False, "visibility": False}


def damage(lab: RestoreLab, backup_id: str, *locations: str) -> None:
    """One byte in the middle of the first pack that this backup wrote."""
    for location in locations:
        (pack, *_unused) = sorted((lab.locations[location] / "packs" / backup_id).iterdir())
        flip_byte(pack, pack.stat().st_size // 2)


def verify(lab: RestoreLab, backup_id: str) -> int:
    return lab.run("verify", backup_id).returncode


@pytest.fixture
def two_locations(workspace: Workspace, runtime: Path, cluster: Cluster) -> RestoreLab:
    return RestoreLab(workspace, runtime, cluster, locations={"one": True, "two": True})


def test_an_incremental_inherits_no_damage(restores: RestoreLab) -> None:
    lab = restores
    sample_data(lab.cluster, 4)
    lab.settle()
    first = lab.backup()["backup_id"]
    second = lab.backup("incremental")
    third = lab.backup("incremental")
    assert second["parent"] == first
    damage(lab, first, "local")
    assert verify(lab, third["backup_id"]) == 4

    # The second backup was never verified, but the damaged pack is its own, too.
    after = lab.backup("incremental")
    assert (after["type"], after["parent"]) == ("full", None)
    assert third["backup_id"] in after["change_detection"]["reason"]
    assert "verification" in after["change_detection"]["reason"]
    assert verify(lab, after["backup_id"]) == 0
    assert lab.backup("incremental")["parent"] == after["backup_id"]


def test_a_restore_passes_over_what_is_known_to_be_damaged(restores: RestoreLab) -> None:
    lab = restores
    sample_data(lab.cluster, 4)
    good = lab.backup()["backup_id"]
    bad = lab.backup()["backup_id"]
    lab.archive_everything()
    damage(lab, bad, "local")
    assert lab.restore("before", "--dry-run")["backup_id"] == bad, "nobody knows of it yet"
    assert verify(lab, bad) == 4

    result = lab.restore("restored")
    assert result["backup_id"] == good
    assert any(bad in warning and "verification" in warning for warning in result["warnings"])
    prove_restore(lab.workspace, lab.place("restored"), **QUICK)
    code, failed, _unused = lab.try_restore(lab.place("named"), "--backup", bad)
    assert (code, failed["error"]["id"]) == (4, "damage")


def test_damage_in_one_of_two_locations_is_no_reason(two_locations: RestoreLab) -> None:
    lab = two_locations
    sample_data(lab.cluster, 4)
    lab.backup()
    newest = lab.backup()["backup_id"]
    lab.archive_everything()
    damage(lab, newest, "one")
    assert verify(lab, newest) == 4
    result = lab.restore("restored")
    assert result["backup_id"] == newest
    prove_restore(lab.workspace, lab.place("restored"), **QUICK)
