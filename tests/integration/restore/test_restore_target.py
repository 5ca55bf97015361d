# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A careless restore is refused with one clear error, and nothing is changed."""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cryobackup.errors import BusyError
from cryobackup.events import Silent
from cryobackup.postgres.recovery import Recovery
from cryobackup.postgres.restore_build import build
from cryobackup.postgres.restore_prepare import prepare
from cryobackup.postgres.target import MARKER, OLD_CONTROL
from cryobackup.repository.catalog import Catalog
from tests.lab import FullDisk, prove_restore

from .lab import Story, snapshot, wait_promoted
from .test_restore_goals import QUICK, side


def test_a_directory_that_is_not_empty(story: Story) -> None:
    target = story.lab.workspace.directory("full")
    (target / "important.txt").write_text("mine")
    error = story.lab.refused_restore(target, id="target-not-empty")
    assert "--delta" in error["hint"]
    # And delta is no licence to delete just anything.
    error = story.lab.refused_restore(target, "--delta", id="target-not-empty")
    assert "recognis" in error["message"]


def test_an_empty_directory_is_fine(story: Story) -> None:
    target = story.lab.workspace.directory("empty", mode=0o755)
    (target / "lost+found").mkdir()
    story.lab.restore(target, *side(story, target))
    assert (target / "lost+found").is_dir()
    assert target.stat().st_mode & 0o777 == 0o700
    prove_restore(story.lab.workspace, target, rows=story.writer.expect_all(), **QUICK)


def test_a_parent_that_does_not_exist(story: Story) -> None:
    error = story.lab.refused_restore("no/such/place", id="target-permission")
    assert "no/such" in error["message"]


def test_the_running_cluster_itself(story: Story) -> None:
    living = story.lab.cluster
    for options in ([], ["--delta"], ["--delta", "--archiving", "preserve"]):
        code, result, _unused = story.lab.try_restore(living.data_dir, *options)
        assert (code, result["error"]["id"]) == (1, "target-running")
        assert str(living.pid) in result["error"]["message"]
    assert living.value("SELECT 1") == 1
    assert not (living.data_dir / MARKER).exists()


def test_the_running_cluster_without_its_pid_file(story: Story) -> None:
    living = story.lab.cluster
    pid_file = living.data_dir / "postmaster.pid"
    aside = living.data_dir.parent / "postmaster.pid"
    pid_file.rename(aside)
    try:
        code, result, _unused = story.lab.try_restore(living.data_dir, "--delta")
    finally:
        aside.rename(pid_file)
    assert (code, result["error"]["id"]) == (1, "target-running")
    assert (living.data_dir / "global/pg_control").exists()


def test_a_pid_file_left_by_a_crash_is_no_hindrance(story: Story) -> None:
    """Also when its number belongs to another process by now."""
    target = story.lab.place("stale")
    story.lab.restore(target, *side(story, target))
    sleeper = story.lab.workspace.popen(["sleep", "600"])
    (target / "postmaster.pid").write_text(f"{sleeper.pid}\n{target}\n1700000000\n5432\n/tmp\n\n  1 2\nready   \n")
    story.lab.workspace.account.own(target / "postmaster.pid")
    result = story.lab.restore(target, *side(story, target), "--delta")
    assert result["bytes_written"] < 100_000
    assert not (target / "postmaster.pid").exists()


def test_inside_the_living_data_directory(story: Story) -> None:
    living = story.lab.cluster.data_dir
    code, result, _unused = story.lab.try_restore(living / "restored")
    assert (code, result["error"]["id"]) == (1, "target-is-repository")
    assert "lies in the data directory of cluster 'main'" in result["error"]["message"]
    assert not (living / "restored").exists()


@pytest.mark.only_on("posix")
@pytest.mark.parametrize("where", ["local", "local/restored", ".", "keys", "state/restored"])
def test_at_inside_or_around_the_repository_and_the_keys(story: Story, where: str) -> None:
    target = (story.lab.directory / where).resolve()
    before = snapshot(story.lab.directory / "keys")
    code, result, _unused = story.lab.try_restore(target, "--delta")
    assert (code, result["error"]["id"]) == (1, "target-is-repository")
    assert "Nothing was changed" in result["error"]["hint"]
    assert snapshot(story.lab.directory / "keys") == before
    assert not (story.lab.directory / "local/restored").exists()


@pytest.mark.only_on("posix")
def test_a_tablespace_in_the_repository_or_the_target(story: Story) -> None:
    target = story.lab.place("never")
    for new in (story.lab.locations["local"] / "space", target / "space", story.lab.cluster.data_dir / "space"):
        mapping = f"{story.tablespace}={new}"
        story.lab.refused_restore(target, "--tablespace", mapping, id="target-is-repository")


