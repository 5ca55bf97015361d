# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Retention: what stays, what goes and why, by example."""

from __future__ import annotations

import dataclasses
import datetime as dt
import typing as t
from collections.abc import Iterable
from zoneinfo import ZoneInfo

import pytest

from cryobackup.errors import RepositoryError
from cryobackup.retention import NO_END, Candidate, Plan, Policy, Rule, explain, plan

NOW = dt.datetime(2026, 11, 23, 12, tzinfo=dt.UTC)
BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str) -> dt.datetime:
    moment = dt.datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)


def backup(when: str, **more: t.Any) -> Candidate:
    """A backup whose id is its time, of the kind that knows no recovery window."""
    defaults: dict[str, t.Any] = {"backup_id": when, "source": "uploads", "kind": "files", "status": "ok"}
    return Candidate(finished_at=at(when), **(defaults | more))


def full(when: str, **more: t.Any) -> Candidate:
    return backup(when, **({"source": "main", "kind": "full", "system_identifier": 7} | more))


def days(first: str, count: int) -> list[str]:
    start = at(first)
    return [(start + dt.timedelta(days=day)).isoformat() for day in range(count)]


def only(rule: Rule, **more: t.Any) -> Policy:
    kinds = ("full", "incremental", "logical", "files")
    return Policy(**({"rules": dict.fromkeys(kinds, rule), "minimum": 0} | more))


def kept(backups: Iterable[Candidate | str], policy: Policy, now: dt.datetime = NOW) -> list[str]:
    return list(plan([backup(b) if isinstance(b, str) else b for b in backups], policy, now).after)


def reasons(result: Plan) -> dict[str, tuple[str, ...]]:
    return {decision.backup_id: decision.reasons for decision in result.decisions}


# The rules, on the cases that Proxmox Backup Server, Borg, restic and Barman test theirs with. The
# expected results differ where the rules do: here every rule stands by itself.

PBS_WEEK = ["2019-12-02T11:59:15", "2019-12-03T11:59:15", "2019-12-04T11:59:15", "2019-12-04T12:59:15"]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Rule(keep_last=4), [3, 2, 1, 0]),
        (Rule(keep_last=3), [3, 2, 1]),
        (Rule(keep_last=2), [3, 2]),
        (Rule(keep_last=1), [3]),
        (Rule(keep_last=2, keep_daily=2), [3, 2, 1]),
        (Rule(keep_daily=3), [3, 1, 0]),
        (Rule(keep_daily=2), [3, 1]),
        (Rule(keep_weekly=5), [3]),
        (Rule(keep_daily=1, keep_weekly=5), [3]),
        (Rule(keep_monthly=6), [3]),
        (Rule(keep_yearly=7), [3]),
        (Rule(keep_weekly=5, keep_monthly=6, keep_quarterly=6, keep_yearly=7), [3]),
    ],
)
def test_several_backups_on_a_day_and_days_in_one_week(rule: Rule, expected: list[int]) -> None:
    assert kept(PBS_WEEK, only(rule)) == [PBS_WEEK[number] for number in expected]


@pytest.mark.parametrize(("count", "expected"), [(3, [5, 2, 0]), (2, [5, 2]), (9, [5, 2, 0])])
def test_hourly_keeps_the_last_of_each_hour(count: int, expected: list[int]) -> None:
    backups = [f"2019-11-15T{time}:15" for time in ("09:39", "10:49", "10:59", "11:39", "11:49", "11:59")]
    assert kept(backups, only(Rule(keep_hourly=count))) == [backups[number] for number in expected]


