# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""wal-push: archived means durable in every required location, and never over another file."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cryobackup.crypto.keys import KeyRing
from cryobackup.errors import SourceError
from cryobackup.postgres.archive_backlog import read_backlog
from cryobackup.postgres.archive_object import WalReader, look_at_wal
from cryobackup.postgres.archive_run import archive as archive_file
from cryobackup.postgres.archive_source import WalSource
from tests.lab import FullDisk, Workspace, flip_byte, run_and_kill, wait_until
from tests.lab.stores import replace

from .lab import FinishedWal, WalLab


def content(archive: WalLab, system_identifier: int, name: str, location: str | None = None) -> bytes:
    """What the archive has under a name, read with the identity."""
    place = location or next(iter(archive.paths))
    reader = WalReader.archived(KeyRing.load(archive.keys), archive.open_location(place), system_identifier, name)
    return b"".join(reader.chunks())


@contextlib.contextmanager
def in_the_place_of(path: Path, new: bytes) -> Iterator[None]:
    """While inside, a file has other content (or is there at all)."""
    old = path.read_bytes() if path.exists() else None
    path.write_bytes(new)
    try:
        yield
    finally:
        if old is None:
            path.unlink()
        else:
            path.write_bytes(old)


@pytest.mark.every_location
def test_a_segment_is_archived_as_it_is(archive: WalLab, finished: FinishedWal) -> None:
    name = finished.segments[0]
    result = archive.push(finished.data_dir, name)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert content(archive, finished.system_identifier, name) == finished.path(name).read_bytes()
    assert archive.left_overs() == []


@pytest.mark.every_location
def test_pushing_again_succeeds_and_changes_nothing(archive: WalLab, finished: FinishedWal) -> None:
    name = finished.segments[0]
    archive.push(finished.data_dir, name)
    before = archive.object(finished.system_identifier, name).stat()
    code, result = archive.json("wal-push", f"pg_wal/{name}", cwd=finished.data_dir)
    assert (code, result["stored"], result["already"]) == (0, [], ["local"])
    after = archive.object(finished.system_identifier, name).stat()
    assert (before.st_ino, before.st_mtime, before.st_size) == (after.st_ino, after.st_mtime, after.st_size)


def test_the_header_tells_the_content_without_the_identity(archive: WalLab, finished: FinishedWal) -> None:
    name = finished.segments[0]
    with archive.away(archive.keys / "data.identity"):
        assert archive.push(finished.data_dir, name).returncode == 0
        keys = KeyRing.load(archive.keys)
        stored = look_at_wal(keys, archive.open_location("local"), finished.system_identifier, name)
        assert stored is not None
        assert stored.size == finished.path(name).stat().st_size
        assert archive.push(finished.data_dir, name).returncode == 0
        assert archive.get(name, archive.directory / "out", cwd=finished.data_dir) == 200


@pytest.mark.every_location
def test_another_segment_of_the_same_name_is_refused(archive: WalLab, finished: FinishedWal) -> None:
    """Two servers promoted apart from each other."""
    name = finished.segments[0]
    assert archive.push(finished.data_dir, name).returncode == 0
    other = bytearray(finished.path(name).read_bytes())
    other[100_000] ^= 1
    with in_the_place_of(finished.path(name), bytes(other)):
        code, result = archive.json("wal-push", f"pg_wal/{name}", cwd=finished.data_dir)
    assert (code, result["error"]["id"]) == (1, "object-conflict")
    assert str(archive.paths["local"]) in result["error"]["message"]
    assert str(finished.path(name)) in result["error"]["message"]
    assert content(archive, finished.system_identifier, name) == finished.path(name).read_bytes()


@pytest.mark.every_location
def test_a_conflict_in_one_location_keeps_the_others_clean(twofold: WalLab, finished: FinishedWal) -> None:
    """Also when the conflict is where nothing is required: two histories must not be mixed anywhere."""
    name = finished.segments[0]
    with twofold.away(twofold.paths["near"]):
        twofold.push(finished.data_dir, name)
    assert twofold.object(finished.system_identifier, name, "far").exists()
    other = bytearray(finished.path(name).read_bytes())
    other[100_000] ^= 1
    with in_the_place_of(finished.path(name), bytes(other)):
        assert twofold.json("wal-push", f"pg_wal/{name}", cwd=finished.data_dir)[1]["error"]["id"] == "object-conflict"
    assert not twofold.object(finished.system_identifier, name, "near").exists()


