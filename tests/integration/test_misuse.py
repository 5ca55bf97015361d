# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever is wrong: one clear error, the right exit code, nothing lost, nothing secret told.

Through the real command, as a script sees it. What is particular to one command has tests beside it:
``backup/test_refusals.py`` (the server and its settings), ``restore/test_restore_target.py`` (target
directories), ``restore/test_restore_goals.py`` (goals), ``wal/`` (``wal-push`` and ``wal-get``).
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.restore.lab import RestoreLab, snapshot
from tests.lab import Cluster, FullDisk, Installation, LiveWriter, Moment, Workspace, flip_byte, sample_data

# What is not mounted, replaced or filled up is a directory's, here or on a server.
pytestmark = pytest.mark.only_on("posix", "sftp")

FAILED, USAGE, PARTIAL, DAMAGE, STOP_RECOVERY = 1, 2, 3, 4, 200


class MisuseLab(RestoreLab):
    """A cluster with one good backup, and everything wrong that people do."""

    def __init__(self, workspace: Workspace, runtime: Path, cluster: Cluster) -> None:
        super().__init__(workspace, runtime, cluster)
        self.location = self.locations["local"]
        self.keys = self.directory / "keys"
        self.secrets = {word for path in self.keys.iterdir() for word in secret_words(path)}
        sample_data(cluster, 2)
        with LiveWriter(cluster) as writer:
            writer.wait_rows(20)
            self.early: Moment = writer.moment("early")
            self.good = self.backup()
            writer.wait_rows(writer.count + 20)
        self.archive_everything()
        self.commands: dict[str, list[str]] = {
            "backup": ["backup", "main"],
            "list": ["list"],
            "info": ["info", self.good["backup_id"]],
            "status": ["status"],
            "presence": ["verify", "--all", "--level", "presence"],
            "content": ["verify", "--all"],
            "restore": ["restore", "main", "--target", str(workspace.path / "never")],
            "prune": ["prune", "--dry-run"],
            "wal-get": [
                "wal-get",
                "--system-identifier",
                cluster.system_identifier,
                self.good["wal_start"],
                str(workspace.path / "fetched"),
            ],
        }

    def error(self, *words: str, id: str, exit_code: int = FAILED) -> dict[str, str]:
        """The one error that a command ends with. Nothing may have changed, nothing secret is said."""
        before = set(self.manifests()) if self.location.is_dir() else None
        result = self.run("--json", *words)
        assert result.returncode == exit_code, (words, result.stdout, result.stderr)
        error = one_error(result)
        assert error["id"] == id, error
        assert f"error: {error['message']}\nhint: {error['hint']}" in result.stderr
        for secret in self.secrets:
            assert secret not in result.stdout + result.stderr
        if before is not None:
            assert set(self.manifests()) == before
        assert not (self.workspace.path / "never").exists()
        assert not (self.workspace.path / "fetched").exists()
        return error

    def intact(self, level: str = "presence") -> None:
        """The good backup is there, and whole; nothing is left that hinders anybody."""
        result = self.run("--json", "verify", self.good["backup_id"], "--level", level, "--no-record")
        assert result.returncode == 0, (result.stdout, result.stderr)
        assert json.loads(result.stdout)["result"] == "ok"
        assert self.leases() == []