BORG_YEARS = [
    "2015-01-01T10:00:00",
    "2016-01-01T10:00:00",
    "2017-01-01T10:00:00",
    "2017-02-01T10:00:00",
    "2017-03-01T10:00:00",
    "2017-03-02T10:00:00",
    "2017-03-03T10:00:00",
    "2017-03-04T10:00:00",
    "2017-10-01T09:45:00",
    "2017-10-01T09:55:00",
    "2017-10-01T10:00:01",
    "2017-10-01T10:00:03",
    "2017-10-01T10:00:05",
]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Rule(keep_yearly=3), [13, 2, 1]),
        (Rule(keep_quarterly=3), [13, 8, 2]),
        (Rule(keep_monthly=3), [13, 8, 4]),
        (Rule(keep_weekly=2), [13, 8]),
        (Rule(keep_daily=3), [13, 8, 7]),
        (Rule(keep_hourly=3), [13, 10, 8]),
        (Rule(keep_last=4), [13, 12, 11, 10]),
    ],
)
def test_months_and_years_without_backups_are_passed_over(rule: Rule, expected: list[int]) -> None:
    assert kept(BORG_YEARS, only(rule)) == [BORG_YEARS[number - 1] for number in expected]


def test_a_year_of_daily_backups_with_a_day_missing() -> None:
    year = [day for day in days("2015-01-01T02:00:00", 365) if not day.startswith("2015-12-19")]
    policy = only(Rule(keep_daily=14, keep_monthly=6, keep_yearly=1))
    dates = [backup_id[:10] for backup_id in kept(year, policy)]
    december = [f"2015-12-{day}" for day in range(31, 16, -1) if day != 19]
    # Borg goes on to June and January 1st: its rules count only what the rules before have not kept.
    assert dates == [*december, "2015-11-30", "2015-10-31", "2015-09-30", "2015-08-31", "2015-07-31"]


def test_the_same_policy_run_every_day_keeps_the_month_ends() -> None:
    """What one run deletes must not be what a later run would have wanted."""
    policy = only(Rule(keep_daily=7, keep_monthly=12))
    repository: list[str] = []
    for day in days("2025-01-01T02:00:00", 400):
        repository = kept([day, *repository], policy, now=at(day))
    daily = [f"2026-02-0{day}" for day in range(4, 0, -1)] + [f"2026-01-{day}" for day in (31, 30, 29)]
    lengths = [(2025, 12, 31), (2025, 11, 30), (2025, 10, 31), (2025, 9, 30), (2025, 8, 31), (2025, 7, 31)]
    lengths += [(2025, 6, 30), (2025, 5, 31), (2025, 4, 30), (2025, 3, 31)]
    assert [text[:10] for text in repository] == daily + [f"{y}-{m:02}-{d}" for y, m, d in lengths]


def test_unused_places_do_not_hold_the_oldest() -> None:
    # restic would keep the first too, as long as months are missing.
    month = ["2024-01-02T13:42:44", "2024-01-03T01:04:38", "2024-01-04T20:09:54", "2024-01-04T20:20:32"]
    assert kept(month, only(Rule(keep_monthly=4))) == [month[-1]]


def test_weeks_begin_on_monday_and_belong_to_their_iso_year() -> None:
    # Week 53 of 2020: Monday, December 28th, to Sunday, January 3rd.
    backups = ["2020-12-27T12:00:00", "2020-12-28T12:00:00", "2020-12-31T12:00:00", "2021-01-03T12:00:00"]
    assert kept(backups, only(Rule(keep_weekly=5))) == [backups[3], backups[0]]
    assert kept(backups, only(Rule(keep_yearly=5))) == [backups[3], backups[2]]


def test_days_begin_in_the_time_zone_of_the_policy() -> None:
    # In Berlin the second is already of the next day; in UTC the third is.
    backups = ["2026-06-01T20:00:00", "2026-06-01T22:30:00", "2026-06-02T10:00:00"]
    assert kept(backups, only(Rule(keep_daily=2))) == [backups[2], backups[1]]
    assert kept(backups, only(Rule(keep_daily=2), timezone=BERLIN)) == [backups[2], backups[0]]