def test_wal_of_another_cluster_is_refused(archive: WalLab, finished: FinishedWal, workspace: Workspace) -> None:
    foreign = workspace.cluster("foreign", settings={"wal_keep_size": "1GB"})
    name = foreign.switch_wal()
    foreign.stop()
    with in_the_place_of(finished.path(name), (foreign.data_dir / "pg_wal" / name).read_bytes()):
        code, result = archive.json("wal-push", f"pg_wal/{name}", cwd=finished.data_dir)
    assert (code, result["error"]["id"]) == (1, "wal-foreign")
    assert not archive.object(finished.system_identifier, name).exists()


@pytest.fixture
def clone(finished: FinishedWal, workspace: Workspace) -> Path:
    path = workspace.path / "clone"
    shutil.copytree(finished.data_dir, path, symlinks=True)
    return workspace.account.own(path, recursive=True)


@pytest.mark.parametrize("options", [[], ["--cluster", "main"]])
def test_a_copy_does_not_archive_into_the_archive_of_its_source(
    archive: WalLab, finished: FinishedWal, clone: Path, options: list[str]
) -> None:
    name = finished.segments[0]
    code, result = archive.json("wal-push", f"pg_wal/{name}", *options, cwd=clone)
    assert (code, result["error"]["id"]) == (1, "foreign-data-directory")
    assert str(finished.data_dir) in result["error"]["message"]
    code, result = archive.json("wal-push", clone / "pg_wal" / name, *options)
    assert (code, result["error"]["id"]) == (1, "foreign-data-directory")
    assert not archive.object(finished.system_identifier, name).exists()


def test_nor_does_a_copy_whose_pg_wal_is_a_link_to_that_of_its_source(
    archive: WalLab, finished: FinishedWal, clone: Path
) -> None:
    shutil.rmtree(clone / "pg_wal")
    (clone / "pg_wal").symlink_to(finished.data_dir / "pg_wal")
    code, result = archive.json("wal-push", f"pg_wal/{finished.segments[0]}", cwd=clone)
    assert (code, result["error"]["id"]) == (1, "foreign-data-directory")


def test_pg_wal_and_the_data_directory_may_be_links(
    workspace: Workspace, runtime: Path, finished: FinishedWal, clone: Path
) -> None:
    shutil.move(clone / "pg_wal", workspace.path / "elsewhere")
    (clone / "pg_wal").symlink_to(workspace.path / "elsewhere")
    (workspace.path / "link").symlink_to(clone)
    archive = WalLab(workspace, runtime, {"main": workspace.path / "link"})
    name = finished.segments[0]
    code, result = archive.json("wal-push", f"pg_wal/{name}", cwd=clone)
    assert (code, result["cluster"], result["stored"]) == (0, "main", ["local"])
    code, result = archive.json("wal-push", clone / "pg_wal" / name)
    assert (code, result["already"]) == (0, ["local"])


def test_the_cluster_is_found_among_several(
    workspace: Workspace, runtime: Path, finished: FinishedWal, clone: Path
) -> None:
    """A copy with an entry of its own, which shares the system identifier and so the archive."""
    archive = WalLab(workspace, runtime, {"other": clone, "main": finished.data_dir})
    name = finished.segments[0]
    assert archive.json("wal-push", f"pg_wal/{name}", cwd=finished.data_dir)[1]["cluster"] == "main"
    code, result = archive.json("wal-push", f"pg_wal/{name}", cwd=clone)
    assert (code, result["cluster"], result["already"]) == (0, "other", ["local"])
    code, result = archive.json("wal-push", f"pg_wal/{name}", "--cluster", "nobody", cwd=clone)
    assert (code, result["error"]["id"]) == (2, "unknown-cluster")


