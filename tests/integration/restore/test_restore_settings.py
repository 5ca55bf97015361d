# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a restored cluster is told: recovery settings, signal files, configuration from elsewhere."""

from __future__ import annotations

import shlex
from pathlib import Path

from tests.lab import Cluster, LiveWriter, Workspace, prove_restore

from .lab import RestoreLab, content, wait_promoted
from .test_restore_goals import QUICK


def test_what_lies_in_the_restored_directory(restores: RestoreLab) -> None:
    lab = restores
    data_dir = lab.cluster.data_dir
    lab.cluster.execute("ALTER SYSTEM SET work_mem = '7MB'")
    lab.cluster.execute("ALTER SYSTEM SET recovery_target_name = 'old'")
    lab.cluster.execute("ALTER SYSTEM SET restore_command = 'false'")
    (data_dir / "standby.signal.note").write_text("kept")
    lab.workspace.account.own(data_dir / "standby.signal.note")
    lab.backup()
    lab.archive_everything()
    target = lab.place("restored")
    lab.restore(target, "--delta")
    found = content(target)
    assert {"recovery.signal", "backup_label", "PG_VERSION", "standby.signal.note"} <= found.keys()
    assert not {"standby.signal", "postmaster.pid", "postmaster.opts", "backup_manifest"} & found.keys()
    for name in ("pg_wal/archive_status", "pg_replslot", "pg_notify", "pg_stat_tmp", "pg_snapshots"):
        assert (target / name).is_dir()
        assert not list((target / name).iterdir())
    lines = (target / "postgresql.auto.conf").read_text().splitlines()
    active = [line for line in lines if not line.startswith("#")]
    assert "work_mem = '7MB'" in active
    assert sum(line.startswith("restore_command") for line in active) == 1
    assert [line for line in active if line.startswith("recovery_target_name")] == ["recovery_target_name = ''"]
    assert "archive_mode = 'off'" in active
    # Once more, over itself: the same settings, not twice as many.
    lab.restore(target, "--delta")
    assert (target / "postgresql.auto.conf").read_text().splitlines() == lines
    prove_restore(lab.workspace, target)


def test_a_configuration_outside_of_the_data_directory(workspace: Workspace, runtime: Path, cluster: Cluster) -> None:
    """As on Debian. The restore tells how to start the copy, and doing that starts the copy, not the source."""
    outside = workspace.directory("etc")
    (outside / "conf.d").mkdir(mode=0o755)
    cluster.stop()
    for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):
        (cluster.data_dir / name).rename(outside / name)
    with (outside / "postgresql.conf").open("a") as file:
        file.write(f"data_directory = '{cluster.data_dir}'\nhba_file = '{outside}/pg_hba.conf'\n")
        file.write(f"ident_file = '{outside}/pg_ident.conf'\ninclude_dir = 'conf.d'\n")
    (outside / "conf.d/archive.conf").write_text("archive_mode = on\nwork_mem = '9MB'\n")
    workspace.account.own(outside, recursive=True)
    cluster.overrides["config_file"] = f"{outside}/postgresql.conf"
    cluster.start()
    lab = RestoreLab(workspace, runtime, cluster, archive=False)
    cluster.execute(f"ALTER SYSTEM SET archive_command = '{lab.archive_command}'")
    cluster.reload()
    with LiveWriter(cluster) as writer:
        writer.wait_rows(20)
        lab.backup()
        writer.wait_rows(writer.count + 20)
    lab.archive_everything()

    target = lab.place("restored")
    result = lab.restore(target, "--port", "5433")
    assert f"{outside}/postgresql.conf" in result["config_files"]
    saved = target / ".cryobackup/config" / str(outside).lstrip("/")
    assert (saved / "conf.d/archive.conf").read_text().endswith("work_mem = '9MB'\n")
    assert not (target / "postgresql.conf").exists()
    steps = " ".join(result["next_steps"])
    assert str(target / ".cryobackup/config") in steps
    command = shlex.split(next(step for step in result["next_steps"] if "pg_ctl" in step).partition(": ")[2])

    # The socket must not be that of the source; nothing else is added to the command that was shown.
    sockets = workspace.directory("sockets")
    at = command.index("-o")
    command[at + 1] += f" -c listen_addresses= -c unix_socket_directories={sockets}"
    workspace.run(command)
    try:
        conninfo = f"host={sockets} port=5433 user=postgres dbname=postgres"
        asked = "SELECT current_setting('data_directory'), current_setting('work_mem'), current_setting('archive_mode')"
        psql = [cluster.installation.program("psql"), "-XAt", conninfo, "-c", asked]
        assert workspace.run(psql).stdout.strip() == f"{target}|9MB|off"
    finally:
        workspace.run([cluster.installation.program("pg_ctl"), "-D", target, "-m", "fast", "stop"])
    assert cluster.value("SELECT 1") == 1
    prove_restore(
        workspace,
        target,
        rows=writer.expect_all(),
        settings={"config_file": f"{saved}/postgresql.conf", "data_directory": str(target)},
        **QUICK,
    )


def test_a_standbys_signal_file_is_not_restored(restores: RestoreLab) -> None:
    """A backup that was made while the file lay there, by mistake or on a standby."""
    lab = restores
    signal = lab.cluster.data_dir / "standby.signal"
    signal.touch()
    lab.backup()
    lab.archive_everything()
    signal.unlink()
    target = lab.place("restored")
    lab.restore(target)
    assert not (target / "standby.signal").exists()
    copy = lab.workspace.adopt(target)
    copy.start()
    wait_promoted(copy)


def test_start_waits_for_the_promotion(restores: RestoreLab) -> None:
    lab = restores
    lab.backup()
    lab.archive_everything()
    target = lab.place("restored")
    # The living cluster's own settings would give the copy its socket directory, too.
    sockets = lab.workspace.directory("sockets")
    lab.cluster.configure(unix_socket_directories=str(sockets), listen_addresses="")
    lab.backup()
    lab.archive_everything()
    result = lab.restore(target, "--start", "--port", "5434")
    try:
        assert result["started"] is True
        assert result["state"] == "in production"
    finally:
        lab.workspace.run([lab.cluster.installation.program("pg_ctl"), "-D", target, "-m", "fast", "stop"])
    prove_restore(lab.workspace, target)


def test_a_start_that_fails_says_why(restores: RestoreLab) -> None:
    lab = restores
    lab.backup()
    lab.archive_everything()
    lab.cluster.configure(shared_preload_libraries="no_such_library")
    lab.backup()
    lab.archive_everything()
    code, result, _unused = lab.try_restore(lab.place("restored"), "--start", "--port", "5435")
    assert (code, result["error"]["id"]) == (1, "start-failed")
    assert "no_such_library" in result["error"]["message"]
    assert "restore itself is complete" in result["error"]["hint"]
