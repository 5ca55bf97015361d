# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a location keeps what the repository relies on: tried with an object of its own, which it removes again."""

from __future__ import annotations

import dataclasses
import os
import time
import typing as t

from ..errors import LocationError, ObjectConflict
from ..storage.base import put
from . import names
from .repository import Repository

if t.TYPE_CHECKING:
    import datetime as dt

    from ..config import RepositoryConfig
    from ..storage.base import Capacity, Location

_PREFIX = "probe/"
_STALE_SECONDS = 3600.0
_CLOCK_TOLERANCE_SECONDS = 60.0
_LITTLE_SPACE_BYTES = 1 << 30
_LITTLE_SPACE_SHARE = 0.05


@dataclasses.dataclass(frozen=True, slots=True)
class Probe:
    """What is true of a location that passed."""

    where: str
    capacity: Capacity
    clock_skew: float
    """Seconds that its clock is ahead of this host's."""
    warnings: tuple[str, ...]


def probe_location(config: RepositoryConfig, name: str, now: dt.datetime) -> Probe:
    """Open one location, and create, read, overwrite (which must fail), list and delete an object in it.

    Nothing is left behind, also of a probe that was killed. Raises KeyFileError, LocationError, RepositoryError.
    """
    repository = Repository.open(dataclasses.replace(config, locations={name: config.locations[name]}))
    for operation in ("read", "write"):
        repository.require(operation)
    location = repository.locations[0]
    warnings: list[str] = []
    _try_an_object(location, now, warnings)
    skew = location.now() - time.time()
    if abs(skew) > _CLOCK_TOLERANCE_SECONDS:
        warnings.append(f"its clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} this host's")
    capacity = location.capacity()
    if capacity.free is not None and _is_little(capacity.free, capacity.total):
        warnings.append(f"only {capacity.free >> 20} MiB are free")
    return Probe(location.describe(), capacity, skew, tuple(warnings))


def _is_little(free: int, total: int | None) -> bool:
    return free < _LITTLE_SPACE_BYTES or (total is not None and free < total * _LITTLE_SPACE_SHARE)


def _try_an_object(location: Location, now: dt.datetime, warnings: list[str]) -> None:
    key = f"{_PREFIX}{names.new_id(now, os.urandom(4))}"
    content = os.urandom(1024)
    try:
        put(location, key, content)
        if location.read(key) != content:
            raise _unfit(location, "does not return what was written to it")
        _must_not_overwrite(location, key)
        if key not in [info.key for info in location.list(_PREFIX)]:
            raise _unfit(location, "does not list what was just created")
    finally:
        _remove(location, key, warnings)


def _must_not_overwrite(location: Location, key: str) -> None:
    try:
        put(location, key, b"another object")
    except ObjectConflict:
        return
    raise _unfit(location, "overwrites objects")


def _unfit(location: Location, what: str) -> LocationError:
    return LocationError(
        f"location {location.name!r} ({location.describe()}) {what}",
        hint="It cannot keep backups safe: use other storage. What it holds already should be verified.",
        id="location-unfit",
    )


def _remove(location: Location, key: str, warnings: list[str]) -> None:
    """This probe, and those of earlier ones that were killed. A host may well lack the right to delete."""
    try:
        location.delete(key)
        if location.stat(key) is not None:
            raise _unfit(location, "does not delete objects")
        stale = location.now() - _STALE_SECONDS
        for info in list(location.list(_PREFIX)):
            if info.modified < stale:
                location.delete(info.key)
    except LocationError as error:
        warnings.append(f"objects cannot be deleted, so that prune has to run elsewhere: {error.message}")
