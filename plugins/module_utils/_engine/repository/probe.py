# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a configured location can be opened, and keeps what the repository relies on."""

from __future__ import annotations

import dataclasses
import os
import time
import typing as t

from ..storage.trial import try_location
from ..words import format_bytes
from . import names
from .holdings import room
from .repository import Repository

if t.TYPE_CHECKING:
    import datetime as dt

    from ..config import RepositoryConfig
    from .holdings import Room

_CLOCK_TOLERANCE_SECONDS = 60.0
_LITTLE_SPACE_BYTES = 1 << 30
_LITTLE_SPACE_SHARE = 0.05


@dataclasses.dataclass(frozen=True, slots=True)
class Probe:
    """What is true of a location that passed."""

    where: str
    room: Room
    clock_skew: float
    """Seconds that its clock is ahead of this host's."""
    warnings: tuple[str, ...]


def probe_location(config: RepositoryConfig, name: str, now: dt.datetime) -> Probe:
    """Open one location, and try whether it keeps its promises (see ``storage.trial``).

    Nothing is left behind, also of a probe that was killed. Raises KeyFileError, LocationError, RepositoryError.
    """
    repository = Repository.open(dataclasses.replace(config, locations={name: config.locations[name]}))
    for operation in ("read", "write"):
        repository.require(operation)
    location = repository.locations[0]
    warnings = try_location(location, names.new_id(now, os.urandom(4)))
    skew = location.now() - time.time()
    if abs(skew) > _CLOCK_TOLERANCE_SECONDS:
        warnings.append(f"its clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} this host's")
    found = room(location, config.locations[name].quota)
    if found.free is not None and _is_little(found.free, found.total):
        warnings.append(f"only {format_bytes(found.free)} are free")
    if found.quota is not None and found.by_quota and (found.left or 0) < found.quota * _LITTLE_SPACE_SHARE:
        warnings.append(f"its quota of {format_bytes(found.quota)} is nearly used up")
    return Probe(location.describe(), found, skew, tuple(warnings))


def _is_little(free: int, total: int | None) -> bool:
    return free < _LITTLE_SPACE_BYTES or (total is not None and free < total * _LITTLE_SPACE_SHARE)