def test_an_offset_in_the_backup_does_not_change_its_day() -> None:
    backups = ["2026-06-01T20:00:00", "2026-06-02T01:30:00+05:00", "2026-06-02T10:00:00"]
    assert kept(backups, only(Rule(keep_daily=2))) == [backups[2], backups[1]]


def test_the_hour_that_comes_twice_when_summer_time_ends_is_two_hours() -> None:
    backups = [f"2026-10-25T0{hour}:15:00" for hour in (0, 1, 2)]  # 02:15 summer, 02:15 and 03:15 winter time
    assert kept(backups, only(Rule(keep_hourly=3), timezone=BERLIN)) == backups[::-1]


def test_the_day_of_23_hours_is_one_day() -> None:
    backups = ["2026-03-28T22:30:00", "2026-03-28T23:30:00", "2026-03-29T21:30:00", "2026-03-29T22:30:00"]
    policy = only(Rule(keep_daily=9), timezone=BERLIN)
    assert kept(backups, policy) == [backups[3], backups[2], backups[0]]


# keep_within


def test_the_window_reaches_back_from_the_newest_backup_and_includes_its_edge() -> None:
    week = days("2026-11-01T01:00:00", 10)
    assert kept(week, only(Rule(keep_within=dt.timedelta(days=3)))) == week[:5:-1]


def test_time_alone_deletes_nothing() -> None:
    """A host that has been dead for years, or a clock that went mad."""
    week = days("2026-11-01T01:00:00", 7)
    policy = only(Rule(keep_within=dt.timedelta(days=30), keep_daily=7))
    assert kept(week, policy, now=at("2199-01-01T00:00:00")) == week[::-1]


def test_a_recovery_window_needs_the_physical_backup_before_it() -> None:
    """Barman's RECOVERY WINDOW: any moment of the last days, so a backup from before them."""
    week = [full(day) for day in days("2026-11-01T01:00:00", 10)]
    result = plan(week, only(Rule(keep_within=dt.timedelta(days=3, hours=12))), NOW)
    assert result.after == [b.backup_id for b in week[:4:-1]]
    assert reasons(result)[week[5].backup_id] == ("start of the 3d12h recovery window",)


def test_a_window_of_files_needs_nothing_before_it() -> None:
    week = days("2026-11-01T01:00:00", 10)
    assert kept(week, only(Rule(keep_within=dt.timedelta(days=3, hours=12)))) == week[:5:-1]


# What no rule deletes


def test_minimum_counts_full_and_incremental_together() -> None:
    fulls = [full(day) for day in days("2026-11-01T01:00:00", 5)]
    incrementals = [full(day, kind="incremental") for day in days("2026-11-01T07:00:00", 5)]
    result = plan([*fulls, *incrementals], only(Rule(keep_last=1), minimum=4), NOW)
    assert result.after == [b.backup_id for b in (incrementals[4], fulls[4], incrementals[3], fulls[3])]


def test_minimum_counts_each_other_kind_by_itself() -> None:
    logical = [full(day, kind="logical", system_identifier=None) for day in days("2026-11-01T01:00:00", 5)]
    fulls = [full(day) for day in days("2026-11-01T03:00:00", 5)]
    result = plan([*logical, *fulls], only(Rule(keep_last=1), minimum=2), NOW)
    assert sorted(result.after) == sorted(b.backup_id for b in (*logical[3:], *fulls[3:]))


def test_the_newest_verified_backup_stays() -> None:
    week = [backup(day, verified=number == 2) for number, day in enumerate(days("2026-11-01T01:00:00", 9))]
    result = plan(week, only(Rule(keep_last=1)), NOW)
    assert result.after == [week[8].backup_id, week[2].backup_id]
    assert reasons(result)[week[2].backup_id] == ("newest verified",)


def test_each_source_is_judged_by_itself() -> None:
    busy = [backup(day) for day in days("2026-11-01T01:00:00", 9)]
    quiet = [backup("2020-01-01T00:00:00", source="archive", verified=True)]
    assert kept([*busy, *quiet], only(Rule(keep_last=1))) == [busy[8].backup_id, quiet[0].backup_id]


