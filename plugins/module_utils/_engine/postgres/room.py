# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a backup can fit, asked before its first byte is written.

A disk that fills up half-way loses nothing, but it takes the room that WAL needs, and hours. So what surely cannot fit
is not begun. In doubt it is: the estimate is the least that earlier backups let one expect, and a location that does
not say how much room it has is taken to have enough.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ..errors import LocationError, LocationFull, RepositoryError, reason_of
from ..repository import holdings as hd
from ..repository.catalog import Catalog
from ..repository.model import FULL
from ..words import format_bytes

if t.TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Iterable

    from ..config import Config
    from ..events import Reporter
    from ..repository.catalog import BackupRecord
    from ..repository.repository import Repository
    from ..storage.base import Location

NEWEST_BACKUPS: t.Final = 5
FIRST_SHARE: t.Final = 0.1
"""Of the size of a cluster that was never backed up: few compress better."""
_CAUTION: t.Final = 0.9
"""Data may compress better than it ever did."""


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """The backup that is to be made. ``source_bytes``: the size of the cluster, None where it may not be asked for."""

    source: str
    kind: str
    source_bytes: int | None
    there: int = 0
    """What an interrupted backup that it goes on from has stored."""


class Checked(t.NamedTuple):
    quotas: tuple[tuple[Location, int], ...] = ()
    """Locations that have one, and the bytes that it leaves."""
    left_out: bool = False
    """Whether a location was: then another parent may be the right one."""
    left: int | None = None
    """Bytes that may still be written in the location, of those that say it, that has the least room."""


def least_needed(wanted: Wanted, earlier: Iterable[BackupRecord]) -> int:
    """Bytes that the backup takes in each location at least; ``earlier``: those of the source, oldest first. Pure."""
    same = [backup.header for backup in earlier if backup.header.kind == wanted.kind][-NEWEST_BACKUPS:]
    if wanted.kind != FULL:
        # What changed says little about what will have changed: the smallest is what is expected.
        return max(0, min((header.stored_bytes_own for header in same), default=0) - wanted.there)
    shares = [header.stored_bytes_own / header.totals.bytes_source for header in same if header.totals.bytes_source]
    if not shares:
        return max(0, int((wanted.source_bytes or 0) * FIRST_SHARE) - wanted.there)
    size = same[-1].totals.bytes_source if wanted.source_bytes is None else wanted.source_bytes
    return max(0, int(size * min(shares) * _CAUTION) - wanted.there)


def check_room(
    config: Config,
    repository: Repository,
    wanted: Wanted,
    earlier: Callable[[], Iterable[BackupRecord]],
    *,
    now: dt.datetime,
    reporter: Reporter,
) -> Checked:
    """Leave the optional locations out that cannot take the backup. Writes nothing.

    ``earlier`` gives the backups of the source; it is called only if there is not room for all of the cluster as it
    is. A location that fails is lost. Raises LocationFull, id ``no-room``, when a required location, or the last one,
    cannot take it.
    """
    rooms = _rooms(config, repository)
    size = wanted.source_bytes
    tight = [room for room in rooms if size is None or room.left < size]
    needed = least_needed(wanted, earlier()) if tight else 0
    without = [room for room in tight if room.left < needed]
    quotas = tuple(
        (room.location, max(0, room.room.quota - room.room.used))
        for room in rooms
        if room not in without and room.room.quota is not None and room.room.used is not None
    )
    left = min((room.left for room in rooms if room not in without), default=None)
    if not without:
        return Checked(quotas, left=left)
    errors = {room.location.name: _no_room(config, repository, room, wanted, needed, now) for room in without}
    for room in without:
        if room.location.required or len(without) == len(repository.locations):
            raise errors[room.location.name]
    for room in without:
        error = errors[room.location.name]
        repository.lost[room.location.name] = error
        repository.locations.remove(room.location)
        reporter.warn(f"location {room.location.name} does not take part: {reason_of(error, room.location.name)}")
    return Checked(quotas, left_out=True, left=left)


class _Room(t.NamedTuple):
    location: Location
    room: hd.Room
    left: int
    """Bytes."""


def _rooms(config: Config, repository: Repository) -> list[_Room]:
    """Of the locations that say how much room they have. One that fails is lost."""
    found = []
    for location in list(repository.locations):
        try:
            room = hd.room(location, config.repository.locations[location.name].quota)
        except LocationError as error:
            if location.required:
                raise
            repository.lost[location.name] = error
            repository.locations.remove(location)
            if not repository.locations:
                raise
            continue
        if room.left is not None:
            found.append(_Room(location, room, room.left))
    return found


def _no_room(
    config: Config, repository: Repository, room: _Room, wanted: Wanted, needed: int, now: dt.datetime
) -> LocationFull:
    name, measured = room.location.name, room.room
    left = f"{format_bytes(room.left)} are free"
    if measured.by_quota:
        left = f"its quota of {format_bytes(measured.quota or 0)} leaves {format_bytes(room.left)}"
    freed = _prunable(config, repository, room.location, now)
    prune = "" if freed is None else f"; a prune would free {format_bytes(freed)}"
    return LocationFull(
        f"location {name!r} has no room for {_ARTICLES.get(wanted.kind, 'a')} {wanted.kind} backup of {wanted.source}: "
        f"it takes {format_bytes(needed)} or more, and {left}{prune}",
        hint="Nothing was written there, and earlier backups are untouched. Make room: `cryobackup prune`, shorter "
        "retention rules, a larger disk or quota. To begin all the same: --no-space-check (`space_check: false` in a "
        "task).",
        id="no-room",
    )


_ARTICLES: t.Final = {"incremental": "an"}


def _prunable(config: Config, repository: Repository, location: Location, now: dt.datetime) -> int | None:
    """Bytes; None where that cannot be found out now."""
    from ..prune_preview import plan_now, stays

    try:
        catalog = Catalog.load(repository)
        plan = plan_now(repository, catalog, config.retention, now)
        return hd.count(location, stays(repository, location, catalog, plan)).prunable.bytes
    except RepositoryError:
        return None
