# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""wal-get: the file, or the certainty that there is none, or an exit code that stops PostgreSQL."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from cryobackup.errors import CryoError
from cryobackup.postgres.archive_get import deliver
from cryobackup.repository.repository import Repository
from tests.lab import Workspace, flip_byte, flip_bytes_sampled, run_and_kill
from tests.lab.stores import replace

from .lab import FinishedWal, WalLab

DELIVERED, MISSING, UNKNOWN = 0, 1, 200


@pytest.fixture
def filled(archive: WalLab, finished: FinishedWal) -> WalLab:
    """One location, with the first finished segment in it."""
    archive.push(finished.data_dir, finished.segments[0])
    return archive


@pytest.fixture
def both(twofold: WalLab, finished: FinishedWal) -> WalLab:
    """Two locations, each with the first finished segment in it."""
    twofold.push(finished.data_dir, finished.segments[0])
    return twofold


@pytest.fixture
def destination(workspace: Workspace) -> Path:
    return workspace.directory("destination") / "RECOVERYXLOG"


def test_delivers_what_was_archived(filled: WalLab, finished: FinishedWal, destination: Path) -> None:
    name = finished.segments[0]
    destination.write_text("what PostgreSQL left there")
    code, result = filled.json("wal-get", name, destination, "--cluster", "main")
    assert (code, result["found"], result["location"]) == (DELIVERED, True, "local")
    assert destination.read_bytes() == finished.path(name).read_bytes()
    assert destination.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in destination.parent.iterdir()] == [destination.name]


def test_a_broken_installation_is_not_the_end_of_the_archive(workspace: Workspace, runtime: Path) -> None:
    """Python's own exit code for what is raised is the one that ends a recovery."""
    package = workspace.directory("half-an-upgrade") / "cryobackup"
    package.mkdir()
    package.chmod(0o755)
    (package / "__init__.py").write_text("raise ImportError('half an upgrade')")
    broken = {"PYTHONPATH": str(package.parent)}
    result = workspace.run([runtime, "wal-get", "000000010000000000000001", "x"], env=broken, check=False)
    assert result.returncode == UNKNOWN, result.stderr
    assert "half an upgrade" in result.stderr
    assert workspace.run([runtime, "list"], env=broken, check=False).returncode == 1


def test_says_nothing_when_all_is_well(filled: WalLab, finished: FinishedWal, destination: Path) -> None:
    """What it prints ends up in PostgreSQL's log."""
    result = filled.run("wal-get", finished.segments[0], destination, cwd=finished.data_dir)
    assert (result.returncode, result.stdout, result.stderr) == (DELIVERED, "", "")
    result = filled.run("--quiet", "wal-get", finished.segments[1], destination, cwd=finished.data_dir)
    assert (result.returncode, result.stdout, result.stderr) == (MISSING, "", "")


def test_by_hand_from_a_directory_of_somebody_else(
    archive: WalLab, finished: FinishedWal, destination: Path, tmp_path: Path
) -> None:
    """As root does it: ``runuser -u postgres -- cryobackup ...``, in root's home."""
    tmp_path.chmod(0o700)
    assert archive.run("wal-push", finished.path(finished.segments[0]), cwd=tmp_path).returncode == 0
    assert archive.get(finished.segments[0], destination, cwd=tmp_path) == DELIVERED


@pytest.mark.parametrize("name", ["000000010000000000000055", "00000002.history", "000000020000000000000001"])
def test_what_is_surely_not_there_is_missing(
    filled: WalLab, finished: FinishedWal, destination: Path, name: str
) -> None:
    assert filled.get(name, destination, cwd=finished.data_dir) == MISSING
    assert list(destination.parent.iterdir()) == []


@pytest.mark.every_location
def test_a_location_that_is_gone_is_not_an_answer(filled: WalLab, finished: FinishedWal, destination: Path) -> None:
    for name in (finished.segments[0], "00000002.history"):
        with filled.away(filled.paths["local"]):
            assert filled.get(name, destination, "--cluster", "main") == UNKNOWN
    assert list(destination.parent.iterdir()) == []


@pytest.mark.only_on("posix", "sftp")
def test_nor_is_the_empty_directory_of_a_disk_that_is_not_mounted(
    filled: WalLab, finished: FinishedWal, destination: Path
) -> None:
    with filled.away(filled.paths["local"]):
        filled.paths["local"].mkdir()
        filled.workspace.account.own(filled.paths["local"])
        assert filled.get("00000002.history", destination, cwd=finished.data_dir) == UNKNOWN
        filled.paths["local"].rmdir()


