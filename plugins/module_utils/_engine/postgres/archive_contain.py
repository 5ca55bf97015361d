# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""WAL for a copy that recovers beside the living cluster: new tablespaces stay inside of the copy.

See ``wal_tablespaces`` for the danger and what is changed. ``wal-get`` fetches each segment by a process of its own, so
what a record of the segment before changes in this one is found by looking at that one again, when one goes on here.
"""

from __future__ import annotations

import os
import struct
import typing as t

from ..errors import RestoreError
from .archive_get import deliver
from .wal import WalKind, WalName, parse_wal_name, segment_name
from .wal_tablespaces import TABLESPACE_RECORD_BYTES_MAX, Patch, contain_tablespaces

if t.TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ..repository.repository import Repository

# XLogPageHeaderData: magic, flags, timeline, address, what remains of a record of the page before.
_PAGE_HEADER = struct.Struct("<HHIQI")
_GOES_ON: t.Final = 0x0001
_TIMELINES_TRIED: t.Final = 16


def supports_containing(version: int) -> bool:
    """Whether a server of this version (server_version_num) can have tablespaces inside of its data directory."""
    return version >= 150000 or 140005 <= version < 150000 or 130008 <= version < 140000


def contain(repository: Repository, system_identifier: int, text: str, path: Path) -> tuple[str, ...]:
    """Change the segment ``text``, just delivered to ``path``. Returns the directories that are not used now.

    Files that are no segments stay as they are. Raises what ``deliver`` raises, and RestoreError when the
    file cannot be changed.
    """
    name = parse_wal_name(text)
    if name.kind is not WalKind.SEGMENT:
        return ()
    neighbours = _Neighbours(repository, system_identifier, name, path.with_name(f"{path.name}.neighbour"))
    try:
        segment = path.read_bytes()
        paths, patches = changes(segment, lambda distance: neighbours.read(len(segment), distance))
        if patches:
            _apply(path, patches)
    except OSError as error:
        raise RestoreError(
            f"cannot change {path}: {os.strerror(error.errno or 0)}",
            hint="The archive is as it was. Mend the directory and start PostgreSQL again.",
            id="destination",
        ) from error
    return paths


def changes(segment: bytes, neighbour: Callable[[int], bytes | None]) -> tuple[tuple[str, ...], tuple[Patch, ...]]:
    """The directories that are not to be used, and what makes the segment so.

    ``neighbour`` gives the segment so many further, None if there is none; asked only where a record may lie in both.
    """
    found = contain_tablespaces(segment, lambda: neighbour(1))
    if not comes_over(segment):
        return found.paths, found.here
    before = neighbour(-1)
    if before is None:  # recovery cannot have it either, and so begins behind that record
        return found.paths, found.here
    return found.paths, (*found.here, *contain_tablespaces(before, lambda: segment).following)


def comes_over(segment: bytes) -> bool:
    """Whether a record that may be the creation of a tablespace began in the segment before."""
    _magic, flags, _timeline, _address, remaining = _PAGE_HEADER.unpack_from(segment)
    return bool(flags & _GOES_ON) and 0 < remaining <= TABLESPACE_RECORD_BYTES_MAX


class _Neighbours:
    """The segments around one. A record that goes on in the next is the same on all timelines that share it."""

    def __init__(self, repository: Repository, system_identifier: int, name: WalName, path: Path) -> None:
        self._repository = repository
        self._system_identifier = system_identifier
        self._name = name
        self._path = path

    def read(self, segment_size: int, distance: int) -> bytes | None:
        """The segment so many further; None when there is none."""
        number = self._name.number(segment_size) + distance
        timeline = self._name.timeline
        if distance < 0:
            timelines = range(timeline, max(0, timeline - _TIMELINES_TRIED), -1)
        else:
            timelines = range(timeline, timeline + _TIMELINES_TRIED)
        for candidate in timelines:
            name = segment_name(candidate, number, segment_size)
            if deliver(self._repository, self._system_identifier, name, self._path) is not None:
                content = self._path.read_bytes()
                self._path.unlink()
                return content
        return None


def _apply(path: Path, patches: t.Iterable[Patch]) -> None:
    with path.open("r+b", buffering=0) as file:
        for patch in patches:
            file.seek(patch.offset)
            file.write(patch.data)
