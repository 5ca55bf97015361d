# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which backups the rules keep, why, and for how long at least: the inner part of the planner. Pure.

``retention`` makes plans of it; docs/retention.md explains the rules to users.
"""

from __future__ import annotations

import dataclasses
import typing as t
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from functools import partial

from .retention_policy import PHYSICAL, Kind, Policy, Rule, format_duration

Status = t.Literal["ok", "degraded", "partial", "damaged"]

# Best first: complete; complete, but in too few locations; something could not be read; something is broken.
_GRADES: Mapping[Status, int] = {"ok": 0, "degraded": 1, "partial": 2, "damaged": 3}

NO_END = datetime.max.replace(tzinfo=UTC)
"""As long as the policy is what it is."""

STORED_LATE = timedelta(days=1)
"""A manifest is stored when its backup ends. Later by more than this it was copied, or its time is made up."""

CLOCKS_MAY_DIFFER = timedelta(minutes=15)
"""Between the host and the storage."""


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """One committed backup, as the catalog knows it.

    ``verified``: it passed a verification of its content, or better. ``wal_start``: the name of the first
    WAL segment that a restore of it reads; None means unknown and holds all WAL. ``stored_bytes``: what its
    own packs take in one location. ``pinned_until``: a pin that counts until a backup of that source ended after that
    time. ``stored_at``: when the first location got its manifest, by that
    location's clock, which the host that made it cannot set; None: not known.
    """

    backup_id: str
    source: str
    kind: Kind
    finished_at: datetime
    status: Status
    verified: bool = False
    pinned: bool = False
    pinned_until: datetime | None = None
    start_lsn: int | None = None
    stop_lsn: int | None = None
    timeline: int | None = None
    system_identifier: int | None = None
    wal_start: str | None = None
    stored_bytes: int = 0
    stored_at: datetime | None = None

    def __post_init__(self) -> None:
        require_aware(self.finished_at, f"the end of backup {self.backup_id}")

    @property
    def postdated(self) -> bool:
        """Whether it says that it ended after it was stored."""
        return self.stored_at is not None and self.finished_at > self.stored_at + CLOCKS_MAY_DIFFER

    @property
    def backdated(self) -> bool:
        """Whether it says that it ended long before it was stored: a copy may, a new backup does not."""
        return self.stored_at is not None and self.stored_at > self.finished_at + STORED_LATE

    @property
    def received_at(self) -> datetime:
        """When it came, by the storage's clock if that is known."""
        return self.finished_at if self.stored_at is None else self.stored_at

    @property
    def proven(self) -> bool:
        """A verification that succeeded once says nothing about a backup found damaged since."""
        return self.verified and self.status != "damaged"


def require_aware(at: datetime, what: str) -> None:
    if at.utcoffset() is None:
        raise ValueError(f"{what} has no time zone: {at.isoformat()}")


class Claim(t.NamedTuple):
    """A reason why a backup stays, and until when it holds whatever is backed up meanwhile; None: no such time."""

    backup: Candidate
    reason: str
    until: datetime | None = None


Pool = Sequence[Candidate]
"""Newest first."""


def dated(backup: Candidate) -> Candidate:
    """The backup with a time that is never later than when it was stored."""
    if backup.postdated:
        return dataclasses.replace(backup, finished_at=backup.received_at)
    return backup


def newest_first(backups: t.Iterable[Candidate]) -> list[Candidate]:
    return sorted(backups, key=lambda backup: (backup.finished_at, backup.backup_id), reverse=True)


def claims(present: Pool, policy: Policy, now: datetime) -> Iterator[Claim]:
    """Everything that keeps one of these backups; pins and backups of the future are not looked at.

    A backup that was stored long after its own time takes its place at that time among its like only. For all
    others it came when it was stored: nobody can push a backup of last week out with one that is made up today.
    """
    late = {backup.backup_id for backup in present if backup.backdated}
    yield from (claim for claim in _claims_of(present, policy, now) if not late or claim.backup.backup_id in late)
    if late:
        as_stored = newest_first(
            dataclasses.replace(backup, finished_at=backup.received_at) if backup.backup_id in late else backup
            for backup in present
        )
        yield from (claim for claim in _claims_of(as_stored, policy, now) if claim.backup.backup_id not in late)


def _claims_of(present: Pool, policy: Policy, now: datetime) -> Iterator[Claim]:
    for group in groups(present, lambda backup: (backup.source, backup.kind)):
        kind = group[0].kind
        rule = policy.rules.get(kind)
        if rule is None:
            yield from (Claim(backup, f"no rule for {kind}", NO_END) for backup in group)
        else:
            yield from _holders(group, partial(_by_rule, rule=rule, zone=policy.timezone, now=now))
    for group in groups(present, lambda backup: (backup.source, backup.kind in PHYSICAL or backup.kind)):
        yield from _holders(group, partial(_numbered, name="minimum", count=policy.minimum))


def _holders(group: Pool, rules: Callable[[Pool], Iterator[Claim]]) -> Iterator[Claim]:
    """The claims of each backup in the pool of those at least as good as itself.

    They are made once more as if nothing had come after the newest verified backup: what was not verified yet
    takes no place from what was kept then.
    """
    for grade, pool in pools(group):
        held = set()
        for claim in rules(pool):
            if _GRADES[claim.backup.status] == grade:
                held.add(claim.backup.backup_id)
                yield claim
        before = _as_of_newest_proven(pool)
        for claim in rules(before) if len(before) < len(pool) else ():
            if _GRADES[claim.backup.status] == grade and claim.backup.backup_id not in held:
                yield claim._replace(reason=f"{claim.reason}, as of the newest verified")


