# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Retention: what holds for every set of backups and every policy."""

from __future__ import annotations

import dataclasses
import datetime as dt
import typing as t
from collections.abc import Sequence
from zoneinfo import ZoneInfo

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cryobackup.retention import KINDS, PHYSICAL, Candidate, Policy, Rule, plan

NOW = dt.datetime(2026, 11, 23, 12, tzinfo=dt.UTC)
GRADES = ("ok", "degraded", "partial", "damaged")
SOURCES = ("main", "standby")
SYSTEMS = (6, 7)
LAST_TIMELINE, LAST_SEGMENT = 4, 40

untimed = settings(deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])


def segment(timeline: int, number: int) -> str:
    """Around the end of a log file of 256 segments, where names carry."""
    log, rest = divmod(240 + number, 256)
    return f"{timeline:08X}{log:08X}{rest:08X}"


SEGMENTS = st.builds(segment, st.integers(1, LAST_TIMELINE), st.integers(1, LAST_SEGMENT))
EVERY_SEGMENT = [segment(tl, n) for tl in range(1, LAST_TIMELINE + 2) for n in range(LAST_SEGMENT + 2)]


@st.composite
def candidates(draw: st.DrawFn, /, **fixed: t.Any) -> Candidate:
    """Close together or years apart, the last hours often, a tenth of them in the future."""
    hours = draw(st.one_of(st.integers(-9, 60), st.integers(0, 30 * 24), st.integers(0, 4 * 365 * 24)))
    kind = draw(st.sampled_from(KINDS))
    drawn: dict[str, t.Any] = {
        "backup_id": "",
        "source": draw(st.sampled_from(SOURCES)),
        "kind": kind,
        "finished_at": NOW - dt.timedelta(hours=hours, minutes=draw(st.sampled_from([0, 7, 30]))),
        "status": draw(st.sampled_from(["ok", "ok", *GRADES])),
        "verified": draw(st.booleans()),
        "pinned": draw(st.sampled_from([False, False, False, True])),
        "stored_bytes": draw(st.integers(0, 9)),
    } | fixed
    if drawn["kind"] in PHYSICAL:
        drawn["system_identifier"] = draw(st.sampled_from([*SYSTEMS * 5, None]))
        drawn["wal_start"] = draw(st.one_of(*[SEGMENTS] * 9, st.none()))
    return Candidate(**drawn)


def numbered(backups: list[Candidate]) -> list[Candidate]:
    return [dataclasses.replace(b, backup_id=f"{number:03}") for number, b in enumerate(backups)]


backup_sets = st.lists(candidates(), max_size=40).map(numbered)
counts = st.integers(0, 4)
rules = st.builds(
    Rule,
    keep_within=st.none() | st.integers(1, 90 * 24).map(lambda hours: dt.timedelta(hours=hours)),
    keep_last=counts,
    keep_hourly=counts,
    keep_daily=counts,
    keep_weekly=counts,
    keep_monthly=counts,
    keep_quarterly=counts,
    keep_yearly=counts,
).filter(lambda rule: rule != Rule())
policies = st.builds(
    Policy,
    rules=st.dictionaries(st.sampled_from(KINDS), rules, min_size=2),
    minimum=st.integers(0, 4),
    max_delete_share=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    timezone=st.sampled_from([dt.UTC, ZoneInfo("Europe/Berlin"), ZoneInfo("Asia/Kathmandu")]),
)


def ids(backups: Sequence[Candidate]) -> set[str]:
    return {backup.backup_id for backup in backups}


def newest_first(backups: Sequence[Candidate]) -> list[Candidate]:
    return sorted(backups, key=lambda b: (b.finished_at, b.backup_id), reverse=True)


def present(backups: Sequence[Candidate]) -> list[Candidate]:
    return newest_first([backup for backup in backups if backup.finished_at <= NOW])


@untimed
@given(backup_sets, policies)
def test_everything_is_decided_once_newest_first_and_with_reasons(backups: list[Candidate], policy: Policy) -> None:
    result = plan(backups, policy, NOW)
    assert [decision.backup for decision in result.decisions] == newest_first(backups)
    assert ids(result.keeps) | ids(result.deletes) == ids(backups)
    assert not ids(result.keeps) & ids(result.deletes)
    assert all(decision.reasons for decision in result.decisions)
    assert all(decision.keep == (decision.reasons != ("no rule keeps it",)) for decision in result.decisions)


@untimed
@given(backup_sets, policies, st.randoms(use_true_random=False))
def test_order_does_not_matter(backups: list[Candidate], policy: Policy, random: t.Any) -> None:
    shuffled = list(backups)
    random.shuffle(shuffled)
    assert plan(shuffled, policy, NOW) == plan(backups, policy, NOW)


@untimed
@given(backup_sets, policies)
def test_pinned_future_newest_and_newest_verified_stay(backups: list[Candidate], policy: Policy) -> None:
    deletes = ids(plan(backups, policy, NOW).deletes)
    assert not deletes & ids([b for b in backups if b.pinned or b.finished_at > NOW])
    for source in SOURCES:
        for kinds in [*((kind,) for kind in KINDS), tuple(PHYSICAL), KINDS]:
            group = [b for b in present(backups) if b.source == source and b.kind in kinds]
            ok = [b for b in group if b.status == "ok"]
            assert not deletes & ids(group[:1] + ok[:1])
            assert not deletes & ids([b for b in group if b.verified and b.status != "damaged"][:1])
            assert not deletes & ids([b for b in ok if b.verified][:1])


