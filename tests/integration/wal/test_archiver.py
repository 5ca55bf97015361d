# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The archiver service: ahead of PostgreSQL, never wrong, and never missed when it is not there."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import Cluster, Workspace, wait_until
from tests.lab.cleanup import lab_processes

from .lab import FinishedWal, WalLab

SEED = 20261127


class Service:
    """``cryobackup wal-archiver`` as the server's user, killed and started as wished."""

    def __init__(self, archive: WalLab, *options: str) -> None:
        self.archive = archive
        self.socket = archive.workspace.path / "archiver.sock"
        self.log = archive.workspace.path / "archiver.log"
        self._options = options
        self._process: subprocess.Popen[Any] | None = None

    def start(self, environment: dict[str, str] | None = None) -> None:
        archive = self.archive
        command = [archive.runtime, "--config", archive.config_path, "wal-archiver", "main", "--socket", self.socket]
        with self.log.open("ab") as log:
            self._process = archive.workspace.popen([*command, *self._options], stderr=log, stdout=log, env=environment)
        wait_until(self.answers, "the archiver")

    def answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()
        with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(OSError):
            connection.connect(str(self.socket))
            return True
        return False

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(30)

    @property
    def archive_command(self) -> str:
        archive = self.archive
        words = [archive.runtime, "--config", archive.config_path, "wal-push", "--socket", self.socket]
        return f"{shlex.join(map(str, words))} %p"

    def push(self, data_dir: Path, name: str, *before: str | Path) -> subprocess.CompletedProcess[str]:
        """As PostgreSQL asks."""
        words = before or ("--config", self.archive.config_path)
        command = [self.archive.runtime, *words, "wal-push", "--socket", self.socket, f"pg_wal/{name}"]
        return self.archive.workspace.run(command, check=False, cwd=data_dir)


@pytest.fixture
def service(archive: WalLab, workspace: Workspace) -> Service:
    made = Service(archive)
    workspace.account.own(workspace.path)
    return made


@pytest.fixture
def ready(finished: FinishedWal) -> Iterator[FinishedWal]:
    """All segments wait to be archived."""
    status = finished.data_dir / "pg_wal/archive_status"
    files = [status / f"{name}.ready" for name in finished.segments]
    for file in files:
        file.touch()
    yield finished
    for file in files:
        file.unlink(missing_ok=True)


def archived(archive: WalLab, finished: FinishedWal, name: str) -> bool:
    return archive.object(finished.system_identifier, name).exists()


def fetched(archive: WalLab, finished: FinishedWal, name: str) -> bytes:
    target = archive.directory / f"fetched-{name}"
    assert archive.get(name, target, "--system-identifier", str(finished.system_identifier)) == 0
    return target.read_bytes()


def test_what_waits_is_archived_before_anybody_asks(service: Service, archive: WalLab, ready: FinishedWal) -> None:
    service.start()
    wait_until(lambda: all(archived(archive, ready, name) for name in ready.segments), "all segments in the archive")
    for name in ready.segments:
        result = service.push(ready.data_dir, name)
        assert (result.returncode, result.stderr) == (0, "")
        assert fetched(archive, ready, name) == ready.path(name).read_bytes()
    assert service.end() == 0
    assert not service.socket.exists()


def test_one_that_does_not_wait_yet(service: Service, archive: WalLab, finished: FinishedWal) -> None:
    """PostgreSQL decides what is asked for."""
    service.start()
    assert not archived(archive, finished, finished.segments[0])
    assert service.push(finished.data_dir, finished.segments[0]).returncode == 0
    assert fetched(archive, finished, finished.segments[0]) == finished.path(finished.segments[0]).read_bytes()


def nobody_listens(service: Service) -> None:
    pass


def left_over(service: Service) -> None:
    """A socket of one that was killed."""
    service.start()
    service.end(signal.SIGKILL)
    assert service.socket.exists()


def no_socket(service: Service) -> None:
    service.socket.write_bytes(b"")


def other_cluster(service: Service) -> None:
    """One that serves another configuration."""
    archive = service.archive
    other = archive.directory / "other.yml"
    other.write_text(json.dumps(archive.settings))
    archive.workspace.account.own(other)
    served, archive.config_path = archive.config_path, other
    service.start()
    archive.config_path = served


@pytest.mark.parametrize("absence", [nobody_listens, left_over, no_socket, other_cluster])
def test_without_it_the_command_does_it_itself(
    service: Service, archive: WalLab, finished: FinishedWal, absence: Callable[[Service], None]
) -> None:
    absence(service)
    name = finished.segments[0]
    result = service.push(finished.data_dir, name)
    assert (result.returncode, result.stderr) == (0, "")
    assert fetched(archive, finished, name) == finished.path(name).read_bytes()


class Impostor:
    """Listens at a socket and says what it likes."""

    def __init__(self, path: Path, answer: bytes) -> None:
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        path.chmod(0o777)
        self._listening.listen()
        self._answer = answer
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _unused = self._listening.accept()
                with connection:
                    while self._answer and connection.recv(4096):
                        pass
                    connection.sendall(self._answer)

    def close(self) -> None:
        self._listening.close()


