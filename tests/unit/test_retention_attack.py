# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Retention: false backups cannot push out good ones, and no clock but the storage's counts.

The attacker owns the database host: he writes manifests that say anything, under new names. He sets neither the
storage's clock, which stamps what he writes, nor the notes of those who verify.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import typing as t

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cryobackup.retention import KINDS, NO_END, Candidate, Policy, Rule, plan
from tests.unit.test_retention_properties import EVERY_SEGMENT, SYSTEMS, backup_sets, candidates, ids, policies

NOW = dt.datetime(2026, 11, 23, 12, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
untimed = settings(deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])


def received(backup: Candidate, at: dt.datetime) -> Candidate:
    return dataclasses.replace(backup, stored_at=at)


@st.composite
def falsehoods(draw: st.DrawFn) -> list[Candidate]:
    """Backups that say anything, and came within the last hour."""
    made = draw(st.lists(candidates(verified=False, pinned=False), max_size=20))
    return [
        dataclasses.replace(
            backup,
            backup_id=f"false {number}",
            finished_at=backup.finished_at + draw(st.sampled_from([-400, 0, 0, 0, 3])) * DAY,
            stored_at=NOW - draw(st.integers(0, 3600)) * dt.timedelta(seconds=1),
        )
        for number, backup in enumerate(made)
    ]


@st.composite
def histories(draw: st.DrawFn) -> list[Candidate]:
    """Good backups until an hour ago; the newest of each source and kind is verified, as others may be."""
    made = draw(backup_sets)
    good = [
        dataclasses.replace(each, status="ok", finished_at=min(each.finished_at, NOW - DAY / 24 - DAY / 3600))
        for each in made
    ]
    good = [received(each, each.finished_at) if draw(st.booleans()) else each for each in good]
    newest: dict[tuple[str, str], Candidate] = {}
    for each in good:
        key = each.source, each.kind
        if key not in newest or (each.finished_at, each.backup_id) > (newest[key].finished_at, newest[key].backup_id):
            newest[key] = each
    proven = ids(list(newest.values()))
    return [dataclasses.replace(each, verified=each.verified or each.backup_id in proven) for each in good]


@untimed
@given(histories(), falsehoods(), policies)
def test_false_backups_push_out_nothing_until_one_of_them_is_verified(
    good: list[Candidate], false: list[Candidate], policy: Policy
) -> None:
    before, after = plan(good, policy, NOW), plan([*good, *false], policy, NOW)
    assert ids(before.keeps) <= ids(after.keeps)


@untimed
@given(histories(), falsehoods(), policies)
def test_false_backups_take_no_wal_from_kept_ones(
    good: list[Candidate], false: list[Candidate], policy: Policy
) -> None:
    before, after = plan(good, policy, NOW), plan([*good, *false], policy, NOW)
    for system in SYSTEMS:
        needed = {name for name in EVERY_SEGMENT if before.wal_needed(system, name)}
        if not any(keep.system_identifier == system and keep.starts for keep in before.wal):
            continue  # nobody speaks for it, so all of it is kept; a false backup may
        assert needed <= {name for name in EVERY_SEGMENT if after.wal_needed(system, name)}


@untimed
@given(backup_sets, falsehoods(), policies)
def test_what_is_made_up_today_pushes_out_nothing_of_the_past(
    good: list[Candidate], false: list[Candidate], policy: Policy
) -> None:
    """Not even where nothing was ever verified: a false backup counts from when it came, whatever it says."""
    good = [received(each, each.finished_at) for each in good if each.finished_at <= NOW - DAY]
    honest = [dataclasses.replace(each, finished_at=each.stored_at or NOW) for each in false]
    with_dates, as_stored = plan([*good, *false], policy, NOW), plan([*good, *honest], policy, NOW)
    assert ids(as_stored.keeps) & ids(good) <= ids(with_dates.keeps)


@untimed
@given(backup_sets, policies)
def test_a_date_behind_the_storage_counts_as_the_storage_says(backups: list[Candidate], policy: Policy) -> None:
    claimed = [received(each, NOW - 2 * DAY) for each in backups if each.finished_at > NOW - DAY]
    honest = [dataclasses.replace(each, finished_at=NOW - 2 * DAY) for each in claimed]
    assert plan(claimed, policy, NOW) == plan(honest, policy, NOW)


def physical(number: int, age: dt.timedelta, **more: t.Any) -> Candidate:
    defaults: dict[str, t.Any] = {"source": "main", "kind": "full", "status": "ok", "system_identifier": 6}
    return Candidate(f"{number:03}", finished_at=NOW - age, **(defaults | {"stored_at": NOW - age} | more))


def rule(**settings_: t.Any) -> Policy:
    return Policy(dict.fromkeys(KINDS, Rule(**settings_)), minimum=0)


