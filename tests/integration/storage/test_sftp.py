# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is special about SFTP: connections that break at the worst moment, servers that refuse, keys."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from cryobackup.config.locations import SftpOptions
from cryobackup.errors import LocationError, LocationFull, ObjectConflict
from cryobackup.storage.base import put
from cryobackup.storage.sftp import SftpLocation
from tests.lab import FullDisk, Workspace
from tests.lab.sshd import APPEND_ONLY, SshServer

pytestmark = pytest.mark.only_on("posix")  # it makes its own servers
KEY = "packs/20260101T000000Z-00000000/000000.pack"


def options(server: SshServer, path: str = "repository", **more: Any) -> SftpOptions:
    made = SftpOptions(
        host=server.host,
        port=server.port,
        user=server.user,
        path=str(server.root / path),
        key_file=server.key_file,
        known_hosts=server.known_hosts,
        timeout=20,
    )
    return dataclasses.replace(made, **more)


def locate(server: SshServer, path: str = "repository", **more: Any) -> SftpLocation:
    return SftpLocation("vault", options(server, path, **more))


@pytest.fixture
def place(sftp_server: SshServer) -> SftpLocation:
    made = locate(sftp_server)
    made.prepare()
    return made


def noise(size: int) -> bytes:
    return hashlib.shake_256(b"sftp").digest(size)


def files(server: SshServer, path: str = "repository") -> list[str]:
    root = server.root / path
    return sorted(str(each.relative_to(root)) for each in root.rglob("*") if each.is_file())


def failure(action: Callable[[], object]) -> LocationError:
    with pytest.raises(LocationError) as caught:
        action()
    assert "vault" in caught.value.message
    assert caught.value.hint
    return caught.value


# Connections that break


def test_objects_are_private_from_their_first_byte(place: SftpLocation, sftp_server: SshServer) -> None:
    writer = place.create(KEY)
    writer.write(bytes(5 << 20))
    (unfinished,) = (sftp_server.root / "repository/.tmp").iterdir()
    assert unfinished.stat().st_mode & 0o777 == 0o400
    writer.commit()
    assert (sftp_server.root / "repository" / KEY).stat().st_mode & 0o777 == 0o400
    assert (sftp_server.root / "repository/packs").stat().st_mode & 0o777 == 0o700


def test_a_broken_connection_is_made_anew(place: SftpLocation, sftp_server: SshServer) -> None:
    put(place, "a", b"x")
    for ask in (
        lambda: place.read("a"),
        lambda: place.stat("a"),
        lambda: list(place.list("")),
        place.now,
        place.capacity,
        lambda: place.confirm("a"),
        lambda: put(place, "b", b"y"),
        lambda: place.delete("b"),
        lambda: place.sweep(3600),
    ):
        assert sftp_server.kill_connections() > 0
        ask()
    assert files(sftp_server) == ["a"]


