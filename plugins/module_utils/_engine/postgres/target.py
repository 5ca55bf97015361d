# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""May a restore write here? Nothing in this file changes anything.

The rules: a directory that is missing or empty is fine. A directory that holds something is only ever
touched with ``delta``, and only when it is provably the same cluster, or was left by a restore of the
same cluster. A directory on which a server runs, or that holds a repository, keys or another cluster,
is never touched.
"""

from __future__ import annotations

import dataclasses
import enum
import errno
import json
import os
import stat
import typing as t
from pathlib import Path

from ..errors import RestoreError, SourceError, TargetError
from .control import read_control
from .relfile import CONTROL_FILE
from .restore_servers import server_of
from .wal import SEGMENT_HEADER_BYTES, WalKind, match_wal_name, parse_segment_header

MARKER: t.Final = "cryobackup.restoring"
"""There from before the first change until after the last one of a restore."""
OLD_CONTROL: t.Final = "cryobackup.pg_control.old"
"""Where the control file of a directory goes that is restored over: no server starts without it."""
_NOT_CONTENT: t.Final = frozenset(("lost+found",))


class TargetKind(enum.Enum):
    MISSING = "missing"
    EMPTY = "empty"
    CLUSTER = "cluster"
    """A data directory of the same cluster, to be made equal to the backup."""
    INTERRUPTED = "interrupted"
    """What an earlier restore of the same cluster left."""


@dataclasses.dataclass(frozen=True, slots=True)
class Marker:
    """What the file says that marks a restore which has not come to its end."""

    source: str
    backup_id: str
    system_identifier: int
    started_at: str
    tablespaces: tuple[str, ...] = ()
    """Directories outside of the target that the restore writes to."""

    def encode(self) -> bytes:
        return json.dumps(dataclasses.asdict(self), indent=1).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> Marker | None:
        """None when it makes no sense: written only in part before a crash, for instance."""
        try:
            fields = json.loads(data)
            return cls(
                str(fields["source"]),
                str(fields["backup_id"]),
                int(fields["system_identifier"]),
                str(fields["started_at"]),
                tuple(map(str, fields["tablespaces"])),
            )
        except (ValueError, KeyError, TypeError):
            return None


@dataclasses.dataclass(frozen=True, slots=True)
class TargetState:
    path: Path
    kind: TargetKind
    marker: Marker | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Protected:
    """A place that no restore may write to, into, or around."""

    path: Path
    what: str
    itself_allowed: bool = False
    """Whether a restore may go exactly there: the data directory of a cluster."""


def check_target(
    target: Path, *, delta: bool, system_identifier: int, protected: t.Iterable[Protected] = ()
) -> TargetState:
    """What is at ``target`` and that it may be written to. Changes nothing.

    Raises RestoreError, ids ``target-symlink``, ``target-is-repository``, ``target-permission``,
    ``target-running``, ``target-not-empty``, ``target-foreign-cluster``.
    """
    path = _real(target)
    check_apart(path, protected)
    if not _is_there(path):
        _check_parent(path)
        return TargetState(path, TargetKind.MISSING)
    _check_directory(path)
    server = server_of(path)
    if server is not None:
        raise RestoreError(
            f"a server runs on {path} (process {server.pid})",
            hint="Stop it first, or restore into another directory. Nothing was changed.",
            id="target-running",
        )
    if not _content(path):
        return TargetState(path, TargetKind.EMPTY)
    if not delta:
        raise RestoreError(
            f"{path} is not empty",
            hint="Use an empty directory; or, if it is this cluster and may be overwritten, --delta. "
            "Nothing was changed.",
            id="target-not-empty",
        )
    return _known_content(path, system_identifier)


def check_tablespace(path: Path, *, known: t.Collection[Path], protected: t.Iterable[Protected]) -> Path:
    """A directory for a tablespace, its real path. ``known`` may hold something already.

    Raises RestoreError, ids as ``check_target``.
    """
    real = _real(path)
    check_apart(real, protected)
    if not _is_there(real):
        _check_parent(real)
        return real
    _check_directory(real)
    if _content(real) and real not in known:
        raise RestoreError(
            f"the directory {real}, where a tablespace goes, is not empty",
            hint=f"It may belong to a living cluster. Give another one: --tablespace {path}=/new/directory. "
            "Nothing was changed.",
            id="target-not-empty",
        )
    return real


def wal_directory(target: Path, protected: t.Iterable[Protected]) -> Path | None:
    """Where ``pg_wal`` of an existing cluster leads when it is a link, as ``initdb --waldir`` makes it; None else.

    Raises RestoreError: ids as ``check_target``, and ``target-owner`` when it belongs to somebody else.
    """
    link = target / "pg_wal"
    if not link.is_symlink():
        return None
    real = Path(os.path.realpath(link))
    check_apart(real, protected)
    if not _is_there(real):
        return None  # on a new machine: what it led to is gone
    _check_directory(real)
    if real.stat().st_uid != target.stat().st_uid:
        raise RestoreError(
            f"{link} leads to {real}, which belongs to somebody else than {target}",
            hint="Give both to the user that PostgreSQL runs as, or remove the link: pg_wal then becomes a directory. "
            "Nothing was changed.",
            id="target-owner",
        )
    return real


def check_apart(path: Path, protected: t.Iterable[Protected]) -> None:
    """Raises RestoreError, id ``target-is-repository``, when ``path`` is, holds or lies in a protected place."""
    for place in protected:
        other = Path(os.path.realpath(place.path))
        if path == other and place.itself_allowed:
            continue
        if path == other or path in other.parents or other in path.parents:
            relation = "is" if path == other else "lies in" if other in path.parents else "holds"
            raise RestoreError(
                f"{path} {relation} {place.what} ({other})",
                hint="Restore somewhere else. Nothing was changed.",
                id="target-is-repository",
            )


def missing_parents(path: Path) -> Path:
    """The nearest directory that exists: ``path`` itself or one above it."""
    while not path.exists():
        path = path.parent
    return path


def _real(target: Path) -> Path:
    """Absolute, with the links above it resolved. A target that is a link itself is refused."""
    absolute = Path(os.path.abspath(target))
    if _is_there(absolute) and absolute.is_symlink():
        raise RestoreError(
            f"{absolute} is a symbolic link to {os.path.realpath(absolute)}",
            hint="Name the directory itself, so that nobody is surprised by what is written to. Nothing was changed.",
            id="target-symlink",
        )
    return Path(os.path.realpath(absolute.parent)) / absolute.name


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise RestoreError(
            f"cannot look at {path}: {error.strerror}",
            hint="Run as the user that PostgreSQL runs as, or restore into another directory. Nothing was changed.",
            id="target-permission",
        ) from error
    return True


def _check_parent(path: Path) -> None:
    parent = path.parent
    if not parent.is_dir():
        raise RestoreError(
            f"{parent}, in which {path.name} is to be made, is no directory",
            hint="Make it, or mount what belongs there. Nothing was changed.",
            id="target-permission",
        )
    _check_writable(parent)


def _check_directory(path: Path) -> None:
    status = path.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise RestoreError(
            f"{path} is no directory", hint="Name a directory. Nothing was changed.", id="target-not-empty"
        )
    if os.geteuid() not in (0, status.st_uid):
        raise RestoreError(
            f"{path} belongs to {_user_name(status.st_uid)}, and this runs as {_user_name(os.geteuid())}",
            hint="PostgreSQL must own its data directory: run the restore as that user or as root. "
            "Nothing was changed.",
            id="target-owner",
        )
    _check_writable(path)


def _check_writable(path: Path) -> None:
    try:
        read_only = os.statvfs(path).f_flag & os.ST_RDONLY
    except OSError as error:
        raise unreadable(path, error) from error
    if read_only or not os.access(path, os.W_OK | os.X_OK):
        raise RestoreError(
            f"{path} cannot be written to" + (": its file system is mounted read-only" if read_only else ""),
            hint="Run as a user who may, or choose another directory. Nothing was changed.",
            id="target-permission",
        )


def unreadable(path: Path, error: OSError) -> RestoreError:
    """The error of a target that cannot even be looked at."""
    return RestoreError(
        f"{path} cannot be read: {os.strerror(error.errno or errno.EIO)}",
        hint="Run as a user who may. Nothing was changed.",
        id="target-permission",
    )


def _content(path: Path) -> list[str]:
    try:
        return [name for name in os.listdir(path) if name not in _NOT_CONTENT]
    except OSError as error:
        raise unreadable(path, error) from error


def _known_content(path: Path, system_identifier: int) -> TargetState:
    marker, marked = _read_marker(path)
    if marked and marker is None and _content(path) == [MARKER]:
        return TargetState(path, TargetKind.INTERRUPTED)  # a crash within its very first step
    found = marker.system_identifier if marker is not None else _system_identifier(path)
    if found is None:
        raise RestoreError(
            f"{path} is neither empty nor recognisable as a data directory of this cluster",
            hint="Move it away and restore into an empty directory. Nothing was changed.",
            id="target-not-empty",
        )
    if found != system_identifier:
        raise RestoreError(
            f"{path} is the data directory of another cluster: system identifier {found}, "
            f"the backup has {system_identifier}",
            hint="It would be overwritten: choose another directory. Nothing was changed.",
            id="target-foreign-cluster",
        )
    return TargetState(path, TargetKind.INTERRUPTED if marker else TargetKind.CLUSTER, marker)


def _read_marker(path: Path) -> tuple[Marker | None, bool]:
    """What it says, and whether it is there at all."""
    try:
        descriptor = os.open(path / MARKER, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None, False
    with open(descriptor, "rb") as file:
        return Marker.decode(file.read(1 << 20)), True


def _system_identifier(path: Path) -> int | None:
    """Of the data directory at ``path``; None when it is none, or too damaged to tell.

    A damaged cluster is what people restore over: when pg_control is lost, the WAL still knows.
    """
    if not (path / "PG_VERSION").is_file():
        return None
    for control in (path / CONTROL_FILE, path / OLD_CONTROL):
        try:
            return read_control(control, attempts=1).system_identifier
        except SourceError as error:
            if error.id == "control-unreadable":
                raise RestoreError(
                    error.message,
                    hint="Run as the owner of the directory or as root. Nothing was changed.",
                    id="target-permission",
                ) from error
    found = {header for header in map(_segment_identifier, _wal_files(path)) if header is not None}
    return found.pop() if len(found) == 1 else None


def _wal_files(path: Path) -> list[Path]:
    try:
        names = os.listdir(path / "pg_wal")
    except OSError:
        return []
    found = [(name, match_wal_name(name)) for name in sorted(names)]
    return [path / "pg_wal" / name for name, parsed in found if parsed and parsed.kind is WalKind.SEGMENT]


def _segment_identifier(path: Path) -> int | None:
    try:
        with path.open("rb") as file:
            return parse_segment_header(file.read(SEGMENT_HEADER_BYTES)).system_identifier
    except (OSError, SourceError):
        return None


def check_space(needs: t.Mapping[Path, Need]) -> None:
    """Whether there is room for what goes to each directory. Raises RestoreError, id ``target-space``.

    Directories on one file system are added up. What a directory holds already is taken off by the caller.
    """
    by_device: dict[int, tuple[Path, int, int]] = {}
    for path, need in needs.items():
        existing = missing_parents(path)
        device = existing.stat().st_dev
        _unused, size, files = by_device.get(device, (existing, 0, 0))
        by_device[device] = (existing, size + max(0, need.size), files + max(0, need.files))
    for existing, size, files in by_device.values():
        try:
            status = os.statvfs(existing)
        except OSError as error:
            raise unreadable(existing, error) from error
        free = status.f_bavail * status.f_frsize
        if size > free:
            raise _no_room(existing, f"{_mebibytes(size)} are needed, {_mebibytes(free)} are free")
        if status.f_files and files > status.f_favail:
            raise _no_room(existing, f"{files} files are needed, there is room for {status.f_favail}")


@dataclasses.dataclass(frozen=True, slots=True)
class Need:
    """What a restore adds to a directory."""

    size: int
    """Bytes."""
    files: int


def _no_room(path: Path, words: str) -> RestoreError:
    return RestoreError(
        f"there is not enough room on the file system of {path}: {words}",
        hint="Make room or restore elsewhere. Nothing was changed.",
        id="target-space",
    )


def _mebibytes(size: int) -> str:
    return f"{size / (1 << 20):,.1f} MiB"


def _user_name(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def tablespace_map(original: t.Mapping[int, str], wanted: t.Mapping[str, str], root: Path | None) -> dict[int, Path]:
    """Where each tablespace goes: the directory by OID. Pure.

    Args:
        original: The directory that each tablespace of the backup came from, by OID.
        wanted: New directories, by old directory or OID as text.
        root: Where those go that are not in ``wanted``: ``<root>/<oid>``. None: back to where they came from.

    Raises:
        TargetError: id ``tablespace-mapping``.
    """
    found = {oid: Path(path) if root is None else root / str(oid) for oid, path in original.items()}
    by_name = {str(oid): oid for oid in original} | {os.path.normpath(path): oid for oid, path in original.items()}
    for old, new in wanted.items():
        oid = by_name.get(os.path.normpath(old))
        if oid is None:
            known = ", ".join(f"{path} ({oid})" for oid, path in original.items()) or "none"
            raise _bad_mapping(f"the backup has no tablespace {old!r}", f"It has: {known}.")
        if not os.path.isabs(new) or "\n" in new:
            raise _bad_mapping(f"{new!r} is no absolute path", "Write --tablespace OLD=/absolute/path.")
        found[oid] = Path(os.path.normpath(new))
    if len(set(found.values())) < len(found):
        raise _bad_mapping("two tablespaces would share a directory", "Give each its own with --tablespace.")
    return found


def _bad_mapping(message: str, hint: str) -> TargetError:
    return TargetError(message, hint=f"{hint} Nothing was changed.", id="tablespace-mapping")
