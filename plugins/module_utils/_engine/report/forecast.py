# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When a location is full: the present rhythm of backups goes on, and the retention rules are applied to it. Pure.

Growth cannot be read from what lies there, because what was deleted is not there any more; and a line drawn through
it would have a repository grow for ever that its rules hold at one size. So the future is played through: every kind
of backup of every source comes as often and is as large as the newest of them were, WAL comes as fast as in the last
days, and from time to time the planner that ``prune`` uses says what goes. docs/capacity.md explains it to users.

Where something is unknown it is taken for larger: a pack stays as a whole while one backup needs a part of it, and an
incremental that is still to come needs all that its parents wrote.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import typing as t
from datetime import datetime, timedelta

from .. import retention

if t.TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

NEWEST_BACKUPS: t.Final = 8
"""So many tell how often backups of a kind come and how large they are."""
HORIZON: t.Final = timedelta(days=730)
_DAY: t.Final = timedelta(days=1)
_STRIDES: t.Final = ((21 * _DAY, _DAY), (200 * _DAY, 7 * _DAY))
_LONGEST_STRIDE: t.Final = 28 * _DAY
"""Up to when it is looked how often, and how often after that."""
_OFTENEST: t.Final = timedelta(minutes=15)
_MOST_BACKUPS: t.Final = 3000
"""Where rules keep more, it is not looked ahead any farther: planning takes its time."""
LEAST_HISTORY: t.Final = timedelta(days=1)
"""With less nothing is said about the future."""


@dataclasses.dataclass(frozen=True, slots=True)
class Past:
    """One backup there is. ``owners``: the backups in whose packs it lies, itself included."""

    candidate: retention.Candidate
    owners: frozenset[str]


@dataclasses.dataclass(frozen=True, slots=True)
class Series:
    """Backups of one kind and source, as they come. ``stored``: bytes of each, ``objects``: packs of each."""

    source: str
    kind: retention.Kind
    every: timedelta
    stored: int
    objects: float
    newest: datetime
    system_identifier: int | None
    verified: bool

    @property
    def per_day(self) -> float:
        """Bytes."""
        return self.stored * (_DAY / self.every)


