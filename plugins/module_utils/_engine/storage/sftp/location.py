# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A directory on an SFTP server, seen as a location."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import posixpath
import secrets
import stat
import typing as t

from ...errors import LocationError, ObjectMissing
from ..base import Capacity, ObjectInfo, check_key
from . import errors
from .channel import BLOCK, Channel, Operation, Session, later
from .writer import SftpWriter

if t.TYPE_CHECKING:
    import asyncssh

    from ...config.locations import SftpOptions

T = t.TypeVar("T")

_TEMPORARY: t.Final = ".tmp"
_LOST_AND_FOUND: t.Final = "lost+found"  # the file system's own, when the location is a mount point
_LOOK_AHEAD: t.Final = 16
"""Directories that are listed at once: every one costs four journeys to the server and back."""


class _Entry(t.NamedTuple):
    name: str
    mode: int
    size: int
    modified: int


_Scan: t.TypeAlias = concurrent.futures.Future[t.Sequence[_Entry]]


class SftpLocation:
    """See ``Location``. Nothing is sent before the first call."""

    def __init__(self, name: str, options: SftpOptions, *, required: bool = True) -> None:
        self._name = name
        self._options = options
        self._required = required
        self._root = options.path.rstrip("/") or "/"
        self._directories: set[str] = set()
        self._links: bool | None = None
        self._channel = Channel(name, options)

    @property
    def name(self) -> str:
        return self._name

    @property
    def required(self) -> bool:
        return self._required

    def describe(self) -> str:
        options = self._options
        port = "" if options.port == 22 else f":{options.port}"
        return f"sftp://{options.user}@{options.host}{port}/{self._root.lstrip('/')}"

    def requests(self) -> dict[str, int]:
        return {}

    # Objects

    def create(self, key: str) -> SftpWriter:
        check_key(key)
        return SftpWriter(self, key)

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        import asyncssh

        path = self.path_of(key)

        async def operation(session: Session) -> bytes:
            file = await session.sftp.open(path, asyncssh.FXF_READ, encoding=None)
            try:
                return await _read(session, file, offset, length)
            finally:
                later(file.close())

        return self.run(operation, f"read {key}", key)

    def stat(self, key: str) -> ObjectInfo | None:
        import asyncssh

        path = self.path_of(key)

        async def operation(session: Session) -> ObjectInfo | None:
            try:
                found = await session.sftp.stat(path)
            except asyncssh.SFTPNoSuchFile:
                await self._must_be_there(session)
                return None
            if not stat.S_ISREG(found.permissions or 0):
                return None
            return ObjectInfo(key, found.size or 0, float(found.mtime or 0))

        return self.run(operation, f"look at {key}", key)

    def confirm(self, key: str) -> None:
        check_key(key)
        self.run(lambda session: self.sync(session, key), f"sync {key}", key)

    def delete(self, key: str) -> None:
        import asyncssh

        path = self.path_of(key)

        async def operation(session: Session) -> None:
            try:
                await session.sftp.remove(path)
            except asyncssh.SFTPNoSuchFile:
                await self._must_be_there(session)
                return
            parent = posixpath.dirname(path)
            await self._sync_directory(session, parent)
            # Directories are no objects; an empty one is only clutter. Losing this race is fine.
            with contextlib.suppress(asyncssh.SFTPError):
                while parent != self._root:
                    await session.sftp.rmdir(parent)
                    self._directories.discard(parent)
                    parent = posixpath.dirname(parent)

        self.run(operation, f"delete {key}", key)

    # The whole

    def prepare(self) -> None:
        async def operation(session: Session) -> None:
            await self._make(session, self._root, above=True)

        self.run(operation, f"create {self._root}")

    def list(self, prefix: str) -> t.Iterator[ObjectInfo]:
        directory = prefix.rstrip("/")
        if directory:
            check_key(directory)
        else:
            self.run(self._must_be_there, "list")
        yield from self._walk(directory, self._begin_scan(directory))

    def _walk(self, directory: str, scan: _Scan) -> t.Iterator[ObjectInfo]:
        """Sorted by key as text: a directory sorts as its name with "/" behind it. Some are listed ahead."""
        with self.doing(f"list {directory}"):
            found = scan.result()
        below = f"{directory}/" if directory else ""
        rows = sorted(
            (below + entry.name + ("/" if stat.S_ISDIR(entry.mode) else ""), entry)
            for entry in found
            if stat.S_ISDIR(entry.mode) or stat.S_ISREG(entry.mode)
        )
        folders = iter([key[:-1] for key, entry in rows if stat.S_ISDIR(entry.mode)])
        ahead: collections.deque[_Scan] = collections.deque()
        try:
            for key, entry in rows:
                if not stat.S_ISDIR(entry.mode):
                    yield ObjectInfo(key, entry.size, float(entry.modified))
                    continue
                while len(ahead) < _LOOK_AHEAD and (folder := next(folders, None)) is not None:
                    ahead.append(self._begin_scan(folder))
                yield from self._walk(key[:-1], ahead.popleft())
        finally:
            for waiting in ahead:
                waiting.cancel()

    def _begin_scan(self, directory: str) -> _Scan:
        import asyncssh

        path = posixpath.join(self._root, directory) if directory else self._root

        async def operation(session: Session) -> t.Sequence[_Entry]:
            try:
                return await _scan(session, path)
            except asyncssh.SFTPNoSuchFile:
                await self._must_be_there(session)
                return []

        return self.submit(operation, f"list {directory}")

    def now(self) -> float:
        """By the time stamp of a new file: the clock that stamps objects, in whole seconds."""
        import asyncssh

        async def operation(session: Session) -> float:
            path = self.temporary(f"clock-{secrets.token_hex(8)}")
            flags = asyncssh.FXF_WRITE | asyncssh.FXF_CREAT | asyncssh.FXF_EXCL
            try:
                file = await session.sftp.open(path, flags, asyncssh.SFTPAttrs(permissions=0o600), encoding=None)
            except asyncssh.SFTPNoSuchFile:
                await self.make_directory(session, self.temporary_directory)
                file = await session.sftp.open(path, flags, asyncssh.SFTPAttrs(permissions=0o600), encoding=None)
            try:
                found = await file.stat()
            finally:
                await file.close()
                with contextlib.suppress(asyncssh.SFTPPermissionDenied):  # nothing may be removed here: it is swept
                    await session.sftp.remove(path)
            return float(found.mtime or 0)

        return self.run(operation, f"write {_TEMPORARY}")

    def capacity(self) -> Capacity:
        import asyncssh

        async def operation(session: Session) -> Capacity:
            try:
                status = await session.sftp.statvfs(self._root)
            except asyncssh.SFTPOpUnsupported:
                return Capacity(None, None)
            return Capacity(status.bavail * status.frsize, status.blocks * status.frsize)

        return self.run(operation, "measure its space")

    def sweep(self, older_than: float) -> int:
        import asyncssh

        limit = self.now() - older_than

        async def operation(session: Session) -> int:
            removed = 0
            for entry in await _scan(session, self.temporary_directory, hidden=True):
                if entry.modified < limit and stat.S_ISREG(entry.mode):
                    with contextlib.suppress(asyncssh.SFTPNoSuchFile):
                        await session.sftp.remove(self.temporary(entry.name))
                        removed += 1
            await self._sweep_directories(session, self._root, limit, asyncio.Semaphore(_LOOK_AHEAD))
            return removed

        return self.run(operation, f"sweep {_TEMPORARY}")

    async def _sweep_directories(self, session: Session, directory: str, limit: float, turn: asyncio.Semaphore) -> None:
        """Remove directories that a killed process left empty. A writer that wanted one makes it anew."""
        import asyncssh

        async with turn:
            try:
                found = await _scan(session, directory)
            except asyncssh.SFTPNoSuchFile:  # another prune is here, too
                return

        async def look(entry: _Entry) -> None:
            path = posixpath.join(directory, entry.name)
            await self._sweep_directories(session, path, limit, turn)
            if entry.modified < limit:
                with contextlib.suppress(asyncssh.SFTPError):  # not empty
                    await session.sftp.rmdir(path)

        await asyncio.gather(
            *(look(entry) for entry in found if stat.S_ISDIR(entry.mode) and entry.name != _LOST_AND_FOUND)
        )

    # What the writer shares

    def path_of(self, key: str) -> str:
        return posixpath.join(self._root, check_key(key))

    @property
    def temporary_directory(self) -> str:
        return posixpath.join(self._root, _TEMPORARY)

    def temporary(self, name: str) -> str:
        return posixpath.join(self._root, _TEMPORARY, name)

    async def can_link(self, session: Session) -> bool:
        """Whether the server makes hard links (hardlink@openssh.com): asked once, with a file that is not there."""
        import asyncssh

        if self._links is None:
            try:
                missing = self.temporary(secrets.token_hex(16))
                await session.sftp.link(missing, f"{missing}.link")
            except asyncssh.SFTPOpUnsupported:
                self._links = False
            except asyncssh.SFTPError:
                self._links = True
        return self._links is not False

    async def make_directory(self, session: Session, directory: str) -> None:
        """Make a directory below the root, and make it last. The root itself must be there."""
        if directory not in self._directories:
            await self._make(session, directory, above=False)
            self._directories.add(directory)

    def forget_directory(self, directory: str) -> None:
        """Somebody else removed a directory that was empty for a moment: make it anew next time."""
        while directory != self._root and directory:
            self._directories.discard(directory)
            directory = posixpath.dirname(directory)

    async def _make(self, session: Session, directory: str, *, above: bool) -> None:
        """``above``: also the root, and what is above it."""
        import asyncssh

        if directory == self._root and not above:
            await self._must_be_there(session)
            return
        if not directory:  # where the server puts its user
            return
        if await session.sftp.isdir(directory):
            return
        await self._make(session, posixpath.dirname(directory), above=above)
        try:
            await session.sftp.mkdir(directory, asyncssh.SFTPAttrs(permissions=0o700))
        except (asyncssh.SFTPFailure, asyncssh.SFTPFileAlreadyExists):
            if not await session.sftp.isdir(directory):  # somebody else's, made meanwhile
                raise
        await self._sync_directory(session, posixpath.dirname(directory) or ".")

    async def sync(self, session: Session, key: str) -> None:
        """Make an object last that bears its name already, and the directories above it."""
        import asyncssh

        path = self.path_of(key)
        file = await session.sftp.open(path, asyncssh.FXF_READ, encoding=None)
        async with file:
            await file.fsync()
        parent = posixpath.dirname(path)
        while await self._sync_directory(session, parent) and parent != self._root:
            parent = posixpath.dirname(parent)

    async def sync_name(self, session: Session, path: str, file: asyncssh.SFTPClientFile) -> None:
        """Make the name of a file last. Through its directory, or else through the file itself: see docs/sftp.md."""
        if not await self._sync_directory(session, posixpath.dirname(path)):
            await file.fsync()

    @staticmethod
    async def _sync_directory(session: Session, directory: str) -> bool:
        """False when the server does not do that: SFTP knows no open directories that can be synced.

        OpenSSH opens one like a file, as Linux lets it, and then syncs it.
        """
        import asyncssh

        try:
            handle = await session.sftp.open(directory, asyncssh.FXF_READ, encoding=None)
        except asyncssh.SFTPError:
            return False
        try:
            await handle.fsync()
        except asyncssh.SFTPError:
            return False
        finally:
            later(handle.close())
        return True

    async def _must_be_there(self, session: Session) -> None:
        """A missing root means "not mounted", never "empty"."""
        if not await session.sftp.isdir(self._root):
            raise LocationError(
                f"location {self._name!r}: {self.describe()} is not there",
                hint=f"Mount it. If it is a new location: `cryobackup init --new {self._name}`. Nothing was changed.",
            )

    # Errors

    def run(self, operation: Operation[T], doing: str, key: str = "") -> T:
        """Do something there. Errors name what was being done; ``key`` is the object that must be there for it."""
        with self.doing(doing):
            return self._channel.run(self._explained(operation, doing, key))

    def submit(self, operation: Operation[T], doing: str) -> concurrent.futures.Future[T]:
        """Begin to do something; wait for the result within ``doing``."""
        return self._channel.submit(self._explained(operation, doing, ""))

    def run_if_connected(self, operation: Operation[None]) -> None:
        """Tidy up if that is possible now. Raises nothing."""
        import asyncssh

        with contextlib.suppress(LocationError, asyncssh.Error, OSError):
            self._channel.run_if_connected(operation)

    @contextlib.contextmanager
    def doing(self, doing: str) -> t.Iterator[None]:
        """The lowest boundary of the repository: a broken connection becomes our error here."""
        try:
            yield
        except errors.broken() as error:
            raise errors.connection_lost(self._name, doing, error) from error

    def _explained(self, operation: Operation[T], doing: str, key: str) -> Operation[T]:
        """The same operation; what the server refuses becomes our error, with its cause looked up there and then."""
        import asyncssh

        async def explained(session: Session) -> T:
            try:
                return await operation(session)
            except errors.broken():
                raise
            except asyncssh.SFTPNoSuchFile as error:
                await self._must_be_there(session)
                if key:
                    raise ObjectMissing(
                        f"location {self._name!r} has no object {key!r}",
                        hint="`cryobackup verify --all --level presence` shows what else is missing.",
                    ) from error
                raise await errors.refused(self._name, doing, error, session.sftp, self._root) from error
            except asyncssh.SFTPError as error:
                raise await errors.refused(self._name, doing, error, session.sftp, self._root) from error

        return explained


async def _read(session: Session, file: asyncssh.SFTPClientFile, offset: int, length: int | None) -> bytes:
    if length is None:
        length = max(0, ((await file.stat()).size or 0) - offset)
    if length <= BLOCK:
        return await file.read(length, offset) if length > 0 else b""
    parts: dict[int, bytes] = {}
    async for at, data in await file.read_parallel(length, offset):
        parts[at] = data
        session.answered()
    return b"".join(parts[at] for at in sorted(parts))


async def _scan(session: Session, directory: str, *, hidden: bool = False) -> list[_Entry]:
    """What is in a directory. The server hands it out in portions."""
    found = []
    async for entry in session.sftp.scandir(directory):
        session.answered()
        name = str(entry.filename)
        if name in (".", "..") or (name.startswith(".") and not hidden):
            continue
        attributes = entry.attrs
        found.append(_Entry(name, attributes.permissions or 0, attributes.size or 0, attributes.mtime or 0))
    return found