def damaged(whole: bytes) -> dict[str, tuple[bytes, str]]:
    return {
        "cut off": (whole[:-8192], "wal-size"),
        "empty": (b"", "wal-not-wal"),
        "zeros": (bytes(len(whole)), "wal-empty"),
        "not WAL": (b"x" * len(whole), "wal-not-wal"),
        "another timeline": (whole[:4] + (7).to_bytes(4, "little") + whole[8:], "wal-timeline"),
    }


@pytest.mark.parametrize("how", ["cut off", "empty", "zeros", "not WAL", "another timeline"])
def test_what_is_no_whole_segment_is_refused(archive: WalLab, finished: FinishedWal, how: str) -> None:
    name = finished.segments[1]
    new, identifier = damaged(finished.path(name).read_bytes())[how]
    with in_the_place_of(finished.path(name), new):
        code, result = archive.json("wal-push", f"pg_wal/{name}", cwd=finished.data_dir)
    assert (code, result["error"]["id"]) == (1, identifier)
    assert not archive.object(finished.system_identifier, name).exists()


def test_a_segment_under_a_later_name_is_refused(archive: WalLab, finished: FinishedWal) -> None:
    """PostgreSQL recycles files: an unwritten one still has the pages of its past."""
    name = f"{finished.segments[-1][:-2]}77"
    with in_the_place_of(finished.path(name), finished.path(finished.segments[0]).read_bytes()):
        code, result = archive.json("wal-push", f"pg_wal/{name}", cwd=finished.data_dir)
    assert (code, result["error"]["id"]) == (1, "wal-recycled")


@pytest.mark.parametrize(
    ("name", "identifier"),
    [
        ("RECOVERYXLOG", "wal-name"),
        ("00000001000000000000000", "wal-name"),
        ("000000010000000000000099", "wal-unreadable"),
        ("archive_status", "wal-name"),
    ],
)
def test_what_is_no_wal_file_is_refused(archive: WalLab, finished: FinishedWal, name: str, identifier: str) -> None:
    code, result = archive.json("wal-push", f"pg_wal/{name}", cwd=finished.data_dir)
    assert (code, result["error"]["id"]) == (1, identifier)


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        ("00000002.history", b"1\t0/3000148\tno recovery target specified\n", 0),
        ("00000002.history", b"", 0),
        ("00000002.history", b"garbage\n", 1),
        ("00000002.history", b"2\t0/3000148\tits own ancestor\n", 1),
        ("000000010000000000000001.00000028.backup", b"START WAL LOCATION: 0/1000028 (file ...)\n", 0),
        ("000000010000000000000001.00000028.backup", b"", 1),
    ],
)
def test_history_and_backup_files(archive: WalLab, finished: FinishedWal, name: str, text: bytes, code: int) -> None:
    with in_the_place_of(finished.path(name), text):
        assert archive.push(finished.data_dir, name).returncode == code
    if code == 0:
        assert content(archive, finished.system_identifier, name) == text
    else:
        assert not archive.object(finished.system_identifier, name).exists()


@pytest.mark.every_location
def test_a_required_location_that_is_gone_fails_the_push_until_it_is_back(
    workspace: Workspace, runtime: Path, finished: FinishedWal
) -> None:
    archive = WalLab(workspace, runtime, {"main": finished.data_dir}, locations={"near": True, "far": True})
    name = finished.segments[0]
    with archive.away(archive.paths["far"]):
        code, result = archive.json("wal-push", f"pg_wal/{name}", cwd=finished.data_dir)
        assert code == 1
        assert "It is in near already." in result["error"]["hint"]
    code, result = archive.json("wal-push", f"pg_wal/{name}", cwd=finished.data_dir)
    assert (code, result["stored"], result["already"]) == (0, ["far"], ["near"])
    assert archive.object(finished.system_identifier, name, "near").exists()
    assert content(archive, finished.system_identifier, name, "far") == finished.path(name).read_bytes()


@pytest.mark.only_on("posix", "sftp")
def test_a_location_that_was_emptied_is_not_taken_for_the_repository(archive: WalLab, finished: FinishedWal) -> None:
    """The directory of a disk that is not mounted."""
    with archive.away(archive.paths["local"]):
        archive.workspace.account.own(_made(archive.paths["local"]))
        assert archive.push(finished.data_dir, finished.segments[0]).returncode == 1
        assert list(archive.paths["local"].iterdir()) == []
        archive.paths["local"].rmdir()


