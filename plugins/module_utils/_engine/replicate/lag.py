# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How far each location is behind: what ``status`` shows and ``replicate`` would bring."""

from __future__ import annotations

import dataclasses
import typing as t

from ..errors import LocationError
from ..postgres.archive_backlog import read_backlog
from ..postgres.wal import WalKind, match_wal_name
from ..prune_preview import plan_now
from ..repository.catalog import newest
from .stock import Lack, Stock, lack
from .wanted import Which, choose

if t.TYPE_CHECKING:
    import datetime as dt

    from ..config import Config
    from ..repository.catalog import BackupRecord, Catalog
    from ..repository.repository import Repository
    from .wanted import WalKey

ON_ITS_WAY_SECONDS: t.Final = 120.0
"""A segment that one location got this short a time ago is expected in the others."""


@dataclasses.dataclass(frozen=True, slots=True)
class TimelineLag:
    newest: str | None
    """The newest segment there; None: there is none."""
    newest_anywhere: str
    missing: int
    """Files of this timeline that retention keeps and that are not there."""

    def as_dict(self) -> dict[str, t.Any]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(slots=True)
class Lag:
    backups: tuple[str, ...] = ()
    """Ids of the backups that retention keeps and that are not there, newest first."""
    bytes: int = 0
    """Of all that is missing."""
    wal: tuple[WalKey, ...] = ()
    """WAL files that are not there: noted as owed, or older than two minutes."""
    newest: dict[str, tuple[str | None, str]] = dataclasses.field(default_factory=dict)
    """By source: the newest backup there, and the newest anywhere."""
    timelines: dict[tuple[int, int], TimelineLag] = dataclasses.field(default_factory=dict)
    """By system identifier and timeline."""

    @property
    def wal_from(self) -> str | None:
        """The first of them."""
        return f"{self.wal[0][0]}/{self.wal[0][1]}" if self.wal else None

    def as_dict(self) -> dict[str, t.Any]:
        timelines: dict[str, dict[str, t.Any]] = {}
        for (system, timeline), lag in sorted(self.timelines.items()):
            timelines.setdefault(str(system), {})[str(timeline)] = lag.as_dict()
        return {
            "backups": list(self.backups),
            "wal_files": len(self.wal),
            "bytes": self.bytes,
            "newest": {
                source: {"backup_id": there, "anywhere": anywhere} for source, (there, anywhere) in self.newest.items()
            },
            "wal": timelines,
        }


def lags(config: Config, repository: Repository, catalog: Catalog, now: dt.datetime) -> dict[str, Lag]:
    """How far each open location is behind. One that cannot be listed is lost and left out."""
    plan = plan_now(repository, catalog, config.retention, now)
    wanted = choose(catalog, Which(), lambda: plan)
    stocks, young = _list(repository)
    owed = read_backlog(config.state_directory)
    found = {}
    for stock in stocks:
        name = stock.location.name
        try:
            missing = lack(stock, stocks, wanted, whole=False)
        except LocationError as error:
            repository.lost[name] = error
            continue
        due = {key for key in missing.wal if key not in young or f"{key[0]}/{key[1]}" in owed.get(name, ())}
        found[name] = _lag(stock, stocks, catalog, missing, due)
    return found


def _list(repository: Repository) -> tuple[list[Stock], set[WalKey]]:
    """The locations that can be listed, and the WAL that is on its way."""
    stocks, young = [], set[tuple[int, str]]()
    for location in repository.locations:
        stock = Stock(location)
        try:
            if stock.wal:
                young |= stock.young_wal(ON_ITS_WAY_SECONDS)
        except LocationError as error:
            repository.lost[location.name] = error
        else:
            stocks.append(stock)
    return stocks, young


def _lag(there: Stock, stocks: list[Stock], catalog: Catalog, missing: Lack, due: set[WalKey]) -> Lag:
    return Lag(
        backups=tuple(backup.id for backup in missing.backups),
        bytes=sum(missing.packs.values()) + sum(missing.wal[key] for key in due),
        wal=tuple(sorted(due)),
        newest=dict(_newest(there.location.name, catalog)),
        timelines=_timelines(there, stocks, due),
    )


def _newest(name: str, catalog: Catalog) -> t.Iterator[tuple[str, tuple[str | None, str]]]:
    by_source: dict[str, list[BackupRecord]] = {}
    for backup in catalog.backups:
        by_source.setdefault(backup.source, []).append(backup)
    for source, backups in by_source.items():
        there = newest(backup for backup in backups if name in backup.locations)
        yield source, (None if there is None else there.id, backups[-1].id)


def _timelines(there: Stock, stocks: list[Stock], due: set[WalKey]) -> dict[tuple[int, int], TimelineLag]:
    anywhere: dict[tuple[int, int], str] = {}
    for stock in stocks:
        for place, segment in _newest_segments(stock).items():
            anywhere[place] = max(segment, anywhere.get(place, segment))
    here = _newest_segments(there)
    missing: dict[tuple[int, int], int] = {}
    for system, name in due:
        place = system, int(name[:8], 16)
        missing[place] = missing.get(place, 0) + 1
    return {place: TimelineLag(here.get(place), segment, missing.get(place, 0)) for place, segment in anywhere.items()}


def _newest_segments(stock: Stock) -> dict[tuple[int, int], str]:
    found: dict[tuple[int, int], str] = {}
    for system, name in stock.wal:
        file = match_wal_name(name)
        if file is not None and file.kind is WalKind.SEGMENT:
            place = system, file.timeline
            found[place] = max(name, found.get(place, name))
    return found
