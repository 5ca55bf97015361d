# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A restore ends exactly where it was told to, from the backup that leads there."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable
from pathlib import Path

import pytest

from cryobackup.postgres.control import read_control
from cryobackup.postgres.restore_servers import server_of
from tests.lab import Moment, prove_restore

from .lab import Story, wait_promoted

QUICK = {"amcheck": False, "visibility": False}
GOALS: dict[str, Callable[[Moment], list[str]]] = {
    "time": lambda moment: ["--to-time", moment.time_text],
    "lsn": lambda moment: ["--to-lsn", moment.lsn],
    "name": lambda moment: ["--to-name", str(moment.name)],
    "xid": lambda moment: ["--to-xid", str(moment.xid)],
}


def side(story: Story, target: Path) -> list[str]:
    """The living cluster's tablespace stays where it is."""
    return ["--tablespace", f"{story.tablespace}={target}-side"]


def test_the_latest_state_has_everything(story: Story) -> None:
    target = story.lab.place("latest")
    result = story.lab.restore(target, *side(story, target))
    assert result["backup_id"] == story.incremental
    assert result["status"] == "ok"
    assert result["warnings"] == []
    assert result["recovery"]["target"] == "latest"
    prove_restore(
        story.lab.workspace,
        target,
        golden=story.golden,
        rows=story.writer.expect_all(),
        tablespaces={"side": Path(f"{target}-side")},
    )


@pytest.mark.parametrize("kind", GOALS)
@pytest.mark.parametrize("when", ["first", "second"])
def test_a_goal_is_met_to_the_row(story: Story, kind: str, when: str) -> None:
    moment: Moment = getattr(story, when)
    target = story.lab.place(f"{kind}-{when}")
    result = story.lab.restore(target, *side(story, target), *GOALS[kind](moment))
    assert result["backup_id"] == {"first": story.full, "second": story.incremental}[when]
    assert result["archiving"] == "off"
    if kind in ("name", "xid"):
        assert dt.datetime.fromisoformat(result["recovery"]["time"]) <= dt.datetime.now(dt.UTC)
    prove_restore(story.lab.workspace, target, rows=story.writer.expect(moment), **QUICK)


def test_an_older_backup_may_be_named(story: Story) -> None:
    target = story.lab.place("named")
    result = story.lab.restore(target, *side(story, target), "--backup", story.full[-8:], *GOALS["name"](story.second))
    assert result["backup_id"] == story.full
    prove_restore(story.lab.workspace, target, rows=story.writer.expect(story.second), **QUICK)


def test_exclusive_ends_before_the_transaction(story: Story) -> None:
    target = story.lab.place("exclusive")
    story.lab.restore(target, *side(story, target), "--exclusive", *GOALS["xid"](story.second))
    one_less = dataclasses.replace(story.second, last_id=story.second.last_id - 1)
    prove_restore(story.lab.workspace, target, rows=story.writer.expect(one_less), **QUICK)


def test_exclusive_at_a_commit_time_leaves_that_commit_out(story: Story) -> None:
    row = next(row for row in story.writer.rows if row.id == story.second.last_id)
    for options, last in ((["--exclusive"], row.id - 1), ([], row.id)):
        target = story.lab.place(f"commit-time-{last}")
        story.lab.restore(target, *side(story, target), "--to-time", row.committed_at.isoformat(), *options)
        expected = dataclasses.replace(story.second, last_id=last)
        prove_restore(story.lab.workspace, target, rows=story.writer.expect(expected), **QUICK)


def test_immediate_is_the_end_of_the_backup(story: Story) -> None:
    target = story.lab.place("immediate")
    result = story.lab.restore(target, *side(story, target), "--immediate", "--backup", story.full)
    assert result["recovery"]["target"] == "immediate"
    info = story.lab.manifest(story.full).header.postgres
    assert info is not None
    # What is committed behind the backup's last record is not there.
    rows = story.writer.expect_lsn(info.stop_lsn)
    prove_restore(story.lab.workspace, target, rows=rows, **QUICK)


def test_a_pause_lets_one_look_before_it_is_final(story: Story) -> None:
    target = story.lab.place("pause")
    result = story.lab.restore(target, *side(story, target), "--action", "pause", *GOALS["name"](story.first))
    assert any("pg_wal_replay_resume" in step for step in result["next_steps"])
    proof = prove_restore(story.lab.workspace, target, rows=story.writer.expect(story.first), **QUICK)
    assert proof.was_paused


def test_the_server_can_be_started_at_once(story: Story) -> None:
    """And it shuts down at the goal, so that nothing is left running."""
    target = story.lab.place("started")
    options = ["--start", "--port", "54321", "--action", "shutdown", *GOALS["name"](story.first)]
    result = story.lab.restore(target, *side(story, target), *options)
    assert result["state"] == "shut down in recovery"
    assert result["started"] is False
    assert "port = '54321'" in (target / "postgresql.auto.conf").read_text()
    assert any("recovery_target_action" in step for step in result["next_steps"])
    settings = target / "postgresql.auto.conf"
    text = settings.read_text()
    settings.write_text(text.replace("recovery_target_action = 'shutdown'", "recovery_target_action = 'promote'"))
    prove_restore(story.lab.workspace, target, rows=story.writer.expect(story.first), **QUICK)