def one_error(result: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """Standard output is one JSON object with one error, in full; standard error has no traceback."""
    assert result.stdout.count("\n") == 1
    told = json.loads(result.stdout)
    assert set(told) == {"error"}
    error: dict[str, str] = told["error"]
    assert set(error) == {"id", "message", "hint"}
    assert all(error.values()), error
    assert "Traceback" not in result.stderr
    return error


def secret_words(path: Path) -> Iterator[str]:
    if path.suffix != ".pub":
        for line in path.read_text().splitlines():
            if line.startswith("cryo-"):
                yield line.split(" ")[3]


@pytest.fixture(scope="module")
def shared(shared_workspace: Workspace, runtime: Path, pg: Installation) -> MisuseLab:
    return MisuseLab(shared_workspace, runtime, shared_workspace.cluster(installation=pg))


@pytest.fixture
def site(shared: MisuseLab) -> Iterator[MisuseLab]:
    """The shared one; after each test its backup must be whole."""
    yield shared
    shared.intact()


# What a test puts in the place of something, and takes away again


@contextlib.contextmanager
def replaced(path: Path, by: Path | None) -> Iterator[None]:
    """Something else is where ``path`` was, or nothing."""
    aside = path.with_name(f"{path.name}.aside")
    path.rename(aside)
    if by is not None:
        by.rename(path)
    try:
        yield
    finally:
        if by is not None:
            path.rename(by)
        assert not path.exists(), "somebody made it anew"
        aside.rename(path)


@contextlib.contextmanager
def with_mode(path: Path, mode: int) -> Iterator[None]:
    before = path.stat().st_mode
    path.chmod(mode)
    try:
        yield
    finally:
        path.chmod(before)


@contextlib.contextmanager
def with_text(path: Path, text: str) -> Iterator[None]:
    before = path.read_text()
    path.write_text(text)
    try:
        yield
    finally:
        path.write_text(before)


@contextlib.contextmanager
def flipped(path: Path, offset: int) -> Iterator[None]:
    flip_byte(path, offset)
    try:
        yield
    finally:
        flip_byte(path, offset)


@contextlib.contextmanager
def other_repository(site: MisuseLab) -> Iterator[Path]:
    """A directory with a repository and its keys, of nobody here."""
    directory = site.workspace.directory("other")
    config = directory / "config.yml"
    location = {"type": "posix", "path": str(directory / "repository")}
    config.write_text(json.dumps({"repository": {"locations": {"local": location}, "keys": str(directory / "keys")}}))
    site.workspace.account.own(config)
    site.workspace.run([site.runtime, "--config", config, "init"])
    site.secrets |= {word for path in (directory / "keys").iterdir() for word in secret_words(path)}
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@contextlib.contextmanager
def keys_of_another_repository(site: MisuseLab) -> Iterator[None]:
    with other_repository(site) as other, replaced(site.keys, other / "keys"):
        yield


@contextlib.contextmanager
def another_repository(site: MisuseLab) -> Iterator[None]:
    with other_repository(site) as other, replaced(site.location, other / "repository"):
        yield


@contextlib.contextmanager
def another_key(site: MisuseLab, file: str) -> Iterator[None]:
    """Of this repository by its own word, well-formed, and not the one that it was made with."""
    path = site.keys / file
    [line] = [line for line in path.read_text().splitlines() if line.startswith("cryo-")]
    kind, repository, epoch, text = line.split(" ")[:4]
    material = bytes(byte ^ 0x55 for byte in base64.b64decode(text))
    words = " ".join([kind, repository, epoch, base64.b64encode(material).decode()])
    site.secrets.add(base64.b64encode(material).decode())
    with with_text(path, f"{words} {hashlib.sha256(words.encode()).hexdigest()[:8]}\n"):
        yield


@contextlib.contextmanager
def mount_point(site: MisuseLab) -> Iterator[None]:
    """The directory that something was mounted on."""
    bare = site.workspace.directory("mount-point")
    with replaced(site.location, bare):
        yield
        assert list(site.location.iterdir()) == [], "something was written to the disk below"
    bare.rmdir()


def typo(site: MisuseLab) -> AbstractContextManager[None]:
    return with_text(site.config_path, site.config_path.read_text().replace('"locations"', '"locatons"'))


ALL = ("backup", "list", "info", "status", "presence", "content", "restore", "prune", "wal-get")
READING = ("content", "restore", "wal-get")


@dataclass(frozen=True)
class Misuse:
    """What is wrong, and what every command says that minds it."""

    arrange: Callable[[MisuseLab], AbstractContextManager[None]]
    id: str
    said: str
    """In the message or the hint."""
    commands: tuple[str, ...] = ALL
    exit_code: int = FAILED


MISUSES = {
    "keys of another repository": Misuse(keys_of_another_repository, "foreign-repository", "Use the keys of that"),
    "another catalog key": Misuse(lambda site: another_key(site, "catalog.key"), "wrong-key", "catalog"),
    "another identity": Misuse(lambda site: another_key(site, "data.identity"), "key-file", "identity", READING),
    "no keys": Misuse(lambda site: replaced(site.keys, None), "key-file", "key import"),
    "no catalog key": Misuse(lambda site: replaced(site.keys / "catalog.key", None), "key-file", "catalog key"),
    "no public key": Misuse(
        lambda site: replaced(site.keys / "data.pub", None), "no-epoch-key", "data.pub", commands=("backup",)
    ),
    "no identity": Misuse(
        lambda site: replaced(site.keys / "data.identity", None), "no-identity", "recovery kit", READING
    ),
    "catalog key that others can read": Misuse(
        lambda site: with_mode(site.keys / "catalog.key", 0o640), "key-file-mode", "chmod 0400"
    ),
    "identity that others can read": Misuse(
        lambda site: with_mode(site.keys / "data.identity", 0o444), "key-file-mode", "chmod 0400"
    ),
    "repository of another id": Misuse(another_repository, "foreign-repository", "Nothing was changed"),
    "location unmounted": Misuse(lambda site: replaced(site.location, None), "location", "Mount it"),
    "location unmounted, its mount point there": Misuse(mount_point, "not-initialised", "Mount what belongs there"),
    "typo in the configuration": Misuse(typo, "config-invalid", "did you mean locations?", exit_code=USAGE),
    "configuration that is no YAML": Misuse(
        lambda site: with_text(site.config_path, "repository: [unclosed"), "config-syntax", "line 1", exit_code=USAGE
    ),
    "no configuration": Misuse(
        lambda site: replaced(site.config_path, None), "config-missing", "--config", exit_code=USAGE
    ),
}


@pytest.mark.parametrize("name", MISUSES)
def test_every_command_refuses(site: MisuseLab, name: str) -> None:
    misuse = MISUSES[name]
    with misuse.arrange(site):
        for command in misuse.commands:
            exit_code = STOP_RECOVERY if command == "wal-get" else misuse.exit_code
            error = site.error(*site.commands[command], id=misuse.id, exit_code=exit_code)
            assert misuse.said in f"{error['message']} {error['hint']}", (command, error)


def test_a_password_in_the_configuration(site: MisuseLab) -> None:
    site.secrets.add("correct-horse")
    connection = f"{site.cluster.conninfo} password=correct-horse"
    text = json.loads(site.config_path.read_text())
    text["clusters"]["main"]["connection"] = connection
    with with_text(site.config_path, json.dumps(text)):
        error = site.error("backup", "main", id="config-invalid", exit_code=USAGE)
    assert "clusters.main.connection" in error["message"]


def test_words_that_make_no_sense(site: MisuseLab) -> None:
    target = str(site.workspace.path / "never")
    assert "backup" in site.error("backpu", id="usage", exit_code=USAGE)["hint"]
    assert "--type" in site.error("backup", "main", "--typ", "full", id="usage", exit_code=USAGE)["hint"]
    assert "main" in site.error("backup", "maim", id="unknown-cluster", exit_code=USAGE)["hint"]
    site.error("info", "20200101T000000Z-00000000", id="no-such-backup")
    site.error("verify", "20200101T000000Z-00000000", id="no-such-backup")
    site.error("restore", "main", "--target", target, "--backup", "20200101T000000Z-00000000", id="no-such-backup")
    goal = ["restore", "main", "--target", target]
    for words in (["--to-time", "2026-01-01 12:00:00"], ["--to-time", "yesterday-ish"], ["--to-lsn", "12"]):
        error = site.error(*goal, *words, id="recovery-target", exit_code=USAGE)
        assert words[1] in error["message"]
    site.error(*goal, "--to-xid", "1", "--immediate", id="usage", exit_code=USAGE)


def test_a_goal_before_the_end_of_every_backup(site: MisuseLab) -> None:
    target = str(site.workspace.path / "never")
    for options in (["--to-time", site.early.time_text], ["--to-lsn", site.early.lsn]):
        error = site.error("restore", "main", "--target", target, *options, id="too-early")
        # The earliest goal that there is.
        assert site.good["backup_id"] in f"{error['message']} {error['hint']}"
        site.error("restore", "main", "--target", target, "--backup", site.good["backup_id"], *options, id="too-early")


def test_wal_that_is_missing(site: MisuseLab) -> None:
    segment = site.good["wal_start"]
    path = site.location / f"wal/{site.cluster.system_identifier}/{segment[:8]}/{segment}"
    with replaced(path, None):
        error = site.error("restore", "main", "--target", str(site.workspace.path / "never"), id="wal-missing")
        assert segment in error["message"]
        found = site.run("--json", "verify", "--all", "--level", "presence", "--no-record")
        assert found.returncode == DAMAGE
        assert segment in found.stdout


def test_a_damaged_pack(site: MisuseLab) -> None:
    path = max((site.location / f"packs/{site.good['backup_id']}").iterdir(), key=lambda each: each.stat().st_size)
    target = site.workspace.path / "from-damaged"
    with flipped(path, path.stat().st_size // 2):
        result = site.run("--json", "restore", "main", "--target", str(target))
        assert result.returncode == DAMAGE
        assert path.parent.name in one_error(result)["message"]
        assert not (target / "global/pg_control").exists()
        found = site.run("--json", "verify", site.good["backup_id"], "--no-record")
        assert found.returncode == DAMAGE
        assert path.name in found.stdout
    shutil.rmtree(target)


def test_a_target_that_is_not_empty_or_on_which_a_server_runs(site: MisuseLab) -> None:
    target = site.workspace.directory("precious")
    (target / "file").write_text("mine")
    before = snapshot(target)
    assert "--delta" in site.error("restore", "main", "--target", str(target), id="target-not-empty")["hint"]
    assert snapshot(target) == before
    for options in ([], ["--delta"]):
        error = site.error("restore", "main", "--target", str(site.cluster.data_dir), *options, id="target-running")
        assert str(site.cluster.pid) in error["message"]
    assert site.cluster.value("SELECT 1") == 1


def test_another_cluster_under_the_same_name(site: MisuseLab, workspace: Workspace, pg: Installation) -> None:
    """Made anew, by an upgrade or by accident: nothing of the old one is taken for its own."""
    other = workspace.cluster("made-anew", installation=pg)
    text = json.loads(site.config_path.read_text())
    text["clusters"]["main"]["data_directory"] = str(other.data_dir)
    with with_text(site.config_path, json.dumps(text)):
        # The connection still leads to the old one.
        site.error("backup", "main", id="cluster-mismatch")
        # And so does its archive_command, whatever the configuration says.
        pushed = site.cluster.data_dir / "pg_wal" / site.good["wal_stop"]
        site.error("wal-push", str(pushed), id="foreign-data-directory")
    error = site.error("restore", "main", "--target", str(other.data_dir), "--delta", id="target-running")
    other.stop()
    error = site.error("restore", "main", "--target", str(other.data_dir), "--delta", id="target-foreign-cluster")
    assert other.system_identifier in error["message"]


def test_two_backups_and_two_prunes_at_once(site: MisuseLab) -> None:
    first = site.workspace.popen(
        [*site.command, "--json", "backup", "main"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    lock = site.directory / "state/locks/source-main.lock"
    while lock.read_text().strip() != str(first.pid):
        assert first.poll() is None, first.communicate()
        time.sleep(0.001)
    first.send_signal(signal.SIGSTOP)
    try:
        result = site.run("--json", "backup", "main")
        assert result.returncode == FAILED
        error = one_error(result)
        assert error["id"] == "busy"
        assert str(first.pid) in error["message"]
    finally:
        first.send_signal(signal.SIGCONT)
        out, errors = first.communicate(timeout=120)
    assert first.returncode == 0, (out, errors)
    site.run("--json", "prune", "--dry-run", check=True)
    with (site.directory / "state/locks/prune.lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        site.error("prune", id="busy")


def test_no_server(site: MisuseLab) -> None:
    text = json.loads(site.config_path.read_text())
    text["clusters"]["main"]["connection"] = f"host={site.workspace.path}/nowhere user=postgres dbname=postgres"
    with with_text(site.config_path, json.dumps(text)):
        assert "nowhere" in site.error("backup", "main", id="cluster-unreachable")["message"]
        # Everything else needs none.
        assert site.run("--json", "list").returncode == 0


def test_a_state_directory_that_cannot_be_used(site: MisuseLab) -> None:
    for mode, commands in ((0, ("backup", "prune")), (0o500, ("backup",))):
        with with_mode(site.directory / "state", mode):
            for name in commands:
                error = site.error(*site.commands[name], id="config", exit_code=USAGE)
                assert "state_directory" in error["hint"]


def test_a_state_directory_without_room(site: MisuseLab, full_disk: Callable[..., FullDisk]) -> None:
    disk = full_disk(megabytes=1)
    text = json.loads(site.config_path.read_text())
    text["state_directory"] = str(disk.path)
    with with_text(site.config_path, json.dumps(text)):
        site.run("prune", "--dry-run", check=True)
        disk.fill()
        site.error("backup", "main", id="state-directory")
        # Which may be what makes room again.
        assert site.run("--json", "prune", "--dry-run").returncode == 0


def test_a_disk_that_is_full_and_one_that_is_read_only(
    workspace: Workspace, runtime: Path, cluster: Cluster, full_disk: Callable[..., FullDisk]
) -> None:
    disk = full_disk(megabytes=64)
    site = RestoreLab(workspace, runtime, cluster, archive=False)
    location = disk.path / "repository"
    site.settings["repository"]["locations"]["local"]["path"] = str(location)
    site.locations["local"] = location
    site.write_config()
    site.run("init", "--new", "local", check=True)
    cluster.enable_archiving(site.archive_command)
    good = site.backup()
    site.archive_everything()
    sample_data(cluster, 8)
    cluster.checkpoint()

    disk.fill(leave_bytes=256 << 10)
    result = site.run("--json", "backup", "main")
    assert result.returncode == FAILED
    assert one_error(result)["id"] == "no-room"
    result = site.run("--json", "backup", "main", "--no-space-check")
    assert result.returncode == FAILED
    error = one_error(result)
    assert error["id"] == "location-full"
    assert "cryobackup prune" in error["hint"]
    verify = ["--json", "verify", good["backup_id"], "--level", "content", "--no-record"]
    assert site.run(*verify).returncode == 0
    assert site.manifests() == [good["backup_id"]]
    disk.release()

    disk.read_only()
    try:
        result = site.run("--json", "backup", "main")
        assert result.returncode == FAILED
        assert one_error(result)["id"] == "location"
        result = site.run("--json", "prune", "--grace", "0")
        assert result.returncode in (FAILED, PARTIAL)
        assert site.run(*verify).returncode == 0
    finally:
        disk.read_only(enabled=False)
    assert site.backup()["status"] == "ok"
    assert site.leases() == []


def test_one_of_two_locations_is_gone(workspace: Workspace, runtime: Path, cluster: Cluster) -> None:
    """Done in part is not done: it has an exit code of its own, and says what is missing where."""
    site = RestoreLab(workspace, runtime, cluster, locations={"near": True, "far": False})
    good = site.backup()
    with replaced(site.locations["far"], None):
        made = site.backup(exit_code=PARTIAL)
        assert made["status"] == "degraded"
        assert made["locations"]["near"]["status"] == "ok"
        failed = made["locations"]["far"]["error"]
        assert failed["id"] == "location"
        assert "Mount it" in failed["hint"]
        result = site.run("--json", "prune")
        assert result.returncode == PARTIAL
        assert json.loads(result.stdout)["errors"]["far"]["id"] == "location"
        assert site.run("--json", "list").returncode == PARTIAL
    assert site.manifests("far") == [good["backup_id"]]
    assert site.manifests("near") == [good["backup_id"], made["backup_id"]]
