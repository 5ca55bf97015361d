# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ought to be in every location: by default what retention keeps, and the WAL with it. Pure."""

from __future__ import annotations

import dataclasses
import typing as t

from ..errors import ConfigError, RepositoryError
from ..postgres.wal import WalKind, match_wal_name
from ..repository.catalog import newest

if t.TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..repository.catalog import BackupRecord, Catalog
    from ..retention import Plan

    WalFilter: t.TypeAlias = Callable[[int, str], bool]

WalKey: t.TypeAlias = tuple[int, str]
"""System identifier and file name."""

NEEDED, LATER, ONLY = "needed", "all", "only"
WAL_CHOICES: t.Final = (LATER, NEEDED, ONLY)


@dataclasses.dataclass(frozen=True, slots=True)
class Which:
    """The backups to replicate. Nothing set: those that retention keeps."""

    backups: tuple[str, ...] = ()
    """Ids, or beginnings or ends of them."""
    latest: str | None = None
    """The newest of this source."""
    all: bool = False
    """Also those that retention lets go at the next prune."""
    wal: str | None = None
    """``needed``: what backups need to become consistent; ``all``: what comes later, too; ``only``: no backups at all.
    None: ``needed`` for backups that are named, else ``all``."""

    @property
    def named(self) -> bool:
        return bool(self.backups) or self.latest is not None

    def __post_init__(self) -> None:
        if (bool(self.backups) + (self.latest is not None) + self.all) > 1:
            raise ConfigError(
                "which backups is said twice", hint="Name backups, or use --latest, or --all.", id="usage"
            )
        if self.named and self.wal == ONLY:
            raise ConfigError("backups are named, and only WAL is wanted", hint="Leave one of them out.", id="usage")


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    first: tuple[BackupRecord, ...]
    """What a restore would most likely need, and is brought first: the newest backup of each source."""
    then: tuple[BackupRecord, ...]
    """All others, newest first."""
    wal: WalFilter
    """Whether a file of the WAL archive is wanted, besides what each backup needs to become consistent."""

    @property
    def backups(self) -> tuple[BackupRecord, ...]:
        return self.first + self.then

    def wal_order(self, keys: Iterable[WalKey]) -> list[WalKey]:
        """Histories, then what follows the backups that are brought first, then the rest; as it was written in each."""
        starts: dict[int, str] = {}
        for backup in self.first:
            if backup.header.postgres is not None:
                system, start = int(backup.header.postgres.system_identifier), backup.header.postgres.wal_start[8:]
                starts[system] = min(start, starts.get(system, start))

        def place(key: WalKey) -> tuple[int, int, str, str]:
            system, name = key
            file = match_wal_name(name)
            if file is not None and file.kind is WalKind.HISTORY:
                return 0, system, name, ""
            return (1 if name[8:24] >= starts.get(system, "") else 2), system, name[8:24], name

        return sorted(keys, key=place)


def choose(catalog: Catalog, which: Which, plan: Callable[[], Plan]) -> Wanted:
    """``plan`` is called where retention decides. Raises RepositoryError ``no-such-backup``, ``ambiguous-backup``."""
    if which.named:
        chosen = _named(catalog, which)
        later = _from(chosen) if which.wal == LATER else _nothing
        return Wanted(tuple(chosen), (), later)
    wal: WalFilter = _everything
    if which.all:
        kept = list(catalog.backups)
    else:
        made = plan()
        ids = {backup.backup_id for backup in made.keeps}
        kept = [backup for backup in catalog.backups if backup.id in ids]
        # What backups that cannot be read need, nobody knows.
        wal = wal if catalog.broken else made.wal_needed
    if which.wal == ONLY:
        return Wanted((), (), wal)
    first, then = _in_order(kept)
    return Wanted(first, then, _nothing if which.wal == NEEDED else wal)


def _named(catalog: Catalog, which: Which) -> list[BackupRecord]:
    if which.latest is None:
        found = {backup.id: backup for backup in map(catalog.find, which.backups)}
        return sorted(found.values(), key=lambda backup: (backup.started, backup.id), reverse=True)
    backup = newest(catalog.of(which.latest))
    if backup is None:
        raise RepositoryError(
            f"there is no backup of {which.latest}", hint="`cryobackup list` shows what there is.", id="no-such-backup"
        )
    return [backup]


def _in_order(backups: list[BackupRecord]) -> tuple[tuple[BackupRecord, ...], tuple[BackupRecord, ...]]:
    first = [newest([each for each in backups if each.source == source]) for source in {b.source for b in backups}]
    ids = {backup.id for backup in first if backup is not None}
    back = sorted(backups, key=lambda backup: (backup.started, backup.id), reverse=True)
    return tuple(each for each in back if each.id in ids), tuple(each for each in back if each.id not in ids)


def _from(backups: list[BackupRecord]) -> WalFilter:
    """All WAL from where these begin, and the histories."""
    starts: dict[int, str] = {}
    for backup in backups:
        if backup.header.postgres is not None:
            system, start = int(backup.header.postgres.system_identifier), backup.header.postgres.wal_start[8:]
            starts[system] = min(start, starts.get(system, start))

    def wanted(system: int, name: str) -> bool:
        file = match_wal_name(name)
        if file is None or system not in starts:
            return False
        return file.kind is WalKind.HISTORY or name[8:24] >= starts[system]

    return wanted


def _everything(_system: int, _name: str) -> bool:
    return True


def _nothing(_system: int, _name: str) -> bool:
    return False
