# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A server that is not OpenSSH: it opens no directories, and makes hard links or does not."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import pytest

from cryobackup.config.locations import SftpOptions
from cryobackup.errors import ObjectConflict
from cryobackup.storage.base import put
from cryobackup.storage.sftp import SftpLocation
from cryobackup.storage.trial import try_location

pytestmark = pytest.mark.only_on("posix")  # it makes its own server
KEY = "packs/20260101T000000Z-00000000/000000.pack"


class Server:
    """Asyncssh's own, in a thread."""

    def __init__(self, folder: Path, *, links: bool) -> None:
        self.root = folder / "root"
        self.root.mkdir()
        self._links = links
        key, self._host_key = (asyncssh.generate_private_key("ssh-ed25519") for _unused in range(2))
        self._authorized = folder / "authorized_keys"
        self._authorized.write_bytes(key.export_public_key())
        self._key_file = folder / "key"
        self._key_file.touch(mode=0o600)
        self._key_file.write_bytes(key.export_private_key())
        self._known_hosts = folder / "known_hosts"
        self._ready = threading.Event()
        self._over = asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(20)

    async def _serve(self) -> None:
        root, links = str(self.root), self._links

        class Sftp(asyncssh.SFTPServer):
            def __init__(self, channel: asyncssh.SSHServerChannel[bytes]) -> None:
                super().__init__(channel, chroot=root)

            def link(self, oldpath: bytes, newpath: bytes) -> None:
                if not links:
                    raise asyncssh.SFTPOpUnsupported("no hard links here")
                super().link(oldpath, newpath)

        connections: list[asyncssh.SSHServerConnection] = []

        class Ssh(asyncssh.SSHServer):
            def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
                connections.append(conn)

        self._loop = asyncio.get_running_loop()
        options = {"server_host_keys": [self._host_key], "authorized_client_keys": str(self._authorized)}
        async with asyncssh.listen("127.0.0.1", 0, server_factory=Ssh, sftp_factory=Sftp, **options) as listener:
            self._port = listener.get_port()
            public = self._host_key.export_public_key().decode()
            self._known_hosts.write_text(f"[127.0.0.1]:{self._port} {public}")
            self._ready.set()
            await self._over.wait()
            for connection in connections:
                connection.abort()
                await connection.wait_closed()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(20)

    def location(self) -> SftpLocation:
        options = SftpOptions("127.0.0.1", "db1", "/repository", self._key_file, self._known_hosts, self._port, 20.0)
        return SftpLocation("vault", options)


@pytest.fixture(params=[True, False], ids=["links", "no links"])
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    made = Server(tmp_path, links=request.param)
    yield made
    made.close()


def test_objects_come_and_go(server: Server) -> None:
    place = server.location()
    place.prepare()
    assert try_location(place, "20260101T000000Z-00000001") == []
    data = os.urandom(5 << 20)
    assert put(place, KEY, data) is True
    assert put(place, KEY, data) is False
    with pytest.raises(ObjectConflict):
        put(place, KEY, b"another")
    assert place.read(KEY) == data
    assert place.read(KEY, 1000, 300_000) == data[1000:301_000]
    assert [info.key for info in place.list("")] == [KEY]
    place.confirm(KEY)
    place.delete(KEY)
    assert place.stat(KEY) is None
    place.sweep(-10)
    assert [path for path in server.root.rglob("*") if path.is_file()] == []