def test_a_symbolic_link(story: Story) -> None:
    real = story.lab.workspace.directory("real")
    link = story.lab.place("link")
    link.symlink_to(real)
    error = story.lab.refused_restore(link, id="target-symlink")
    assert str(real) in error["message"]
    assert not list(real.iterdir())


def test_a_file(story: Story) -> None:
    path = story.lab.place("file")
    path.write_text("mine")
    story.lab.refused_restore(path, "--delta", id="target-not-empty")


def test_another_cluster(story: Story) -> None:
    other = story.lab.workspace.cluster("another", start=False)
    error = story.lab.refused_restore(other.data_dir, "--delta", id="target-foreign-cluster")
    assert other.system_identifier in error["message"]
    # A restored directory of another cluster that was interrupted is no better.
    marker = other.data_dir / MARKER
    marker.write_text(
        json.dumps({"source": "x", "backup_id": "y", "system_identifier": 1, "started_at": "z", "tablespaces": []})
    )
    story.lab.refused_restore(other.data_dir, "--delta", id="target-foreign-cluster")


def test_somebody_elses_directory(story: Story) -> None:
    if os.geteuid() != 0:
        pytest.skip("making a directory that belongs to somebody else needs root")
    target = story.lab.workspace.directory("roots")
    os.chown(target, 0, 0)
    error = story.lab.refused_restore(target, id="target-owner")
    assert "root" in error["message"]
    # As root, on the other hand, it can be done, and PostgreSQL's user gets everything.
    command = [*story.lab.command, "restore", "main", "--target", str(target), *side(story, target)]
    subprocess.run(command, check=True, capture_output=True)
    owners = {path.lstat().st_uid for path in [target, *target.rglob("*")]}
    assert owners == {story.lab.cluster.data_dir.stat().st_uid}
    prove_restore(story.lab.workspace, target, rows=story.writer.expect_all(), **QUICK)


def test_a_directory_that_may_not_be_written_to(story: Story) -> None:
    target = story.lab.workspace.directory("locked", mode=0o500)
    story.lab.refused_restore(target, id="target-permission")