@pytest.mark.parametrize("answer", [b"", b"7", b"2", b"\xff\xff"])
def test_answers_that_are_none(service: Service, archive: WalLab, finished: FinishedWal, answer: bytes) -> None:
    """Of root, whom it believes."""
    impostor = Impostor(service.socket, answer)
    try:
        assert service.push(finished.data_dir, finished.segments[0]).returncode == 0
    finally:
        impostor.close()
    assert archived(archive, finished, finished.segments[0])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_users_word_does_not_count(service: Service, archive: WalLab, finished: FinishedWal) -> None:
    say_archived = (
        "import os, socket, sys\n"
        "os.setuid(65534)\n"
        "listening = socket.socket(fileno=int(sys.argv[1]))\n"
        "listening.listen()\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    connection = listening.accept()[0]\n"
        "    connection.sendall(b'0')\n"
        "    connection.close()\n"
    )
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(service.socket))
        service.socket.chmod(0o777)
        process = archive.workspace.popen(
            ["/usr/bin/python3", "-c", say_archived, str(listening.fileno())],
            as_server=False,
            pass_fds=(listening.fileno(),),
            stdout=subprocess.PIPE,
        )
        assert process.stdout.readline() == b"ready\n"
        assert service.push(finished.data_dir, finished.segments[0]).returncode == 0
    assert archived(archive, finished, finished.segments[0])


def test_failures_are_told_and_mended(service: Service, archive: WalLab, ready: FinishedWal) -> None:
    service.start()
    wait_until(lambda: all(archived(archive, ready, name) for name in ready.segments), "all segments in the archive")
    service.end()
    # Another file under the name, as of another server with the same history.
    other = archive.object(ready.system_identifier, ready.segments[0])
    path = ready.path(ready.segments[0])
    before = path.read_bytes()
    changed = bytearray(before)
    changed[100_000] ^= 1
    service.start()
    path.write_bytes(changed)
    try:
        result = service.push(ready.data_dir, ready.segments[0])
        assert result.returncode == 1
        assert "holds another file" in result.stderr
        assert "hint:" in result.stderr
    finally:
        path.write_bytes(before)
    assert other.exists()
    # The same file as ever, although the last attempt failed.
    assert service.push(ready.data_dir, ready.segments[0]).returncode == 0
    # The location goes away, and comes back. What is known to be archived is so.
    (finished_path,) = [archive.paths["local"]]
    archive.object(ready.system_identifier, ready.segments[1]).unlink()
    service.end()
    service.start({"PYTHONUNBUFFERED": "1"})
    with archive.away(finished_path):
        result = service.push(ready.data_dir, ready.segments[1])
        assert result.returncode == 1
        assert "local" in result.stderr
    assert service.push(ready.data_dir, ready.segments[1]).returncode == 0
    assert archived(archive, ready, ready.segments[1])


def test_files_of_nobody(service: Service, archive: WalLab, finished: FinishedWal, workspace: Workspace) -> None:
    """A copy of the cluster asks the archiver of its source."""
    service.start()
    copy = workspace.directory("copy")
    for name in ("global", "pg_wal"):
        (copy / name).mkdir()
    (copy / "global/pg_control").write_bytes((finished.data_dir / "global/pg_control").read_bytes())
    (copy / "pg_wal" / finished.segments[0]).write_bytes(finished.path(finished.segments[0]).read_bytes())
    workspace.account.own(copy, recursive=True)
    result = service.push(copy, finished.segments[0])
    assert result.returncode == 1
    assert "is not in pg_wal" in result.stderr
    assert not archived(archive, finished, finished.segments[0])
    result = service.push(finished.data_dir, "000000010000000000000FFF")
    assert result.returncode == 1
    assert "cannot be read" in result.stderr


def test_a_configuration_that_changes(service: Service, archive: WalLab, ready: FinishedWal) -> None:
    """Another location counts from the next answer on; a mistake archives nothing, and says so."""
    finished = ready
    service.start()
    wait_until(lambda: all(archived(archive, ready, name) for name in ready.segments), "all segments in the archive")
    before = archive.config_path.read_text()
    archive.config_path.write_text("repository: {locations: {}}\n")
    result = service.push(finished.data_dir, finished.segments[1])
    assert result.returncode == 1
    assert "error:" in result.stderr
    archive.config_path.write_text(before)
    assert service.push(finished.data_dir, finished.segments[0]).returncode == 0
    archive.settings["repository"]["locations"]["more"] = {"type": "posix", "path": str(archive.directory / "more")}
    archive.write_config()
    archive.run("init", "--new", "more", check=True)
    assert service.push(finished.data_dir, finished.segments[1]).returncode == 0
    name = finished.segments[1]
    assert (archive.directory / "more/wal" / str(finished.system_identifier) / name[:8] / name).exists()