def test_a_dry_run_says_what_would_be_and_writes_nothing(story: Story) -> None:
    target = story.lab.place("dry")
    result = story.lab.restore(target, *side(story, target), "--dry-run", *GOALS["time"](story.first))
    assert result["dry_run"] is True
    assert result["backup_id"] == story.full
    assert result["files"] > 900
    assert result["bytes_written"] == 0
    assert not target.exists()
    assert not Path(f"{target}-side").exists()


def archived(story: Story) -> set[tuple[str, str]]:
    """Timelines and names of all WAL files."""
    lab = story.lab
    area = lab.locations[next(iter(lab.locations))] / f"wal/{lab.cluster.system_identifier}"
    return {(timeline.name, file.name) for timeline in area.iterdir() for file in timeline.iterdir()}


def test_a_copy_never_archives(story: Story) -> None:
    target = story.lab.place("copy")
    story.lab.restore(target, *side(story, target), *GOALS["name"](story.first))
    before = archived(story)
    # Without the laboratory's own precautions: only what the restore wrote keeps it from archiving.
    copy = story.lab.workspace.adopt(target, settings={"archive_mode": None})
    copy.overrides.pop("archive_mode")
    copy.start()
    wait_promoted(copy)
    assert copy.value("SHOW archive_mode") == "off"
    copy.execute("CREATE TABLE strange AS SELECT 1 AS a")
    copy.switch_wal()
    copy.checkpoint()
    copy.stop()
    assert archived(story) == before
    assert not list((target / "pg_wal/archive_status").iterdir())


def test_an_earlier_recovery_target_does_not_get_in_the_way(story: Story) -> None:
    """PostgreSQL refuses to start with two; postgresql.conf of the backup may still have an old one."""
    target = story.lab.place("old-target")
    story.lab.restore(target, *side(story, target), *GOALS["lsn"](story.first))
    with (target / "postgresql.conf").open("a") as file:
        file.write("recovery_target_time = '2020-01-01 00:00:00+00'\nrecovery_target_action = 'shutdown'\n")
        file.write("recovery_end_command = 'touch /tmp/cryobackup-must-not-exist; false'\n")
    prove_restore(story.lab.workspace, target, rows=story.writer.expect(story.first), **QUICK)
    assert not Path("/tmp/cryobackup-must-not-exist").exists()


# What cannot be


def test_before_the_end_of_every_backup(story: Story) -> None:
    for kind in ("time", "lsn"):
        error = story.lab.refused_restore("never", *GOALS[kind](story.before), id="too-early")
        assert story.full in error["hint"]
        assert "earliest" in error["hint"]


def test_before_the_end_of_the_named_backup(story: Story) -> None:
    for kind in ("time", "lsn"):
        options = ["--backup", story.incremental, *GOALS[kind](story.first)]
        error = story.lab.refused_restore("never", *options, id="too-early")
        assert story.incremental in error["message"]


def test_a_time_without_offset(story: Story) -> None:
    error = story.lab.refused_restore("never", "--to-time", "2026-03-01T14:03:00", id="recovery-target", exit_code=2)
    assert "offset" in error["message"]


def test_a_time_in_the_future(story: Story) -> None:
    tomorrow = (dt.datetime.now(dt.UTC) + dt.timedelta(days=1)).isoformat()
    story.lab.refused_restore("never", "--to-time", tomorrow, id="too-late")


def test_two_goals(story: Story) -> None:
    story.lab.refused_restore("never", *GOALS["time"](story.first), *GOALS["lsn"](story.first), id="usage", exit_code=2)


def test_a_restore_point_that_is_not_in_the_archive(story: Story) -> None:
    error = story.lab.refused_restore("never", "--to-name", "third", id="restore-point-not-found")
    assert "pg_switch_wal" in error["hint"]
    story.lab.refused_restore("never", "--to-xid", "4000000000", id="restore-point-not-found")


def test_a_backup_that_is_not_there(story: Story) -> None:
    story.lab.refused_restore("never", "--backup", "20200101T000000Z-00000000", id="no-such-backup")


def test_a_cluster_without_backups(story: Story) -> None:
    result = story.lab.run("--json", "restore", "nobody", "--target", str(story.lab.place("never")))
    assert result.returncode == 1
    assert '"no-backup"' in result.stdout


def test_an_unreachable_timeline(story: Story) -> None:
    story.lab.refused_restore("never", "--timeline", "7", id="no-such-timeline")


def test_nothing_was_left_running_or_invalid(story: Story) -> None:
    """The restored control file has no checkpoint to start from but the label's."""
    target = story.lab.place("control")
    story.lab.restore(target, *side(story, target))
    assert read_control(target / "global/pg_control").checkpoint_invalidated
    assert server_of(target) is None
    (target / "backup_label").unlink()
    lost = story.lab.workspace.adopt(target, name="lost-label")
    with pytest.raises(AssertionError, match="could not locate"):
        lost.start()