def test_pinned_backups_stay_and_take_no_place_from_another() -> None:
    # Proxmox's case; a pin here changes nothing for the others.
    times = [f"2019-11-15T{time}:15" for time in ("09:39", "10:39", "10:49", "10:59")]
    backups = [backup(time, pinned=number in {0, 3}) for number, time in enumerate(times)]
    assert kept(backups, only(Rule(keep_last=1))) == [times[3], times[0]]
    assert kept(backups, only(Rule(keep_hourly=1))) == [times[3], times[0]]
    assert kept(times, only(Rule(keep_hourly=1))) == [times[3]]


def test_a_pin_ends_with_the_first_backup_of_its_source_behind_its_end() -> None:
    policy = only(Rule(keep_last=1))
    until = dt.datetime.fromisoformat("2026-11-05T12:00:00+00:00")
    pinned = backup("2026-11-01T01:00:00", pinned=True, pinned_until=until)
    other = backup("2026-11-08T01:00:00", source="archive")
    future = backup("2030-01-01T00:00:00")
    before = [pinned, backup("2026-11-05T01:00:00"), other, future]
    assert pinned.backup_id in kept(before, policy)
    # Where it goes on behind its end, what it keeps is locked as if it had none.
    for now, expected in ((until - dt.timedelta(hours=1), until), (NOW, NO_END)):
        decision = next(each for each in plan(before, policy, now).decisions if each.backup == pinned)
        assert (decision.reasons, decision.until) == (("pinned",), expected)
    assert pinned.backup_id not in kept([*before, backup("2026-11-05T13:00:00")], policy)


def test_backups_dated_in_the_future_stay_and_push_out_nothing() -> None:
    week = [backup(day) for day in days("2026-11-01T01:00:00", 7)]
    future = [backup(day, verified=True) for day in days("2030-01-01T00:00:00", 50)]
    policy = only(Rule(keep_within=dt.timedelta(days=2), keep_last=3, keep_yearly=2), minimum=3)
    result = plan([*future, *week], policy, NOW)
    assert set(result.after) == {b.backup_id for b in future} | set(kept(week, policy))
    assert reasons(result)[future[0].backup_id] == ("dated in the future",)


def test_a_kind_without_a_rule_keeps_everything() -> None:
    week = [backup(day) for day in days("2026-11-01T01:00:00", 7)]
    result = plan(week, Policy(rules={"full": Rule(keep_last=1)}, minimum=0), NOW)
    assert result.deletes == ()
    assert reasons(result)[week[0].backup_id] == ("no rule for files",)


def test_an_incremental_goes_without_its_full_and_the_other_way_round() -> None:
    fulls = [full(day) for day in days("2026-11-01T01:00:00", 3)]
    incrementals = [full(day, kind="incremental") for day in days("2026-11-01T07:00:00", 3)]
    rules = {"full": Rule(keep_last=1), "incremental": Rule(keep_last=3)}
    assert set(kept([*fulls, *incrementals], Policy(rules=rules, minimum=0))) == {
        fulls[2].backup_id,
        *(b.backup_id for b in incrementals),
    }


# Backups that are not quite good


@pytest.mark.parametrize("status", ["degraded", "partial", "damaged"])
def test_a_worse_backup_takes_no_place_from_a_better_one(status: str) -> None:
    good = [backup(day) for day in days("2026-11-01T01:00:00", 5)]
    worse = [backup(day, status=status) for day in days("2026-11-10T01:00:00", 5)]
    policy = only(Rule(keep_last=2, keep_daily=3), minimum=1)
    result = plan([*good, *worse], policy, NOW)
    assert set(result.after) >= set(kept(good, policy))
    # Worse ones follow the same rules, after all that are at least as good.
    assert set(result.after) == {b.backup_id for b in (*good[2:], *worse[2:])}


