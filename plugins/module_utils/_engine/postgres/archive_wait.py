# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting until WAL is in the archive: for a backup, which is none without it, and for ``check``."""

from __future__ import annotations

import dataclasses
import os
import time
import typing as t

from ..errors import CryoError, KeyFileError, RepositoryError
from ..repository import names
from .archive_object import look_at_wal

if t.TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from ..crypto.keys import KeyRing
    from ..storage.base import Location
    from .connection import Connection

_GLANCE_SECONDS = 0.02
_SHORTEST_PAUSE_SECONDS = 0.02
_SHORTEST_PAUSE_WITH_GLANCES_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 5.0
_OPTIONAL_GRACE_SECONDS = 10.0
"""How much longer to wait for optional locations: what they lack by then they get when they are healed."""
_NAMES_IN_MESSAGE = 3


class WalNotArchived(RepositoryError):
    id = "wal-not-archived"


@dataclasses.dataclass(frozen=True, slots=True)
class WalWait:
    missing: dict[str, tuple[str, ...]]
    """Optional locations, and the segments they lack."""
    failed: dict[str, CryoError]
    """Optional locations that do not answer, or hold a damaged segment."""
    seconds: float


def wait_for_wal(
    locations: Sequence[Location],
    system_identifier: int,
    segments: Iterable[str],
    *,
    timeout: float,
    keys: KeyRing | None = None,
    explain: Callable[[], str] | None = None,
    glance: Callable[[str], bool] | None = None,
) -> WalWait:
    """Wait until every one of ``segments`` is in every one of ``locations``, at most ``timeout`` seconds.

    ``glance``: a cheap hint whether a segment was archived (``archived_here``). Locations are asked rarely until it
    says so, and at once then: every look into an object store is a request. They alone decide.

    With ``keys`` the header of each object is authenticated, too. Optional locations may lack something in the end,
    at the time-out or 10 seconds after the required ones have everything: the result says which and what.

    Raises WalNotArchived when a required one does, or, where none is required, all of them do; ``explain`` then
    gives the hint, for instance ``archiver_report``.
    """
    names_of_segments = tuple(segments)
    wait = _Wait(locations, system_identifier, names_of_segments, keys)
    began = time.monotonic()
    complete_at: float | None = None
    hint = _Hint(glance, names_of_segments)
    pause = _SHORTEST_PAUSE_WITH_GLANCES_SECONDS if glance else _SHORTEST_PAUSE_SECONDS
    hint.wait(min(pause, timeout))
    while not wait.complete():
        left = began + timeout - time.monotonic()
        if wait.required_complete():
            complete_at = complete_at or time.monotonic()
            left = min(left, complete_at + _OPTIONAL_GRACE_SECONDS - time.monotonic())
        if left <= 0:
            break
        if not hint.wait(min(pause, left)):
            time.sleep(min(pause, left))
        pause = min(pause * 1.2, _LONGEST_PAUSE_SECONDS)
    missing = {name: lacks for name, lacks in wait.missing.items() if lacks}
    short = [place for place in locations if place.name in missing]
    if any(place.required for place in short) or (short and len(short) == len(locations)):
        raise _not_archived(wait, short, timeout, explain)
    return WalWait(missing, wait.failed, time.monotonic() - began)


class _Hint:
    """Ends a pause when the last segment was archived. Good for one time: what it says need not be true."""

    def __init__(self, glance: Callable[[str], bool] | None, segments: Sequence[str]) -> None:
        self._glance = glance if segments else None
        self._last = segments[-1] if segments else ""

    def wait(self, seconds: float) -> bool:
        """Wait so long at most. False, at once, when there is no hint to wait for (any more)."""
        if self._glance is None:
            return False
        end = time.monotonic() + seconds
        while not self._glance(self._last):
            left = end - time.monotonic()
            if left <= 0:
                return True
            time.sleep(min(_GLANCE_SECONDS, left))
        self._glance = None
        return True


def archived_here(data_directory: Path) -> Callable[[str], bool]:
    """Whether the cluster's own archiver says that a segment is archived: it then names it so (``pgarch.c``)."""
    status = data_directory / "pg_wal" / "archive_status"
    return lambda segment: os.path.exists(status / f"{segment}.done")


class _Wait:
    """What each location lacks, as last seen."""

    def __init__(
        self,
        locations: Sequence[Location],
        system_identifier: int,
        segments: tuple[str, ...],
        keys: KeyRing | None,
    ) -> None:
        self._locations = locations
        self._system_identifier = system_identifier
        self._keys = keys
        self.missing = {location.name: segments for location in locations}
        self.failed: dict[str, CryoError] = {}

    def complete(self) -> bool:
        """Look for all that was missing. True when nothing is missing any more."""
        for location in self._locations:
            if not self.missing[location.name]:
                continue
            self.failed.pop(location.name, None)
            try:
                self._look(location)
            except (RepositoryError, KeyFileError) as error:
                self.failed[location.name] = error
        return not any(self.missing.values())

    def required_complete(self) -> bool:
        """True when there are required locations, and they lack nothing."""
        required = [location.name for location in self._locations if location.required]
        return bool(required) and not any(self.missing[name] for name in required)

    def _look(self, location: Location) -> None:
        segments = self.missing[location.name]
        for at, segment in enumerate(segments):
            self.missing[location.name] = segments[at:]
            # Segments are archived in their order: the later ones are not there either.
            if not self._is_there(location, segment):
                return
        self.missing[location.name] = ()

    def _is_there(self, location: Location, segment: str) -> bool:
        if self._keys is not None:
            return look_at_wal(self._keys, location, self._system_identifier, segment) is not None
        return location.stat(names.wal(self._system_identifier, segment)) is not None


def _not_archived(
    wait: _Wait, short: Sequence[Location], timeout: float, explain: Callable[[], str] | None
) -> WalNotArchived:
    parts = []
    for location in short:
        lacks = wait.missing[location.name]
        some = ", ".join(lacks[:_NAMES_IN_MESSAGE])
        more = f" and {len(lacks) - _NAMES_IN_MESSAGE} more" if len(lacks) > _NAMES_IN_MESSAGE else ""
        error = wait.failed.get(location.name)
        why = f" ({error.message})" if error else ""
        parts.append(f"location {location.name!r} lacks {some}{more}{why}")
    reason = explain() if explain else ""
    return WalNotArchived(
        f"WAL was not archived within {timeout:g} s: {'; '.join(parts)}",
        hint=f"{reason} Look at archive_command and at PostgreSQL's log; `cryobackup check` tries the whole "
        "way.".strip(),
    )


def archiver_report(connection: Connection) -> str:
    """What PostgreSQL's archiver has to say (``pg_stat_archiver``), as one sentence for a hint.

    Raises ClusterError.
    """
    failures, failed, failed_at, archived, archived_at, failing = connection.row(
        "SELECT failed_count, last_failed_wal, last_failed_time::timestamptz(0)::text,"
        " last_archived_wal, last_archived_time::timestamptz(0)::text,"
        " coalesce(last_failed_time > coalesce(last_archived_time, '-infinity'), false)"
        " FROM pg_stat_archiver"
    )
    last = f"it archived {archived} last, at {archived_at}" if archived else "it has archived nothing yet"
    if failing:
        return f"PostgreSQL's archive_command fails: {failed} at {failed_at}, {failures} failures so far; {last}."
    return f"PostgreSQL's archiver reports no failure; {last}."
