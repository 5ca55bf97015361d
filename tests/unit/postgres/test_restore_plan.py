# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which backup and which timeline a restore takes."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryobackup.errors import TargetError
from cryobackup.postgres.lsn import format_lsn
from cryobackup.postgres.recovery import RecoveryTarget
from cryobackup.postgres.restore_branches import Branch, Branches, Segment, fork_of
from cryobackup.postgres.restore_plan import Wish, choose, stop_lsn
from cryobackup.postgres.timeline import TimelineHistory, TimelineSwitch
from cryobackup.repository.catalog import BackupRecord
from cryobackup.repository.model import BackupHeader, PostgresInfo, Totals

SIZE = 1 << 24
DAY = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)


def at(hour: float) -> dt.datetime:
    return DAY + dt.timedelta(hours=hour)


def lsn(hour: float) -> int:
    """The cluster writes a segment an hour."""
    return int((hour + 1) * SIZE)


def backup(hour: float, *, timeline: int = 1, status: str = "ok", kind: str = "full") -> BackupRecord:
    """Begun at this hour, ended a quarter of an hour later."""
    end = hour + 0.25
    info = PostgresInfo(
        system_identifier="1",
        version=170000,
        timeline=timeline,
        start_lsn=format_lsn(lsn(hour)),
        stop_lsn=format_lsn(lsn(end)),
        checkpoint_lsn=format_lsn(lsn(hour)),
        wal_start="",
        wal_stop="",
        wal_segment_size=SIZE,
        block_size=8192,
        segment_blocks=131072,
        page_checksums=True,
        from_standby=False,
        data_directory="/data",
        next_oid=1,
    )
    name = f"{at(hour):%Y%m%dT%H%M%SZ}-{timeline:08x}"
    times = at(hour).isoformat(), at(end).isoformat()
    header = BackupHeader(name, "main", kind, None, status, "", *times, "host", "0", info, {}, Totals())
    return BackupRecord(header, ("local",))


def branches(*histories: TimelineHistory, archived: dict[int, tuple[float, float]] | None = None) -> Branches:
    """``archived``: by timeline, the hours of the first and the last segment, each archived within the hour."""
    found = {}
    for history in histories:
        first, last = (archived or {}).get(history.timeline, (0, -1))
        numbers = range(int(first) + 1, int(last) + 2)
        segments = tuple(Segment(number, at(number).timestamp()) for number in numbers)
        found[history.timeline] = Branch(history, segments, None)
    return Branches(found, SIZE)


ONE = TimelineHistory(1)
TWO = TimelineHistory(2, (TimelineSwitch(1, lsn(10), ""),))
"""Left timeline 1 at ten."""
THREE = TimelineHistory(3, (TimelineSwitch(1, lsn(5), ""),))
"""Left timeline 1 at five."""
STRAIGHT = branches(ONE, archived={1: (0, 24)})
LATEST = RecoveryTarget.latest()


def test_the_newest_backup_that_ended_before_the_goal() -> None:
    backups = [backup(1), backup(7, kind="incremental"), backup(13)]
    assert choose(backups, Wish(LATEST), STRAIGHT).backup is backups[2]
    for hour, expected in ((13.26, 2), (13.25, 1), (13.1, 1), (7.3, 1), (7.2, 0), (1.26, 0)):
        wish = Wish(RecoveryTarget.at_time(at(hour)))
        assert choose(backups, wish, STRAIGHT).backup is backups[expected], hour
    for hour, expected in ((13.25, 2), (13.2, 1), (7.25, 1), (1.25, 0)):
        wish = Wish(RecoveryTarget.at_lsn(format_lsn(lsn(hour))))
        assert choose(backups, wish, STRAIGHT).backup is backups[expected], hour
        found = Wish(RecoveryTarget.at_name("x"), found_lsn=lsn(hour))
        assert choose(backups, found, STRAIGHT).backup is backups[expected], hour


@pytest.mark.parametrize(
    "wish", [Wish(RecoveryTarget.at_time(at(1.25))), Wish(RecoveryTarget.at_lsn(format_lsn(lsn(1.25) - 1)))]
)
def test_too_early(wish: Wish) -> None:
    with pytest.raises(TargetError) as caught:
        choose([backup(7), backup(1)], wish, STRAIGHT)
    assert caught.value.id == "too-early"
    assert backup(1).id in caught.value.hint


def test_a_named_backup_must_lead_there_too() -> None:
    backups = [backup(1), backup(7)]
    assert choose(backups, Wish(LATEST), STRAIGHT, named=backups[0]).backup is backups[0]
    with pytest.raises(TargetError, match=backups[1].id):
        choose(backups, Wish(RecoveryTarget.at_time(at(2))), STRAIGHT, named=backups[1])


@pytest.mark.parametrize("status", ["damaged", "partial"])
def test_what_was_not_whole_is_taken_only_without_an_alternative(status: str) -> None:
    good, bad = backup(1), backup(7, status=status)
    chosen = choose([good, bad], Wish(LATEST), STRAIGHT)
    assert (chosen.backup, chosen.warnings) == (good, ())
    for chosen in (choose([bad], Wish(LATEST), STRAIGHT), choose([good, bad], Wish(LATEST), STRAIGHT, named=bad)):
        assert chosen.backup is bad
        assert status in chosen.warnings[0]


def test_other_kinds_are_no_candidates() -> None:
    for backups in ([], [backup(1, kind="logical"), backup(2, kind="files")]):
        with pytest.raises(TargetError) as caught:
            choose(backups, Wish(LATEST), STRAIGHT)
        assert caught.value.id == "no-backup"


