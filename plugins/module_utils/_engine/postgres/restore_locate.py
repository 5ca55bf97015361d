# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading the archive for a restore point or a transaction, from the newest backup back in time."""

from __future__ import annotations

import typing as t

from ..errors import DamageError, ObjectMissing, TargetError
from ..repository.packs import first_good
from .archive_index import WalIndex
from .archive_object import WalReader
from .lsn import segment_number
from .recovery import NAME, RecoveryTarget
from .restore_plan import postgres, stop_lsn
from .restore_search import Found, WalSearch
from .wal import WalKind, segment_name

if t.TYPE_CHECKING:
    from ..events import Reporter
    from ..repository.catalog import BackupRecord
    from ..repository.repository import Repository
    from ..storage.base import Location
    from .streamed import Tails
    from .timeline import TimelineHistory


class Locator:
    """Finds the record that a goal names, on the way to one timeline."""

    def __init__(
        self,
        repository: Repository,
        index: WalIndex,
        tails: Tails,
        history: TimelineHistory,
        segment_size: int,
        reporter: Reporter,
    ) -> None:
        self._repository = repository
        self._index = index
        self._tails = tails
        self._history = history
        self._size = segment_size
        self._reporter = reporter

    def locate(self, goal: RecoveryTarget, backups: t.Iterable[BackupRecord]) -> Found:
        """The first such record behind the newest of these backups that has one behind it.

        PostgreSQL stops at the first one that it meets, so a name that was given twice means the earlier
        one, unless a backup lies between them.

        Raises TargetError, id ``restore-point-not-found``; LocationError when the archive does not answer.
        """
        end = self._newest() + 1  # of which something may have been streamed
        searched_from: str | None = None
        for backup in sorted(backups, key=stop_lsn, reverse=True):
            start = segment_number(stop_lsn(backup), self._size)
            searched_from = postgres(backup).stop_lsn
            found = [each for each in self._search(goal, start, end) if each.lsn >= stop_lsn(backup)]
            if found:
                if len(found) > 1:
                    self._reporter.warn(f"{goal} is there {len(found)} times; this is the one of {found[0].time}")
                return found[0]
            # The segment in which this backup stopped was searched from its stop on only.
            end = start
        raise TargetError(
            f"{goal} is not in the WAL archive"
            + (f" (searched from {searched_from} on timeline {self._history.timeline})" if searched_from else ""),
            hint="Is it newer than the newest archived segment? Then SELECT pg_switch_wal() on the living cluster. "
            "A transaction that was prepared is only found with --backup ID. Nothing was changed.",
            id="restore-point-not-found",
        )

    def _newest(self) -> int:
        """The number of the newest segment on the way; -1 when there is none."""
        numbers = [
            file.name.number(self._size) for file in self._index.of_kind(WalKind.SEGMENT) if file.name.fits(self._size)
        ]
        return max(numbers, default=-1)

    def _search(self, goal: RecoveryTarget, first: int, last: int) -> list[Found]:
        """All records in these segments. What is missing or damaged interrupts the search."""
        found: list[Found] = []
        search = self._new_search(goal)
        for number in range(first, last + 1):
            read = self._read(number)
            if read is None:
                search = self._new_search(goal)
                continue
            content, timeline = read
            # Behind the point where a timeline was left its own segment has what the way does not.
            met = search.feed(number, content)
            found += [each for each in met if self._history.timeline_at(each.lsn) <= timeline]
            self._reporter.advance(len(content))
        return found

    def _new_search(self, goal: RecoveryTarget) -> WalSearch:
        name = goal.value if goal.kind == NAME else None
        return WalSearch(self._size, name=name, xid=goal.xid)

    def _read(self, number: int) -> tuple[bytes, int] | None:
        """A segment's content and the timeline it is of: as recovery does, the youngest that has it."""
        start = number * self._size
        for span in reversed(self._history.spans()):
            on_way = segment_number(span.begin, self._size) <= number and (span.end is None or start < span.end)
            name = segment_name(span.timeline, number, self._size)
            if not on_way or not self._index.has(name):
                continue
            try:
                return self._content(name), span.timeline
            except (DamageError, ObjectMissing) as error:
                self._reporter.warn(f"WAL segment {name} was not searched: {error.message}")
                return None
        return self._read_streamed(number)

    def _read_streamed(self, number: int) -> tuple[bytes, int] | None:
        timeline = self._history.timeline_of_segment(number, self._size)
        name = segment_name(timeline, number, self._size)
        try:
            content = self._tails.content(name)
        except (DamageError, ObjectMissing) as error:
            self._reporter.warn(f"what was streamed of WAL segment {name} was not searched: {error.message}")
            return None
        return (content, timeline) if content is not None else None

    def _content(self, name: str) -> bytes:
        identifier = self._index.system_identifier

        def read(location: Location) -> bytes:
            return b"".join(WalReader.archived(self._repository.keys, location, identifier, name).chunks())

        return first_good(self._repository.locations, name, read, self._repository.breaker)
