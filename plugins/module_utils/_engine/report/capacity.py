# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How much lies where, how fast it grows, when it is full, and what it costs: ``cryobackup capacity``."""

from __future__ import annotations

import dataclasses
import datetime as dt
import typing as t

from .. import retention
from ..errors import LocationError, without_location
from ..prune import candidate
from ..prune_preview import plan_now, stays
from ..repository import holdings as hd
from ..repository.model import pack_names
from . import cost
from . import forecast as fc
from .amplification import of_source
from .backups import Fields, location_state

if t.TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ..config import Config
    from ..config.locations import LocationConfig
    from ..repository.catalog import BackupRecord, Catalog
    from ..repository.repository import Repository

SOON: t.Final = dt.timedelta(days=30)
_RECENT: t.Final = dt.timedelta(days=7)
_DAY: t.Final = dt.timedelta(days=1)


def capacity(config: Config, repository: Repository, catalog: Catalog, now: dt.datetime) -> Fields:
    """Counts what lies in every location that answers. ``now`` is aware. Changes nothing.

    A location that fails is noted in ``repository.lost``.
    """
    view = _View(config, repository, catalog, now)
    view.count()
    locations = {name: view.location(name) for name in config.repository.locations}
    return {
        "repository_id": repository.id,
        "checked_at": now.isoformat(),
        "sources": view.sources(),
        "locations": locations,
        "attention": [
            f"location {name}: {text}" for name, each in locations.items() for text in _worries(name, each, now)
        ],
    }


class _View:
    """What is the same for all locations."""

    def __init__(self, config: Config, repository: Repository, catalog: Catalog, now: dt.datetime) -> None:
        self._config = config
        self._repository = repository
        self._catalog = catalog
        self._now = now
        self._plan = plan_now(repository, catalog, config.retention, now)
        required = {location.name for location in repository.locations if location.required}
        past = [fc.Past(candidate(backup, required), backup.pack_owners) for backup in catalog.backups]
        packs = {backup.id: len(backup.header.packs) for backup in catalog.backups}
        self._series = fc.series(past, packs, now)
        self._steps = list(fc.play(past, self._series, config.retention, now))
        self._counted: dict[str, _Counted] = {}

    def count(self) -> None:
        """List everything in every location that answers."""
        for location in self._repository.locations:
            try:
                found = hd.count(location, stays(self._repository, location, self._catalog, self._plan))
                room = hd.room(location, self._config.repository.locations[location.name].quota, found.bytes)
                clock = dt.datetime.fromtimestamp(location.now(), dt.UTC)
            except LocationError as error:
                self._repository.lost[location.name] = error
            else:
                self._counted[location.name] = _Counted(location.name, found, room, clock)

    def sources(self) -> Fields:
        """By source and kind; ``bytes_source`` is what all of its backups would take as they are."""
        names = dict.fromkeys(backup.source for backup in self._catalog.backups)
        return {
            name: {**_by_kind(backups), "storage": of_source(backups)}
            for name, backups in ((name, self._catalog.of(name)) for name in names)
        }

    def location(self, name: str) -> Fields:
        configured = self._config.repository.locations[name]
        counted = self._counted.get(name)
        return {
            "type": configured.type,
            "where": configured.where,
            "required": configured.required,
            **location_state(self._repository, name),
            **({} if counted is None else self._told(counted, configured)),
        }

    def _told(self, counted: _Counted, configured: LocationConfig) -> Fields:
        found, room = counted.found, counted.room
        rates = {system: self._rate(counted, system) for system in found.wal}
        wal = {
            system: fc.Wal({day: each.bytes for day, each in heap.days.items()}, rates[system].bytes)
            for system, heap in found.wal.items()
        }
        backups = [backup for backup in self._catalog.backups if counted.name in backup.locations]
        per_day = sum(each.per_day for each in self._series) + sum(each.per_day for each in wal.values())
        forecast = fc.forecast(
            self._place(found, wal),
            self._steps,
            room=room.left,
            per_day=per_day,
            history=self._history(counted, backups),
            now=self._now,
        )
        return {
            "bytes_used": found.bytes,
            "objects": found.objects,
            "bytes_free": room.free,
            "bytes_total": room.total,
            "quota": configured.quota,
            "bytes_room": room.left,
            "bytes_prunable": found.prunable.bytes,
            "packs": {"objects": _objects(found.packs), "bytes": _bytes(found.packs)},
            "wal": {"objects": _objects(found.wal), "bytes": _bytes(found.wal)},
            "ratio": _ratio(sum(backup.header.totals.bytes_source for backup in backups), _bytes(found.packs)),
            "bytes_written_per_day": round(per_day),
            "bytes_growth_per_day": None if forecast.growth_per_day is None else round(forecast.growth_per_day),
            "forecast": _forecast(forecast),
            "costs": self._costs(
                counted.name, configured, found, backups, sum(each.objects for each in rates.values())
            ),
        }

    def _rate(self, counted: _Counted, system: int) -> _Rate:
        """How much WAL comes. A location that was seeded lately got at once what others got in weeks: ask those."""
        elders = [each for each in self._counted.values() if each.saw_all(system)]
        telling = counted if counted.saw_all(system) or not elders else elders[0]
        return _rate(telling.found.wal[system], telling.clock)

    def _place(self, found: hd.Holdings, wal: Mapping[int, fc.Wal]) -> fc.Place:
        known = {backup.id for backup in self._catalog.backups}
        packs = {owner: heap.bytes for owner, heap in found.packs.items() if owner in known}
        unknown = sum(heap.bytes for owner, heap in found.packs.items() if owner not in known)
        return fc.Place(packs, wal, found.manifests.bytes + found.other.bytes + unknown)

    def _history(self, counted: _Counted, backups: Sequence[BackupRecord]) -> dt.timedelta:
        oldest = [self._now - backup.finished for backup in backups]
        heaps = counted.found.wal.values()
        oldest += [counted.clock - _moment(heap.first) for heap in heaps if heap.first is not None]
        return max(oldest, default=dt.timedelta())

    def _costs(
        self,
        name: str,
        configured: LocationConfig,
        found: hd.Holdings,
        backups: Sequence[BackupRecord],
        wal_files: float,
    ) -> Fields | None:
        """``wal_files``: so many come in a day."""
        daily = cost.Traffic()
        for each in self._series:
            daily += cost.of_backup(each.objects, each.stored).times(_DAY / each.every)
        daily += cost.of_wal(wal_files, len(self._repository.published.get(name, ())) or 1)
        estimated = cost.estimate(configured.prices, found.bytes, daily, _restore(backups, found))
        if estimated is None:
            return None
        return {
            "currency": estimated.currency,
            "storage_month": round(estimated.storage_month, 4),
            "requests_month": round(estimated.requests_month, 4),
            "month": round(estimated.month, 4),
            "restore": round(estimated.restore, 4),
        }


