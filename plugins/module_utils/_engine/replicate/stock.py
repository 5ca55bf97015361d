# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What lies where, from listings, and what a location lacks of what is wanted."""

from __future__ import annotations

import dataclasses
import functools
import typing as t

from ..postgres.archive_index import backup_segments
from ..postgres.wal import history_name, match_wal_name
from ..repository import names
from ..repository.model import pack_names

if t.TYPE_CHECKING:
    from collections.abc import Iterable

    from ..repository.catalog import BackupRecord
    from ..repository.model import PostgresInfo
    from ..storage.base import Location, ObjectInfo
    from .wanted import WalKey, Wanted


class Stock:
    """What one location holds, listed when it is first asked for. Every property raises LocationError."""

    def __init__(self, location: Location) -> None:
        self.location = location

    @functools.cached_property
    def packs(self) -> dict[str, int]:
        """Bytes by name."""
        return {info.key: info.size for info in self.location.list("packs/")}

    @functools.cached_property
    def wal(self) -> dict[WalKey, int]:
        """Bytes by system identifier and file name."""
        return {key: info.size for key, info in self._wal_files.items()}

    @functools.cached_property
    def _wal_files(self) -> dict[WalKey, ObjectInfo]:
        keyed = ((wal_key(info.key), info) for info in self.location.list("wal/"))
        return {key: info for key, info in keyed if key is not None}

    def young_wal(self, seconds: float) -> set[WalKey]:
        """Files that got here less than so many seconds ago, by the location's own clock."""
        limit = self.location.now() - seconds
        return {key for key, info in self._wal_files.items() if info.modified > limit}

    def notes_of(self, backup: BackupRecord) -> list[str]:
        return self.notes.get((backup.source, backup.id), [])

    @functools.cached_property
    def notes(self) -> dict[tuple[str, str], list[str]]:
        """Names, by source and id of the backup."""
        found: dict[tuple[str, str], list[str]] = {}
        for info in self.location.list("notes/"):
            parts = info.key.split("/")
            if len(parts) == 4:
                found.setdefault((parts[1], parts[2]), []).append(info.key)
        return found


def wal_key(key: str) -> WalKey | None:
    """System identifier and file name of ``wal/…``; None for anything else."""
    parts = key.split("/")
    if len(parts) != 4 or not (parts[1].isascii() and parts[1].isdigit()) or match_wal_name(parts[3]) is None:
        return None
    system = int(parts[1])
    return (system, parts[3]) if key == names.wal(system, parts[3]) else None


@dataclasses.dataclass(slots=True)
class Lack:
    """What is missing in one location and is somewhere else."""

    backups: list[BackupRecord] = dataclasses.field(default_factory=list)
    """Whose manifest is not there."""
    incomplete: list[BackupRecord] = dataclasses.field(default_factory=list)
    """Whose manifest is there, and other objects are not."""
    packs: dict[str, int] = dataclasses.field(default_factory=dict)
    """Bytes by name; of all these backups."""
    wal: dict[WalKey, int] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(self.packs.values()) + sum(self.wal.values())

    def __bool__(self) -> bool:
        return bool(self.backups or self.incomplete or self.packs or self.wal or self.notes)


def lack(there: Stock, elsewhere: Iterable[Stock], wanted: Wanted, *, whole: bool = True) -> Lack:
    """What the location ``there`` lacks of what is ``wanted``. Raises LocationError.

    Without ``whole`` only packs of backups are looked for whose manifest is not there: where none is missing, packs
    need not be listed.
    """
    others = [stock for stock in elsewhere if stock.location is not there.location]
    found = Lack()
    for backup in wanted.backups:
        if whole or there.location.name not in backup.locations:
            _add_backup(found, there, others, backup)
    for stock in others:
        for key, size in stock.wal.items():
            if key not in there.wal and key not in found.wal and wanted.wal(*key):
                found.wal[key] = size
    return found


def _add_backup(found: Lack, there: Stock, others: list[Stock], backup: BackupRecord) -> None:
    is_there = there.location.name in backup.locations
    packs = {name: size for name, (size, _digest) in pack_names(backup.header).items() if there.packs.get(name) != size}
    # What nobody has cannot be brought.
    wal = {key: size for key, size in wal_needed(backup, others) if size and key not in there.wal}
    if not is_there:
        found.backups.append(backup)
    elif packs or wal:
        found.incomplete.append(backup)
    found.packs |= packs
    found.wal |= wal
    known = set(there.notes_of(backup))
    for stock in others:
        new = [name for name in stock.notes_of(backup) if name not in known]
        known.update(new)
        found.notes += new


def wal_needed(backup: BackupRecord, stocks: list[Stock]) -> list[tuple[WalKey, int]]:
    """The files a backup cannot do without, with their bytes in the first place that has them; 0 where none does.

    Also the history of its timeline, if it is anywhere.
    """
    postgres = backup.header.postgres
    if postgres is None:
        return []
    found = []
    for name in _files(postgres):
        key = int(postgres.system_identifier), name
        size = next((stock.wal[key] for stock in stocks if key in stock.wal), None)
        if size is not None or not name.endswith(".history"):
            found.append((key, size or 0))
    return found


def _files(postgres: PostgresInfo) -> list[str]:
    segments = backup_segments(postgres)
    return [history_name(postgres.timeline), *segments] if postgres.timeline > 1 else segments
