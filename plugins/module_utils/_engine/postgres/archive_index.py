# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the WAL archive holds: files, timelines, gaps, and how far a recovery can get.

Listed from the locations each time; there is no index to go stale.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t

from ..errors import LocationError
from ..repository import names
from ..repository.packs import first_good
from .archive_object import WalReader
from .lsn import last_segment_number, parse_lsn, segment_number, segment_start
from .timeline import TimelineHistory, parse_history
from .wal import WalKind, WalName, history_name, match_wal_name, segment_name, segment_names

if t.TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..repository.model import PostgresInfo
    from ..repository.repository import Repository
    from ..storage.base import Location, ObjectInfo

_KEY = re.compile(r"wal/([0-9]{1,20})/([0-9A-F]{8})/([^/]+)")


@dataclasses.dataclass(frozen=True, slots=True)
class ArchivedFile:
    name: WalName
    size: int
    """Stored bytes of the object, in the first location that has it."""
    modified: float
    """When it was archived: seconds since 1970 by the clock of that location."""
    locations: tuple[str, ...]

    def key(self, system_identifier: int) -> str:
        """The name of its object."""
        return names.wal(system_identifier, str(self.name))


@dataclasses.dataclass(frozen=True, slots=True)
class Gap:
    """Segments that are missing, from ``first`` to ``last``."""

    first: str
    last: str
    segments: int

    def __str__(self) -> str:
        if self.segments == 1:
            return self.first
        return f"{self.first} to {self.last} ({self.segments} segments)"


@dataclasses.dataclass(frozen=True, slots=True)
class Reach:
    """How far a recovery gets before the first segment that is missing."""

    last_segment: str | None
    """None: not even the first one is there."""
    end_lsn: int
    """The end of ``last_segment``; the position where recovery was to begin if there is none."""


@dataclasses.dataclass(frozen=True, slots=True)
class WalIndex:
    """The files archived for one system identifier, sorted by name.

    ``lost`` has the locations that could not be listed: what only they hold is not known here, which is not the same
    as missing.
    """

    system_identifier: int
    files: dict[str, ArchivedFile]
    locations: tuple[str, ...]
    lost: dict[str, LocationError]

    @classmethod
    def load(cls, repository: Repository, system_identifier: int) -> WalIndex:
        """List the archive in every location. Raises LocationError when none can be listed."""
        found: dict[str, ArchivedFile] = {}
        listed: list[str] = []
        lost = dict(repository.lost)
        for location in repository.locations:
            try:
                infos = list(location.list(names.wal_of(system_identifier)))
            except LocationError as error:
                lost[location.name] = error
                continue
            listed.append(location.name)
            _add(found, infos, location.name)
        if not listed:
            raise next(iter(lost.values()))
        return cls(system_identifier, dict(sorted(found.items())), tuple(listed), lost)

    def has(self, name: str, location: str | None = None) -> bool:
        """Whether a file is in this location, or in any."""
        file = self.files.get(name)
        return file is not None and (location is None or location in file.locations)

    def names(self, location: str | None = None) -> set[str]:
        return {name for name in self.files if self.has(name, location)}

    def missing(self, wanted: Iterable[str], *, location: str | None = None) -> list[str]:
        """Those of ``wanted`` that are not in this location, or in none."""
        return [name for name in wanted if not self.has(name, location)]

    def ahead(self, location: str, required: Iterable[str], *, first: int, segment_size: int) -> list[str]:
        """Files of this location, from segment ``first`` on, that not all of the ``required`` ones have."""
        needed = set(required)
        return [
            name
            for name, file in self.files.items()
            if location in file.locations
            and not needed <= {*file.locations}
            and (file.name.kind is not WalKind.SEGMENT or file.name.number(segment_size) >= first)
        ]

    def of_kind(self, kind: WalKind, timeline: int | None = None) -> list[ArchivedFile]:
        """Files of one kind (of one timeline), by name."""
        return [
            file
            for file in self.files.values()
            if file.name.kind is kind and (timeline is None or file.name.timeline == timeline)
        ]

    @property
    def timelines(self) -> list[int]:
        """Timelines of which there is any file, ascending."""
        return sorted({file.name.timeline for file in self.files.values()})


def _add(found: dict[str, ArchivedFile], infos: Iterable[ObjectInfo], location: str) -> None:
    for info in infos:
        match = _KEY.fullmatch(info.key)
        name = match_wal_name(match[3]) if match else None
        if match is None or name is None or not match[3].startswith(match[2]):
            continue  # readers ignore names that they do not know
        known = found.get(match[3])
        if known is None:
            found[match[3]] = ArchivedFile(name, info.size, info.modified, (location,))
        else:
            found[match[3]] = dataclasses.replace(known, locations=(*known.locations, location))


