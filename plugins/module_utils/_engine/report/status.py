# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How well everything is backed up: one look at all sources and all locations."""

from __future__ import annotations

import datetime as dt
import typing as t

from ..errors import LocationError, RepositoryError, without_location
from ..postgres.archive_backlog import read_backlog
from ..replicate.lag import lags
from ..repository import holdings as hd
from ..repository.catalog import newest
from ..repository.epochs import behind, written_late
from ..repository.lease import is_dead, read_leases
from ..repository.model import BACKING_UP, FULL, PRUNING
from ..words import counted, format_bytes
from .backups import Fields, location_state, summary
from .locks import lock_state, lock_worries

if t.TYPE_CHECKING:
    from collections.abc import Iterator

    from ..config import Config
    from ..replicate.lag import Lag
    from ..repository.catalog import BackupRecord, Catalog
    from ..repository.model import Lease
    from ..repository.repository import Repository
    from ..storage.base import Location

_PROVING_LEVELS = ("content", "restore")


def status(config: Config, repository: Repository, catalog: Catalog, now: dt.datetime) -> Fields:
    """Sources and locations, and in ``attention`` what a person should look at. ``now`` is aware."""
    leases = _running(repository, {backup.id for backup in catalog.backups})
    names = dict.fromkeys((*config.sources, *(backup.source for backup in catalog.backups)))
    sources = {name: _source(config, repository, catalog.of(name), leases.get(name, []), now) for name in names}
    behind_by = lags(config, repository, catalog, now)
    locations = {
        name: _location(config, repository, catalog, name, behind_by.get(name)) for name in config.repository.locations
    }
    return {
        "repository_id": repository.id,
        "checked_at": now.isoformat(),
        "sources": sources,
        "locations": locations,
        "unreadable": [{"name": broken.name, **broken.error.as_dict()} for broken in catalog.broken],
        "attention": [
            *(f"source {name}: {text}" for name, each in sources.items() for text in _worries(each)),
            *(
                f"location {name}: {text}"
                for name, each in locations.items()
                for text in (
                    *_location_worries(name, each),
                    *_little_room(each, catalog),
                    *lock_worries(each["locks"], now),
                )
            ),
            *(f"{broken.name} cannot be read: {broken.error.message}" for broken in catalog.broken),
            *_key_worries(repository, catalog),
        ],
    }


def _key_worries(repository: Repository, catalog: Catalog) -> Iterator[str]:
    newer = behind(repository)
    if newer is not None:
        yield newer.message
    for backup in catalog.backups:
        epoch = written_late(repository, backup)
        if epoch is not None:
            yield (
                f"backup {backup.id} of {backup.source} was made on {backup.header.host} with keys of epoch "
                f"{backup.epoch} after epoch {epoch} began: has that host not got the new keys, "
                "or was it somebody else?"
            )


def _source(
    config: Config, repository: Repository, backups: list[BackupRecord], running: list[Fields], now: dt.datetime
) -> Fields:
    last = newest(backups)
    proven = newest([backup for backup in backups if _is_proven(backup)])
    return {
        "configured": last is None or last.source in config.sources,
        "backups": len(backups),
        "bytes_stored": sum(backup.header.stored_bytes_own for backup in backups),
        "newest": None if last is None else summary(last, repository),
        "newest_age_seconds": None if last is None else round((now - last.finished).total_seconds()),
        "newest_verified": None if proven is None else summary(proven, repository),
        "running": running,
    }


def _is_proven(backup: BackupRecord) -> bool:
    verified = backup.verified
    return (
        verified is not None and verified.data.get("result") == "ok" and verified.data.get("level") in _PROVING_LEVELS
    )


def _worries(source: Fields) -> Iterator[str]:
    last = source["newest"]
    if last is None:
        yield "there is no backup yet"
        return
    if last["status"] != "ok":
        yield f"the newest backup, {last['backup_id']}, is {last['status']}"
    if last["verified"] is not None and last["verified"].get("result") != "ok":
        yield f"the newest backup, {last['backup_id']}, did not pass its verification"
    if source["newest_verified"] is None:
        yield "no backup has been verified (level content or restore)"
    if source["newest_age_seconds"] < 0:
        yield f"the newest backup, {last['backup_id']}, is dated in the future: compare the clocks"