def test_only_one_for_each_cluster(service: Service, archive: WalLab) -> None:
    service.start()
    result = archive.run("wal-archiver", "main", "--socket", archive.directory / "other.sock")
    assert result.returncode == 1
    assert "is running already" in result.stderr
    result = archive.run("wal-archiver", "nobody")
    assert result.returncode == 2
    service.end()
    result = archive.run("wal-archiver", "main", "--socket", archive.directory / "missing/other.sock")
    assert result.returncode == 2
    assert "cannot listen" in result.stderr


PASS_ON = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_systemd_passes_the_socket_and_is_told(service: Service, archive: WalLab, finished: FinishedWal) -> None:
    told = archive.workspace.path / "notify.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, socket.socket(socket.AF_UNIX) as listening:
        notify.bind(str(told))
        told.chmod(0o777)
        notify.settimeout(30)
        listening.bind(str(service.socket))
        service.socket.chmod(0o777)
        listening.listen()
        command = [archive.runtime, "--config", archive.config_path, "wal-archiver", "main"]
        environment = {"NOTIFY_SOCKET": str(told), "WATCHDOG_USEC": "300000", "LISTEN_FDS": "1"}
        process = archive.workspace.popen(
            ["/usr/bin/python3", "-c", PASS_ON, str(listening.fileno()), *command],
            env=environment,
            pass_fds=(listening.fileno(),),
        )
        heard = [notify.recv(100) for _unused in range(3)]
        assert heard[0] == b"READY=1"
        assert b"WATCHDOG=1" in heard
        assert service.push(finished.data_dir, finished.segments[0]).returncode == 0
        process.terminate()
        assert process.wait(30) == 0
        assert service.socket.exists(), "systemd's"
    assert archived(archive, finished, finished.segments[0])


# With a living server


@pytest.fixture
def primary(workspace: Workspace) -> Cluster:
    return workspace.cluster(wal_segment_mb=1, settings={"wal_keep_size": "1GB"})


@pytest.fixture
def live(workspace: Workspace, runtime: Path, primary: Cluster) -> Service:
    service = Service(WalLab(workspace, runtime, {"main": primary.data_dir}, locations={"near": True, "far": False}))
    primary.enable_archiving(service.archive_command)
    return service


def test_killed_at_random(live: Service, primary: Cluster, workspace: Workspace) -> None:
    """The archiver, its clients and the server are killed while 500 segments are archived."""
    chance = random.Random(SEED)
    archive = live.archive
    live.start()
    primary.execute("CREATE TABLE rows (n int, text text)")
    first = primary.value("SELECT pg_walfile_name(pg_current_wal_lsn())")
    stop = threading.Event()
    killed = {"client": 0}

    def kill_clients() -> None:
        while not stop.wait(chance.uniform(0.5, 2)):
            for process in lab_processes(workspace.path):
                if "wal-push" in process.command and "--socket" in process.command:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process.pid, signal.SIGKILL)
                        killed["client"] += 1

    killer = threading.Thread(target=kill_clients)
    killer.start()
    try:
        for number in range(500):
            primary.execute("INSERT INTO rows VALUES (%s, 'text')", number)
            primary.switch_wal()
            if number % 50 == 25:
                live.end(signal.SIGKILL)
                time.sleep(chance.uniform(0, 0.5))
                live.start()
            if number % 100 == 75:
                primary.kill()
                primary.start()
    finally:
        stop.set()
        killer.join()
    assert killed["client"] > 2
    last = primary.switch_wal()
    primary.wait_archived(last, timeout=120)
    live.end()
    segments = sorted(path.name for path in (primary.data_dir / "pg_wal").glob("0" * 7 + "1*"))
    wanted = [name for name in segments if first <= name <= last and "." not in name]
    assert len(wanted) > 500
    identifier = int(primary.system_identifier)
    target = archive.directory / "fetched"
    for name in wanted:
        assert archive.object(identifier, name, "near").exists(), name
    for name in chance.sample(wanted, 40):
        assert archive.get(name, target, "--system-identifier", str(identifier)) == 0
        assert target.read_bytes() == (primary.data_dir / "pg_wal" / name).read_bytes(), name


def test_an_optional_location_that_is_away_holds_nothing_up(live: Service, primary: Cluster) -> None:
    archive = live.archive
    live.start()
    primary.execute("CREATE TABLE rows (n int)")
    with archive.away(archive.paths["far"]):
        for number in range(20):
            primary.execute("INSERT INTO rows VALUES (%s)", number)
            last = primary.switch_wal()
        primary.wait_archived(last, timeout=60)
        code, status = archive.json("status")
        assert code in (0, 3), status
    identifier = int(primary.system_identifier)
    assert archive.object(identifier, last, "near").exists()
    assert not archive.object(identifier, last, "far").exists()
    # It comes back: later files bring along what it lacks.
    names = [path.name for path in (archive.paths["near"] / "wal" / str(identifier) / last[:8]).iterdir()]

    def healed() -> bool:
        primary.execute("INSERT INTO rows VALUES (1)")
        primary.wait_archived(primary.switch_wal())
        return all(archive.object(identifier, name, "far").exists() for name in names)

    wait_until(healed, "the location has what it lacked", timeout=120)
