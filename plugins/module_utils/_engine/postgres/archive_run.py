# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``wal-push``: a WAL file goes to the required locations, and to the optional ones as far as that costs no time.

PostgreSQL archives one file after the other and keeps its WAL until then. So an optional location that is down, slow or
a black hole gets a few seconds of one push in a while and no more; what it lacks is noted, and brought there later.
"""

from __future__ import annotations

import dataclasses
import os
import time
import typing as t

from ..errors import CryoError, LocationError, ObjectConflict, SourceError
from ..repository.repository import Repository
from .archive_lane import OptionalLane
from .archive_outages import Outages
from .archive_push import Push

if t.TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ..config import Config, RepositoryConfig
    from .archive_source import WalSource

_LOOK_SECONDS: t.Final = 5.0
"""How long a conflict in an optional location that is not known to fail is waited for, before anything is written."""
_OPTIONAL_SECONDS: t.Final = 10.0
"""How long optional locations may take, once the required ones have the file."""
_HURRY_FILES: t.Final = 8
"""With more files than that waiting in pg_wal, only the required locations count."""


@dataclasses.dataclass(frozen=True, slots=True)
class PushResult:
    """Where a WAL file is now, durably; ``failed`` has optional locations only."""

    name: str
    system_identifier: int
    size: int
    """Bytes of the file."""
    stored: tuple[str, ...]
    """Locations it was written to."""
    already: tuple[str, ...]
    """Locations that had it, equal."""
    failed: dict[str, CryoError]
    """Optional locations that lack it."""
    caught_up: dict[str, int]
    """Earlier files that optional locations got now."""


Opened: t.TypeAlias = "Callable[[RepositoryConfig], Repository]"
Told: t.TypeAlias = "Callable[[str, CryoError | None], None]"
"""Called for each location that was asked: whether it has the file now, or why not."""


def tell_nobody(_location: str, _error: CryoError | None) -> None:
    return


def archive(
    config: Config, source: WalSource, opened: Opened = Repository.open, told: Told = tell_nobody
) -> PushResult:
    """Archive a file. On return it is durable in every required location; where none is required, in all of them.

    Idempotent: an equal object already there is made durable and counts. Nothing is ever overwritten. ``opened``
    opens the repository, with some of its locations only.

    Raises ObjectConflict when a location, required or not, is seen to hold another file of this name: as a rule then
    nothing was written anywhere. Raises RepositoryError, with the id of the reason, when a required location could not
    take it or holds it damaged; others may have it by then, which the next attempt finds. Raises SourceError when the
    file changes while it is read.
    """
    run = _Run(config, source, opened, told)
    try:
        run.required()
    except (ObjectConflict, SourceError):
        run.cancel()
        raise
    except CryoError:
        run.optional()
        raise
    return run.optional()


class _Run:
    def __init__(self, config: Config, source: WalSource, opened: Opened, told: Told) -> None:
        locations = config.repository.locations
        self._config = config
        self._source = source
        self._opened = opened
        self._told = told
        self._outages = Outages(config.state_directory)
        self._required = {name: place for name, place in locations.items() if place.required}
        self._push: Push | None = None
        self._failed: dict[str, CryoError] = {}
        self._lanes: list[OptionalLane] = []
        waiting = _waiting_files(source.path)
        for name in locations:
            if name not in self._required:
                self._begin(name, waiting)

    def _begin(self, name: str, waiting: int) -> None:
        outage = self._outages.waiting(name)
        if outage is not None:
            self._failed[name] = outage.error(name)
        elif waiting > _HURRY_FILES:
            self._failed[name] = LocationError(
                f"location {name!r}: left for later, {waiting} files wait in pg_wal to be archived",
                hint="Later files bring it along when there is time; so does `cryobackup replicate`.",
                id="location-waiting",
            )
        else:
            self._lanes.append(OptionalLane(self._config, name, self._source, self._opened, catch_up=waiting == 0))

    def required(self) -> None:
        """The file is in every required location on return."""
        try:
            repository = self._opened(dataclasses.replace(self._config.repository, locations=self._required))
            repository.require("write")
        except CryoError as error:
            for name in self._required:
                self._told(name, error)
            raise
        self._push = push = Push(repository.keys, self._source, level=repository.level)
        push.failed.update(repository.lost)
        push.run(repository.locations, self._no_conflict)
        for name in self._required:
            self._told(name, push.failed.get(name))
        push.check()

    def _no_conflict(self) -> None:
        """Two histories must not be mixed anywhere, also when what shows it is not required."""
        deadline = time.monotonic() + _LOOK_SECONDS
        for lane in self._lanes:
            if self._outages.known(lane.name) is None:
                lane.looked.wait(max(0.0, deadline - time.monotonic()))
            if isinstance(lane.error, ObjectConflict):
                raise lane.error

    def cancel(self) -> None:
        for lane in self._lanes:
            lane.cancel()

    def optional(self) -> PushResult:
        """Give the optional locations their time. Raises ObjectConflict when one has another file by this name."""
        push = self._push
        for lane in self._lanes:
            lane.go(push.encoded if push is not None else None)
        deadline = time.monotonic() + _OPTIONAL_SECONDS
        for lane in self._lanes:
            lane.ended.wait(max(0.0, deadline - time.monotonic()))
            lane.cancel()
        for lane in self._lanes:
            self._note(lane)
        stored = [*(push.stored if push else ()), *(lane.name for lane in self._lanes if lane.outcome == "stored")]
        already = [*(push.already if push else ()), *(lane.name for lane in self._lanes if lane.outcome == "already")]
        source = self._source
        return PushResult(
            str(source.name),
            source.system_identifier,
            source.size,
            tuple(stored),
            tuple(already),
            self._failed,
            {lane.name: lane.caught_up for lane in self._lanes if lane.caught_up},
        )

    def _note(self, lane: OptionalLane) -> None:
        error = lane.error
        if isinstance(error, ObjectConflict):
            raise error
        if lane.outcome:
            self._outages.answered(lane.name)
            self._told(lane.name, None)
            return
        if error is None:
            error = LocationError(
                f"location {lane.name!r}: it took longer than the {_OPTIONAL_SECONDS:g} s that it is waited for",
                hint="Later files bring it along; so does `cryobackup replicate`, which has the time.",
                id="location-slow",
            )
        self._failed[lane.name] = error
        self._told(lane.name, error)
        if isinstance(error, LocationError):
            self._outages.failed(lane.name, error, lane.seconds if lane.ended.is_set() else _OPTIONAL_SECONDS)


def _waiting_files(path: Path) -> int:
    """Files that PostgreSQL has finished and not archived, this one left out."""
    ready = f"{path.name}.ready"
    try:
        found = os.listdir(path.parent / "archive_status")
    except OSError:
        return 0
    return sum(1 for name in found if name.endswith(".ready") and name != ready)
