# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""WAL that only the target has: the newest transactions of a cluster that crashed or was stopped.

A restore over the cluster's own data directory would delete them. PostgreSQL looks into ``pg_wal`` for
what the archive does not have ("If you have unarchived WAL segment files … copy them into pg_wal",
section 26.3.5 of its documentation), so what lies on the way of the recovery is left where it is.

That alone does not save it. A recovery that ends earlier gives the cluster a new timeline, and PostgreSQL then
removes the segments of the old one behind that point (``RemoveNonParentXlogFiles`` in ``xlog.c``); and segments of
another timeline have to go before the recovery, or they would be in its way. Whoever chose the wrong moment could
never choose again. So all of it is put aside first, in a directory of its own below ``pg_wal``: there it is on the same
file system, PostgreSQL does not look at it, and no backup takes it along.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import os
import typing as t

from ..errors import SourceError
from .restore_tree import Handles, Owner, errors, write_at
from .timeline import TimelineHistory
from .wal import SEGMENT_HEADER_BYTES, WalKind, WalName, check_segment, match_wal_name

PG_WAL: t.Final = b"pg_wal"
ASIDE_PREFIX: t.Final = b"unarchived-"
_COPY_BYTES: t.Final = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Rescued:
    kept: tuple[str, ...] = ()
    """Names of files that stay in ``pg_wal`` for recovery to use."""
    aside: tuple[str, ...] = ()
    """Names of files that were put aside in this restore."""
    directory: str | None = None
    """Where: a path relative to the data directory."""


@dataclasses.dataclass(frozen=True, slots=True)
class WalKeeper:
    """Which files of ``pg_wal`` stay, and which are put aside."""

    archived: t.Collection[str]
    """Names that are in the archive."""
    history: TimelineHistory
    """The way that recovery takes."""
    first_segment: int
    """Nothing older is needed."""
    segment_size: int
    system_identifier: int
    to_the_end: bool
    """Whether recovery uses all that it finds on its way."""

    def rescue(self, handles: Handles, owner: Owner | None, now: dt.datetime) -> Rescued:
        """Put WAL aside that would be lost, and bring back what an earlier restore put aside and this one needs.

        Idempotent, durable on return. Raises RestoreError.
        """
        kept = self._bring_back(handles, owner)
        aside = []
        directory = PG_WAL + b"/" + ASIDE_PREFIX + now.strftime("%Y%m%dT%H%M%SZ").encode()
        status = handles.status(PG_WAL)
        names = handles.names(PG_WAL) if status is not None else []
        for raw in sorted(names):
            name = match_wal_name(os.fsdecode(raw))
            if name is None or str(name) in self.archived:
                continue
            if name.kind is WalKind.HISTORY:
                kept.append(str(name))  # or the number of that timeline would be given to another one
                continue
            if str(name) in kept or not self._is_genuine(handles, PG_WAL + b"/" + raw, name):
                continue
            on_way = self._is_on_way(name)
            if on_way:
                kept.append(str(name))
            if not (on_way and self.to_the_end) and _put_aside(handles, name, directory, owner, copy=on_way):
                aside.append(str(name))
        where = os.fsdecode(directory) if aside else None
        return Rescued(tuple(sorted(kept)), tuple(aside), where)

    def _is_on_way(self, name: WalName) -> bool:
        # Segments of other timelines would be in the way of a new timeline of that number.
        if name.kind is not WalKind.SEGMENT or not name.fits(self.segment_size):
            return False
        number = name.number(self.segment_size)
        return (
            number >= self.first_segment
            and self.history.timeline_of_segment(number, self.segment_size) == name.timeline
        )

    def _bring_back(self, handles: Handles, owner: Owner | None) -> list[str]:
        """What an earlier restore put aside, and this one needs: the names. The youngest copy of each counts."""
        if handles.status(PG_WAL) is None:
            return []
        there = handles.names(PG_WAL)
        found: list[str] = []
        for directory in sorted(filter(is_put_aside, there), reverse=True):
            for raw in handles.names(PG_WAL + b"/" + directory):
                name, path = match_wal_name(os.fsdecode(raw)), PG_WAL + b"/" + directory + b"/" + raw
                if name is None or str(name) in self.archived or raw in there or str(name) in found:
                    continue
                if self._is_on_way(name) and self._is_genuine(handles, path, name):
                    _copy(handles, path, PG_WAL + b"/" + raw, owner)
                    found.append(str(name))
        return found

    def _is_genuine(self, handles: Handles, path: bytes, name: WalName) -> bool:
        """Not recycled or made in advance, and not written to yet."""
        if name.kind not in (WalKind.SEGMENT, WalKind.PARTIAL) or not name.fits(self.segment_size):
            return False
        with _reading(handles, path) as file:
            head = file.read(SEGMENT_HEADER_BYTES)
            size = os.fstat(file.fileno()).st_size
        try:
            check_segment(head, size, name, self.system_identifier)
        except SourceError:
            return False
        return True


def is_put_aside(name: bytes) -> bool:
    """Whether an entry of ``pg_wal`` is a directory of this module: a later restore leaves it alone."""
    return name.startswith(ASIDE_PREFIX)


def _put_aside(handles: Handles, name: WalName, directory: bytes, owner: Owner | None, *, copy: bool) -> bool:
    """False when an interrupted restore before this one has put a copy aside already."""
    raw = str(name).encode()
    if copy and any(_is_copy(handles, raw, earlier) for earlier in handles.names(PG_WAL) if is_put_aside(earlier)):
        return False
    if handles.status(directory) is None:
        handles.make_directory(directory, 0o700, owner)
        handles.sync_directory(PG_WAL)
    if copy:
        _copy(handles, PG_WAL + b"/" + raw, directory + b"/" + raw, owner)
    else:
        handles.rename(PG_WAL + b"/" + raw, directory + b"/" + raw)
    return True


def _copy(handles: Handles, source: bytes, destination: bytes, owner: Owner | None) -> None:
    """Under its name once it is whole."""
    unfinished = destination + b".tmp"
    status = handles.status(source)
    if handles.status(unfinished) is not None:
        handles.remove(unfinished)
    handles.make_file(unfinished, status.st_size if status is not None else 0, 0o600, owner)
    with _reading(handles, source) as file, errors(handles.tree.real(destination)):
        target = handles.file(unfinished)
        offset = 0
        while part := file.read(_COPY_BYTES):
            write_at(target, part, offset)
            offset += len(part)
        os.fsync(target)
    handles.forget_file(unfinished)
    handles.rename(unfinished, destination)


def _is_copy(handles: Handles, name: bytes, directory: bytes) -> bool:
    there = PG_WAL + b"/" + directory + b"/" + name
    if handles.status(there) is None:
        return False
    with _reading(handles, there) as one, _reading(handles, PG_WAL + b"/" + name) as other:
        while part := one.read(_COPY_BYTES):
            if part != other.read(_COPY_BYTES):
                return False
        return not other.read(1)


@contextlib.contextmanager
def _reading(handles: Handles, path: bytes) -> t.Iterator[t.BinaryIO]:
    with open(handles.open(path, os.O_RDONLY), "rb") as file:
        yield file