def _as_of_newest_proven(pool: Pool) -> Pool:
    """What there was when the newest verified backup was made; all if none is verified.

    By the storage's clock too: what came later may be dated before.
    """
    proven = next((number for number, backup in enumerate(pool) if backup.proven), None)
    if proven is None:
        return pool
    return [backup for backup in pool[proven:] if backup.received_at <= pool[proven].received_at]


def pools(group: Pool) -> Iterator[tuple[int, Pool]]:
    for grade in sorted({_GRADES[backup.status] for backup in group}):
        yield grade, [backup for backup in group if _GRADES[backup.status] <= grade]


def groups(backups: Pool, key: Callable[[Candidate], Hashable]) -> list[Pool]:
    found: dict[Hashable, list[Candidate]] = {}
    for backup in backups:
        found.setdefault(key(backup), []).append(backup)
    return list(found.values())


def _by_rule(pool: Pool, rule: Rule, zone: tzinfo, now: datetime) -> Iterator[Claim]:
    """What a rule keeps of a pool of one source and kind, and what is kept under any rule."""
    yield Claim(pool[0], f"newest {pool[0].status}")
    proven = next((backup for backup in pool if backup.proven), None)
    if proven is not None:
        yield Claim(proven, "newest verified")
    if rule.keep_within is not None:
        yield from _within(pool, rule.keep_within)
    yield from _numbered(pool, "last", rule.keep_last)
    for period, count in _periods(rule):
        yield from _of_periods(pool, period, count, now.astimezone(zone))


def _within(pool: Pool, window: timedelta) -> Iterator[Claim]:
    """The backups of the window, and the physical one before: the window's first moments need it."""
    newest = newer = pool[0].finished_at
    for backup in pool:
        if newest - backup.finished_at <= window:
            yield Claim(backup, f"within {format_duration(window)}", _plus(backup.finished_at, window))
        elif backup.kind in PHYSICAL:
            # It goes when the one after it leaves the window.
            yield Claim(backup, f"start of the {format_duration(window)} recovery window", _plus(newer, window))
            return
        newer = backup.finished_at


def _plus(at: datetime, window: timedelta) -> datetime:
    return at.astimezone(UTC) + window if NO_END - at.astimezone(UTC) > window else NO_END


def _numbered(pool: Pool, name: str, count: int) -> Iterator[Claim]:
    for number, backup in enumerate(pool[:count], start=1):
        yield Claim(backup, f"{name} {number} of {count}")


@dataclasses.dataclass(frozen=True, slots=True)
class _Period:
    name: str
    of: Callable[[datetime], Hashable]
    """What names the period of a local time."""
    start: Callable[[datetime, int], datetime]
    """When the period begins that comes so many periods after that of a local time."""


def _of_periods(pool: Pool, period: _Period, count: int, now: datetime) -> Iterator[Claim]:
    """The newest of each of the last periods that have one; beside it the newest verified one of that period."""
    newest_of: dict[Hashable, Candidate] = {}
    proven_of: dict[Hashable, Candidate] = {}
    for backup in pool:
        which = period.of(backup.finished_at.astimezone(now.tzinfo))
        newest_of.setdefault(which, backup)
        if backup.proven:
            proven_of.setdefault(which, backup)
    present = period.of(now)
    for number, (which, backup) in enumerate(newest_of.items(), start=1):
        if number > count:
            return
        until = None
        if which != present:
            # One that is over keeps its newest until enough others have begun; the present one may be the first.
            until = period.start(now, count - number + (present in newest_of))
        yield Claim(backup, f"{period.name} {number} of {count}", until)
        proven = proven_of.get(which, backup)
        if proven is not backup:
            yield Claim(proven, f"{period.name} {number} of {count}, verified", until)


def _midnight(at: datetime, days: int) -> datetime:
    return datetime(at.year, at.month, at.day, tzinfo=at.tzinfo) + timedelta(days=days)


def _month(at: datetime, ahead: int, months: int) -> datetime:
    """The beginning of what has so many months, so many of them ahead."""
    number = (at.year * 12 + at.month - 1) // months * months + ahead * months
    return datetime(number // 12, number % 12 + 1, 1, tzinfo=at.tzinfo)


# With the offset, the two hours of the same name when summer time ends are two hours.
_PERIODS: Mapping[str, _Period] = {
    "keep_hourly": _Period(
        "hourly",
        lambda at: (at.date(), at.hour, at.utcoffset()),
        lambda at, ahead: at.replace(minute=0, second=0, microsecond=0).astimezone(UTC) + timedelta(hours=ahead),
    ),
    "keep_daily": _Period("daily", lambda at: at.date(), _midnight),
    "keep_weekly": _Period(
        "weekly", lambda at: at.isocalendar()[:2], lambda at, ahead: _midnight(at, 7 * ahead - at.weekday())
    ),
    "keep_monthly": _Period("monthly", lambda at: (at.year, at.month), partial(_month, months=1)),
    "keep_quarterly": _Period("quarterly", lambda at: (at.year, (at.month - 1) // 3), partial(_month, months=3)),
    "keep_yearly": _Period("yearly", lambda at: at.year, partial(_month, months=12)),
}


def _periods(rule: Rule) -> Iterator[tuple[_Period, int]]:
    for name, period in _PERIODS.items():
        count = getattr(rule, name)
        if count:
            yield period, count