def _location(config: Config, repository: Repository, catalog: Catalog, name: str, lag: Lag | None) -> Fields:
    """``lag``: None where the location does not answer."""
    location = next((each for each in repository.locations if each.name == name), None)
    configured = config.repository.locations[name]
    space = hd.Room(None, None, None, configured.quota)
    if location is not None:
        try:
            space = hd.room(location, configured.quota)
        except LocationError as error:
            repository.lost[name] = error
    backlog = read_backlog(config.state_directory).get(name, [])
    return {
        "type": configured.type,
        "where": None if location is None else location.describe(),
        "required": configured.required,
        **location_state(repository, name),
        "bytes_free": space.free,
        "bytes_total": space.total,
        "quota": space.quota,
        "bytes_room": space.left,
        "backups": sum(name in backup.locations for backup in catalog.backups),
        "backups_missing": sum(name not in backup.locations for backup in catalog.backups)
        if lag is None
        else len(lag.backups),
        "wal_missing": len(backlog) if lag is None else len(lag.wal),
        "wal_missing_from": (backlog[0] if backlog else None) if lag is None else lag.wal_from,
        "lag": None if lag is None else lag.as_dict(),
        "locks": lock_state(config.state_directory, name),
    }


def _location_worries(name: str, location: Fields) -> Iterator[str]:
    if not location["ok"]:
        yield without_location(location["error"]["message"], name)
    elif location["backups_missing"]:
        yield f"it lacks {counted(location['backups_missing'], 'backup')}"
    if location["wal_missing"]:
        yield f"it lacks {counted(location['wal_missing'], 'WAL file')}, from {location['wal_missing_from']} on"
    if location["ok"] and (location["backups_missing"] or location["wal_missing"]):
        yield f"`cryobackup replicate` brings it what it lacks, {format_bytes(location['lag']['bytes'])} and manifests"


def _little_room(location: Fields, catalog: Catalog) -> Iterator[str]:
    """It is told while something can still be done: when the next full backup would not fit."""
    room = location["bytes_room"]
    fulls = [backup for backup in catalog.backups if backup.header.kind == FULL]
    newest_of = {backup.source: backup for backup in fulls}  # oldest first: the newest is the last
    largest = max(newest_of.values(), key=lambda backup: backup.header.stored_bytes_own, default=None)
    if room is None or largest is None or room >= largest.header.stored_bytes_own:
        return
    took = format_bytes(largest.header.stored_bytes_own)
    yield f"there is room for {format_bytes(room)}, and the newest full backup of {largest.source} took {took}"


def _running(repository: Repository, finished: t.AbstractSet[str]) -> dict[str, list[Fields]]:
    """What is under way now, by source: backups, restores, replications; ``backup_id`` is the backup it is about.

    A lease whose holder is gone is left out: it harms nothing. So is one of a backup that is finished, which a host
    that may only add cannot take away; and a prune, which is about no source.
    """
    found: dict[tuple[str, str], Fields] = {}
    for location in repository.locations:
        for lease in _live_leases(repository, location):
            if lease.purpose == PRUNING or (lease.purpose == BACKING_UP and lease.backup_id in finished):
                continue
            about = lease.backup_id if lease.purpose == BACKING_UP else lease.parent
            entry = found.setdefault(
                (lease.source, lease.backup_id),
                {
                    "backup_id": about,
                    "purpose": lease.purpose,
                    "started_at": lease.started_at,
                    "host": lease.host,
                    "locations": [],
                },
            )
            entry["locations"].append(location.name)
    running: dict[str, list[Fields]] = {}
    for (source, _unused), entry in sorted(found.items()):
        running.setdefault(source, []).append(entry)
    return running


def _live_leases(repository: Repository, location: Location) -> list[Lease]:
    try:
        now = location.now()
        return [lease for info, lease in read_leases(repository.keys, location) if not is_dead(lease, info, now)]
    except LocationError as error:
        repository.lost[location.name] = error
    except RepositoryError:
        # A damaged lease is no reason to keep quiet about everything else; verify names it.
        pass
    return []
