# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What must hold before a backup: one clear error each, and nothing left behind."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import Workspace

from .lab import BackupLab


@pytest.fixture(scope="module")
def shared(shared_workspace: Workspace, runtime: Path) -> BackupLab:
    return BackupLab(shared_workspace, runtime, shared_workspace.cluster(), archive_timeout=2)


@pytest.fixture
def backups(shared: BackupLab) -> Iterator[BackupLab]:
    """The shared one; what a test sets in the configuration is put back."""
    before = dict(shared.settings["clusters"]["main"])
    yield shared
    shared.settings["clusters"]["main"] = before
    shared.write_config()


def test_no_server(backups: BackupLab, tmp_path: Path) -> None:
    backups.set(connection=f"host={tmp_path} user=postgres dbname=postgres")
    error = backups.refused()
    assert error["id"] == "cluster-unreachable"
    assert str(tmp_path) in error["message"]


def test_unknown_cluster_and_bad_label(backups: BackupLab) -> None:
    assert backups.run("--json", "backup", "other").returncode == 2
    backups.refused("full", "--label", "two\nlines", exit_code=2)
    backups.refused("full", "--label", "x" * 201, exit_code=2)


def test_user_without_the_right(backups: BackupLab) -> None:
    cluster = backups.cluster
    cluster.execute("CREATE ROLE keeper LOGIN")
    backups.set(connection=cluster.conninfo.replace("user=postgres", "user=keeper"))
    error = backups.refused()
    assert error["id"] == "cluster-privileges"
    grants = [f"GRANT {part.rstrip('; ')}" for part in error["hint"].split("GRANT ")[1:]]
    assert len(grants) == 3
    for grant in grants:
        cluster.execute(grant)
    assert backups.backup()["status"] == "ok"


def test_archiving_off_or_empty(backups: BackupLab) -> None:
    cluster = backups.cluster
    cluster.configure(archive_command="")
    assert backups.refused()["id"] == "archive-command-empty"
    cluster.configure(reload=False, archive_mode=False)
    cluster.restart()
    error = backups.refused()
    assert error["id"] == "archive-off"
    assert "wal-push" in error["hint"]
    cluster.enable_archiving(backups.archive_command)


def test_archiving_that_fails(backups: BackupLab) -> None:
    cluster = backups.cluster
    cluster.configure(archive_command="false")
    error = backups.refused()
    assert error["id"] == "wal-not-archived"
    assert "0000000100000" in error["message"]
    cluster.configure(archive_command=backups.archive_command)
    # The segments of the backup that failed are archived now, and the next one goes through.
    cluster.wait_archived(cluster.switch_wal())
    assert backups.backup()["status"] == "ok"


def test_another_clusters_directory(backups: BackupLab, workspace: Workspace) -> None:
    other = workspace.cluster("other")
    backups.set(data_directory=str(other.data_dir))
    assert backups.refused()["id"] == "cluster-mismatch"
    other.stop()
    backups.set(data_directory=str(workspace.directory("empty")))
    assert backups.refused()["id"] == "control-missing"


def test_a_copy_of_the_directory_is_not_the_cluster(backups: BackupLab, workspace: Workspace) -> None:
    """It has the same system identifier."""
    copy = workspace.path / "copy"
    backups.cluster.run("pg_basebackup", "-D", copy, "-c", "fast")
    backups.set(data_directory=str(copy))
    error = backups.refused()
    assert error["id"] == "cluster-mismatch"
    assert str(copy) in error["message"]


def test_the_directory_by_another_path(backups: BackupLab, workspace: Workspace) -> None:
    link = workspace.path / "link"
    link.symlink_to(backups.cluster.data_dir)
    backups.set(data_directory=str(link))
    assert backups.backup()["status"] == "ok"


@pytest.mark.skipif(os.geteuid() != 0, reason="a file that its owner cannot read needs root")
def test_unreadable_file(backups: BackupLab) -> None:
    secret = backups.cluster.data_dir / "base/secret"
    secret.write_text("secret")
    secret.chmod(0)
    error = backups.refused()
    assert error["id"] == "source-unreadable"
    assert str(secret) in error["message"]
    secret.unlink()


class Pooler:
    """Passes a session through, under a process id of its own making: what connection poolers do."""

    def __init__(self, directory: Path, server: Path) -> None:
        self._server = str(server)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(directory / ".s.PGSQL.5432"))
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        client, _unused = self._socket.accept()
        with client, socket.socket(socket.AF_UNIX) as server:
            server.connect(self._server)
            back = threading.Thread(target=self._back, args=(server, client))
            back.start()
            while data := client.recv(65536):
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)
            back.join()

    @staticmethod
    def _back(server: socket.socket, client: socket.socket) -> None:
        while data := server.recv(65536):
            at = data.find(b"K" + struct.pack(">I", 12))
            if at >= 0:
                data = data[: at + 5] + struct.pack(">I", 4711) + data[at + 9 :]
            client.sendall(data)

    def close(self) -> None:
        self._thread.join()
        self._socket.close()


def test_pooler(backups: BackupLab, workspace: Workspace) -> None:
    directory = Path("/tmp") / f"cbs-pooler-{os.getpid()}"
    directory.mkdir()
    workspace.at_end(directory.rmdir)
    directory.chmod(0o777)
    pooler = Pooler(directory, backups.cluster.socket_dir / ".s.PGSQL.5432")
    (directory / ".s.PGSQL.5432").chmod(0o777)
    backups.set(connection=f"host={directory} user=postgres dbname=postgres")
    assert backups.refused()["id"] == "cluster-pooler"
    pooler.close()
    (directory / ".s.PGSQL.5432").unlink()


def test_two_at_once(backups: BackupLab) -> None:
    with backups.cluster.session() as session, session.cursor() as cursor:
        # Holds the first one at its very beginning for a while.
        cursor.execute("BEGIN; LOCK pg_database IN ACCESS EXCLUSIVE MODE")
        first = backups.workspace.popen([*backups.command, "--json", "backup", "main"], stdout=-1, stderr=-1, text=True)
        lock = backups.directory / "state/locks/source-main.lock"
        while not lock.exists() or lock.read_text().strip() != str(first.pid):
            assert first.poll() is None
        error = backups.refused()
        assert error["id"] == "busy"
        assert str(first.pid) in error["message"]
        cursor.execute("COMMIT")
    assert first.wait(60) == 0, first.communicate()