def test_nor_is_a_repository_without_any_wal_of_the_cluster(
    filled: WalLab, finished: FinishedWal, destination: Path
) -> None:
    """A wrong identifier, or wal/ is a disk of its own that is not mounted."""
    code, result = filled.json("wal-get", "00000002.history", destination, "--system-identifier", "42")
    assert (code, result["error"]["id"]) == (UNKNOWN, "empty-archive")
    with filled.away(filled.paths["local"] / "wal"):
        assert filled.get("00000002.history", destination, cwd=finished.data_dir) == UNKNOWN


@pytest.mark.every_location
def test_what_one_location_has_needs_no_other(both: WalLab, finished: FinishedWal, destination: Path) -> None:
    name = finished.segments[0]
    for place in ("near", "far"):
        with both.away(both.paths[place]):
            assert both.get(name, destination, cwd=finished.data_dir) == DELIVERED
            assert destination.read_bytes() == finished.path(name).read_bytes()
            destination.unlink()
        with both.away(both.object(finished.system_identifier, name, place)):
            assert both.get(name, destination, cwd=finished.data_dir) == DELIVERED
            destination.unlink()


def test_what_a_required_location_may_have_is_unknown(both: WalLab, finished: FinishedWal, destination: Path) -> None:
    with both.away(both.paths["near"]):
        for name in ("00000002.history", finished.segments[1]):
            assert both.get(name, destination, cwd=finished.data_dir) == UNKNOWN
            # Until somebody who knows says that it will never come back.
            assert both.get(name, destination, "--without", "near", cwd=finished.data_dir) == MISSING
    assert both.get("00000002.history", destination, "--without", "nowhere", cwd=finished.data_dir) == UNKNOWN
    everything = ["--without", "near", "--without", "far"]
    assert both.get("00000002.history", destination, *everything, cwd=finished.data_dir) == UNKNOWN


