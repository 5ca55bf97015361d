# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which backups and which WAL are kept: a pure planner, (backups, policy, now) → plan.

No I/O and no clock. How a plan is carried out (mark, wait, look again) is somebody else's business.
docs/retention.md explains the rules to users. What always holds:

* Every backup is a full backup, so each is judged by itself; there are no chains.
* A backup gives up its place only to newer ones *at least as good*: every rule is applied to the
  ``ok`` backups alone, then to ``ok`` and ``degraded`` together, and so on down. A damaged backup,
  or one that reached half of its locations, pushes out nothing better.
* Windows reach back from the newest backup, not from the clock: where no backup is added none is
  deleted, however much time passes and whatever a clock says.
* What was kept when the newest verified backup was the newest of all stays until a newer one is verified.
* No backup is younger than its manifest in the storage. One that was stored long after its own time
  pushes out no other of that time.
* A backup dated in the future is kept, and takes no place.
* A pin adds to what is kept and changes nothing for any other backup.
* The newest backup of each source and kind is kept, and so is its newest verified one.
* Planning again after a plan was carried out deletes nothing more.
* All WAL stays from where the oldest kept physical backup begins. Where that is unclear, all stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from .errors import RepositoryError
from .postgres.wal import WalKind, match_wal_name
from .retention_claims import NO_END, Candidate, Pool, Status, claims, dated, groups, newest_first, pools, require_aware
from .retention_policy import KINDS, PHYSICAL, Kind, Policy, Rule, format_duration, parse_duration, parse_grace

