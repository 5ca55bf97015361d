# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One object in the making: written below ``.tmp/``, synced, and linked to its name.

Every step can be done again on another session, because connections break:

- What the server has not acknowledged is kept (a few MiB) and sent again.
- What it has acknowledged may be gone, when it was the server that broke: it is read back and compared with the
  digests of what was sent before anything is added to it.
- A link whose answer was lost is recognised: the two names are one file when a time that is set under the one
  shows under the other.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import dataclasses
import secrets
import typing as t

from ...errors import LocationError, ObjectConflict
from .channel import BLOCK, Session, later

if t.TYPE_CHECKING:
    import asyncssh

    from ..base import Buffer
    from .location import SftpLocation

_CHUNK: t.Final = 4 * BLOCK
"""Bytes that are handed to the connection at once."""
_IN_FLIGHT: t.Final = 4
"""Chunks that may be on their way: enough for 80 MB/s at 50 ms, and bounded memory for each writer."""
_NAME_ATTEMPTS: t.Final = 8
_PRIVATE: t.Final = 0o400
"""Of every object, from its first byte: who is not allowed to change modes cannot write to it again."""
_TOKENS: t.Final = range(0x80000000, 0xF0000000)
"""Times from 2038 on: no clock has them yet, and reading a file does not set its time of access back."""


@dataclasses.dataclass(slots=True)
class _Chunk:
    offset: int
    size: int
    digest: bytes
    data: bytes | None
    """None once it is acknowledged."""


