# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The directory tree that a restore writes: reached step by step, never through a symbolic link.

A restore often runs as root and writes into a directory that another user may have prepared. So every
component of every path is opened relative to the one before it and must be a directory itself. The
only links that are followed are those which the restore knows: a tablespace is a root of its own.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import stat
import types
import typing as t
from pathlib import Path

from ..errors import RestoreError

_DIRECTORY: t.Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_DIRECTORIES: t.Final = 64
_OPEN_FILES: t.Final = 64
_FULL: t.Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Tree:
    """The roots of a restore: the data directory, and each tablespace under its path in the backup.

    Paths are as in the manifest: bytes, relative, with ``/``. Used as a context manager; the
    directories must exist.
    """

    def __init__(self, root: Path, tablespaces: t.Mapping[bytes, Path]) -> None:
        self.path = root
        self._paths = {b"": root, **tablespaces}
        self._roots: dict[bytes, int] = {}
        self._open = contextlib.ExitStack()

    def __enter__(self) -> t.Self:
        with contextlib.ExitStack() as stack:
            for prefix, path in self._paths.items():
                with errors(path):
                    self._roots[prefix] = os.open(path, _DIRECTORY)
                stack.callback(os.close, self._roots[prefix])
            self._open = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self._open.close()

    @property
    def prefixes(self) -> list[bytes]:
        """Where the roots are: ``b""`` and the path of each tablespace."""
        return list(self._roots)

    def root(self, path: bytes) -> int | None:
        """The descriptor of a root, None for every other path."""
        return self._roots.get(path)

    def real(self, path: bytes) -> Path:
        """Where ``path`` is, for messages."""
        for prefix, root in self._paths.items():
            if prefix and path.startswith(prefix + b"/"):
                return root / os.fsdecode(path[len(prefix) + 1 :])
        return self.path / os.fsdecode(path)


