# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A directory as a location: a disk, a mounted share.

An object is written below ``.tmp/``, synced, and linked to its name: ``link`` fails when the name
exists, on every POSIX file system and also on NFS. Directories are synced after the link, and
their parents after they were made, so that what was acknowledged survives a loss of power.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import secrets
import stat
import typing as t

from ..errors import LocationError, LocationFull, ObjectConflict, ObjectMissing
from .base import Buffer, Capacity, ObjectInfo, check_key

_TEMPORARY = ".tmp"
_LOST_AND_FOUND = "lost+found"  # the file system's own, when the location is a mount point
_LINK_ATTEMPTS = 8
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class PosixLocation:
    def __init__(self, name: str, path: pathlib.Path, *, required: bool = True) -> None:
        self._name = name
        self._path = path
        self._required = required
        self._known_directories: set[str] = set()

    @property
    def name(self) -> str:
        return self._name

    @property
    def required(self) -> bool:
        return self._required

    @property
    def path(self) -> pathlib.Path:
        return self._path

    def describe(self) -> str:
        return str(self._path)

    def create(self, key: str) -> _Writer:
        check_key(key)
        return _Writer(self, key)

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        with self._errors("read", key):
            descriptor = os.open(self._file(key), os.O_RDONLY | os.O_CLOEXEC)
            try:
                if length is None:
                    length = max(0, os.fstat(descriptor).st_size - offset)
                parts = []
                while length > 0:
                    part = os.pread(descriptor, length, offset)
                    if not part:
                        break
                    parts.append(part)
                    offset += len(part)
                    length -= len(part)
            finally:
                os.close(descriptor)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def stat(self, key: str) -> ObjectInfo | None:
        try:
            with self._errors("look at", key):
                status = os.stat(self._file(key))
        except ObjectMissing:
            self._must_be_mounted()
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        return ObjectInfo(key, status.st_size, status.st_mtime)

    def confirm(self, key: str) -> None:
        """What bears a name was synced before it got it; the name itself, and those above it, may not be."""
        path = self._file(key)
        with self._errors("sync", key):
            os.stat(path)
            while path != self._path:
                path = path.parent
                self._sync_directory(path)

    def list(self, prefix: str) -> t.Iterator[ObjectInfo]:
        self._must_be_mounted()
        yield from self._walk(prefix.rstrip("/"))

    def _walk(self, directory: str) -> t.Iterator[ObjectInfo]:
        """Sorted by key as text: a directory sorts as its name with "/" behind it."""
        found: list[tuple[str, ObjectInfo | None]] = []
        try:
            with self._errors("list", directory), os.scandir(self._path / directory) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    key = f"{directory}/{entry.name}" if directory else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        found.append((key + "/", None))
                        continue
                    with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
                        status = entry.stat()
                        found.append((key, ObjectInfo(key, status.st_size, status.st_mtime)))
        except ObjectMissing:
            return
        for key, info in sorted(found, key=lambda pair: pair[0]):
            if info is None:
                yield from self._walk(key[:-1])
            else:
                yield info

    def delete(self, key: str) -> None:
        check_key(key)
        path = self._file(key)
        try:
            with self._errors("delete", key):
                os.unlink(path)
                self._sync_directory(path.parent)
        except ObjectMissing:
            return
        self._remove_empty(path.parent)

    def _remove_empty(self, directory: pathlib.Path) -> None:
        """Directories are no objects; an empty one is only clutter. Losing this race is fine."""
        while directory != self._path:
            try:
                os.rmdir(directory)
            except OSError:
                return
            self._known_directories.discard(str(directory))
            directory = directory.parent

    def now(self) -> float:
        """The clock that stamps files here: on a network share it may not be this host's."""
        path = self._path / _TEMPORARY / f"clock-{secrets.token_hex(8)}"
        with self._errors("write", _TEMPORARY):
            self.make_directory(path.parent)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                return os.fstat(descriptor).st_mtime
            finally:
                os.close(descriptor)
                os.unlink(path)

    def capacity(self) -> Capacity:
        with self._errors("measure", ""):
            status = os.statvfs(self._path)
        return Capacity(status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize)

    def sweep(self, older_than: float) -> int:
        limit = self.now() - older_than
        removed = 0
        with self._errors("sweep", _TEMPORARY), os.scandir(self._path / _TEMPORARY) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    if entry.stat(follow_symlinks=False).st_mtime < limit:
                        os.unlink(entry.path)
                        removed += 1
        with self._errors("sweep", ""):
            self._sweep_directories(self._path, limit)
        return removed

    def _sweep_directories(self, directory: pathlib.Path, limit: float) -> None:
        """Remove directories that a killed process left empty. A writer that wanted one makes it anew."""
        with os.scandir(directory) as entries:
            folders = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
        for folder in folders:
            if folder.name.startswith(".") or folder.name == _LOST_AND_FOUND:
                continue
            with contextlib.suppress(FileNotFoundError):  # another prune is here, too
                is_old = folder.stat(follow_symlinks=False).st_mtime < limit
                self._sweep_directories(pathlib.Path(folder.path), limit)
                if is_old:
                    with contextlib.suppress(OSError):  # not empty
                        os.rmdir(folder.path)

    def prepare(self) -> None:
        """Create the directory of the location itself, and make it last. Idempotent."""
        with self._errors("create", ""):
            missing = []
            path = self._path
            while not path.is_dir():
                missing.append(path)
                path = path.parent
            for path in reversed(missing):
                path.mkdir(mode=0o700, exist_ok=True)
                self._sync_directory(path.parent)

    def requests(self) -> dict[str, int]:
        return {}

    def make_directory(self, directory: pathlib.Path) -> None:
        """Make a directory below the root, and make it last. The root itself must be there."""
        if str(directory) in self._known_directories:
            return
        if directory == self._path:
            self._must_be_mounted()
            return
        self.make_directory(directory.parent)
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            pass
        else:
            self._give_to_owner(directory)
        self._sync_directory(directory.parent)
        self._known_directories.add(str(directory))

    def _give_to_owner(self, new: pathlib.Path | int) -> None:
        """What root creates belongs to whom the location belongs to.

        Objects are private. One of root's own, a lease or a note of a single run by hand, would lock out the user
        that the backups run as.
        """
        if os.geteuid() == 0:
            owner = os.stat(self._path)
            # A share that takes root for nobody refuses; there the objects are nobody's all along.
            with contextlib.suppress(PermissionError):
                os.chown(new, owner.st_uid, owner.st_gid)

    def forget_directory(self, directory: pathlib.Path) -> None:
        """Somebody else removed a directory that was empty for a moment: make it anew next time."""
        while directory != self._path:
            self._known_directories.discard(str(directory))
            directory = directory.parent

    def _file(self, key: str) -> pathlib.Path:
        return self._path / check_key(key)

    def _must_be_mounted(self) -> None:
        """A missing root means "not mounted", never "empty"."""
        if not self._path.is_dir():
            raise LocationError(
                f"location {self._name!r}: {self._path} is not there",
                hint=f"Mount it. If it is a new location: `cryobackup init --new {self._name}`. Nothing was changed.",
            )

    @staticmethod
    def _sync_directory(path: pathlib.Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _errors(self, verb: str, key: str) -> t.Iterator[None]:
        """The lowest boundary of the repository: the system's errors become ours here."""
        try:
            yield
        except (FileNotFoundError, NotADirectoryError) as error:
            self._must_be_mounted()
            raise ObjectMissing(
                f"location {self._name!r} has no object {key!r}",
                hint="`cryobackup verify --all --level presence` shows what else is missing.",
            ) from error
        except OSError as error:
            raise self._translate(error, verb, key) from error

    def _translate(self, error: OSError, verb: str, key: str) -> LocationError:
        what = f"location {self._name!r}: cannot {verb} {self._path / key}: {os.strerror(error.errno or 0)}"
        if error.errno in _FULL:
            return LocationFull(
                what,
                hint="Earlier backups are untouched. Free space there or let `cryobackup prune` do it, then run again.",
            )
        return LocationError(what, hint="Earlier backups are untouched. Mend the location, then run again.")


class _Writer:
    def __init__(self, location: PosixLocation, key: str) -> None:
        self._location = location
        self._key = key
        self._final = location.path / key
        self._temporary = location.path / _TEMPORARY / secrets.token_hex(16)
        self._descriptor = -1
        with location._errors("write", key):
            location.make_directory(self._temporary.parent)
            self._descriptor = os.open(
                self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
            location._give_to_owner(self._descriptor)

    def write(self, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        with self._location._errors("write", self._key):
            while len(view):
                view = view[os.write(self._descriptor, view) :]

    def commit(self) -> None:
        with self._location._errors("write", self._key):
            os.fchmod(self._descriptor, 0o400)
            os.fsync(self._descriptor)
            self._link()
            self._location._sync_directory(self._final.parent)
        self.abort()

    def _link(self) -> None:
        for left in reversed(range(_LINK_ATTEMPTS)):
            try:
                self._location.make_directory(self._final.parent)
                os.link(self._temporary, self._final, follow_symlinks=False)
                return
            except FileNotFoundError:
                # An empty directory may have been tidied away by a prune, or by a repair in another thread.
                if not left:
                    raise
                self._location.forget_directory(self._final.parent)
            except FileExistsError as error:
                # NFS may have linked it and lost the answer: then both names are one file.
                if os.fstat(self._descriptor).st_nlink == 2 and os.path.samefile(self._temporary, self._final):
                    return
                raise ObjectConflict(
                    f"location {self._location.name!r} has an object {self._key!r} already, with other content",
                    hint="Nothing was overwritten. If two hosts write under one name, give them separate sources.",
                ) from error

    def abort(self) -> None:
        if self._descriptor < 0:
            return
        os.close(self._descriptor)
        self._descriptor = -1
        with contextlib.suppress(OSError):  # what cannot be removed now is swept later
            os.unlink(self._temporary)