def test_a_damaged_object_is_taken_from_another_location(
    both: WalLab, finished: FinishedWal, destination: Path
) -> None:
    name = finished.segments[0]
    path = both.object(finished.system_identifier, name, "near")
    for offset in (8, 20, 1000, path.stat().st_size // 2, -1):
        flip_byte(path, offset)
        code, result = both.json("wal-get", name, destination, cwd=finished.data_dir)
        assert (code, result["location"]) == (DELIVERED, "far")
        assert "near" in result["warnings"][0]
        assert destination.read_bytes() == finished.path(name).read_bytes()
        destination.unlink()
        flip_byte(path, offset)
    flip_byte(path, 5000)
    flip_byte(both.object(finished.system_identifier, name, "far"), 6000)
    code, result = both.json("wal-get", name, destination, cwd=finished.data_dir)
    assert (code, result["error"]["id"]) == (UNKNOWN, "damage")
    assert list(destination.parent.iterdir()) == []


def test_no_flipped_byte_is_ever_delivered(filled: WalLab, finished: FinishedWal, destination: Path) -> None:
    name = finished.segments[0]
    path = filled.object(finished.system_identifier, name)
    repository = Repository.open(filled.config().repository, need_identity=True)
    for _unused in flip_bytes_sampled(path, 400):
        with pytest.raises(CryoError):
            deliver(repository, finished.system_identifier, name, destination)
        assert list(destination.parent.iterdir()) == []
    assert deliver(repository, finished.system_identifier, name, destination) is not None


@pytest.mark.every_location
def test_no_object_under_another_name_is_ever_delivered(
    filled: WalLab, finished: FinishedWal, destination: Path
) -> None:
    """Whoever writes the storage could answer with an older segment."""
    filled.push(finished.data_dir, finished.segments[1])
    one, other = (filled.object(finished.system_identifier, name) for name in finished.segments[:2])
    replace(other, one.read_bytes())
    assert filled.get(finished.segments[1], destination, cwd=finished.data_dir) == UNKNOWN
    replace(filled.object(42, finished.segments[0]), one.read_bytes())
    assert filled.get(finished.segments[0], destination, "--system-identifier", "42") == UNKNOWN
    assert list(destination.parent.iterdir()) == []


@pytest.mark.every_location
def test_cut_off_objects(filled: WalLab, finished: FinishedWal, destination: Path) -> None:
    name = finished.segments[0]
    path = filled.object(finished.system_identifier, name)
    whole = path.read_bytes()
    repository = Repository.open(filled.config().repository, need_identity=True)
    for length in (0, 7, 48, 1500, len(whole) // 2, len(whole) - 1):
        replace(path, whole[:length])
        with pytest.raises(CryoError):
            deliver(repository, finished.system_identifier, name, destination)
    assert list(destination.parent.iterdir()) == []


def test_a_partial_segment_never_stands_for_the_whole(
    archive: WalLab, finished: FinishedWal, destination: Path
) -> None:
    name = finished.segments[0]
    partial = finished.path(f"{name}.partial")
    shutil.copy2(finished.path(name), partial)
    archive.workspace.account.own(partial)
    try:
        assert archive.push(finished.data_dir, partial.name).returncode == 0
    finally:
        partial.unlink()
    assert archive.get(name, destination, cwd=finished.data_dir) == MISSING
    assert archive.get(partial.name, destination, cwd=finished.data_dir) == DELIVERED


@pytest.mark.parametrize(
    "name",
    [
        "RECOVERYXLOG",
        "pg_wal/RECOVERYXLOG",
        "../../repository.json",
        "00000001000000000000000",
        "00000001000000000000000g",
        "0000000a.history",
        "",
        ".",
    ],
)
def test_what_is_no_name_is_no_absence(filled: WalLab, finished: FinishedWal, destination: Path, name: str) -> None:
    """%f and %p the wrong way round must not look like the end of the archive."""
    code, result = filled.json("wal-get", name, destination, cwd=finished.data_dir)
    assert (code, result["error"]["id"]) == (UNKNOWN, "usage")


def test_whose_wal_must_be_clear(workspace: Workspace, runtime: Path, finished: FinishedWal, destination: Path) -> None:
    archive = WalLab(workspace, runtime, {"main": finished.data_dir, "other": workspace.path / "other"})
    name = finished.segments[0]
    archive.push(finished.data_dir, name)
    assert archive.get(name, destination) == UNKNOWN
    assert archive.get(name, destination, "--cluster", "other") == UNKNOWN
    assert archive.get(name, destination, "--cluster", "nobody") == UNKNOWN
    assert archive.get(name, destination, "--cluster", "main") == DELIVERED
    # PostgreSQL runs it in the data directory, which says whose it is.
    assert archive.get(name, destination, cwd=finished.data_dir) == DELIVERED
    number = str(finished.system_identifier)
    assert archive.get(name, destination, "--system-identifier", number) == DELIVERED
    assert archive.get(name, destination, "--system-identifier", number, "--cluster", "main") == UNKNOWN


def test_every_other_failure_is_unknown(filled: WalLab, finished: FinishedWal, destination: Path) -> None:
    name = finished.segments[0]
    assert filled.get(name, destination.parent / "nowhere" / "x", cwd=finished.data_dir) == UNKNOWN
    assert filled.run("wal-get", name, cwd=finished.data_dir).returncode == UNKNOWN
    with filled.away(filled.keys / "data.identity"):
        code, result = filled.json("wal-get", name, destination, cwd=finished.data_dir)
        assert (code, result["error"]["id"]) == (UNKNOWN, "no-identity")
    with filled.away(filled.keys):
        assert filled.get(name, destination, cwd=finished.data_dir) == UNKNOWN
    with filled.away(filled.config_path):
        assert filled.get(name, destination, cwd=finished.data_dir) == UNKNOWN


@pytest.mark.only_on("posix", "sftp")
def test_keys_of_another_repository(
    filled: WalLab, finished: FinishedWal, workspace: Workspace, destination: Path
) -> None:
    with filled.away(filled.keys), filled.away(filled.paths["local"]):
        filled.run("init", check=True)
        filled.keys.rename(filled.keys.with_name("keys.other"))
        shutil.rmtree(filled.paths["local"])
    with filled.away(filled.keys):
        filled.keys.with_name("keys.other").rename(filled.keys)
        code, result = filled.json("wal-get", finished.segments[0], destination, cwd=finished.data_dir)
        assert (code, result["error"]["id"]) == (UNKNOWN, "foreign-repository")
        shutil.rmtree(filled.keys)


@pytest.mark.every_location
def test_a_standby_may_wait_for_a_location(filled: WalLab, finished: FinishedWal, destination: Path) -> None:
    name = finished.segments[0]
    command = [filled.runtime, "--config", filled.config_path, "wal-get", name, destination, "--retry-for", "60"]
    with filled.away(filled.paths["local"]):
        process = filled.workspace.popen(command, cwd=finished.data_dir)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
    assert process.wait(60) == DELIVERED


def test_kill_9_never_leaves_a_part_of_a_file(filled: WalLab, finished: FinishedWal, destination: Path) -> None:
    name = finished.segments[0]
    whole = finished.path(name).read_bytes()
    command = [filled.runtime, "--config", filled.config_path, "wal-get", name, destination]
    killed = 0
    for round_ in range(10):
        for file in destination.parent.iterdir():
            file.unlink()
        outcome = run_and_kill(
            filled.workspace.account.argv(command),
            when=lambda: any(destination.parent.iterdir()),
            after=round_ * 0.004,
            env=filled.workspace.environment,
            cwd=finished.data_dir,
        )
        killed += outcome.was_killed
        assert not destination.exists() or destination.read_bytes() == whole
    assert killed
    assert filled.get(name, destination, cwd=finished.data_dir) == DELIVERED