def test_while_one_location_is_down_complete_backups_are_not_displaced() -> None:
    """Every degraded backup lacks the copy elsewhere: the last complete ones must not go for them."""
    complete = [backup(day) for day in days("2026-10-01T01:00:00", 7)]
    degraded = [backup(day, status="degraded") for day in days("2026-10-08T01:00:00", 30)]
    result = plan([*complete, *degraded], only(Rule(keep_within=dt.timedelta(days=7))), NOW)
    assert {b.backup_id for b in complete} <= set(result.after)


def test_a_source_whose_backups_are_all_partial_is_still_thinned() -> None:
    backups = [backup(day, status="partial") for day in days("2026-11-01T01:00:00", 9)]
    assert kept(backups, only(Rule(keep_last=3))) == [b.backup_id for b in backups[:5:-1]]


def test_a_damaged_backup_is_not_the_newest_verified_one() -> None:
    backups = [
        backup("2026-11-01T01:00:00", verified=True),
        backup("2026-11-02T01:00:00", verified=True, status="damaged"),
        backup("2026-11-03T01:00:00"),
    ]
    result = plan(backups, only(Rule(keep_last=1)), NOW)
    assert result.after == [backups[2].backup_id, backups[0].backup_id]


# WAL


def segment(timeline: int, number: int) -> str:
    return f"{timeline:08X}{number // 256:08X}{number % 256:08X}"


def with_wal(when: str, start: str | None, **more: t.Any) -> Candidate:
    return full(when, wal_start=start, **more)


def wal_plan(backups: list[Candidate], **more: t.Any) -> Plan:
    return plan(backups, only(Rule(keep_last=2)), NOW, **more)


def test_wal_follows_the_oldest_kept_backup() -> None:
    backups = [with_wal(day, segment(1, 0xF0 + 10 * n)) for n, day in enumerate(days("2026-11-01T01:00:00", 4))]
    result = wal_plan(backups)
    assert [keep.starts for keep in result.wal] == [((1, segment(1, 0x104)),)]
    assert not result.wal_needed(7, segment(1, 0x103))
    assert result.wal_needed(7, segment(1, 0x104))
    assert result.wal_needed(7, segment(1, 0x7FFFFF))


def test_an_older_incremental_holds_wal_like_a_full() -> None:
    backups = [with_wal("2026-11-01T01:00:00", segment(1, 5), kind="incremental")]
    backups += [with_wal("2026-11-02T01:00:00", segment(1, 50))]
    assert wal_plan(backups).wal[0].starts == ((1, segment(1, 5)),)


@pytest.mark.parametrize(
    "name",
    ["00000001.history", "00000007.history", "garbage", "", "0000000100000000000000aa", segment(0, 1)],
)
def test_histories_and_strange_names_stay(name: str) -> None:
    result = wal_plan([with_wal("2026-11-01T01:00:00", segment(9, 900))])
    assert result.wal_needed(7, name)


@pytest.mark.parametrize("more", [".partial", ".00000028.backup"])
def test_partial_and_backup_files_go_with_their_segment(more: str) -> None:
    result = wal_plan([with_wal("2026-11-01T01:00:00", segment(1, 9))])
    assert not result.wal_needed(7, segment(1, 8) + more)
    assert result.wal_needed(7, segment(1, 9) + more)


def test_a_backup_needs_the_timelines_above_its_own() -> None:
    """From timeline 1 one can roll forward into 2 and 3, wherever later backups begin."""
    backups = [with_wal("2026-11-01T01:00:00", segment(1, 10)), with_wal("2026-11-05T01:00:00", segment(2, 90))]
    result = wal_plan(backups)
    assert result.wal[0].starts == ((1, segment(1, 10)), (2, segment(2, 90)))
    assert result.wal_needed(7, segment(2, 10))
    assert result.wal_needed(7, segment(3, 10))
    assert not any(result.wal_needed(7, segment(timeline, 9)) for timeline in (1, 2, 3))