@pytest.mark.parametrize("breaks", [1, 3])
def test_writing_goes_on_where_it_was(place: SftpLocation, sftp_server: SshServer, breaks: int) -> None:
    data = noise(1 << 20)
    writer = place.create(KEY)
    for number in range(24):
        if number % (24 // breaks) == 20 // breaks:
            sftp_server.kill_connections()
        writer.write(data)
    sftp_server.kill_connections()
    writer.commit()
    assert place.read(KEY) == data * 24
    assert files(sftp_server) == [KEY]
    assert (sftp_server.root / "repository" / KEY).stat().st_mode & 0o777 == 0o400


def test_connections_that_break_under_reading_and_writing(place: SftpLocation, sftp_server: SshServer) -> None:
    """All the time, in the middle of whatever is on its way."""
    data = noise(3 << 20)
    done = threading.Event()

    def breaking() -> None:
        while not done.wait(0.7):
            sftp_server.kill_connections()

    breaker = threading.Thread(target=breaking)
    breaker.start()
    try:
        for number in range(10):
            assert put(place, f"packs/x/{number}", data)
            assert place.read(f"packs/x/{number}") == data
            assert len(list(place.list("packs/"))) == number + 1
    finally:
        done.set()
        breaker.join()
    assert len(files(sftp_server)) - len(os.listdir(sftp_server.root / "repository/.tmp")) == 10


def test_what_the_server_lost_is_noticed(place: SftpLocation, sftp_server: SshServer) -> None:
    """It had acknowledged, and then lost its power: the file is there, its content is not."""
    writer = place.create(KEY)
    for _unused in range(12):
        writer.write(noise(1 << 20))
    (unfinished,) = (sftp_server.root / "repository/.tmp").iterdir()
    sftp_server.kill_connections()
    with unfinished.open("r+b") as file:
        file.write(bytes(4096))
    error = failure(writer.commit)
    assert "lost what it had acknowledged" in error.message
    writer.abort()
    assert place.stat(KEY) is None


@pytest.fixture
def lose_answers(monkeypatch: pytest.MonkeyPatch, sftp_server: SshServer) -> Callable[[str], list[str]]:
    """Lets the server do what it is asked by this method, once, and breaks the connection before the answer."""

    def lose(method: str) -> list[str]:
        lost: list[str] = []
        original = getattr(asyncssh.SFTPClient, method)

        async def losing(self: asyncssh.SFTPClient, *arguments: object, **keywords: object) -> object:
            answer = await original(self, *arguments, **keywords)
            if not lost:
                lost.append(method)
                await asyncio.to_thread(sftp_server.kill_connections)
                raise asyncssh.ConnectionLost("the answer got lost")
            return answer

        monkeypatch.setattr(asyncssh.SFTPClient, method, losing)
        return lost

    return lose


@pytest.mark.parametrize("method", ["link", "open", "mkdir", "remove"])
def test_a_lost_answer(
    place: SftpLocation, sftp_server: SshServer, lose_answers: Callable[[str], list[str]], method: str
) -> None:
    lost = lose_answers(method)
    assert put(place, KEY, b"x") is True
    assert lost
    assert place.read(KEY) == b"x"
    place.delete(KEY)
    assert place.stat(KEY) is None
    place.sweep(-10)
    assert files(sftp_server) == []


def test_a_lost_answer_where_another_won(
    place: SftpLocation, sftp_server: SshServer, lose_answers: Callable[[str], list[str]]
) -> None:
    """The same bytes, but made by another: that is no success of ours, and nothing of the other's is changed."""
    writer = place.create(KEY)
    writer.write(b"equal")
    put(locate(sftp_server), KEY, b"equal")
    before = (sftp_server.root / "repository" / KEY).stat()
    lose_answers("link")
    with pytest.raises(ObjectConflict):
        writer.commit()
    after = (sftp_server.root / "repository" / KEY).stat()
    assert (after.st_ino, after.st_mtime, after.st_mode, after.st_nlink) == (
        before.st_ino,
        before.st_mtime,
        before.st_mode,
        1,
    )


def test_a_lost_answer_keeps_the_time(place: SftpLocation, lose_answers: Callable[[str], list[str]]) -> None:
    lose_answers("link")
    before = place.now()
    put(place, KEY, b"x")
    found = place.stat(KEY)
    assert found is not None
    assert before - 1 <= found.modified <= place.now() + 1


@pytest.mark.parametrize("answers", [True, False])
def test_a_server_without_hard_links(
    place: SftpLocation, monkeypatch: pytest.MonkeyPatch, lose_answers: Callable[[str], list[str]], *, answers: bool
) -> None:
    """Then ``rename`` gives the name, as version 3 of the standard has it: it fails when the name exists."""

    async def link(self: asyncssh.SFTPClient, *_unused: object) -> None:
        raise asyncssh.SFTPOpUnsupported("link not supported")

    monkeypatch.setattr(asyncssh.SFTPClient, "link", link)
    if not answers:
        assert lose_answers("rename") == []
    assert put(place, KEY, b"x") is True
    assert put(place, KEY, b"x") is False
    with pytest.raises(ObjectConflict):
        put(place, KEY, b"other")
    assert place.read(KEY) == b"x"


def test_a_server_that_says_nothing_any_more(sftp_server: SshServer) -> None:
    place = locate(sftp_server, timeout=2)
    place.prepare()
    put(place, "a", b"x")
    sftp_server.freeze_connections()
    assert place.read("a") == b"x"  # by a new connection


def test_a_server_that_comes_back(place: SftpLocation, sftp_server: SshServer) -> None:
    writer = place.create(KEY)
    writer.write(noise(6 << 20))
    sftp_server.stop()
    rest = threading.Thread(target=lambda: (writer.write(noise(6 << 20)), writer.commit()))
    rest.start()
    rest.join(2)
    assert rest.is_alive()
    sftp_server.start()
    rest.join()
    assert place.read(KEY) == noise(6 << 20) * 2


def test_a_server_that_is_down(place: SftpLocation, sftp_server: SshServer) -> None:
    sftp_server.stop()
    other = locate(sftp_server)
    for ask in (lambda: other.read("a"), lambda: other.stat("a"), lambda: list(other.list("")), other.now):
        error = failure(ask)
        assert error.id == "location-down"
        assert str(sftp_server.port) in error.message


# Who is let in


def test_another_host_key(place: SftpLocation, sftp_server: SshServer) -> None:
    sftp_server.new_host_key()
    error = failure(lambda: locate(sftp_server).now())
    assert error.id == "location-host-key"
    assert "Nothing was sent" in error.hint


def test_a_host_that_is_not_known(sftp_server: SshServer, tmp_path: Path) -> None:
    empty = tmp_path / "known_hosts"
    for make in (lambda: None, empty.touch, lambda: empty.write_text("[elsewhere]:22 ssh-ed25519 AAAA\n")):
        make()
        assert failure(locate(sftp_server, known_hosts=empty).now).id == "location-host-key"


def test_a_key_that_is_refused(place: SftpLocation, sftp_server: SshServer) -> None:
    sftp_server.lock_out()
    error = failure(locate(sftp_server).now)
    assert error.id == "location-denied"
    assert "authorized_keys" in error.hint


def test_another_user(sftp_server: SshServer) -> None:
    assert failure(locate(sftp_server, user="nobody").now).id == "location-denied"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_key_that_others_can_read(sftp_server: SshServer, mode: int) -> None:
    sftp_server.key_file.chmod(mode)
    error = failure(locate(sftp_server).now)
    assert error.id == "secret-file-mode"
    assert f"{mode:04o}" in error.message


def test_a_key_file_of_no_use(sftp_server: SshServer, tmp_path: Path) -> None:
    path = tmp_path / "key"
    assert failure(locate(sftp_server, key_file=path).now).id == "secret-file"
    path.touch(mode=0o600)
    path.write_text("not a key")
    assert failure(locate(sftp_server, key_file=path).now).id == "secret-file"
    path.unlink()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret words", "-f", path], check=True)
    error = failure(locate(sftp_server, key_file=path).now)
    assert error.id == "secret-file"
    assert "without a passphrase" in error.hint


def test_nothing_of_the_user_is_used(
    place: SftpLocation, sftp_server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No ~/.ssh/config, no key or known host of the user's, no agent."""
    folder = tmp_path / ".ssh"
    folder.mkdir(mode=0o700)
    (folder / "config").write_text(f"Host *\n  Port 1\n  User nobody\n  IdentityFile {tmp_path}/none\n  Include\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
    assert put(locate(sftp_server), "a", b"x")
    (folder / "config").unlink()
    key = folder / "id_ed25519"
    key.write_bytes(sftp_server.key_file.read_bytes())
    key.chmod(0o600)
    (folder / "known_hosts").write_text(sftp_server.known_hosts.read_text())
    other = asyncssh.generate_private_key("ssh-ed25519")
    mine = tmp_path / "mine"
    mine.touch(mode=0o600)
    mine.write_bytes(other.export_private_key())
    assert failure(locate(sftp_server, key_file=mine).now).id == "location-denied"
    # Another user's, after setpriv. No directory is closed to root: this one cannot be looked into either.
    monkeypatch.setenv("HOME", "/" + "x" * 300)
    assert put(locate(sftp_server), "b", b"y")


# What the server refuses


def test_a_full_disk(workspace: Workspace, full_disk: Callable[..., FullDisk]) -> None:
    disk = full_disk(megabytes=24)
    place = locate(SshServer(workspace, "full", root=disk.path).start())
    place.prepare()
    put(place, "before", b"x")
    writer = place.create(KEY)

    def fill() -> None:
        for _unused in range(40):
            writer.write(bytes(1 << 20))
        writer.commit()

    with pytest.raises(LocationFull) as caught:
        fill()
    assert "no space" in caught.value.message
    assert "prune" in caught.value.hint
    writer.abort()
    assert place.stat(KEY) is None
    assert os.listdir(disk.path / "repository/.tmp") == []
    assert put(place, "after", b"x")


def test_no_inodes_left(workspace: Workspace, full_disk: Callable[..., FullDisk]) -> None:
    disk = full_disk(megabytes=24, inodes=12)
    place = locate(SshServer(workspace, "full", root=disk.path).start())
    place.prepare()
    with pytest.raises(LocationFull):
        [put(place, f"a{number}", b"x") for number in range(20)]


def test_a_read_only_file_system(workspace: Workspace, full_disk: Callable[..., FullDisk]) -> None:
    disk = full_disk()
    place = locate(SshServer(workspace, "ro", root=disk.path).start())
    place.prepare()
    put(place, "a", b"x")
    disk.read_only()
    assert "read-only" in failure(lambda: put(place, "b", b"x")).message
    assert place.read("a") == b"x"


def test_a_server_that_does_not_sync(sftp_server: SshServer) -> None:
    sftp_server.deny("fsync")
    place = locate(sftp_server)
    place.prepare()
    error = failure(lambda: put(place, "a", b"x"))
    assert error.id in ("location-unfit", "location-denied")
    assert files(sftp_server) == []


def test_a_directory_of_somebody_else(sftp_server: SshServer) -> None:
    sftp_server.root.chmod(0o555)
    os.chown(sftp_server.root, 0, 0)
    error = failure(locate(sftp_server).prepare)
    assert error.id == "location-denied"


def test_a_server_that_only_adds(place: SftpLocation, sftp_server: SshServer) -> None:
    """The set-up that docs/sftp.md recommends: whoever steals the key can neither change nor delete."""
    put(place, "before", b"x")
    sftp_server.deny(*APPEND_ONLY)
    only = locate(sftp_server)
    only.prepare()
    big = noise(9 << 20)
    assert put(only, KEY, big) is True
    assert put(only, "small", b"x") is True
    assert put(only, "small", b"x") is False
    with pytest.raises(ObjectConflict):
        put(only, "small", b"y")
    assert only.read(KEY) == big
    only.confirm(KEY)
    assert only.now() > 0
    assert failure(lambda: only.delete("before")).id == "location-denied"
    aborted = only.create("aborted")
    aborted.write(b"x")
    aborted.abort()
    assert [info.key for info in only.list("")] == ["before", KEY, "small"]
    sftp_server.deny()
    place.sweep(-10)
    assert files(sftp_server) == ["before", KEY, "small"]


def test_a_thief_where_only_adding_is_allowed(place: SftpLocation, sftp_server: SshServer) -> None:
    """By the protocol itself, past the engine."""
    put(place, KEY, b"precious")
    sftp_server.deny(*APPEND_ONLY)
    path = str(sftp_server.root / "repository" / KEY)

    async def steal() -> list[str]:
        made = options(sftp_server)
        connection = await asyncssh.connect(
            made.host,
            made.port,
            username=made.user,
            client_keys=[str(made.key_file)],
            known_hosts=str(made.known_hosts),
            config=None,
            agent_path=None,
        )
        succeeded = []
        async with connection, connection.start_sftp_client() as sftp:
            for name, attempt in (
                ("remove", lambda: sftp.remove(path)),
                ("rename", lambda: sftp.rename(path, path + ".x")),
                ("posix_rename", lambda: sftp.posix_rename(path, path + ".x")),
                ("overwrite by rename", lambda: sftp.posix_rename(str(sftp_server.root / "repository/.tmp"), path)),
                ("chmod", lambda: sftp.chmod(path, 0o600)),
                ("truncate", lambda: sftp.truncate(path, 0)),
                ("write", lambda: sftp.open(path, "r+")),
                ("overwrite", lambda: sftp.open(path, "w")),
                ("append", lambda: sftp.open(path, "a")),
                ("utime", lambda: sftp.utime(path, (1, 1))),
                ("rmdir", lambda: sftp.rmdir(path.rpartition("/")[0])),
                ("symlink", lambda: sftp.symlink("/etc/passwd", path + ".y")),
            ):
                try:
                    await attempt()
                    succeeded.append(name)
                except asyncssh.SFTPError:
                    pass
            for request in ("cat /etc/passwd", "sh"):
                try:
                    result = await connection.run(request, timeout=5)
                    if result.exit_status == 0 or "root:" in str(result.stdout):
                        succeeded.append(request)
                except (asyncssh.Error, TimeoutError):
                    pass
        return succeeded

    assert asyncio.run(steal()) == []
    assert place.read(KEY) == b"precious"


def test_durability_is_asked_for_in_the_right_order(
    place: SftpLocation, sftp_server: SshServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file before its name, the directory after it, and before the answer."""
    steps: list[str] = []
    opened: dict[int, str] = {}

    def noting(owner: type, method: str, note: Callable[..., str]) -> None:
        original = getattr(owner, method)

        async def noted(self: object, *arguments: object, **keywords: object) -> object:
            result = await original(self, *arguments, **keywords)
            if method == "open":
                opened[id(result)] = str(arguments[0])
            steps.append(note(self, *arguments))
            return result

        monkeypatch.setattr(owner, method, noted)

    def short(path: str) -> str:
        return path.removeprefix(str(sftp_server.root / "repository"))

    noting(asyncssh.SFTPClient, "open", lambda _self, path, *_unused: f"open {short(path)}")
    noting(asyncssh.SFTPClientFile, "fsync", lambda self: f"fsync {short(opened[id(self)])}")
    noting(asyncssh.SFTPClient, "link", lambda _self, _unused, path: f"link {short(path)}")
    noting(asyncssh.SFTPClient, "mkdir", lambda _self, path, *_unused: f"mkdir {short(path)}")
    put(place, "packs/a/0", b"x")
    told = [step for step in steps if not step.startswith("open")]
    at = told.index("link /packs/a/0")
    assert any(step.startswith("fsync /.tmp/") for step in told[:at])
    assert told[at + 1 :] == ["fsync /packs/a"]
    made = told.index("mkdir /packs")
    assert told[made : made + 4] == ["mkdir /packs", "fsync ", "mkdir /packs/a", "fsync /packs"]


def test_a_server_that_opens_no_directories(
    place: SftpLocation, sftp_server: SshServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the object is synced once more when it has its name, which takes the name along where that is possible."""
    steps: list[str] = []
    originals = {method: getattr(asyncssh.SFTPClient, method) for method in ("open", "link")}
    sync = asyncssh.SFTPClientFile.fsync
    root = sftp_server.root / "repository"
    directories = {str(path) for path in (root, root / "packs", root / "packs/a")}

    async def open_file(self: asyncssh.SFTPClient, path: str, *arguments: Any, **keywords: Any) -> object:
        if path in directories:
            await self.stat(path)  # the server takes its time to say no
            raise asyncssh.SFTPFailure("is a directory")
        return await originals["open"](self, path, *arguments, **keywords)

    async def link(self: asyncssh.SFTPClient, *arguments: Any) -> None:
        await originals["link"](self, *arguments)
        steps.append("link")

    async def fsync(self: asyncssh.SFTPClientFile) -> None:
        await sync(self)
        steps.append("fsync")

    monkeypatch.setattr(asyncssh.SFTPClient, "open", open_file)
    monkeypatch.setattr(asyncssh.SFTPClient, "link", link)
    monkeypatch.setattr(asyncssh.SFTPClientFile, "fsync", fsync)
    assert put(place, "packs/a/0", b"x") is True
    assert steps == ["fsync", "link", "fsync"]
    assert put(place, "packs/a/0", b"x") is False
    place.delete("packs/a/0")
    assert files(sftp_server) == []


def test_nothing_is_imported_before_it_is_used() -> None:
    code = "import sys, cryobackup.storage.sftp; sys.exit('asyncssh' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_thread_ends_with_the_location(sftp_server: SshServer) -> None:
    gc.collect()
    before = set(threading.enumerate())
    place = locate(sftp_server)
    place.prepare()
    assert set(threading.enumerate()) - before
    del place
    gc.collect()
    assert not set(threading.enumerate()) - before