def test_many_false_backups_of_today_do_not_use_up_the_places() -> None:
    good = [physical(day, day * DAY, verified=day > 1) for day in range(1, 7)]
    false = [physical(100 + number, number * DAY / 100) for number in range(20)]
    result = plan([*good, *false], rule(keep_last=4), NOW)
    # As of day 2, the newest verified one: 2, 3, 4, 5. Day 1 was never verified, and four are newer.
    assert ids(result.keeps) & ids(good) == {"002", "003", "004", "005"}
    assert len(ids(result.keeps) & ids(false)) == 4


def test_false_backups_dated_a_little_back_do_not_use_up_the_places_either() -> None:
    """Too little to be called backdated, and before the newest verified one; but they came after it."""
    good = [physical(hour, hour * DAY / 24, verified=hour == 6) for hour in range(6, 12)]
    false = [physical(100 + n, 7 * DAY / 24 + n * DAY / 9000, stored_at=NOW - DAY / 24) for n in range(20)]
    result = plan([*good, *false], rule(keep_last=4), NOW)
    assert ids(result.keeps) & ids(good) == {"006", "007", "008", "009"}


def test_a_verified_backup_stays_beside_a_newer_one_of_its_day() -> None:
    verified = physical(1, 3 * DAY, verified=True)
    later = physical(2, 3 * DAY - DAY / 12)
    newest = physical(3, DAY / 24, verified=True)
    result = plan([verified, later, newest], rule(keep_daily=7), NOW)
    assert ids(result.deletes) == set()


def test_backups_copied_to_a_new_bucket_are_thinned_by_their_own_dates() -> None:
    copied = [physical(day, day * DAY, stored_at=NOW - DAY / 24) for day in range(2, 40)]
    fresh = physical(1, DAY / 48)
    result = plan([*copied, fresh], rule(keep_daily=7), NOW)
    assert ids(result.keeps) == {"001", *(f"{day:03}" for day in range(2, 8))}


def test_the_brake_counts_the_verified_ones_by_themselves() -> None:
    good = [physical(day, day * DAY, verified=True) for day in range(10, 14)]
    false = [physical(100 + number, number * DAY / 100) for number in range(60)]
    newest = physical(1, DAY / 480, verified=True)
    result = plan([*good, *false, newest], rule(keep_last=2), NOW)
    assert result.brake is not None


# For how long a backup stays at least: what object locks are set to.


def until(result: t.Any) -> dict[str, dt.datetime | None]:
    return {decision.backup_id: decision.until for decision in result.decisions if decision.keep}


def test_a_window_keeps_until_it_has_passed_whatever_comes() -> None:
    result = plan([physical(1, DAY), physical(2, 5 * DAY), physical(3, 9 * DAY)], rule(keep_within=7 * DAY), NOW)
    # The third begins the window: it stays until the second leaves it.
    assert until(result) == {"001": NOW + 6 * DAY, "002": NOW + 2 * DAY, "003": NOW + 2 * DAY}


def test_pinned_backups_and_those_without_a_rule_have_no_end() -> None:
    result = plan([physical(1, DAY), physical(2, 90 * DAY, pinned=True)], Policy({}), NOW)
    assert until(result) == {"001": NO_END, "002": NO_END}


def test_the_newest_of_a_day_stays_until_enough_days_have_begun() -> None:
    backups = [physical(1, DAY / 24), physical(2, DAY), physical(3, 2 * DAY)]
    kept = until(plan(backups, rule(keep_daily=7), NOW))
    midnight = NOW.replace(hour=0)
    assert kept == {"001": None, "002": midnight + 6 * DAY, "003": midnight + 5 * DAY}


def test_the_newest_of_a_month_stays_until_enough_months_have_begun() -> None:
    kept = until(plan([physical(1, 30 * DAY)], rule(keep_monthly=3), NOW))
    # October's; November's, December's and January's take the three places, the last of them from January on.
    assert kept == {"001": dt.datetime(2027, 1, 1, tzinfo=dt.UTC)}


@untimed
@given(backup_sets, policies, st.lists(candidates(), max_size=12), st.integers(0, 60 * 24))
def test_what_is_promised_is_kept_whatever_comes(
    backups: list[Candidate], policy: Policy, more: list[Candidate], hours: int
) -> None:
    later = NOW + hours * DAY / 24
    backups = [each for each in backups if each.finished_at <= NOW]
    promised = {
        decision.backup_id
        for decision in plan(backups, policy, NOW).decisions
        if decision.until is not None and decision.until > later
    }
    new = [
        dataclasses.replace(
            each, backup_id=f"new {number}", finished_at=min(later, max(NOW, each.finished_at + hours * DAY / 24))
        )
        for number, each in enumerate(more)
    ]
    assert promised <= ids(plan([*backups, *new], policy, later).keeps)