def test_no_wal_goes_when_no_physical_backup_is_kept() -> None:
    old_system = with_wal("2026-11-01T01:00:00", segment(1, 10), system_identifier=6)
    new_system = [with_wal(day, segment(1, 10)) for day in days("2026-11-05T01:00:00", 2)]
    # Not even when one is on its way: it may fail.
    result = wal_plan([old_system, *new_system], running=[(6, segment(1, 20))])
    assert result.deletes == (old_system,)
    assert [keep.starts for keep in result.wal] == [(), ((1, segment(1, 10)),)]
    assert result.wal[0].why == "no physical backup of it is kept"
    assert result.wal_needed(6, segment(1, 1))
    assert result.wal_needed(999, segment(1, 1))


@pytest.mark.parametrize("start", [None, "nonsense", "00000001.history", segment(1, 5) + ".partial"])
def test_a_kept_backup_that_does_not_say_which_wal_it_needs_holds_all(start: str | None) -> None:
    backups = [with_wal("2026-11-01T01:00:00", start), with_wal("2026-11-02T01:00:00", segment(1, 90))]
    result = wal_plan(backups)
    assert result.wal_needed(7, segment(1, 1))
    assert result.wal[0].why == "backup 2026-11-01T01:00:00 does not say which WAL it needs"


def test_a_kept_backup_of_an_unknown_system_holds_the_wal_of_all() -> None:
    backups = [with_wal("2026-11-01T01:00:00", segment(1, 5), system_identifier=None)]
    backups += [with_wal("2026-11-02T01:00:00", segment(1, 90), source="other")]
    result = wal_plan(backups)
    assert result.wal_needed(7, segment(1, 1))


def test_two_sources_that_share_an_archive_both_hold_it() -> None:
    """A primary and its standby, each backed up under its own name, have one system identifier."""
    primary = [with_wal(day, segment(1, 100 + n)) for n, day in enumerate(days("2026-11-01T01:00:00", 5))]
    standby = [with_wal("2026-10-01T01:00:00", segment(1, 40), source="standby")]
    keep = wal_plan([*primary, *standby]).wal[0]
    assert keep.sources == ("main", "standby")
    assert keep.starts == ((1, segment(1, 40)),)


def test_a_running_backup_holds_its_wal() -> None:
    done = [with_wal("2026-11-01T01:00:00", segment(2, 90))]
    result = wal_plan(done, running=[(7, segment(2, 60)), (8, segment(1, 1))])
    assert result.wal[0].starts == ((2, segment(2, 60)),)
    assert wal_plan(done, running=[(7, "?")]).wal[0].starts == ()


# The brake


def test_the_brake_names_what_would_be_too_much() -> None:
    week = [backup(day) for day in days("2026-11-01T01:00:00", 10)]
    assert plan(week, only(Rule(keep_last=5)), NOW).brake is None
    assert plan(week, only(Rule(keep_last=4)), NOW).brake == "deletes 6 of 10 files backups of uploads"
    assert plan(week, only(Rule(keep_last=1), max_delete_share=1), NOW).brake is None


def test_one_backup_is_never_too_much() -> None:
    pair = [backup(day) for day in days("2026-11-01T01:00:00", 2)]
    assert plan(pair, only(Rule(keep_last=1), max_delete_share=0), NOW).brake is None


def test_a_kind_that_nearly_vanishes_is_not_hidden_by_another() -> None:
    fulls = [full(day) for day in days("2026-10-01T01:00:00", 10)]
    many = [full(day, kind="incremental") for day in days("2026-10-01T07:00:00", 40)]
    rules = {"full": Rule(keep_last=1), "incremental": Rule(keep_last=40)}
    assert plan([*fulls, *many], Policy(rules=rules), NOW).brake == "deletes 9 of 10 full backups of main"


