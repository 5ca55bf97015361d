# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real recoveries that are looked ahead for: every row, on every way, and no process left when they are over."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryobackup.postgres.archive_commands import archive_command, restore_command
from tests.lab import Cluster, LiveWriter, Workspace, golden_dump, prove_restore, wait_until
from tests.lab.cleanup import lab_processes

from .lab import WalLab

SEED = 20261128


@pytest.fixture
def primary(workspace: Workspace) -> Cluster:
    return workspace.cluster(wal_segment_mb=1, settings={"hot_standby": True})


@pytest.fixture
def archive(workspace: Workspace, runtime: Path, primary: Cluster) -> WalLab:
    made = WalLab(workspace, runtime, {"main": primary.data_dir}, locations={"near": True, "far": True})
    primary.enable_archiving(archive_command([str(runtime)], made.config_path))
    return made


def base_backup(primary: Cluster, target: Path) -> Path:
    """A copy of the cluster without any WAL: that has to come from the archive."""
    primary.run("pg_basebackup", "-D", target, "-X", "none", "-c", "fast", "--no-sync")
    return target


def recover(archive: WalLab, target: Path, primary: Cluster, *, signal_file: str = "recovery.signal") -> None:
    """Let the next start of a copy recover from the archive, as beside its source."""
    command = restore_command(
        [str(archive.runtime)], archive.config_path, int(primary.system_identifier), contain_tablespaces=True
    )
    with (target / "postgresql.auto.conf").open("a") as file:
        file.write(f"restore_command = '{command}'\nallow_in_place_tablespaces = on\n")
    (target / signal_file).touch()
    archive.workspace.account.own(target, recursive=True)


def helpers(workspace: Workspace) -> list[int]:
    return [process.pid for process in lab_processes(workspace.path) if " wal-ahead --recovery " in process.command]


def nobody_left(workspace: Workspace) -> None:
    wait_until(lambda: not helpers(workspace), "nobody looks ahead any more")


@contextlib.contextmanager
def killed_now_and_then(workspace: Workspace) -> Iterator[list[int]]:
    """Whoever looks ahead is killed, at any moment."""
    chance = random.Random(SEED)
    stop = threading.Event()
    killed: list[int] = []

    def kill() -> None:
        while not stop.wait(chance.uniform(0.2, 1.5)):
            for pid in helpers(workspace):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        stop.set()
        thread.join()


def test_killed_at_random(workspace: Workspace, primary: Cluster, archive: WalLab) -> None:
    target = base_backup(primary, workspace.path / "copy")
    with LiveWriter(primary) as writer:
        for number in range(40):
            writer.wait_rows(10 * number)
            last = primary.switch_wal()
    golden = golden_dump(primary)
    primary.wait_archived(last)
    primary.wait_archived(primary.switch_wal())
    primary.stop()
    recover(archive, target, primary)
    with killed_now_and_then(workspace) as killed:
        prove_restore(workspace, target, golden=golden, rows=writer.expect_all())
    assert killed
    nobody_left(workspace)


def test_two_recoveries_of_one_archive_at_once(workspace: Workspace, primary: Cluster, archive: WalLab) -> None:
    copies = [base_backup(primary, workspace.path / f"copy-{number}") for number in range(2)]
    with LiveWriter(primary) as writer:
        for number in range(20):
            writer.wait_rows(10 * number)
            last = primary.switch_wal()
    primary.wait_archived(last)
    primary.wait_archived(primary.switch_wal())
    primary.stop()
    servers = []
    for target in copies:
        recover(archive, target, primary)
        servers.append(workspace.adopt(target))
    for server in servers:
        server.start(wait=False)
    for server in servers:
        server.wait_ready()
        wait_until(lambda server=server: not server.value("SELECT pg_is_in_recovery()"))  # type: ignore[misc]
        with server.session() as session:
            writer.expect_all().check(session)
    # Promoted, the servers go on, and nobody looks ahead for them.
    nobody_left(workspace)
    for server in servers:
        server.stop()
        assert server.run("pg_checksums", "--check", "-D", server.data_dir, check=False).returncode == 0


def promoted(workspace: Workspace, archive: WalLab, primary: Cluster) -> None:
    """Let the primary itself go through archive recovery, in place: that is a promotion to the next timeline."""
    command = restore_command([str(archive.runtime)], archive.config_path, int(primary.system_identifier))
    primary.stop()
    primary.configure(restore_command=command)
    (primary.data_dir / "recovery.signal").touch()
    workspace.account.own(primary.data_dir / "recovery.signal")
    primary.start()
    wait_until(lambda: not primary.value("SELECT pg_is_in_recovery()"))


def test_timelines_that_change_on_the_way(workspace: Workspace, primary: Cluster, archive: WalLab) -> None:
    """Twice; and each time the timeline that was left goes on for a while in the archive."""
    primary.execute("CREATE TABLE rows (n int)")
    target = base_backup(primary, workspace.path / "copy")
    for number in range(3):
        for _unused in range(8):
            primary.execute("INSERT INTO rows VALUES (%s)", number)
            last = primary.switch_wal()
        primary.wait_archived(last)
        if number < 2:
            promoted(workspace, archive, primary)
    golden = golden_dump(primary)
    primary.wait_archived(primary.switch_wal())
    primary.stop()
    recover(archive, target, primary)
    proof = prove_restore(workspace, target, golden=golden)
    assert proof.timeline == 4
    nobody_left(workspace)


def test_a_standby_that_waits_at_the_end(workspace: Workspace, primary: Cluster, archive: WalLab) -> None:
    """It asks for the same segment again and again; when there is more, it goes on, and when promoted, it is alone."""
    primary.execute("CREATE TABLE rows (n int)")
    target = base_backup(primary, workspace.path / "copy")
    for number in range(5):
        primary.execute("INSERT INTO rows VALUES (%s)", number)
        last = primary.switch_wal()
    primary.wait_archived(last)
    recover(archive, target, primary, signal_file="standby.signal")
    standby = workspace.adopt(target)
    standby.configure(False, wal_retrieve_retry_interval="200ms")
    standby.start()
    wait_until(lambda: standby.value("SELECT count(*) FROM rows") == 5, "all of the archive")
    for number in range(5, 15):
        primary.execute("INSERT INTO rows VALUES (%s)", number)
        primary.wait_archived(primary.switch_wal())
        wait_until(lambda number=number: standby.value("SELECT count(*) FROM rows") == number + 1)  # type: ignore[misc]
    # Many at once.
    for number in range(15, 35):
        primary.execute("INSERT INTO rows VALUES (%s)", number)
        last = primary.switch_wal()
    wait_until(lambda: standby.value("SELECT count(*) FROM rows") == 35, "all of the archive")
    # Away: it stops rather than take that for the end.
    with archive.away(archive.paths["near"]), archive.away(archive.paths["far"]):
        wait_until(lambda: not standby.running, "the standby stops")
    nobody_left(workspace)
    standby.start()
    wait_until(lambda: standby.value("SELECT count(*) FROM rows") == 35)
    standby.execute("SELECT pg_promote()")
    nobody_left(workspace)
    assert standby.value("SELECT count(*) FROM rows") == 35
    assert standby.value("SELECT NOT pg_is_in_recovery()")
