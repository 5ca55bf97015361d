# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module backup_restore: check, do, check again, do again; goals; and what must be refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab import LiveWriter, prove_restore

from .lab import SOURCE, AnsibleLab, assert_failed, task

if TYPE_CHECKING:
    from psycopg2.extensions import connection


def test_check_do_check_again_do_again(tasks: AnsibleLab) -> None:
    backup = tasks.backup()
    target = tasks.workspace.path / "restored"
    options = {"cluster": SOURCE, "target": str(target)}
    (check,) = tasks.play(task("backup_restore", check=True, **options))
    assert check["changed"]
    assert check["restore"]["dry_run"]
    assert not target.exists()

    do, check_again, do_again = tasks.play(
        task("backup_restore", **options),
        task("backup_restore", check=True, **options),
        task("backup_restore", **options),
    )
    assert do["changed"]
    assert not do["restore"]["dry_run"]
    for predicted in ("backup_id", "target", "files", "bytes_restored", "recovery", "archiving", "status", "owner"):
        assert check["restore"][predicted] == do["restore"][predicted], predicted
    assert do["restore"]["backup_id"] == backup["backup_id"]
    # A directory that holds something is refused, as check mode foretells.
    for result in (check_again, do_again):
        assert_failed(result)
        assert result["error"]["id"] == "target-not-empty"
        assert not result["changed"]
    prove_restore(tasks.workspace, target)


def test_delta_makes_the_target_equal_again(tasks: AnsibleLab) -> None:
    tasks.cluster.execute("CREATE TABLE kept AS SELECT generate_series(1, 100) AS n")
    tasks.backup()
    target = tasks.workspace.path / "restored"
    options = {"cluster": SOURCE, "target": str(target), "delta": True, "immediate": True}
    (done,) = tasks.play(task("backup_restore", **options))
    stray = target / "base" / "stray"
    stray.write_text("not in the backup")
    tasks.workspace.account.own(stray)
    check, again = tasks.play(
        task("backup_restore", check=True, **options),
        task("backup_restore", **options),
    )
    assert check["changed"]
    assert again["changed"]
    assert not stray.exists()
    assert again["restore"]["bytes_written"] < done["restore"]["bytes_written"]
    prove_restore(tasks.workspace, target, sql=expect_kept)


def expect_kept(session: connection) -> None:
    with session.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM kept")
        assert cursor.fetchall() == [(100,)]


def test_recovers_to_a_time_and_starts(tasks: AnsibleLab) -> None:
    """Beside the living cluster, on another port; the task ends although the server stays."""
    # What the laboratory says on the command line only, the restored cluster reads in its configuration.
    tasks.cluster.configure(unix_socket_directories=str(tasks.cluster.socket_dir), listen_addresses="")
    tasks.backup()
    with LiveWriter(tasks.cluster) as writer:
        writer.wait_rows(20)
        moment = writer.moment()
        writer.wait_rows(writer.count + 20)
    tasks.cluster.wait_archived(tasks.cluster.switch_wal())
    target = tasks.workspace.path / "then"
    (result,) = tasks.play(
        task(
            "backup_restore",
            cluster=SOURCE,
            target=str(target),
            to_time=moment.time_text,
            start=True,
            port=tasks.cluster.port + 1,
        )
    )
    assert not result["failed"], result
    try:
        assert result["restore"]["started"]
        assert result["restore"]["state"] == "in production"
        assert result["restore"]["archiving"] == "off"
    finally:
        tasks.workspace.run([tasks.cluster.installation.program("pg_ctl"), "-D", target, "-m", "fast", "stop"])
    prove_restore(tasks.workspace, target, rows=writer.expect(moment))


def test_goals_and_what_is_refused(tasks: AnsibleLab) -> None:
    backup = tasks.backup()
    tasks.cluster.execute("SELECT pg_create_restore_point('here')")
    tasks.cluster.wait_archived(tasks.cluster.switch_wal())
    target = tasks.workspace.path / "restored"
    usual = {"cluster": SOURCE, "target": str(target), "check": True}
    named, by_number, two_goals, no_offset, unknown, none_at_all, early, living = tasks.play(
        task("backup_restore", **usual, to_name="here", action="pause"),
        task("backup_restore", **usual, immediate=True, timeline=1, archiving=False),
        task("backup_restore", **usual, to_lsn="0/1", to_time="2026-01-01T00:00:00Z"),
        task("backup_restore", **usual, to_time="2026-01-01T00:00:00"),
        task("backup_restore", **usual, backup="20000101T000000Z-00000000"),
        task("backup_restore", **usual | {"cluster": "other"}),
        task("backup_restore", **usual, to_time="2020-01-01T00:00:00Z"),
        task("backup_restore", **usual | {"target": str(tasks.cluster.data_dir)}, delta=True),
    )
    assert named["restore"]["recovery"]["value"] == "here"
    assert named["restore"]["recovery"]["action"] == "pause"
    # Numbers and YAML's "off" are understood.
    assert by_number["restore"]["recovery"]["target"] == "immediate"
    assert by_number["restore"]["archiving"] == "off"
    assert two_goals["failed"]
    assert "mutually exclusive" in two_goals["msg"]
    for result, error_id in (
        (no_offset, "recovery-target"),
        (unknown, "no-such-backup"),
        (none_at_all, "no-backup"),
        (early, "too-early"),
        (living, "target-running"),
    ):
        assert_failed(result)
        assert result["error"]["id"] == error_id, result
    assert backup["backup_id"] in early["msg"]
    assert not target.exists()


def test_without_the_key_that_reads(tasks: AnsibleLab) -> None:
    tasks.backup()
    (identity,) = (tasks.directory / "keys").glob("data*.identity")
    identity.unlink()
    target = tasks.workspace.path / "restored"
    for check in (True, False):
        result = tasks.failure("backup_restore", check=check, cluster=SOURCE, target=str(target))
        assert result["error"]["id"] == "no-identity"
    assert not target.exists()


def test_the_restored_cluster_finds_the_command(tasks: AnsibleLab) -> None:
    """The module is no program that PostgreSQL could start: ``restore_command`` names the installed one."""
    tasks.backup()
    target = tasks.workspace.path / "restored"
    tasks.do("backup_restore", cluster=SOURCE, target=str(target))
    lines = (target / "postgresql.auto.conf").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("restore_command")]
    program = Path(line.split("'")[1].split()[0])
    assert program.name == "cryobackup"
    assert os.access(program, os.X_OK)