def system_identifiers(repository: Repository) -> list[int]:
    """Those that have WAL in any location that answers, ascending. Raises LocationError when none does."""
    found: set[int] = set()
    errors: list[LocationError] = []
    for location in repository.locations:
        try:
            for info in location.list("wal/"):
                if match := _KEY.fullmatch(info.key):
                    found.add(int(match[1]))
        except LocationError as error:
            errors.append(error)
    if errors and len(errors) == len(repository.locations):
        raise errors[0]
    return sorted(found)


def backup_segments(info: PostgresInfo) -> list[str]:
    """The segments without which a backup cannot be restored at all."""
    return list(
        segment_names(info.timeline, parse_lsn(info.start_lsn), parse_lsn(info.stop_lsn), info.wal_segment_size)
    )


def missing_for_backup(index: WalIndex, info: PostgresInfo, *, location: str | None = None) -> list[str]:
    """Those of ``backup_segments`` that are not in this location, or in none."""
    return index.missing(backup_segments(info), location=location)


def missing_segments(
    index: WalIndex,
    history: TimelineHistory,
    start_lsn: int,
    stop_lsn: int | None,
    segment_size: int,
    *,
    location: str | None = None,
) -> list[Gap]:
    """The gaps on the way to ``history.timeline`` from ``start_lsn`` to before ``stop_lsn``.

    None for the stop means up to the newest archived segment on that way. A ``.partial`` file never stands for its
    segment. A segment with a switch of timelines in it is looked for on the new timeline, as recovery does first.
    """
    first = segment_number(start_lsn, segment_size)
    if stop_lsn is not None:
        last = max(first, last_segment_number(stop_lsn, segment_size))
    else:
        last = _newest_on_the_way(index, history, segment_size, location)
    gaps: list[Gap] = []
    run: list[str] = []
    for number in range(first, last + 1):
        name = segment_name(history.timeline_of_segment(number, segment_size), number, segment_size)
        if not index.has(name, location):
            run.append(name)
        elif run:
            gaps.append(Gap(run[0], run[-1], len(run)))
            run = []
    if run:
        gaps.append(Gap(run[0], run[-1], len(run)))
    return gaps


def _newest_on_the_way(index: WalIndex, history: TimelineHistory, segment_size: int, location: str | None) -> int:
    """The number of the newest segment that lies on the way; -1 when there is none."""
    numbers = [-1]
    for file in index.of_kind(WalKind.SEGMENT):
        if not file.name.fits(segment_size) or (location is not None and location not in file.locations):
            continue
        number = file.name.number(segment_size)
        if history.timeline_of_segment(number, segment_size) == file.name.timeline:
            numbers.append(number)
    return max(numbers)


def reachable(
    index: WalIndex,
    history: TimelineHistory,
    start_lsn: int,
    segment_size: int,
    *,
    location: str | None = None,
) -> Reach:
    """How far a recovery from ``start_lsn`` on the way to ``history.timeline`` gets without a gap."""
    last: str | None = None
    end = start_lsn
    for name, number in _way(history, start_lsn, segment_size):
        if not index.has(name, location):
            break
        last, end = name, segment_start(number + 1, segment_size)
    return Reach(last, end)


def _way(history: TimelineHistory, start_lsn: int, segment_size: int) -> Iterator[tuple[str, int]]:
    number = segment_number(start_lsn, segment_size)
    while True:
        yield segment_name(history.timeline_of_segment(number, segment_size), number, segment_size), number
        number += 1


def read_history(repository: Repository, system_identifier: int, timeline: int) -> TimelineHistory:
    """The archived history of a timeline. Timeline 1 has none, and nothing is read for it.

    Needs the identity. Raises ObjectMissing, DamageError or LocationError when no location gives it, and
    SourceError ``history-format`` when PostgreSQL would not accept it.
    """
    if timeline == 1:
        return TimelineHistory(1)
    name = history_name(timeline)

    def read(location: Location) -> bytes:
        return b"".join(WalReader.archived(repository.keys, location, system_identifier, name).chunks())

    content = first_good(repository.locations, name, read, repository.breaker)
    return parse_history(content.decode("utf-8", "surrogateescape"), timeline)


def histories(repository: Repository, index: WalIndex) -> dict[int, TimelineHistory]:
    """The histories of all timelines in the archive. Raises as ``read_history``, and the first that fails counts.

    A timeline without history file is left out: no recovery can follow it.
    """
    found: dict[int, TimelineHistory] = {}
    for timeline in index.timelines:
        if timeline == 1 or index.has(history_name(timeline)):
            found[timeline] = read_history(repository, index.system_identifier, timeline)
    return found
