# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A history that branches: which branch a restore follows, and when it asks."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tests.lab import Installation, LiveWriter, Moment, Workspace, prove_restore

from .lab import RestoreLab, wait_promoted
from .test_restore_goals import QUICK


@dataclasses.dataclass
class Branches:
    """Timeline 1 with an accident; then a recovery in place to before it, and life on timeline 2."""

    lab: RestoreLab
    first: LiveWriter
    fork: Moment
    behind_fork: Moment
    """On timeline 1, lost by the recovery."""
    on_first: str
    """A backup of timeline 1 made behind the fork."""
    before_fork: str
    second: LiveWriter
    on_second: Moment


@pytest.fixture(scope="module")
def branches(shared_workspace: Workspace, runtime: Path, pg: Installation) -> Branches:
    cluster = shared_workspace.cluster(installation=pg)
    lab = RestoreLab(shared_workspace, runtime, cluster)
    with LiveWriter(cluster) as first:
        first.wait_rows(50)
        before_fork = lab.backup()["backup_id"]
        first.wait_rows(first.count + 50)
        fork = first.moment("fork")
        first.wait_rows(first.count + 50)
        lab.archive_everything()
        behind = first.moment("behind")
        on_first = lab.backup("incremental")["backup_id"]
        first.wait_rows(first.count + 50)
    lab.archive_everything()
    cluster.stop()
    result = lab.restore(cluster.data_dir, "--delta", "--to-name", "fork")
    assert result["backup_id"] == before_fork
    cluster.start()
    wait_promoted(cluster)
    with LiveWriter(cluster, table="rows_of_second") as second:
        second.wait_rows(100)
        on_second = second.moment("second")
        second.wait_rows(second.count + 50)
    lab.archive_everything()
    return Branches(lab, first, fork, behind, on_first, before_fork, second, on_second)


def test_latest_follows_the_youngest_branch(branches: Branches) -> None:
    lab = branches.lab
    target = lab.place("latest")
    result = lab.restore(target)
    # The newest backup of all lies on the branch that was left.
    assert result["backup_id"] == branches.before_fork
    assert result["recovery"]["timeline"] == 2
    assert any("--timeline 1" in warning for warning in result["warnings"])
    rows = [branches.first.expect(branches.fork), branches.second.expect_all()]
    assert prove_restore(lab.workspace, target, rows=rows, **QUICK).timeline == 3


def test_the_other_branch_can_be_had_as_well(branches: Branches) -> None:
    lab = branches.lab
    target = lab.place("first")
    result = lab.restore(target, "--timeline", "1")
    assert result["backup_id"] == branches.on_first
    assert result["warnings"] == []
    prove_restore(lab.workspace, target, rows=branches.first.expect_all(), **QUICK)
    target = lab.place("first-time")
    result = lab.restore(target, "--timeline", "1", "--to-time", branches.behind_fork.time_text)
    assert result["backup_id"] == branches.before_fork
    prove_restore(lab.workspace, target, rows=branches.first.expect(branches.behind_fork), **QUICK)


def test_current_is_the_timeline_of_the_backup(branches: Branches) -> None:
    lab = branches.lab
    target = lab.place("current")
    result = lab.restore(target, "--timeline", "current")
    assert result["backup_id"] == branches.on_first
    prove_restore(lab.workspace, target, rows=branches.first.expect_all(), **QUICK)


def test_a_named_backup_chooses_its_branch(branches: Branches) -> None:
    lab = branches.lab
    target = lab.place("named")
    result = lab.restore(target, "--backup", branches.on_first)
    assert result["recovery"]["timeline"] == 1
    prove_restore(lab.workspace, target, rows=branches.first.expect_all(), **QUICK)


def test_before_the_fork_the_branches_are_one(branches: Branches) -> None:
    lab = branches.lab
    target = lab.place("before")
    result = lab.restore(target, "--to-lsn", branches.fork.lsn)
    assert result["warnings"] == []
    prove_restore(lab.workspace, target, rows=branches.first.expect(branches.fork), **QUICK)


def test_points_on_the_second_timeline(branches: Branches) -> None:
    lab = branches.lab
    moment = branches.on_second
    for kind, value in (("time", moment.time_text), ("lsn", moment.lsn), ("name", "second"), ("xid", moment.xid)):
        target = lab.place(f"second-{kind}")
        lab.restore(target, f"--to-{kind}", str(value))
        rows = [branches.first.expect(branches.fork), branches.second.expect(moment)]
        prove_restore(lab.workspace, target, rows=rows, **QUICK)


def test_a_name_that_only_the_other_branch_has(branches: Branches) -> None:
    branches.lab.refused_restore("never", "--to-name", "behind", id="restore-point-not-found")
    target = branches.lab.place("behind")
    branches.lab.restore(target, "--to-name", "behind", "--timeline", "1")
    rows = branches.first.expect(branches.behind_fork)
    prove_restore(branches.lab.workspace, target, rows=rows, **QUICK)


def test_a_backup_that_does_not_lead_to_the_timeline(branches: Branches) -> None:
    options = ["--backup", branches.on_first, "--timeline", "2"]
    error = branches.lab.refused_restore("never", *options, id="no-backup")
    assert "does not lead to timeline 2" in error["message"]


def other_host(lab: RestoreLab, data_dir: Path) -> str:
    """The archive_command of a host whose configuration says that the cluster lies in ``data_dir``."""
    settings = {**lab.settings, "clusters": {"main": {**lab.settings["clusters"]["main"]}}}
    settings["clusters"]["main"]["data_directory"] = str(data_dir)
    path = lab.directory / "other-host.yml"
    path.write_text(json.dumps(settings))
    lab.workspace.account.own(path)
    return f"{lab.runtime} --config {path} wal-push %p"


def test_a_copy_that_archives_into_its_sources_archive_is_noticed(restores: RestoreLab) -> None:
    """Somebody promoted a copy with archiving on. The source lives on, on the lower timeline."""
    lab = restores
    with LiveWriter(lab.cluster) as writer:
        writer.wait_rows(50)
        lab.backup()
        lab.archive_everything()
        copy_dir = lab.place("copy")
        result = lab.restore(copy_dir, "--archiving", "preserve", "--immediate")
        assert any("side by side" in warning for warning in result["warnings"])
        copy = lab.workspace.adopt(copy_dir)
        copy.overrides["archive_mode"] = "on"
        copy.overrides["archive_command"] = other_host(lab, copy_dir)
        copy.start()
        wait_promoted(copy)
        copy.wait_archived(copy.switch_wal())
        copy.stop()
        writer.wait_rows(writer.count + 100)
    lab.archive_everything()
    lab.archive_everything()

    error = lab.refused_restore("never", id="ambiguous-timeline")
    assert "--timeline 1" in error["hint"]
    assert "--timeline 2" in error["hint"]
    target = lab.place("living")
    lab.restore(target, "--timeline", "1")
    prove_restore(lab.workspace, target, rows=writer.expect_all(), **QUICK)