__all__ = [
    "KINDS",
    "NO_END",
    "PHYSICAL",
    "Candidate",
    "Decision",
    "Kind",
    "Plan",
    "Policy",
    "Rule",
    "Status",
    "WalKeep",
    "explain",
    "format_duration",
    "parse_duration",
    "parse_grace",
    "plan",
]


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one backup, and every reason for it."""

    backup: Candidate
    keep: bool
    reasons: tuple[str, ...]
    until: datetime | None = field(default=None, compare=False)
    """It stays until then, whatever is backed up meanwhile; ``NO_END`` as long as the policy is what it is."""

    @property
    def backup_id(self) -> str:
        return self.backup.backup_id


@dataclass(frozen=True, slots=True)
class WalKeep:
    """Which WAL of one system identifier the kept backups need, of all ``sources`` that share it.

    ``starts`` has (timeline, first segment needed) for each timeline that a kept backup begins on, ascending;
    empty means that nothing may be deleted. ``why`` says what decided. WAL stays from there to now without
    a gap, so that every kept backup can be rolled forward to any later moment.
    """

    system_identifier: int
    sources: tuple[str, ...]
    starts: tuple[tuple[int, str], ...]
    why: str

    def needs(self, name: str) -> bool:
        """Whether the archived file of this name stays. Timeline histories do, and what has a strange name.

        Positions grow from a timeline to those that fork from it, so what lies before all starts is needed by
        no kept backup on any timeline, and what lies behind may be on the way of one.
        """
        file = match_wal_name(name)
        if file is None or file.kind is WalKind.HISTORY or not self.starts:
            return True
        return _position(name) >= min(_position(segment) for _unused, segment in self.starts)


@dataclass(frozen=True, slots=True)
class Plan:
    """Decisions newest first, the WAL that stays, and the brake: why an explicit yes is needed, or None."""

    decisions: tuple[Decision, ...]
    wal: tuple[WalKeep, ...]
    brake: str | None

    @property
    def keeps(self) -> tuple[Candidate, ...]:
        return tuple(decision.backup for decision in self.decisions if decision.keep)

    @property
    def deletes(self) -> tuple[Candidate, ...]:
        return tuple(decision.backup for decision in self.decisions if not decision.keep)

    @property
    def bytes_kept(self) -> int:
        return sum(backup.stored_bytes for backup in self.keeps)

    @property
    def bytes_deleted(self) -> int:
        """An upper bound of what becomes free: packs that a kept backup refers to stay."""
        return sum(backup.stored_bytes for backup in self.deletes)

    @property
    def before(self) -> list[str]:
        """The ids of all backups, newest first: with ``after``, the two sides of a diff."""
        return [decision.backup_id for decision in self.decisions]

    @property
    def after(self) -> list[str]:
        return [backup.backup_id for backup in self.keeps]

    def wal_needed(self, system_identifier: int, name: str) -> bool:
        """Whether an archived WAL file stays; everything does in an archive that no backup speaks for."""
        return all(keep.needs(name) for keep in self.wal if keep.system_identifier == system_identifier)


def plan(
    candidates: Iterable[Candidate],
    policy: Policy,
    now: datetime,
    *,
    running: Iterable[tuple[int, str]] = (),
) -> Plan:
    """Decide about every backup. ``now`` only tells which ones are dated in the future.

    ``candidates`` must be *all* backups of the repository, for WAL is judged by what is kept. ``running`` has
    the system identifier and first WAL segment of each backup that is being taken and has no manifest yet.
    The order of either does not matter. Raises RepositoryError when two backups have the same id.
    """
    require_aware(now, "now")
    backups = newest_first(dated(backup) for backup in candidates)
    reasons: dict[str, list[str]] = {backup.backup_id: [] for backup in backups}
    if len(reasons) != len(backups):
        raise RepositoryError(
            "two backups have the same id, so nothing is deleted",
            hint="Find out who copied a manifest, and remove the copy.",
        )
    until: dict[str, datetime] = {}
    present = [backup for backup in backups if backup.finished_at <= now]
    # By backups and not by the clock: what keeps a backup of a host that died, or beside a wrong clock, goes on.
    newest = {backup.source: backup.finished_at for backup in reversed(present)}
    for backup in backups:
        if _pin_counts(backup, newest.get(backup.source)):
            reasons[backup.backup_id].append("pinned")
            # A pin that goes on behind its end has none, and neither has the lock of what it keeps.
            end = backup.pinned_until
            until[backup.backup_id] = end if end is not None and end > now else NO_END
        if backup.finished_at > now:
            reasons[backup.backup_id].append("dated in the future")
    for claim in claims(present, policy, now):
        backup_id = claim.backup.backup_id
        reasons[backup_id].append(claim.reason)
        if claim.until is not None:
            until[backup_id] = max(claim.until, until.get(backup_id, claim.until))

    deleted = frozenset(backup_id for backup_id, why in reasons.items() if not why)
    return Plan(
        decisions=tuple(
            Decision(
                backup,
                keep=backup.backup_id not in deleted,
                reasons=tuple(reasons[backup.backup_id] or ["no rule keeps it"]),
                until=until.get(backup.backup_id),
            )
            for backup in backups
        ),
        wal=_wal_keeps(backups, deleted, tuple(running)),
        brake=_brake(backups, present, deleted, policy.max_delete_share),
    )


def _pin_counts(backup: Candidate, newest: datetime | None) -> bool:
    if backup.pinned_until is None or newest is None:
        return backup.pinned
    return backup.pinned and newest <= backup.pinned_until


# The brake.


def _brake(backups: Pool, present: Pool, deleted: frozenset[str], limit: float) -> str | None:
    if limit >= 1:
        return None
    # Backups dated in the future count for nothing here either: they would make every share look small.
    why = [*_large_shares(present, deleted, limit), *_last_of_a_system(backups, deleted)]
    return "; ".join(why) or None


def _large_shares(present: Pool, deleted: frozenset[str], limit: float) -> Iterator[str]:
    for source in groups(present, lambda backup: backup.source):
        kinds = groups(source, lambda backup: backup.kind)
        # Kind by kind first, or many incrementals would hide that nearly all full backups go.
        of_kind = [_large_share(group, f"{group[0].kind} backups", deleted, limit) for group in kinds]
        of_all = None if any(of_kind) else _large_share(source, "backups", deleted, limit)
        yield from filter(None, [*of_kind, of_all])


def _large_share(group: Pool, what: str, deleted: frozenset[str], limit: float) -> str | None:
    # Pool by pool, or damaged backups would hide that nearly all good ones go; and false ones the proven ones.
    proven = [backup for backup in group if backup.proven]
    for pool, word in (*((pool, "better ") for _unused, pool in pools(group)), (proven, "verified ")):
        gone = sum(backup.backup_id in deleted for backup in pool)
        if gone > 1 and gone > limit * len(pool):
            status = "" if len(pool) == len(group) else word
            return f"deletes {gone} of {len(pool)} {status}{what} of {group[0].source}"
    return None


def _last_of_a_system(backups: Pool, deleted: frozenset[str]) -> Iterator[str]:
    """A cluster made anew under its old name pushes out the last there is of the one before."""
    physical = [backup for backup in backups if backup.kind in PHYSICAL]
    for group in groups(physical, lambda backup: (backup.source, backup.system_identifier)):
        system = group[0].system_identifier
        if system is not None and all(backup.backup_id in deleted for backup in group):
            yield f"deletes the last physical backup of {group[0].source} with system identifier {system}"


# Write-ahead log.


def _wal_keeps(backups: Pool, deleted: frozenset[str], running: Sequence[tuple[int, str]]) -> tuple[WalKeep, ...]:
    physical = [backup for backup in backups if backup.kind in PHYSICAL]
    kept = [backup for backup in physical if backup.backup_id not in deleted]
    systems = {backup.system_identifier for backup in physical if backup.system_identifier is not None}
    return tuple(
        _wal_keep(
            system,
            # A backup that does not say whose it is may be anybody's.
            [backup for backup in kept if backup.system_identifier in (system, None)],
            [segment for identifier, segment in running if identifier == system],
        )
        for system in sorted(systems)
    )


def _wal_keep(system: int, kept: Pool, running: Sequence[str]) -> WalKeep:
    """By system identifier, not by source: a primary and its standby may be two sources with one archive."""
    sources = tuple(sorted({backup.source for backup in kept}))
    needed = {backup.backup_id: backup.wal_start for backup in kept if backup.system_identifier == system}
    if not needed:
        return WalKeep(system, sources, (), "no physical backup of it is kept")
    unclear = [backup.backup_id for backup in kept if not _is_segment(needed.get(backup.backup_id))]
    if unclear or not all(map(_is_segment, running)):
        who = unclear[-1] if unclear else "now running"
        return WalKeep(system, sources, (), f"backup {who} does not say which WAL it needs")
    starts: dict[int, str] = {}
    for segment in [*filter(None, needed.values()), *running]:
        timeline = int(segment[:8], 16)
        starts[timeline] = min(segment, starts.get(timeline, segment))
    return WalKeep(system, sources, tuple(sorted(starts.items())), "needed by the oldest backups kept")


def _is_segment(name: str | None) -> bool:
    file = match_wal_name(name or "")
    return file is not None and file.kind is WalKind.SEGMENT


def _position(name: str) -> str:
    """A segment's name without its timeline: sorts as the WAL does, whatever the size of segments."""
    return name[8:24]


# Words.


def explain(plan: Plan) -> list[str]:
    """The plan as a table for people, newest first, then totals, WAL and the brake."""
    rows = [
        (
            "keep" if decision.keep else "delete",
            decision.backup.finished_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            decision.backup.source,
            decision.backup.kind,
            decision.backup.status,
            decision.backup_id,
            _size(decision.backup.stored_bytes),
            ", ".join(decision.reasons),
        )
        for decision in plan.decisions
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    lines.append(
        f"keep {len(plan.keeps)} of {len(plan.decisions)} backups ({_size(plan.bytes_kept)}), "
        f"delete {len(plan.deletes)} (at most {_size(plan.bytes_deleted)} become free)"
    )
    for keep in plan.wal:
        starts = ", ".join(segment for _unused, segment in keep.starts)
        what = f"from {starts}" if starts else "all"
        lines.append(f"WAL of system {keep.system_identifier}: keep {what} ({keep.why})")
    if plan.brake:
        lines.append(f"needs an explicit yes: {plan.brake}")
    return lines


def _size(count: int) -> str:
    exponent = min(max(count.bit_length() - 1, 0) // 10, 4)
    return f"{count / 1024**exponent:.{min(exponent, 1)}f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[exponent]}"