def _by_kind(backups: Sequence[BackupRecord]) -> Fields:
    kinds: Fields = {}
    for backup in backups:
        entry = kinds.setdefault(backup.header.kind, {"backups": 0, "bytes_source": 0, "bytes_stored": 0})
        entry["backups"] += 1
        entry["bytes_source"] += backup.header.totals.bytes_source
        entry["bytes_stored"] += backup.header.stored_bytes_own
    source = sum(entry["bytes_source"] for entry in kinds.values())
    stored = sum(entry["bytes_stored"] for entry in kinds.values())
    return {"kinds": kinds, "bytes_source": source, "bytes_stored": stored, "ratio": _ratio(source, stored)}


def _ratio(source: int, stored: int) -> float | None:
    return round(source / stored, 2) if stored else None


class _Rate(t.NamedTuple):
    """WAL that comes in a day."""

    objects: float
    bytes: float


@dataclasses.dataclass(frozen=True, slots=True)
class _Counted:
    """A location that answered. ``clock``: its time."""

    name: str
    found: hd.Holdings
    room: hd.Room
    clock: dt.datetime

    def saw_all(self, system: int) -> bool:
        """Whether it has had WAL of that system for longer than it is looked back."""
        first = self.found.wal.get(system, hd.WalHeap()).first
        return first is not None and first // hd.DAY_SECONDS < _day(self.clock - _RECENT)


def _rate(heap: hd.WalHeap, clock: dt.datetime) -> _Rate:
    """Of what came in the last days."""
    first = clock if heap.first is None else _moment(heap.first)
    first_day = _day(max(clock - _RECENT, min(first, clock - _DAY)))
    recent = [each for day, each in heap.days.items() if day >= first_day]
    # Days of the calendar, as it is counted by them.
    days = max((clock.timestamp() - first_day * hd.DAY_SECONDS) / hd.DAY_SECONDS, 1.0)
    return _Rate(sum(each.objects for each in recent) / days, sum(each.bytes for each in recent) / days)


def _day(moment: dt.datetime) -> int:
    """Since 1970."""
    return int(moment.timestamp() // hd.DAY_SECONDS)


def _moment(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.UTC)


def _restore(backups: Sequence[BackupRecord], found: hd.Holdings) -> cost.Traffic:
    """Of the newest backup of a cluster, and of all WAL since then."""
    newest = next((backup for backup in reversed(backups) if backup.header.kind in retention.PHYSICAL), None)
    if newest is None or newest.header.postgres is None:
        return cost.Traffic()
    sizes = [size for size, _digest in pack_names(newest.header).values()]
    heap = found.wal.get(int(newest.header.postgres.system_identifier), hd.WalHeap())
    first_day = _day(newest.started)
    since = [each for day, each in heap.days.items() if day >= first_day]
    return cost.of_restore(sizes, sum(each.objects for each in since), sum(each.bytes for each in since))


def _forecast(found: fc.Forecast) -> Fields:
    return {
        "state": found.state,
        "full_at": _text(found.full_at),
        "full_at_without_prune": _text(found.full_at_unpruned),
        "until": _text(found.until),
        "bytes_peak": found.peak,
        "reason": found.why or None,
    }


def _text(moment: dt.datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="seconds")


def _objects(heaps: Mapping[t.Any, hd.Heap]) -> int:
    return sum(heap.objects for heap in heaps.values())


def _bytes(heaps: Mapping[t.Any, hd.Heap]) -> int:
    return sum(heap.bytes for heap in heaps.values())


def _worries(name: str, location: Fields, now: dt.datetime) -> Iterator[str]:
    if not location["ok"]:
        yield without_location(location["error"]["message"], name)
        return
    forecast = location["forecast"]
    if forecast["state"] == "full":
        yield "it is full" if location["quota"] is None else "its quota is used up, or it is full"
    elif forecast["full_at"] is not None and dt.datetime.fromisoformat(forecast["full_at"]) <= now + SOON:
        yield f"it is full on {forecast['full_at'][:10]} if all goes on as it is"