def _made(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.every_location
def test_an_optional_location_that_is_gone_is_noted(twofold: WalLab, finished: FinishedWal) -> None:
    name = finished.segments[0]
    with twofold.away(twofold.paths["far"]):
        code, result = twofold.json("wal-push", f"pg_wal/{name}", cwd=finished.data_dir)
    assert (code, result["stored"], list(result["failed"])) == (0, ["near"], ["far"])
    assert "not in location far" in result["warnings"][0]
    assert read_backlog(twofold.state) == {"far": [f"{finished.system_identifier}/{name}"]}
    _code, told = twofold.json("status")
    assert f"location far: it lacks 1 WAL file, from {finished.system_identifier}/{name} on" in told["attention"]
    # What costs a wait is left alone for a while.
    shutil.rmtree(twofold.state / "outages", ignore_errors=True)
    assert twofold.push(finished.data_dir, name).stderr == ""
    assert read_backlog(twofold.state) == {}


@pytest.mark.every_location
def test_a_damaged_object_is_not_taken_for_archived(archive: WalLab, finished: FinishedWal) -> None:
    name = finished.segments[0]
    archive.push(finished.data_dir, name)
    path = archive.object(finished.system_identifier, name)
    flip_byte(path, 200)
    assert archive.push(finished.data_dir, name).returncode == 1
    flip_byte(path, 200)
    replace(path, path.read_bytes()[:-1])
    code, result = archive.json("wal-push", f"pg_wal/{name}", cwd=finished.data_dir)
    assert (code, result["error"]["id"]) == (1, "damage")


@pytest.mark.parametrize("name", ["catalog.key", "data.identity"])
def test_keys_that_others_can_read_are_refused(archive: WalLab, finished: FinishedWal, name: str) -> None:
    (archive.keys / name).chmod(0o644)
    code, result = archive.json("wal-push", f"pg_wal/{finished.segments[0]}", cwd=finished.data_dir)
    assert (code, result["error"]["id"]) == (1, "key-file-mode")
    assert archive.get(finished.segments[0], archive.directory / "out", cwd=finished.data_dir) == 200


def test_the_state_directory_is_not_needed(twofold: WalLab, finished: FinishedWal) -> None:
    """Notes of a backlog are hints: WAL is archived also where they cannot be made."""
    shutil.rmtree(twofold.state, ignore_errors=True)
    twofold.state.write_text("in the way")
    with twofold.away(twofold.paths["far"]):
        result = twofold.push(finished.data_dir, finished.segments[0])
    assert result.returncode == 0
    assert "could not be noted" in result.stderr


def test_kill_9_at_any_instant_leaves_nothing_wrong(archive: WalLab, finished: FinishedWal) -> None:
    name = finished.segments[0]
    command = [archive.runtime, "--config", archive.config_path, "wal-push", f"pg_wal/{name}"]
    target = archive.object(finished.system_identifier, name)
    # One request to an object store leaves no trace before it is done: there, at instants of the whole run.
    traces = archive.workspace.stores.kind != "s3"
    killed = 0
    for round_ in range(12):
        target.unlink(missing_ok=True)
        already = set(archive.left_overs())
        outcome = run_and_kill(
            archive.workspace.account.argv(command),
            when=(lambda already=already: bool(set(archive.left_overs()) - already)) if traces else None,
            after=round_ * (0.008 if traces else 0.1),
            env=archive.workspace.environment,
            cwd=finished.data_dir,
        )
        killed += outcome.was_killed
        # Either there is no object, or it is whole.
        if target.exists():
            assert content(archive, finished.system_identifier, name) == finished.path(name).read_bytes()
        assert archive.push(finished.data_dir, name).returncode == 0
        assert content(archive, finished.system_identifier, name) == finished.path(name).read_bytes()
    assert killed


@pytest.mark.only_on("posix")
@pytest.mark.parametrize("call", ["fsync", "linkat", "fchmod"])
def test_no_failed_system_call_passes_for_success(archive: WalLab, finished: FinishedWal, call: str) -> None:
    """Each call that makes the object durable fails once, in turn."""
    name = finished.segments[0]
    command = [archive.runtime, "--config", archive.config_path, "wal-push", f"pg_wal/{name}"]
    target = archive.object(finished.system_identifier, name)
    log = archive.directory / "strace.log"
    for number in itertools.count(1):
        target.unlink(missing_ok=True)
        inject = f"inject={call}:error=EIO:when={number}"
        traced = ["strace", "-f", "-qq", "-o", log, "-e", f"trace={call}", "-e", inject]
        words = [*traced, *archive.workspace.account.argv(command)]
        code = archive.workspace.run(words, as_server=False, check=False, cwd=finished.data_dir).returncode
        if "(INJECTED)" not in log.read_text():
            assert (code, number > 1) == (0, True)
            return
        assert code == 1
        # It may have its name by then: pushed again, it is made durable.
        assert archive.push(finished.data_dir, name).returncode == 0
        assert content(archive, finished.system_identifier, name) == finished.path(name).read_bytes()


@pytest.mark.only_on("posix")
def test_what_another_writer_left_is_synced_before_it_counts(archive: WalLab, finished: FinishedWal) -> None:
    """A writer that is killed between link and fsync leaves a name that a loss of power may take away."""
    name = finished.segments[0]
    archive.push(finished.data_dir, name)
    log = archive.directory / "strace.log"
    command = [archive.runtime, "--config", archive.config_path, "wal-push", f"pg_wal/{name}"]
    words = ["strace", "-f", "-qq", "-y", "-o", log, "-e", "trace=fsync", *archive.workspace.account.argv(command)]
    assert archive.workspace.run(words, as_server=False, cwd=finished.data_dir).returncode == 0
    synced = log.read_text()
    folder = archive.object(finished.system_identifier, name).parent
    for directory in (folder, *folder.parents):
        assert f"<{directory}>)" in synced
        if directory == archive.paths["local"]:
            break


def test_a_signal_ends_it_with_a_code_that_lets_the_archiver_live(archive: WalLab, finished: FinishedWal) -> None:
    """Above 125 PostgreSQL would restart its archiver: LogLevel FATAL in shell_archive.c."""
    name = finished.segments[0]
    process = archive.workspace.popen(
        [archive.runtime, "--config", archive.config_path, "wal-push", f"pg_wal/{name}"],
        cwd=finished.data_dir,
        stderr=subprocess.PIPE,
        text=True,
    )

    wait_until(lambda: bool(archive.left_overs()) or process.poll() is not None)
    process.send_signal(signal.SIGTERM)
    code = process.wait(60)
    # It may have been done by then.
    assert code in (0, 1)
    assert archive.object(finished.system_identifier, name).exists() == (code == 0)
    assert archive.left_overs() == []
    assert archive.push(finished.data_dir, name).returncode == 0


@pytest.mark.parametrize("megabytes", [1, 64])
def test_segments_of_any_size(workspace: Workspace, runtime: Path, megabytes: int) -> None:
    cluster = workspace.cluster(wal_segment_mb=megabytes)
    archive = WalLab(workspace, runtime, {"main": cluster.data_dir})
    cluster.enable_archiving(archive.archive_command)
    cluster.execute("CREATE TABLE rows AS SELECT n, md5(n::text) FROM generate_series(1, 50000) n")
    name = cluster.switch_wal()
    cluster.wait_archived(name)
    got = archive.directory / "segment"
    assert archive.get(name, got, cwd=cluster.data_dir) == 0
    assert got.stat().st_size == megabytes << 20
    assert got.read_bytes() == (cluster.data_dir / "pg_wal" / name).read_bytes()


MEASURED = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
"""Runs a command and prints its peak resident size in KiB: from a small process, whose size the kernel may add."""


def test_memory_does_not_grow_with_the_segment(workspace: Workspace, runtime: Path) -> None:
    settings = {"max_wal_size": "4GB", "wal_keep_size": "4GB", "wal_init_zero": False}
    cluster = workspace.cluster(wal_segment_mb=1024, settings=settings)
    name = cluster.switch_wal()
    cluster.stop()
    archive = WalLab(workspace, runtime, {"main": cluster.data_dir})
    for words in (["wal-push", f"pg_wal/{name}"], ["wal-get", name, str(archive.directory / "out")]):
        command = [sys.executable, "-c", MEASURED, runtime, "--config", archive.config_path, *words]
        assert int(workspace.run(command, cwd=cluster.data_dir).stdout) < 120 * 1024
    assert (archive.directory / "out").stat().st_size == 1 << 30


@pytest.mark.only_on("posix")
def test_a_full_disk_keeps_the_segment_and_heals(
    workspace: Workspace, runtime: Path, full_disk: Callable[..., FullDisk]
) -> None:
    disk = full_disk(megabytes=48)
    cluster = workspace.cluster()
    archive = WalLab(workspace, runtime, {"main": cluster.data_dir}, paths={"local": disk.path / "repository"})
    disk.fill()
    cluster.enable_archiving(archive.archive_command)
    name = cluster.switch_wal()
    wait_until(lambda: cluster.value("SELECT failed_count FROM pg_stat_archiver") > 0, timeout=60)
    assert (cluster.data_dir / "pg_wal/archive_status" / f"{name}.ready").exists()
    assert (cluster.data_dir / "pg_wal" / name).exists()
    assert "No space left" in cluster.log_tail() or "cannot write" in cluster.log_tail()
    disk.release()
    cluster.switch_wal()
    cluster.wait_archived(name, timeout=120)
    system_identifier = int(cluster.system_identifier)
    assert content(archive, system_identifier, name) == (cluster.data_dir / "pg_wal" / name).read_bytes()
    assert archive.left_overs() == []


@pytest.mark.only_on("posix")
def test_a_read_only_location_fails_and_heals(
    workspace: Workspace, runtime: Path, finished: FinishedWal, full_disk: Callable[..., FullDisk]
) -> None:
    disk = full_disk(megabytes=48)
    archive = WalLab(workspace, runtime, {"main": finished.data_dir}, paths={"local": disk.path / "repository"})
    disk.read_only()
    code, result = archive.json("wal-push", f"pg_wal/{finished.segments[0]}", cwd=finished.data_dir)
    assert (code, result["error"]["id"]) == (1, "location")
    disk.read_only(False)
    assert archive.push(finished.data_dir, finished.segments[0]).returncode == 0


@pytest.mark.only_on("posix")
def test_no_inodes_left(
    workspace: Workspace, runtime: Path, finished: FinishedWal, full_disk: Callable[..., FullDisk]
) -> None:
    disk = full_disk(megabytes=48, inodes=40)
    archive = WalLab(workspace, runtime, {"main": finished.data_dir}, paths={"local": disk.path / "repository"})
    used = 0
    with contextlib.suppress(OSError):
        for used in range(40):
            (disk.path / f"filler-{used}").touch()
    code, result = archive.json("wal-push", f"pg_wal/{finished.segments[0]}", cwd=finished.data_dir)
    assert (code, result["error"]["id"]) == (1, "location-full")
    for number in range(used):
        (disk.path / f"filler-{number}").unlink()
    assert archive.push(finished.data_dir, finished.segments[0]).returncode == 0


@pytest.mark.every_location
def test_pushes_of_one_file_at_once(archive: WalLab, finished: FinishedWal) -> None:
    """A primary and a standby with archive_mode = always, or an archiver that was restarted."""
    name = finished.segments[0]
    command = [archive.runtime, "--config", archive.config_path, "wal-push", f"pg_wal/{name}"]
    began = time.monotonic()
    pushes = [archive.workspace.popen(command, cwd=finished.data_dir) for _unused in range(6)]
    assert [push.wait(120) for push in pushes] == [0] * 6, time.monotonic() - began
    assert content(archive, finished.system_identifier, name) == finished.path(name).read_bytes()
    assert archive.left_overs() == []


def test_a_file_that_changes_meanwhile_is_not_archived(archive: WalLab, finished: FinishedWal) -> None:
    name = finished.segments[0]
    path = finished.path(name)
    with WalSource(path, finished.data_dir) as source:
        os.utime(path)
        with pytest.raises(SourceError) as raised:
            archive_file(archive.config(), source)
    assert raised.value.id == "wal-changed"
    assert not archive.object(finished.system_identifier, name).exists()
    assert archive.left_overs() == []