class SftpWriter:
    """See ``ObjectWriter``. The location's thread writes what the engine's hands over."""

    def __init__(self, location: SftpLocation, key: str) -> None:
        self._location = location
        self._key = key
        self._final = location.path_of(key)
        self._temporary = ""
        self._buffer = bytearray()
        self._size = 0
        self._chunks: list[_Chunk] = []
        self._waiting: collections.deque[concurrent.futures.Future[None]] = collections.deque()
        self._opening = asyncio.Lock()
        self._file: asyncssh.SFTPClientFile | None = None
        self._session: Session | None = None
        """That ``_file`` belongs to."""
        self._asked = False
        """For the name, at least once."""
        self._named = False
        self._is_open = True
        self._doing = f"write {key}"
        location.run(self._begin, self._doing)

    # What the engine's threads call

    def write(self, data: Buffer) -> None:
        with self._location.doing(self._doing):
            self._buffer += data
            while len(self._buffer) >= _CHUNK:
                with memoryview(self._buffer) as view:
                    chunk = bytes(view[:_CHUNK])
                del self._buffer[:_CHUNK]
                self._send(chunk)

    def _send(self, data: bytes) -> None:
        from blake3 import blake3

        while len(self._waiting) >= _IN_FLIGHT:
            self._waiting.popleft().result()
        chunk = _Chunk(self._size, len(data), blake3(data).digest(), data)
        self._size += len(data)
        self._chunks.append(chunk)

        async def put(session: Session) -> None:
            file = await self._opened(session, writing=True)
            if chunk.data is not None:
                await file.write(chunk.data, chunk.offset)
                chunk.data = None
            session.answered()

        self._waiting.append(self._location.submit(put, self._doing))

    def commit(self) -> None:
        with self._location.doing(self._doing):
            if self._buffer:
                self._send(bytes(self._buffer))
                self._buffer.clear()
            while self._waiting:
                self._waiting.popleft().result()
            self._location.run(self._finish, self._doing)
        self._is_open = False

    def abort(self) -> None:
        if not self._is_open:
            return
        self._is_open = False
        while self._waiting:
            self._waiting.popleft().cancel()
        self._chunks.clear()
        # What cannot be removed now is swept later.
        self._location.run_if_connected(self._tidy)

    # What runs in the location's thread, each of it perhaps more than once

    async def _begin(self, session: Session) -> None:
        """Make the temporary file. An attempt whose answer was lost leaves one more, which is swept later."""
        import asyncssh

        self._temporary = self._location.temporary(secrets.token_hex(16))
        attributes = asyncssh.SFTPAttrs(permissions=_PRIVATE)
        create = asyncssh.FXF_WRITE | asyncssh.FXF_CREAT | asyncssh.FXF_EXCL
        try:
            self._file = await session.sftp.open(self._temporary, create, attributes, encoding=None)
        except asyncssh.SFTPNoSuchFile:
            await self._location.make_directory(session, self._location.temporary_directory)
            self._file = await session.sftp.open(self._temporary, create, attributes, encoding=None)
        self._session = session

    async def _opened(self, session: Session, *, writing: bool) -> asyncssh.SFTPClientFile:
        """The temporary file on this session; on a new one only when it has what it must have."""
        import asyncssh

        async with self._opening:
            if self._file is None or self._session is not session:
                flags = asyncssh.FXF_READ
                if writing:
                    # It was made so that not even its owner may write to it again.
                    await session.sftp.chmod(self._temporary, 0o600)
                    flags |= asyncssh.FXF_WRITE
                file = await session.sftp.open(self._temporary, flags, encoding=None)
                if not await self._holds(session, file):
                    raise LocationError(
                        f"location {self._location.name!r}: the server lost what it had acknowledged of {self._key}",
                        hint="It broke before the object was finished. Nothing bears its name; run it again.",
                    )
                if writing:
                    await session.sftp.chmod(self._temporary, _PRIVATE)
                self._file, self._session = file, session
            return self._file

    async def _holds(self, session: Session, file: asyncssh.SFTPClientFile) -> bool:
        """Whether a file has all that was acknowledged so far."""
        from blake3 import blake3

        for chunk in self._chunks:
            if chunk.data is None:
                data: bytes = await file.read(chunk.size, chunk.offset)
                session.answered()
                if blake3(data).digest() != chunk.digest:
                    return False
        return True

    async def _finish(self, session: Session) -> None:
        import asyncssh

        if self._named:  # by an earlier attempt, which then lost its connection
            await self._location.sync(session, self._key)
            await self._tidy(session)
            return
        try:
            file = await self._opened(session, writing=False)
        except asyncssh.SFTPNoSuchFile:
            if not self._asked or not await self._is_there(session):
                raise
            # Renamed by an earlier attempt whose answer was lost.
            self._named = True
            await self._location.sync(session, self._key)
            return
        await file.fsync()
        await self._name(session)
        self._named = True
        # The server does these in their order. If it should not, and lose its power in between, then what we have
        # not called created yet is gone. The file is closed last: it may have to be synced once more.
        await asyncio.gather(self._location.sync_name(session, self._final, file), self._remove(session))
        self._file = None
        later(file.close())

    async def _name(self, session: Session) -> None:
        import asyncssh

        by_link = await self._location.can_link(session)
        give = session.sftp.link if by_link else session.sftp.rename
        parent = self._final.rpartition("/")[0]
        answer_lost = self._asked
        for left in reversed(range(_NAME_ATTEMPTS)):
            try:
                await self._location.make_directory(session, parent)
                self._asked = True
                await give(self._temporary, self._final)
                return
            except asyncssh.SFTPNoSuchFile:
                # An empty directory may have been tidied away by a prune on another host, once more each time.
                if not left:
                    raise
            except (asyncssh.SFTPFailure, asyncssh.SFTPFileAlreadyExists):
                # SFTP has no word for "exists", neither of the object nor of a directory that came and went: look.
                if await session.sftp.lexists(self._final):
                    if by_link and await self._is_ours(session, answer_lost=answer_lost):
                        return
                    raise self._conflict() from None
                if not left:
                    raise
            self._location.forget_directory(parent)

    def _conflict(self) -> ObjectConflict:
        return ObjectConflict(
            f"location {self._location.name!r} has an object {self._key!r} already, with other content",
            hint="Nothing was overwritten. If two hosts write under one name, give them separate sources.",
        )

    async def _is_ours(self, session: Session, *, answer_lost: bool) -> bool:
        """Whether the name is a link to our temporary file: made by a request whose answer was lost."""
        import asyncssh

        sftp = session.sftp
        before = await sftp.stat(self._final)
        token = secrets.choice(_TOKENS)
        try:
            await sftp.utime(self._temporary, (token, before.mtime or 0))
        except (asyncssh.SFTPPermissionDenied, asyncssh.SFTPOpUnsupported):
            # A server that lets nothing be changed. Equal bytes are as good then.
            return answer_lost and await self._is_there(session)
        after = await sftp.stat(self._final)
        if after.atime != token:
            return False
        await sftp.utime(self._temporary, (before.mtime or 0, before.mtime or 0))
        return True

    async def _is_there(self, session: Session) -> bool:
        """Whether what bears the name is what was written."""
        import asyncssh

        try:
            file = await session.sftp.open(self._final, asyncssh.FXF_READ, encoding=None)
        except asyncssh.SFTPNoSuchFile:
            return False
        try:
            return (await file.stat()).size == self._size and await self._holds(session, file)
        finally:
            await file.close()

    async def _tidy(self, session: Session) -> None:
        """Close and remove the temporary file."""
        file, self._file = self._file, None
        if file is not None and self._session is session:
            await file.close()
        await self._remove(session)

    async def _remove(self, session: Session) -> None:
        import asyncssh

        with contextlib.suppress(asyncssh.SFTPError):  # gone, or nothing may be removed here: it is swept
            await session.sftp.remove(self._temporary)