def test_the_share_of_a_source_counts_when_no_kind_exceeds_it() -> None:
    fulls = [full(day) for day in days("2026-10-01T01:00:00", 5)]
    others = [full(day, kind="incremental") for day in days("2026-10-01T07:00:00", 5)]
    policy = only(Rule(keep_last=4), max_delete_share=0.15)
    assert plan([*fulls, *others], policy, NOW).brake == "deletes 2 of 10 backups of main"


@pytest.mark.parametrize("ballast", ["future", "damaged"])
def test_useless_backups_do_not_hide_that_the_good_ones_go(ballast: str) -> None:
    week = [backup(day) for day in days("2026-11-01T01:00:00", 8)]
    first, status = ("2030-01-01T00:00:00", "ok") if ballast == "future" else ("2026-11-10T00:00:00", "damaged")
    more = [backup(day, status=status, pinned=True) for day in days(first, 12)]
    brake = plan([*week, *more], only(Rule(keep_last=1)), NOW).brake
    assert brake is not None
    assert brake.startswith("deletes 7 of 8 ")


def test_the_last_backup_of_a_cluster_made_anew_needs_a_yes() -> None:
    before = [with_wal("2026-11-01T01:00:00", segment(1, 10), system_identifier=6)]
    after = [with_wal(day, segment(1, 1)) for day in days("2026-11-02T01:00:00", 3)]
    brake = wal_plan([*before, *after[:2]]).brake
    assert brake == "deletes the last physical backup of main with system identifier 6"
    assert wal_plan([*before, *after[:1]]).brake is None


# The plan itself


def test_times_without_an_offset_are_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        dataclasses.replace(backup("2026-11-01T01:00:00"), finished_at=NOW.replace(tzinfo=None))
    with pytest.raises(ValueError, match="time zone"):
        plan([], Policy(rules={}), NOW.replace(tzinfo=None))


def test_two_backups_of_one_id_stop_everything() -> None:
    with pytest.raises(RepositoryError, match="same id"):
        plan([backup("2026-11-01T01:00:00"), full("2026-11-01T01:00:00")], Policy(rules={}), NOW)


def test_nothing_to_plan() -> None:
    result = plan([], only(Rule(keep_last=1)), NOW)
    assert (result.decisions, result.wal, result.brake, result.bytes_deleted) == ((), (), None, 0)
    assert explain(result) == ["keep 0 of 0 backups (0 B), delete 0 (at most 0 B become free)"]


def test_the_plan_explains_itself() -> None:
    sizes = (5 << 30, 3 << 20, 900, 0)
    backups = [
        with_wal(day, segment(1, 10 * n), stored_bytes=size, verified=n == 1)
        for (n, day), size in zip(enumerate(days("2026-11-01T01:00:00", 4)), sizes, strict=True)
    ]
    result = plan(backups, only(Rule(keep_last=1), max_delete_share=0.4), NOW)
    assert explain(result) == [
        "keep    2026-11-04T01:00:00Z  main  full  ok  2026-11-04T01:00:00+00:00  0 B      newest ok, last 1 of 1",
        "delete  2026-11-03T01:00:00Z  main  full  ok  2026-11-03T01:00:00+00:00  900 B    no rule keeps it",
        "keep    2026-11-02T01:00:00Z  main  full  ok  2026-11-02T01:00:00+00:00  3.0 MiB  newest verified",
        "delete  2026-11-01T01:00:00Z  main  full  ok  2026-11-01T01:00:00+00:00  5.0 GiB  no rule keeps it",
        "keep 2 of 4 backups (3.0 MiB), delete 2 (at most 5.0 GiB become free)",
        "WAL of system 7: keep from 00000001000000000000000A (needed by the oldest backups kept)",
        "needs an explicit yes: deletes 2 of 4 full backups of main",
    ]
    assert result.before == [b.backup_id for b in reversed(backups)]
    assert result.after == [backups[3].backup_id, backups[1].backup_id]
    assert (result.bytes_kept, result.bytes_deleted) == (3 << 20, (5 << 30) + 900)