@dataclasses.dataclass(frozen=True, slots=True)
class Wal:
    """The archive of one system identifier in one location: bytes by day since 1970, and bytes to come each day."""

    days: Mapping[int, int]
    per_day: float


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """What one location holds now. ``fixed``: bytes of what no rule will take away."""

    packs: Mapping[str, int]
    wal: Mapping[int, Wal]
    fixed: int = 0

    @property
    def used(self) -> int:
        return self.fixed + sum(self.packs.values()) + sum(sum(each.days.values()) for each in self.wal.values())


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One moment of the future."""

    at: datetime
    held: frozenset[str]
    """The backups of the past whose packs are still there."""
    new_bytes: int
    """Of backups that are still to come."""
    wal_from: Mapping[int, datetime]
    """By system identifier, from when on WAL is still there; all of it where none is named."""


@dataclasses.dataclass(frozen=True, slots=True)
class Forecast:
    """``state``: ``full``, ``fills``, ``does-not-fill`` (before ``until``), or ``unknown``."""

    state: t.Literal["full", "fills", "does-not-fill", "unknown"]
    full_at: datetime | None = None
    """With the retention rules carried out; on that day, or up to a stride of the look ahead before it."""
    full_at_unpruned: datetime | None = None
    """If nothing were deleted: not before this."""
    until: datetime | None = None
    """How far it was looked ahead."""
    growth_per_day: float | None = None
    """Bytes, on average of the next 30 days, with what goes taken off."""
    peak: int | None = None
    """Most bytes that are used before ``until``."""
    why: str = ""
    """Why nothing is known."""


def series(past: Iterable[Past], objects: Mapping[str, int], now: datetime) -> list[Series]:
    """The kinds of backups that go on. ``objects``: the number of packs each backup wrote.

    One that has missed three of its turns has ended. A single backup is expected again after as long as it is old,
    but not more often than daily.
    """
    groups: dict[tuple[str, str], list[retention.Candidate]] = {}
    verified = {each.candidate.source for each in past if each.candidate.verified}
    for each in past:
        if each.candidate.finished_at <= now:
            groups.setdefault((each.candidate.source, each.candidate.kind), []).append(each.candidate)
    found = []
    for group in groups.values():
        newest = sorted(group, key=lambda backup: backup.finished_at)[-NEWEST_BACKUPS:]
        last = newest[-1]
        every = _interval([backup.finished_at for backup in newest], now)
        if now - last.finished_at > 3 * every + _DAY:
            continue
        found.append(
            Series(
                last.source,
                last.kind,
                every,
                round(statistics.fmean(backup.stored_bytes for backup in newest)),
                statistics.fmean(objects.get(backup.backup_id, 0) for backup in newest),
                last.finished_at,
                last.system_identifier,
                last.source in verified,
            )
        )
    return found


def _interval(times: Sequence[datetime], now: datetime) -> timedelta:
    """The median of the newest gaps: those farther back are wider only because retention thinned them out."""
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    if not gaps:
        return max(now - times[-1], _DAY)
    return max(statistics.median_low(gaps), _OFTENEST)


def _stride(ahead: timedelta) -> timedelta:
    for until, stride in _STRIDES:
        if ahead < until:
            return stride
    return _LONGEST_STRIDE


def play(past: Iterable[Past], rhythm: Sequence[Series], policy: retention.Policy, now: datetime) -> Iterator[Step]:
    """The future in steps, of a day at first and later of a week and more, to the horizon; ``now`` is the first."""
    stage = _Stage(past, rhythm, policy, now)
    at = now
    while at <= now + HORIZON and (at == now or stage.size <= _MOST_BACKUPS):
        yield stage.step(at)
        before, at = at, at + _stride(at - now)
        # What went in between is gone, and must not be counted with what goes now.
        if at - policy.grace - _DAY > before:
            stage.step(at - policy.grace - _DAY)


class _Stage:
    """The backups there are at some moment of the future."""

    def __init__(self, past: Iterable[Past], rhythm: Sequence[Series], policy: retention.Policy, now: datetime) -> None:
        self._policy = policy
        self._rhythm = [_Clock(each, now) for each in rhythm]
        self._candidates: dict[str, retention.Candidate] = {}
        self._owners: dict[str, frozenset[str]] = {}
        self._leaving: list[tuple[datetime, str]] = []
        self._chains: dict[str, _Chain] = {}
        self._made: dict[str, tuple[_Chain, int]] = {}
        self._for_ever = 0
        for each in sorted(past, key=lambda each: each.candidate.finished_at):
            candidate = each.candidate
            self._candidates[candidate.backup_id] = candidate
            self._owners[candidate.backup_id] = each.owners
            if candidate.kind in retention.PHYSICAL:
                self._chains[candidate.source] = _Chain(each.owners)

    @property
    def size(self) -> int:
        return len(self._candidates)

    def step(self, at: datetime) -> Step:
        coming = [(moment, number) for number, clock in enumerate(self._rhythm) for moment in clock.until(at)]
        for moment, number in sorted(coming):
            self._add(self._rhythm[number].series, moment)
        plan = retention.plan(self._candidates.values(), self._policy, at)
        for backup in plan.deletes:
            del self._candidates[backup.backup_id]
            self._leaving.append((at + self._policy.grace, backup.backup_id))
        # What goes now is still there now: it is marked first, and goes when the grace has passed.
        self._leaving = [(gone, name) for gone, name in self._leaving if gone >= at]
        present = [*self._candidates, *(name for _unused, name in self._leaving)]
        return Step(at, *self._held(present), self._wal_from())

    def _add(self, of: Series, moment: datetime) -> None:
        if of.kind not in self._policy.rules:  # they all stay: nothing to plan
            self._for_ever += of.stored
            return
        name = f"{len(self._made)} to come"
        self._candidates[name] = retention.Candidate(
            backup_id=name,
            source=of.source,
            kind=of.kind,
            finished_at=moment,
            status="ok",
            verified=of.verified,
            stored_bytes=of.stored,
            system_identifier=of.system_identifier,
        )
        chain = self._chains.get(of.source) if of.kind == "incremental" else None
        if chain is None:
            chain = _Chain(frozenset())
            if of.kind in retention.PHYSICAL:
                self._chains[of.source] = chain
        chain.sizes.append(of.stored)
        self._made[name] = chain, len(chain.sizes)

    def _held(self, present: Iterable[str]) -> tuple[frozenset[str], int]:
        held: set[str] = set()
        lengths: dict[int, tuple[_Chain, int]] = {}
        for name in present:
            if name not in self._made:
                held |= self._owners[name]
                continue
            chain, length = self._made[name]
            held |= chain.owners
            lengths[id(chain)] = chain, max(length, lengths.get(id(chain), (chain, 0))[1])
        new = sum(sum(chain.sizes[:length]) for chain, length in lengths.values())
        return frozenset(held), new + self._for_ever

    def _wal_from(self) -> dict[int, datetime]:
        """From the oldest physical backup on. One of an unknown system may need any."""
        found: dict[int, datetime] = {}
        for backup in self._candidates.values():
            system = backup.system_identifier
            if backup.kind in retention.PHYSICAL and system is not None:
                found[system] = min(backup.finished_at, found.get(system, backup.finished_at))
        return found


@dataclasses.dataclass(slots=True)
class _Chain:
    """A full backup and the incrementals after it, each of which needs all before it."""

    owners: frozenset[str]
    sizes: list[int] = dataclasses.field(default_factory=list)


class _Clock:
    """When the backups of a series come. One that is due comes soon, and not now."""

    def __init__(self, of: Series, now: datetime) -> None:
        self.series = of
        self._next = max(of.newest + of.every, now + timedelta(minutes=1))

    def until(self, at: datetime) -> Iterator[datetime]:
        while self._next <= at:
            yield self._next
            self._next += self.series.every


def used(place: Place, step: Step, now: datetime) -> int:
    """Bytes in the location at that moment. ``now``: when it was counted."""
    total = place.fixed + step.new_bytes
    total += sum(size for owner, size in place.packs.items() if owner in step.held)
    for system, archive in place.wal.items():
        # A day early: a backup needs WAL from before it ended.
        start = step.wal_from.get(system)
        first = None if start is None else int((start - _DAY).timestamp() // _DAY.total_seconds())
        total += sum(size for day, size in archive.days.items() if first is None or day >= first)
        since = now if start is None else max(now, start - _DAY)
        total += round(archive.per_day * ((step.at - since) / _DAY))
    return total


def forecast(
    place: Place,
    steps: Sequence[Step],
    *,
    room: int | None,
    per_day: float,
    history: timedelta,
    now: datetime,
) -> Forecast:
    """``room``: bytes that may still be written; ``per_day``: those written each day; ``history``: known so far."""
    if room == 0:
        return Forecast("full", full_at=now, full_at_unpruned=now)
    if history < LEAST_HISTORY:
        return Forecast("unknown", why="there is less than a day of history")
    sizes = [used(place, step, now) for step in steps]
    after = next((index for index, step in enumerate(steps) if step.at >= now + timedelta(days=30)), len(steps) - 1)
    days = max((steps[after].at - now) / _DAY, 1.0)
    growth = (sizes[after] - place.used) / days
    until, peak = steps[-1].at, max(sizes)
    if room is None:
        return Forecast("unknown", until=until, growth_per_day=growth, peak=peak, why="the location does not say")
    limit = place.used + room
    full_at = next((step.at for step, size in zip(steps, sizes, strict=True) if size > limit), None)
    return Forecast(
        "does-not-fill" if full_at is None else "fills",
        full_at=full_at,
        full_at_unpruned=_linear(room, per_day, now),
        until=until,
        growth_per_day=growth,
        peak=peak,
    )


def _linear(room: int, per_day: float, now: datetime) -> datetime | None:
    days = room / per_day if per_day > 0 else float("inf")
    return now + timedelta(days=days) if days < HORIZON / _DAY else None