def test_a_directory_that_may_not_be_looked_into(story: Story, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    error = story.lab.refused_restore(tmp_path / "copy", id="target-permission")
    assert str(tmp_path / "copy") in error["message"]
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_owner(story: Story) -> None:
    mapping = side(story, story.lab.place("never"))
    story.lab.refused_restore("never", *mapping, "--owner", "nobody-of-that-name", id="target-owner")
    story.lab.refused_restore("never", *mapping, "--owner", "root", id="target-owner")


def test_too_little_room(story: Story, full_disk: Callable[..., FullDisk]) -> None:
    disk = full_disk(megabytes=16)
    error = story.lab.refused_restore(disk.path, *side(story, story.lab.place("x")), id="target-space")
    assert "MiB are needed" in error["message"]
    # What lies on another file system is not counted here.
    error = story.lab.refused_restore(
        "never", "--tablespace", f"{story.tablespace}={full_disk(megabytes=1).path}", id="target-space"
    )


def test_too_few_inodes(story: Story, full_disk: Callable[..., FullDisk]) -> None:
    disk = full_disk(megabytes=400, inodes=500)
    error = story.lab.refused_restore(disk.path, *side(story, story.lab.place("x")), id="target-space")
    assert "files are needed" in error["message"]


def test_a_disk_that_fills_up_on_the_way(story: Story, full_disk: Callable[..., FullDisk]) -> None:
    """Somebody else wrote to it meanwhile: the error says how to go on, and going on works."""
    disk = full_disk(megabytes=400)
    target = disk.path / "data"
    command = [*story.lab.command, "--json", "restore", "main", "--target", str(target), *side(story, disk.path)]
    process = story.lab.workspace.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (target / MARKER).exists():
        time.sleep(0.0005)
    process.send_signal(signal.SIGSTOP)
    disk.fill(leave_bytes=1 << 20)
    process.send_signal(signal.SIGCONT)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 1, (out, errors)
    error = json.loads(out)["error"]
    assert error["id"] == "target-space"
    assert "--delta" in error["hint"]
    assert not (target / "global/pg_control").exists()
    disk.release()
    story.lab.restore(target, *side(story, disk.path), "--delta")
    prove_restore(story.lab.workspace, target, rows=story.writer.expect_all(), **QUICK)


# Tablespaces


def test_the_living_clusters_tablespace(story: Story) -> None:
    error = story.lab.refused_restore("never", id="target-running")
    assert f"--tablespace {story.tablespace}=" in error["hint"]
    assert (story.lab.place("never")).exists() is False


def test_a_directory_that_holds_something(story: Story) -> None:
    full = story.lab.workspace.directory("full-space")
    (full / "important.txt").write_text("mine")
    story.lab.refused_restore("never", "--tablespace", f"{story.tablespace}={full}", id="target-not-empty")
    assert (full / "important.txt").read_text() == "mine"


def test_mappings_that_make_no_sense(story: Story) -> None:
    for mapping in ("/no/such=/tmp/x", f"{story.tablespace}=relative", "99=/tmp/x"):
        story.lab.refused_restore("never", "--tablespace", mapping, id="tablespace-mapping")
    story.lab.refused_restore("never", "--tablespace", "nonsense", id="usage", exit_code=2)


def test_a_tablespace_by_its_oid(story: Story) -> None:
    target = story.lab.place("by-oid")
    oid = story.lab.cluster.value("SELECT oid FROM pg_tablespace WHERE spcname = 'side'")
    result = story.lab.restore(target, "--tablespace", f"{oid}={target}-space")
    assert result["tablespaces"] == {str(oid): f"{target}-space"}
    prove_restore(
        story.lab.workspace,
        target,
        golden=story.golden,
        rows=story.writer.expect_all(),
        tablespaces={"side": Path(f"{target}-space")},
    )


def test_a_copy_with_links_to_the_living_cluster(story: Story) -> None:
    """What ``cp -a`` makes: its links lead to the tablespace of its source, running or not."""
    copy = story.lab.place("copied")
    target = story.lab.place("source-of-copy")
    story.lab.restore(target, *side(story, target))
    shutil.copytree(target, copy, symlinks=True)
    (copy / "pg_tblspc" / os.listdir(copy / "pg_tblspc")[0]).unlink()
    living = story.lab.cluster.data_dir / "pg_tblspc"
    for link in living.iterdir():
        (copy / "pg_tblspc" / link.name).symlink_to(os.readlink(link))
    story.lab.workspace.account.own(copy, recursive=True)
    before = snapshot(story.tablespace)
    story.lab.refused_restore(copy, "--delta", id="target-running")
    assert snapshot(story.tablespace) == before
    story.lab.cluster.stop()
    before = snapshot(story.tablespace)
    story.lab.refused_restore(copy, "--delta", id="target-running")
    assert snapshot(story.tablespace) == before
    story.lab.cluster.start()


# Keys and repository


def test_without_the_identity(story: Story) -> None:
    identity = story.lab.directory / "keys/data.identity"
    aside = story.lab.directory / "aside"
    identity.rename(aside)
    try:
        error = story.lab.refused_restore("never", id="no-identity")
        assert "identity" in error["message"]
    finally:
        aside.rename(identity)


def test_with_an_identity_that_others_can_read(story: Story) -> None:
    identity = story.lab.directory / "keys/data.identity"
    identity.chmod(0o444)
    try:
        story.lab.refused_restore("never", id="key-file-mode")
    finally:
        identity.chmod(0o400)


def test_only_one_restore_writes_to_a_target(story: Story) -> None:
    target = story.lab.place("twice")
    command = [*story.lab.command, "--json", "restore", "main", "--target", str(target), *side(story, target)]
    process = story.lab.workspace.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    marker = target / MARKER
    while process.poll() is None and not (marker.exists() and marker.stat().st_size):  # locked, and written then
        time.sleep(0.0005)
    process.send_signal(signal.SIGSTOP)
    code, result, _unused = story.lab.try_restore(target, *side(story, target), "--delta")
    process.send_signal(signal.SIGCONT)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, (out, errors)
    assert (code, result["error"]["id"]) == (1, "busy")
    prove_restore(story.lab.workspace, target, rows=story.writer.expect_all(), **QUICK)


def test_a_server_that_is_started_meanwhile(story: Story) -> None:
    """Between the checks and the first change: it stays as it is, control file and all."""
    lab = story.lab
    target = lab.place("started-meanwhile")
    lab.restore(target, *side(story, target))
    repository = lab.repository()
    backup = Catalog.load(repository, "main").find(story.full)
    mapping = {str(story.tablespace): f"{target}-side"}
    prepared = prepare(repository, backup, target, tablespaces=mapping, tablespace_root=None, delta=True, owner=None)
    server = lab.workspace.adopt(target)
    server.start()
    wait_promoted(server)
    with pytest.raises(BusyError) as caught:
        build(prepared, Recovery("false"), workers=1, durable=True, reporter=Silent(), now=dt.datetime.now(dt.UTC))
    assert caught.value.id == "target-running"
    server.checkpoint()
    server.restart()
    assert server.value("SELECT count(*) FROM lab_rows") == story.writer.count
    server.stop()
    assert not (target / MARKER).exists()
    assert not (target / OLD_CONTROL).exists()
