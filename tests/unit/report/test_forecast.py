# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When a location is full: what is foretold is what happens when all goes on as it is."""

from __future__ import annotations

import datetime as dt

from hypothesis import given, settings
from hypothesis import strategies as st

from cryobackup import retention
from cryobackup.report import forecast as fc

NOW = dt.datetime(2026, 11, 23, 12, 0, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
SYSTEM = 7301234567890123456
GB = 10**9


def backup(name: str, age: dt.timedelta, stored: int, kind: retention.Kind = "full", *owners: str) -> fc.Past:
    candidate = retention.Candidate(
        name, "main", kind, NOW - age, "ok", verified=True, stored_bytes=stored, system_identifier=SYSTEM
    )
    return fc.Past(candidate, frozenset((name, *owners)))


def daily(count: int, stored: int, *, every: dt.timedelta = DAY) -> list[fc.Past]:
    """Full backups, the newest of now."""
    return [backup(f"full-{number}", number * every, stored) for number in range(count)]


def place(past: list[fc.Past], wal_per_day: float = 0.0, fixed: int = 0) -> fc.Place:
    packs = {each.candidate.backup_id: each.candidate.stored_bytes for each in past}
    wal = {SYSTEM: fc.Wal({}, wal_per_day)} if wal_per_day else {}
    return fc.Place(packs, wal, fixed)


def policy(**rules: retention.Rule) -> retention.Policy:
    return retention.Policy(rules, minimum=0)


def foretell(past: list[fc.Past], rules: retention.Policy, room: int | None, wal_per_day: float = 0.0) -> fc.Forecast:
    rhythm = fc.series(past, {}, NOW)
    steps = list(fc.play(past, rhythm, rules, NOW))
    per_day = sum(each.per_day for each in rhythm) + wal_per_day
    history = max((NOW - each.candidate.finished_at for each in past), default=dt.timedelta())
    return fc.forecast(place(past, wal_per_day), steps, room=room, per_day=per_day, history=history, now=NOW)


def test_without_rules_it_grows_in_a_straight_line() -> None:
    found = foretell(daily(10, GB), policy(), room=20 * GB)
    assert found.state == "fills"
    assert found.full_at == NOW + 21 * DAY, "the first day on which there is more than 20 GB of new backups"
    assert found.full_at_unpruned == NOW + 20 * DAY
    assert found.growth_per_day == GB


def test_rules_hold_it_at_one_size() -> None:
    past = daily(10, GB)
    rules = policy(full=retention.Rule(keep_within=10 * DAY))
    found = foretell(past, rules, room=20 * GB)
    assert found.state == "does-not-fill"
    assert found.full_at is None
    assert found.full_at_unpruned == NOW + 20 * DAY
    assert found.peak is not None
    assert 11 * GB <= found.peak <= 14 * GB, "the window, the start of it, and what waits for the grace"
    assert found.until is not None
    assert found.until > NOW + 700 * DAY


def test_a_window_that_is_not_reached_yet_is_filled_first() -> None:
    """Ten days of history under a rule of thirty: a line through them would never end, and a plateau is not there."""
    rules = policy(full=retention.Rule(keep_within=30 * DAY))
    assert foretell(daily(10, GB), rules, room=25 * GB).state == "does-not-fill"
    found = foretell(daily(10, GB), rules, room=15 * GB)
    assert found.state == "fills"
    assert found.full_at is not None
    assert NOW + 15 * DAY <= found.full_at <= NOW + 17 * DAY


def test_backups_kept_for_ever_fill_it_slowly() -> None:
    rules = policy(full=retention.Rule(keep_within=7 * DAY, keep_monthly=1000))
    found = foretell(daily(8, GB), rules, room=15 * GB)
    assert found.state == "fills"
    assert found.full_at is not None
    assert NOW + 270 * DAY <= found.full_at <= NOW + 470 * DAY


def test_incrementals_hold_what_they_are_based_on() -> None:
    """A weekly full backup and daily incrementals; the rule would let the full one go long before them."""
    past = []
    for week in range(4):
        full = f"full-{week}"
        past.append(backup(full, week * 7 * DAY + 6 * DAY, 10 * GB))
        past += [
            backup(f"incremental-{week}-{day}", week * 7 * DAY + day * DAY, GB, "incremental", full) for day in range(6)
        ]
    short = policy(full=retention.Rule(keep_last=1), incremental=retention.Rule(keep_within=28 * DAY))
    found = foretell(past, short, room=1000 * GB)
    assert found.peak is not None
    assert found.peak >= 4 * 10 * GB + 24 * GB, "all four full backups are needed, though one of them is kept"
    assert found.peak <= 7 * 10 * GB + 42 * GB


def test_wal_goes_with_the_oldest_backup_that_needs_it() -> None:
    rules = policy(full=retention.Rule(keep_within=10 * DAY))
    past = daily(11, 0)
    found = foretell(past, rules, room=100 * GB, wal_per_day=GB)
    assert found.state == "does-not-fill"
    assert found.peak is not None
    assert found.peak <= 20 * GB, "of eleven days or so, and of a week until it is looked at again"
    assert foretell(past, policy(), room=100 * GB, wal_per_day=GB).state == "fills"


def test_what_came_to_an_end_does_not_go_on() -> None:
    old = [backup(f"old-{number}", (100 + number) * DAY, GB) for number in range(5)]
    assert fc.series(old, {}, NOW) == []
    found = foretell(old, policy(), room=GB)
    assert (found.state, found.full_at, found.full_at_unpruned, found.growth_per_day) == (
        "does-not-fill",
        None,
        None,
        0,
    )


def test_cadence_is_that_of_the_newest() -> None:
    """Retention has thinned out the older ones: their gaps say nothing."""
    past = [backup(f"{days}", days * DAY, GB) for days in (0, 1, 2, 3, 4, 5, 12, 40, 70)]
    [rhythm] = fc.series(past, {}, NOW)
    assert rhythm.every == DAY


def test_one_backup_comes_again_after_as_long_as_it_is_old() -> None:
    [rhythm] = fc.series([backup("one", 20 * DAY, GB)], {}, NOW)
    assert rhythm.every == 20 * DAY
    [rhythm] = fc.series([backup("one", dt.timedelta(minutes=5), GB)], {}, NOW)
    assert rhythm.every == DAY


def test_too_little_is_known() -> None:
    past = daily(3, GB, every=dt.timedelta(hours=2))
    assert foretell(past, policy(), room=GB).state == "unknown"
    unlimited = foretell(daily(3, GB), policy(), room=None)
    assert unlimited.state == "unknown"
    assert unlimited.growth_per_day == GB


def test_full_now() -> None:
    assert foretell(daily(1, GB), policy(), room=0).state == "full"


def test_frequent_backups_that_all_stay_end_the_look_ahead() -> None:
    rules = policy(full=retention.Rule(keep_within=dt.timedelta(days=3650)))
    past = daily(30, 1, every=dt.timedelta(minutes=20))
    found = foretell([*past, backup("first", 2 * DAY, 1)], rules, room=10**15)
    assert found.state == "does-not-fill"
    assert found.until is not None
    assert NOW + 30 * DAY < found.until < NOW + 100 * DAY


RULES = st.builds(
    retention.Rule,
    keep_within=st.none() | st.integers(1, 40).map(lambda days: days * DAY),
    keep_last=st.integers(1, 5),
    keep_daily=st.integers(0, 10),
    keep_monthly=st.integers(0, 12),
)
POLICIES = st.builds(
    lambda full, incremental: retention.Policy({"full": full, "incremental": incremental}), RULES, RULES
)
HISTORIES = st.lists(
    st.tuples(st.integers(0, 40 * 4), st.integers(1, 10 * GB), st.sampled_from(["full", "incremental"])),
    min_size=1,
    max_size=12,
    unique_by=lambda each: each[0],
)


@settings(deadline=None, max_examples=15)
@given(HISTORIES, POLICIES, st.integers(1, 500 * GB), st.integers(0, 3 * GB))
def test_more_room_never_fills_earlier(
    history: list[tuple[int, int, retention.Kind]], rules: retention.Policy, room: int, wal: int
) -> None:
    past = [backup(f"{number}", quarter * DAY / 4, size, kind) for number, (quarter, size, kind) in enumerate(history)]
    past.append(backup("first", 41 * DAY, GB))
    small, large = (foretell(past, rules, room * factor, wal) for factor in (1, 2))
    assert small.state in ("fills", "does-not-fill")
    if large.full_at is not None:
        assert small.full_at is not None
        assert small.full_at <= large.full_at
    for found in (small, large):
        assert found.peak is not None
        if found.full_at is not None:
            assert found.full_at > NOW
            # Deleting makes it later, never earlier. A backup that is due at once may come on the first day.
            if found.full_at_unpruned is not None:
                due = sum(each.stored for each in fc.series(past, {}, NOW))
                rate = sum(each.per_day for each in fc.series(past, {}, NOW)) + wal
                slack = dt.timedelta(days=2 + due / rate)
                assert found.full_at >= found.full_at_unpruned - slack
    generous = foretell(past, retention.Policy({}), room, wal)
    if small.full_at is not None:
        assert generous.full_at is not None, "what fills with rules fills without them"
        assert generous.full_at <= small.full_at
