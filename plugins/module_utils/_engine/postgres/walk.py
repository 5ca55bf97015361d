# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of a living data directory, in the order of the manifest.

One directory's names are in memory at a time, for each level. What vanishes while we look did not exist; what
cannot be looked at is an error.
"""

from __future__ import annotations

import dataclasses
import os
import re
import stat
import time
import typing as t

from ..errors import SourceError
from ..repository import model
from . import relfile
from .changes import Identity
from .relfile import Treatment

if t.TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

CONFIGURATION_DIRECTORY: t.Final = b".cryobackup/config"
"""Below it are configuration files that lie outside the data directory, with their absolute paths."""

_INCLUDE_DIRECTORY = re.compile(
    rb"^[ \t]*include_dir(?:[ \t]*=[ \t]*|[ \t]+|(?='))(?:'([^'\n]+)'|([^\s'#]+))", re.MULTILINE | re.IGNORECASE
)
_TABLESPACE_LINK = re.compile(rb"pg_tblspc/[0-9]{1,10}")
# Somebody may have moved one of them to another disk and left a link: it is part of the cluster all the same.
_OWN_DIRECTORIES = frozenset(
    b"base global pg_commit_ts pg_logical pg_multixact pg_stat pg_tblspc pg_twophase pg_xact".split()
)


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """A file, directory or link, as it was when it was looked at."""

    path: bytes
    """In the backup."""
    source: bytes
    """On this machine, absolute."""
    type: int
    mode: int
    uid: int
    gid: int
    identity: Identity
    seen_ns: int
    """When it was looked at: nanoseconds since 1970 by this host's clock."""
    target: bytes = b""

    @property
    def text(self) -> str:
        return os.fsdecode(self.path)


def found(path: bytes, source: bytes, type: int, status: os.stat_result, seen_ns: int, target: bytes = b"") -> Found:
    identity = Identity.of_status(status)
    if type != model.FILE:
        identity = identity._replace(size=0)
    return Found(
        path, source, type, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, identity, seen_ns, target
    )