# Timelines

FORKED = branches(ONE, TWO, archived={1: (0, 12), 2: (10, 24)})
ON_ONE, BEFORE_FORK, ON_TWO = backup(11), backup(8), backup(20, timeline=2)


def test_latest_is_the_highest_timeline() -> None:
    chosen = choose([BEFORE_FORK, ON_ONE, ON_TWO], Wish(LATEST), FORKED)
    assert (chosen.backup, chosen.history) == (ON_TWO, TWO)
    chosen = choose([BEFORE_FORK, ON_ONE], Wish(LATEST), FORKED)
    assert (chosen.backup, chosen.history) == (BEFORE_FORK, TWO)
    assert "--timeline 1" in chosen.warnings[0]


def test_a_timeline_by_number_or_that_of_the_backup() -> None:
    backups = [BEFORE_FORK, ON_ONE, ON_TWO]
    chosen = choose(backups, Wish(LATEST, "1"), FORKED)
    assert (chosen.backup, chosen.history, chosen.warnings) == (ON_ONE, ONE, ())
    chosen = choose(backups, Wish(LATEST, "current"), FORKED)
    assert (chosen.backup, chosen.history) == (ON_TWO, TWO)
    chosen = choose(backups, Wish(LATEST, "current"), FORKED, named=ON_ONE)
    assert (chosen.backup, chosen.history) == (ON_ONE, ONE)
    with pytest.raises(TargetError) as caught:
        choose(backups, Wish(LATEST, "4"), FORKED)
    assert caught.value.id == "no-such-timeline"


def test_who_names_a_backup_means_its_branch() -> None:
    chosen = choose([BEFORE_FORK, ON_ONE, ON_TWO], Wish(LATEST), FORKED, named=ON_ONE)
    assert (chosen.backup, chosen.history) == (ON_ONE, ONE)
    chosen = choose([BEFORE_FORK, ON_ONE, ON_TWO], Wish(LATEST), FORKED, named=BEFORE_FORK)
    assert chosen.history == TWO


def test_a_backup_that_ends_behind_the_fork_does_not_lead_to_the_other_branch() -> None:
    across = backup(9.9)
    with pytest.raises(TargetError) as caught:
        choose([across], Wish(LATEST, "2"), FORKED)
    assert caught.value.id == "no-backup"
    exactly = backup(9.75)  # ends at ten
    assert choose([exactly], Wish(LATEST, "2"), FORKED).backup is exactly


def test_a_branch_that_lives_on_below_the_highest_timeline_is_asked_about() -> None:
    """A copy was promoted at ten and archived for a while; the source lives on."""
    living = branches(ONE, TWO, archived={1: (0, 24), 2: (10, 12)})
    backups = [BEFORE_FORK, ON_ONE, backup(20)]
    with pytest.raises(TargetError) as caught:
        choose(backups, Wish(LATEST), living)
    assert caught.value.id == "ambiguous-timeline"
    assert "--timeline 1" in caught.value.hint
    assert choose(backups, Wish(LATEST, "1"), living).backup is backups[2]
    assert choose(backups, Wish(LATEST, "2"), living).backup is BEFORE_FORK
    # Nothing is ambiguous before the fork.
    for goal in (RecoveryTarget.at_lsn(format_lsn(lsn(9.5))), RecoveryTarget.at_time(at(7))):
        early = [backup(1), *backups]
        assert choose(early, Wish(goal), living).warnings == ()
    # But a time that may lie behind it is.
    with pytest.raises(TargetError):
        choose(backups, Wish(RecoveryTarget.at_time(at(9))), living)


def test_siblings() -> None:
    both = branches(ONE, THREE, TimelineHistory(4, (TimelineSwitch(1, lsn(7), ""),)), archived={1: (0, 8), 4: (7, 9)})
    assert choose([backup(6)], Wish(LATEST), both).history.timeline == 4
    with pytest.raises(TargetError):
        choose([backup(6)], Wish(LATEST, "3"), both)
    assert fork_of(THREE, TWO) == lsn(5)
    assert fork_of(TWO, THREE) == lsn(5)
    assert fork_of(ONE, TWO) == lsn(10)
    assert fork_of(TWO, ONE) == lsn(10)
    assert fork_of(TWO, TWO) is None


@given(
    hours=st.lists(st.tuples(st.integers(0, 23), st.sampled_from(["ok", "ok", "damaged"])), min_size=1, unique=True),
    goal=st.floats(0, 25, allow_nan=False),
    by_time=st.booleans(),
)
def test_the_choice_is_the_best_there_is(hours: list[tuple[int, str]], goal: float, by_time: bool) -> None:
    backups = [backup(hour, status=status) for hour, status in hours]
    target = RecoveryTarget.at_time(at(goal)) if by_time else RecoveryTarget.at_lsn(format_lsn(lsn(goal)))
    leading = [b for b in backups if (b.finished < at(goal) if by_time else stop_lsn(b) <= lsn(goal))]
    if not leading:
        with pytest.raises(TargetError):
            choose(backups, Wish(target), STRAIGHT)
        return
    sound = [b for b in leading if b.header.status == "ok"] or leading
    chosen = choose(backups, Wish(target), STRAIGHT)
    assert stop_lsn(chosen.backup) == max(map(stop_lsn, sound))
    assert bool(chosen.warnings) == (chosen.backup.header.status != "ok")