class Handles:
    """Open directories and files of a tree: the most recently used ones. For one thread.

    Used as a context manager. Raises RestoreError for everything that the operating system refuses.
    """

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self._directories: collections.OrderedDict[bytes, int] = collections.OrderedDict()
        self._files: collections.OrderedDict[bytes, int] = collections.OrderedDict()

    def __enter__(self) -> t.Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close everything. May be used again."""
        for cache in (self._files, self._directories):
            while cache:
                os.close(cache.popitem()[1])

    def directory(self, path: bytes) -> int:
        """A descriptor of a directory, valid until the next call."""
        root = self.tree.root(path)
        if root is not None:
            return root
        found = self._directories.get(path)
        if found is not None:
            self._directories.move_to_end(path)
            return found
        parent, name = self.parent(path)
        with errors(self.tree.real(path)):
            found = os.open(name, _DIRECTORY, dir_fd=parent)
        self._keep(self._directories, path, found, _OPEN_DIRECTORIES)
        return found

    def parent(self, path: bytes) -> tuple[int, bytes]:
        """Descriptor of the directory that ``path`` is in, and its name there."""
        above, _unused, name = path.rpartition(b"/")
        return self.directory(above), name

    def file(self, path: bytes) -> int:
        """A descriptor for writing to a regular file that exists, valid until the next call."""
        found = self._files.get(path)
        if found is None:
            found = self.open(path, os.O_RDWR)
            self._keep(self._files, path, found, _OPEN_FILES)
        else:
            self._files.move_to_end(path)
        return found

    def open(self, path: bytes, flags: int) -> int:
        """Open a file; the caller closes it."""
        directory, name = self.parent(path)
        with errors(self.tree.real(path)):
            found = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600, dir_fd=directory)
            if not stat.S_ISREG(os.fstat(found).st_mode):
                os.close(found)
                raise OSError(errno.ENOTSUP, "not a regular file")
            return found

    def forget_file(self, path: bytes) -> None:
        found = self._files.pop(path, None)
        if found is not None:
            os.close(found)

    @staticmethod
    def _keep(cache: collections.OrderedDict[bytes, int], path: bytes, descriptor: int, limit: int) -> None:
        cache[path] = descriptor
        if len(cache) > limit:
            os.close(cache.popitem(last=False)[1])

    def status(self, path: bytes) -> os.stat_result | None:
        """Of what is there, links not followed; None when nothing is."""
        directory, name = self.parent(path)
        with errors(self.tree.real(path)):
            try:
                return os.stat(name, dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:
                return None

    def make_directory(self, path: bytes, mode: int, owner: Owner | None) -> None:
        """A directory with this mode and owner; what else was in its place is removed."""
        status = self.status(path)
        if status is not None and not stat.S_ISDIR(status.st_mode):
            self.remove(path)
            status = None
        parent, name = self.parent(path)
        with errors(self.tree.real(path)):
            if status is None:
                os.mkdir(name, 0o700, dir_fd=parent)
            descriptor = os.open(name, _DIRECTORY, dir_fd=parent)
            try:
                set_attributes(descriptor, mode, owner)
            finally:
                os.close(descriptor)

    def make_link(self, path: bytes, target: bytes, owner: Owner | None) -> None:
        """A symbolic link; what else was in its place is removed, but nothing that a link leads to."""
        status = self.status(path)
        parent, name = self.parent(path)
        with errors(self.tree.real(path)):
            if status is not None and stat.S_ISLNK(status.st_mode) and os.readlink(name, dir_fd=parent) == target:
                return
        if status is not None:
            self.remove(path)
        with errors(self.tree.real(path)):
            os.symlink(target, name, dir_fd=parent)
            if owner is not None:
                os.chown(name, owner.uid, owner.gid, dir_fd=parent, follow_symlinks=False)

    def make_file(self, path: bytes, size: int, mode: int, owner: Owner | None) -> None:
        """A new file of so many zeros, which take no room. Nothing may be in its place."""
        parent, name = self.parent(path)
        with errors(self.tree.real(path)):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(name, flags, 0o600, dir_fd=parent)
            try:
                os.truncate(descriptor, size)
                set_attributes(descriptor, mode, owner)
            finally:
                os.close(descriptor)

    def reuse_file(self, path: bytes, size: int, mode: int, owner: Owner | None) -> bool:
        """Whether a regular file is there that may be written over; it then has its new size, mode and owner.

        Anything else that is there is removed. A file with a second name is not written over: it is
        somebody else's as well (``pg_upgrade --link``).
        """
        status = self.status(path)
        if status is None:
            return False
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            self.remove(path)
            return False
        descriptor = self.open(path, os.O_RDWR)
        try:
            with errors(self.tree.real(path)):
                if status.st_size != size:
                    os.truncate(descriptor, size)
                set_attributes(descriptor, mode, owner)
        finally:
            os.close(descriptor)
        return True

    def rename(self, old: bytes, new: bytes) -> None:
        """Give a file another name, durable on return. Nothing happens when there is no such file."""
        if self.status(old) is None:
            return
        with errors(self.tree.real(old)):
            source, destination = os.dup(self.directory(old.rpartition(b"/")[0])), self.parent(new)
            try:
                os.rename(old.rpartition(b"/")[2], destination[1], src_dir_fd=source, dst_dir_fd=destination[0])
                os.fsync(destination[0])
                os.fsync(source)
            finally:
                os.close(source)

    def remove(self, path: bytes) -> None:
        """Remove a file, a link or a directory with all that is in it. Links are not followed."""
        self.close()
        parent, name = self.parent(path)
        with errors(self.tree.real(path)):
            _remove(parent, name)

    def names(self, path: bytes) -> list[bytes]:
        """What is in a directory."""
        descriptor = self.directory(path)
        with errors(self.tree.real(path)):
            return [os.fsencode(name) for name in os.listdir(descriptor)]

    def write_small(self, path: bytes, data: bytes, mode: int, owner: Owner | None) -> None:
        """Replace a small file at once, durable on return but for its directory."""
        parent, name = self.parent(path)
        temporary = name + b".cryobackup.tmp"
        with errors(self.tree.real(path)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=parent)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(temporary, flags, 0o600, dir_fd=parent)
            try:
                write_at(descriptor, data, 0)
                set_attributes(descriptor, mode, owner)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)

    def read_small(self, path: bytes, limit: int = 16 << 20) -> bytes | None:
        """The content of a file; None when there is none."""
        if self.status(path) is None:
            return None
        descriptor = self.open(path, os.O_RDONLY)
        with errors(self.tree.real(path)), open(descriptor, "rb") as file:
            return file.read(limit)

    def sync_directory(self, path: bytes) -> None:
        """Make the names in a directory last."""
        descriptor = self.directory(path)
        with errors(self.tree.real(path)):
            os.fsync(descriptor)


class Owner(t.NamedTuple):
    uid: int
    gid: int


def set_attributes(descriptor: int, mode: int, owner: Owner | None) -> None:
    """Give a file its owner, then its mode, where they differ (a change of owner may clear bits of the mode)."""
    status = os.fstat(descriptor)
    if owner is not None and (status.st_uid, status.st_gid) != owner:
        os.fchown(descriptor, owner.uid, owner.gid)
        status = os.fstat(descriptor)
    if stat.S_IMODE(status.st_mode) != mode:
        os.fchmod(descriptor, mode)


def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of it."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view = view[written:]
        offset += written


def _remove(parent: int, name: bytes) -> None:
    status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode):
        os.unlink(name, dir_fd=parent)
        return
    descriptor = os.open(name, _DIRECTORY, dir_fd=parent)
    try:
        for below in os.listdir(descriptor):
            _remove(descriptor, os.fsencode(below))
    finally:
        os.close(descriptor)
    os.rmdir(name, dir_fd=parent)


@contextlib.contextmanager
def errors(path: Path) -> t.Iterator[None]:
    """Turn what the operating system says about the target into a RestoreError."""
    try:
        yield
    except OSError as error:
        full = error.errno in _FULL
        followed = error.errno in (errno.ELOOP, errno.ENOTDIR)
        raise RestoreError(
            f"cannot write {path}: " + ("there is no room left" if full else os.strerror(error.errno or errno.EIO)),
            hint="Make room." if full else "Something is in its place that is no directory." if followed else "",
            id="target-space" if full else "restore",
        ) from error
