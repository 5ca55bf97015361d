# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Object locks that last as long as backups are kept: what has to be locked until when, and seeing to it.

A new object is locked for a fixed time when it is created. What is kept longer, and above all the packs of earlier
backups that later ones refer to, must be locked anew, by somebody who is not the host that made them.
docs/object-lock.md explains it to users.
"""

from __future__ import annotations

import bisect
import concurrent.futures
import dataclasses
import datetime as dt
import itertools
import typing as t

from ..errors import ConfigError, LocationError
from ..retention import NO_END
from ..storage.s3.lock import COMPLIANCE, Lock, lengthen, read_lock
from ..storage.s3.versions import histories
from . import names
from .lock_state import LockState
from .model import pack_names

if t.TYPE_CHECKING:
    import pathlib

    from ..retention import Plan
    from ..storage.s3.location import S3Location
    from ..storage.s3.versions import History, Version
    from .catalog import BackupRecord
    from .repository import Repository

DEFAULT_AT_LEAST = dt.timedelta(days=7)
DEFAULT_AT_MOST = dt.timedelta(days=365)
_THREADS = 16
_BATCH = 2000
_ALWAYS = ("repository.json", "keys/", "wraps/")


@dataclasses.dataclass(frozen=True, slots=True)
class Terms:
    """How long to lock. Whatever is kept has at least ``at_least`` left after every run, and at most ``at_most``.

    What is lengthened gets ``at_least`` on top, so that a job that runs every day touches an object once in that time.
    """

    at_least: dt.timedelta = DEFAULT_AT_LEAST
    at_most: dt.timedelta = DEFAULT_AT_MOST

    def __post_init__(self) -> None:
        if self.at_most < 2 * self.at_least:
            raise ConfigError(
                "the longest time of a lock must be twice the shortest one, or more",
                hint="For example --at-least 7d --at-most 1y.",
            )

    def wanted(self, kept_until: dt.datetime | None, retain: dt.timedelta, now: dt.datetime) -> dt.datetime:
        """Until when an object has to be locked that is kept until then at least (None: not known)."""
        least = now + self.at_least
        if kept_until == NO_END:
            return max(least, now + retain)
        return min(max(least, kept_until or least), now + self.at_most - self.at_least)


@dataclasses.dataclass(slots=True)
class LockResult:
    """One location. Objects that belong to backups which the retention plan keeps, and their WAL."""

    objects: int = 0
    short: int = 0
    """Locked for less time than they are kept, or not at all, before anything was done."""
    unlocked: int = 0
    """Of them: never locked at all."""
    lengthened: int = 0
    """Or would be, with a dry run."""
    hidden: int = 0
    """They are deleted: a marker hides them."""
    missing: int = 0
    """There is no version of them."""
    overwritten: int = 0
    """They have several versions: somebody wrote over them."""
    least_until: dt.datetime | None = None
    """The earliest end of a lock, after what was done; None when nothing is locked."""
    least_object: str | None = None
    requests: dict[str, int] = dataclasses.field(default_factory=dict)

    def as_dict(self) -> dict[str, t.Any]:
        least = None if self.least_until is None else self.least_until.isoformat(timespec="seconds")
        return {**dataclasses.asdict(self), "least_until": least}

    def saw(self, key: str, until: dt.datetime) -> None:
        if self.least_until is None or until < self.least_until:
            self.least_until, self.least_object = until, key


class Wanted:
    """Until when each object of a location is kept at least: ``backups`` with that time; None: not known."""

    def __init__(self, backups: t.Iterable[tuple[BackupRecord, dt.datetime | None]]) -> None:
        self.objects: dict[str, dt.datetime | None] = {}
        self.longest: dt.datetime | None = None
        starts: dict[int, list[tuple[str, dt.datetime | None]]] = {}
        for record, until in backups:
            self.longest = _later(self.longest, until)
            for name in (names.manifest(record.source, record.id), *pack_names(record.header)):
                self.objects[name] = _later(self.objects.get(name), until)
            postgres = record.header.postgres
            if postgres is not None:
                starts.setdefault(int(postgres.system_identifier), []).append((postgres.wal_start[8:24], until))
        self._wal = {system: _running_latest(found) for system, found in starts.items()}

    def find(self, key: str) -> tuple[bool, dt.datetime | None]:
        """Whether an object is needed, and until when at least."""
        if key in self.objects:
            return True, self.objects[key]
        if key.startswith(_ALWAYS):
            return True, self.longest
        parts = key.split("/")
        if len(parts) != 4 or parts[0] != "wal" or not parts[1].isdigit() or int(parts[1]) not in self._wal:
            return False, None
        positions, ends = self._wal[int(parts[1])]
        if parts[3].endswith(".history"):
            return True, ends[-1]
        # Every backup that begins before it can be rolled forward over it.
        number = bisect.bisect_right(positions, parts[3][8:24])
        return (True, ends[number - 1]) if number else (False, None)


def _later(one: dt.datetime | None, other: dt.datetime | None) -> dt.datetime | None:
    return max(filter(None, (one, other)), default=None)


def _running_latest(
    starts: list[tuple[str, dt.datetime | None]],
) -> tuple[list[str], list[dt.datetime | None]]:
    ordered = sorted(starts, key=lambda pair: pair[0])
    return [start for start, _unused in ordered], list(itertools.accumulate((until for _s, until in ordered), _later))


def wanted_in(location_name: str, records: t.Iterable[BackupRecord], plan: Plan) -> Wanted:
    """What the plan keeps of one location."""
    kept = {decision.backup_id: decision.until for decision in plan.decisions if decision.keep}
    return Wanted((each, kept[each.id]) for each in records if each.id in kept and location_name in each.locations)


def lockable(repository: Repository) -> list[S3Location]:
    """The locations that are configured with Object Lock. Raises ConfigError when there is none."""
    from ..storage.s3.location import S3Location

    found = [
        place
        for place in repository.locations
        if isinstance(place, S3Location) and place.options.object_lock is not None
    ]
    if not found and not repository.lost:
        raise ConfigError(
            "no location has an object lock in the configuration",
            hint="`object_lock: {mode: governance, retain: 30d}` in an s3 location whose bucket was made for it.",
            id="no-object-lock",
        )
    return found


class Locker:
    """Looks at the locks of one location, and lengthens them. Only ever lengthens, whatever it is told."""

    def __init__(
        self,
        location: S3Location,
        wanted: Wanted,
        terms: Terms,
        *,
        state: pathlib.Path,
        dry_run: bool,
    ) -> None:
        lock = location.options.object_lock
        if lock is None:
            raise ConfigError(f"location {location.name!r} has no object lock in the configuration")
        self._calls = location.calls
        self._wanted = wanted
        self._terms = terms
        self._dry_run = dry_run
        self._mode = lock.mode.upper()
        self._retain = lock.retain
        self._now = dt.datetime.fromtimestamp(location.now(), dt.UTC)
        # Under governance others may shorten a lock: there nothing is known but what the store says now.
        self._state = LockState(state, location.name, remember=self._mode == COMPLIANCE)
        self.done = LockResult()

    def run(self) -> LockResult:
        """Everything in the location, once. Raises LocationError; what was lengthened stays so."""
        before = self._calls.counts()
        unseen = set(self._wanted.objects)
        try:
            with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
                work = self._work(unseen)
                while batch := list(itertools.islice(work, _BATCH)):
                    for (version, _until), lock in zip(batch, pool.map(self._treat, batch), strict=True):
                        self._note(version, lock)
        finally:
            after = self._calls.counts()
            self.done.requests = {
                kind: count - before.get(kind, 0) for kind, count in after.items() if count > before.get(kind, 0)
            }
        self.done.missing += len(unseen)
        self._state.save(self._now, self.done.least_until, self.done.least_object)
        return self.done

    def _work(self, unseen: set[str]) -> t.Iterator[tuple[Version, dt.datetime]]:
        for history in histories(self._calls, ""):
            key = history[0].key
            needed, kept_until = self._wanted.find(key)
            unseen.discard(key)
            if not needed:
                continue
            versions = self._needed(history)
            until = self._terms.wanted(kept_until, self._retain, self._now)
            yield from ((version, until) for version in versions)

    def _needed(self, history: History) -> list[Version]:
        """All versions of an object that is there: the first is the true one, the last the visible one.

        Deleted WAL may well be: retention let it go. A manifest or a pack that a kept backup needs may not: what is
        below its marker is locked for longer, too, or it would be gone for good before anybody has seen to it.
        """
        versions = list(itertools.takewhile(lambda version: not version.marker, history))
        self.done.objects += bool(versions)
        self.done.overwritten += len(versions) > 1
        if versions or history[0].key not in self._wanted.objects:
            return versions
        self.done.hidden += 1
        return [version for version in history if not version.marker]

    def _treat(self, what: tuple[Version, dt.datetime]) -> tuple[Lock | None, Lock | None]:
        """The lock that was found, and the one after."""
        version, until = what
        known = self._state.until(version.key, version.id)
        if known is not None and known >= until:
            lock = Lock(COMPLIANCE, known)
            return lock, lock
        old = read_lock(self._calls, version)
        if old is not None and old.until >= until:
            return old, old
        new = Lock(self._mode, (until + self._terms.at_least).replace(microsecond=0))
        if not self._dry_run:
            lengthen(self._calls, version, old, new)
        return old, new

    def _note(self, version: Version, locks: tuple[Lock | None, Lock | None]) -> None:
        old, new = locks
        if old is not new:
            self.done.short += 1
            self.done.unlocked += old is None
            self.done.lengthened += 1
        held = old if self._dry_run else new
        if held is not None:
            self.done.saw(version.key, held.until)
            self._state.remember(version.key, version.id, held.until)


def worries(result: LockResult, terms: Terms, now: dt.datetime) -> list[str]:
    """What a person should look at, after a run or a dry run."""
    found = []
    if result.unlocked:
        found.append(f"{result.unlocked} objects of kept backups were not locked at all")
    if result.hidden or result.missing:
        found.append(
            f"{result.hidden + result.missing} objects of kept backups are gone ({result.hidden} hidden by deletion "
            "markers): look with --as-of, and at who may delete"
        )
    if result.overwritten:
        found.append(
            f"{result.overwritten} objects were written over: somebody else has credentials that may write. The first "
            "version of each is what counts"
        )
    if result.least_until is not None and result.least_until < now + terms.at_least / 2:
        found.append(
            f"the lock of {result.least_object} ends at {result.least_until.isoformat(timespec='seconds')}: "
            "let `cryobackup lock extend` run every day"
        )
    return found


def run_locker(locker: Locker, errors: dict[str, LocationError], name: str) -> LockResult:
    """A location that fails does not keep the others from being looked at."""
    try:
        return locker.run()
    except LocationError as error:
        errors[name] = error
        return locker.done