@untimed
@given(backup_sets, policies)
def test_the_minimum_of_good_backups_stays(backups: list[Candidate], policy: Policy) -> None:
    keeps = ids(plan(backups, policy, NOW).keeps)
    for source in SOURCES:
        for kinds in (PHYSICAL, {"logical"}, {"files"}):
            for good in ({"ok"}, {"ok", "degraded"}):
                group = [b for b in present(backups) if b.source == source and b.kind in kinds]
                group = [b for b in group if b.status in good]
                assert len(keeps & ids(group)) >= min(policy.minimum, len(group))


@untimed
@given(backup_sets, policies, candidates(backup_id="new"))
def test_no_backup_pushes_out_a_better_one(backups: list[Candidate], policy: Policy, new: Candidate) -> None:
    before, after = plan(backups, policy, NOW), plan([*backups, new], policy, NOW)
    better = [b for b in backups if GRADES.index(b.status) < GRADES.index(new.status)]
    elsewhere = [b for b in backups if b.source != new.source]
    newer = [b for b in backups if b.finished_at > new.finished_at]
    protected = backups if new.finished_at > NOW else [*better, *elsewhere]
    assert ids(before.keeps) & ids([*newer, *protected]) <= ids(after.keeps)


@untimed
@given(backup_sets, policies)
def test_planning_again_deletes_nothing_more(backups: list[Candidate], policy: Policy) -> None:
    first = plan(backups, policy, NOW)
    second = plan(first.keeps, policy, NOW)
    assert second.deletes == ()
    assert second.brake is None
    assert [keep for keep in first.wal if keep.starts] == [keep for keep in second.wal if keep.starts]


@untimed
@given(backup_sets, policies, st.integers(0, 10**6))
def test_time_alone_deletes_nothing(backups: list[Candidate], policy: Policy, hours: int) -> None:
    backups = present(backups)
    later = NOW + dt.timedelta(hours=hours)
    assert plan(backups, policy, later) == plan(backups, policy, NOW)


@untimed
@given(backup_sets, policies, st.data())
def test_a_pin_changes_nothing_for_the_others(backups: list[Candidate], policy: Policy, data: st.DataObject) -> None:
    pins = data.draw(st.lists(st.booleans(), min_size=len(backups), max_size=len(backups)))
    changed = [dataclasses.replace(b, pinned=pin) for b, pin in zip(backups, pins, strict=True)]
    unpinned = {b.backup_id for b, pin in zip(backups, pins, strict=True) if not pin and not b.pinned}
    before, after = plan(backups, policy, NOW), plan(changed, policy, NOW)
    assert ids(before.deletes) & unpinned == ids(after.deletes) & unpinned


@st.composite
def pairs_of_rules(draw: st.DrawFn) -> tuple[Rule, Rule]:
    """A rule, and one that keeps at least as much."""
    small, more = draw(rules), draw(rules)
    summed = {
        each.name: getattr(small, each.name) + getattr(more, each.name)
        for each in dataclasses.fields(Rule)
        if each.name != "keep_within"
    }
    windows = [rule.keep_within for rule in (small, more) if rule.keep_within is not None]
    return small, Rule(keep_within=max(windows, default=None), **summed)


@untimed
@given(backup_sets, policies, pairs_of_rules(), counts)
def test_bigger_rules_keep_a_superset(
    backups: list[Candidate], policy: Policy, pair: tuple[Rule, Rule], more: int
) -> None:
    small, big = (dataclasses.replace(policy, rules=dict.fromkeys(KINDS, rule)) for rule in pair)
    big = dataclasses.replace(big, minimum=big.minimum + more)
    assert ids(plan(backups, small, NOW).keeps) <= ids(plan(backups, big, NOW).keeps)


@untimed
@given(backup_sets, policies, st.lists(st.tuples(st.sampled_from(SYSTEMS), SEGMENTS), max_size=2))
def test_wal_covers_every_kept_and_running_backup(
    backups: list[Candidate], policy: Policy, running: list[tuple[int, str]]
) -> None:
    result = plan(backups, policy, NOW, running=running)
    kept = [b for b in result.keeps if b.kind in PHYSICAL]
    for system in SYSTEMS:
        needed = {name for name in EVERY_SEGMENT if result.wal_needed(system, name)}
        own = [b for b in kept if b.system_identifier == system]
        starts = [b.wal_start for b in own] + [start for identifier, start in running if identifier == system]
        if not own or None in starts or any(b.system_identifier is None for b in kept):
            assert needed == set(EVERY_SEGMENT)
            continue
        names = [start for start in starts if start]
        for start in names:
            assert needed >= {n for n in EVERY_SEGMENT if n[:8] >= start[:8] and n[8:] >= start[8:]}
        # What is older than all of it does go.
        oldest = min(start[8:] for start in names)
        assert not any(name[8:] < oldest for name in needed)
        assert all(result.wal_needed(system, f"{timeline:08X}.history") for timeline in range(1, 9))


@untimed
@given(backup_sets, policies)
def test_the_brake_is_on_whenever_a_source_loses_too_much(backups: list[Candidate], policy: Policy) -> None:
    result = plan(backups, policy, NOW)
    too_much = False
    for source in SOURCES:
        group = [b for b in present(backups) if b.source == source]
        gone = len(ids(result.deletes) & ids(group))
        too_much |= gone > 1 and gone > policy.max_delete_share * len(group)
    if policy.max_delete_share == 1 or not result.deletes:
        assert result.brake is None
    elif too_much:
        assert result.brake