class Walk:
    """Iterate over it, once. ``warn`` is told of what a person should look at."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        major: int,
        catalog_version: int,
        configuration_files: Iterable[str] = (),
        warn: Callable[[str], None],
    ) -> None:
        self._root = os.fsencode(root)
        self._major = major
        self._tablespace_directory = relfile.version_directory(major, catalog_version)
        self._configuration_files = tuple(configuration_files)
        self._outside = _outside(self._root, self._configuration_files)
        self._warn = warn
        self.tablespaces: dict[int, str] = {}
        """Links in pg_tblspc that were met: OID to directory. In-place tablespaces are no links."""
        self._tablespace_roots = self._find_tablespaces()

    def __iter__(self) -> Iterator[Found]:
        names = set(_names(self._root))
        top = CONFIGURATION_DIRECTORY.partition(b"/")[0]
        if top in names:
            names.discard(top)
            self._look_at_saved_configuration(self._root + b"/" + top)
        if self._outside:
            names.add(top)
        for name in sorted(names):
            if name == top:
                yield from self._configuration()
            else:
                yield from self._one(name, self._root + b"/" + name, frozenset())

    def _look_at_saved_configuration(self, directory: bytes) -> None:
        """A restore leaves a copy of the configuration here: no part of the cluster, unless it runs on that copy."""
        prefix = os.path.realpath(directory) + b"/"
        if any(os.path.realpath(os.fsencode(file)).startswith(prefix) for file in self._configuration_files):
            self._warn(
                f"the cluster's configuration lies in {os.fsdecode(directory)}, where a restore left it, and is not "
                "backed up there: move it to where it belongs"
            )
        elif set(_names(directory)) - {CONFIGURATION_DIRECTORY.rpartition(b"/")[2]}:
            self._warn(f"{os.fsdecode(directory)} is not backed up: the name is taken")

    def _find_tablespaces(self) -> frozenset[tuple[int, int]]:
        """Directories of tablespaces: one that lies inside the data directory must not be copied twice."""
        roots = set()
        directory = self._root + b"/pg_tblspc"
        for name in _names(directory):
            status = _status(directory + b"/" + name, follow=False)
            if status is not None and stat.S_ISLNK(status.st_mode):
                target = _status(directory + b"/" + name)
                if target is not None:
                    roots.add((target.st_dev, target.st_ino))
        return frozenset(roots)

    def _directory(self, path: bytes, source: bytes) -> Iterator[Found]:
        """What is in a directory."""
        names = sorted(_names(source))
        unlogged: frozenset[int] = frozenset()
        if relfile.is_database_directory(os.fsdecode(path)):
            unlogged = relfile.unlogged_relations(os.fsdecode(name) for name in names)
        for name in names:
            yield from self._one(path + b"/" + name, source + b"/" + name, unlogged)

    def _one(self, path: bytes, source: bytes, unlogged: frozenset[int]) -> Iterator[Found]:
        seen = time.time_ns()
        status = _status(source, follow=False)
        if status is None:
            return
        target = status
        is_link = stat.S_ISLNK(status.st_mode)
        if is_link:
            target = _status(source) or status
        is_directory = stat.S_ISDIR(target.st_mode)
        treatment = relfile.treatment(os.fsdecode(path), is_directory, tablespace_directory=self._tablespace_directory)
        if treatment is Treatment.CREATE_EMPTY:
            yield from self._empty_directory(path, source, target, seen)
        elif treatment is not Treatment.COPY:
            return
        elif is_link:
            yield from self._link(path, source, status, target, seen)
        elif is_directory:
            yield found(path, source, model.DIRECTORY, status, seen)
            if (status.st_dev, status.st_ino) not in self._tablespace_roots:
                yield from self._directory(path, source)
        elif not stat.S_ISREG(status.st_mode):
            self._warn(f"{os.fsdecode(source)} is neither a file nor a directory: not backed up")
        elif not relfile.is_unlogged_data(os.fsdecode(path.rpartition(b"/")[2]), unlogged):
            yield found(path, source, model.FILE, status, seen)

    def _empty_directory(self, path: bytes, source: bytes, status: os.stat_result, seen: int) -> Iterator[Found]:
        yield found(path, source, model.DIRECTORY, status, seen)
        if path == b"pg_wal":
            for name in relfile.wal_subdirectories(self._major):
                yield found(name.encode(), source, model.DIRECTORY, status, seen)

    def _link(
        self, path: bytes, source: bytes, status: os.stat_result, target: os.stat_result, seen: int
    ) -> Iterator[Found]:
        where = _read_link(source)
        if where is None:
            return
        if _TABLESPACE_LINK.fullmatch(path):
            self.tablespaces[int(path.rpartition(b"/")[2])] = os.fsdecode(where)
            if target is status:
                self._warn(f"{os.fsdecode(source)} points to {os.fsdecode(where)}, which is not there")
            # A link's own mode and owner mean nothing: what a restore needs is that of the directory.
            yield found(path, source, model.SYMLINK, target, seen, where)
            yield from self._directory(path, source)
        elif stat.S_ISREG(target.st_mode):
            yield found(path, source, model.FILE, target, seen)
        elif path in _OWN_DIRECTORIES and stat.S_ISDIR(target.st_mode):
            yield found(path, source, model.DIRECTORY, target, seen)
            yield from self._directory(path, source)
        else:
            self._warn(f"{os.fsdecode(source)} is a link to {os.fsdecode(where)}: what it points to is not backed up")
            yield found(path, source, model.SYMLINK, status, seen, where)

    def _configuration(self) -> Iterator[Found]:
        """The configuration files outside the data directory, and directories of our own above them."""
        owner = _status(self._root)
        if owner is None:
            return
        inner = (*self._outside, *(path + b"/" for path in _included_directories(self._root, self._outside.values())))
        parents = {b"/".join(path.split(b"/")[:depth]) for path in inner for depth in range(1, path.count(b"/") + 1)}
        for path in sorted(parents | self._outside.keys(), key=model.sort_key):
            seen = time.time_ns()
            if path in parents:
                identity = Identity(0, 0, 0, 0, 0)
                yield Found(path, b"", model.DIRECTORY, 0o700, owner.st_uid, owner.st_gid, identity, seen)
                continue
            status = _status(self._outside[path])
            if status is not None and stat.S_ISREG(status.st_mode):
                yield found(path, self._outside[path], model.FILE, status, seen)


def _outside(root: bytes, files: Iterable[str]) -> dict[bytes, bytes]:
    """Path in the backup → path on this machine, of the files that do not lie in the data directory."""
    inside = {root + b"/", os.path.realpath(root) + b"/"}
    result = {}
    for name in files:
        path = os.path.normpath(os.fsencode(name))
        if path.startswith(b"/") and not any(path.startswith(prefix) for prefix in inside):
            result[CONFIGURATION_DIRECTORY + path] = path
    return result


def _included_directories(root: bytes, files: Iterable[bytes]) -> set[bytes]:
    """Paths in the backup of the directories that configuration files outside the data directory include.

    They may be empty, as Debian's conf.d is, and the server does not start without them (``GetConfFilesInDir``
    in ``conffiles.c``).
    """
    named = (
        os.path.join(os.path.dirname(file), match[1] or match[2])
        for file in files
        for match in _INCLUDE_DIRECTORY.finditer(_contents(file))
    )
    return {path for path, directory in _outside(root, map(os.fsdecode, named)).items() if os.path.isdir(directory)}


def _contents(file: bytes) -> bytes:
    try:
        with open(file, "rb") as opened:
            return opened.read()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise unreadable(file, error) from error


def _names(directory: bytes) -> list[bytes]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(directory, error) from error


def _status(path: bytes, *, follow: bool = True) -> os.stat_result | None:
    try:
        return os.stat(path, follow_symlinks=follow)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(path, error) from error


def status_of(path: bytes) -> os.stat_result:
    """Of something that must be there. Raises SourceError."""
    try:
        return os.stat(path)
    except OSError as error:
        raise unreadable(path, error) from error


def identity_of(path: bytes) -> Identity | None:
    """None when there is no such file. Raises SourceError."""
    status = _status(path, follow=False)
    return None if status is None else Identity.of_status(status)


def _read_link(path: bytes) -> bytes | None:
    try:
        return os.readlink(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: bytes, error: OSError) -> SourceError:
    """What to raise when something of the data directory cannot be read."""
    return SourceError(
        f"{os.fsdecode(path)} cannot be read: {error.strerror or error}",
        hint="No backup was made; earlier ones are untouched. Run as the user that owns the data directory, "
        "usually postgres. An input/output error means that the disk is failing.",
        id="source-unreadable",
    )
