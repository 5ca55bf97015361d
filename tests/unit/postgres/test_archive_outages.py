# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is remembered of locations that do not answer, and when required ones may vouch for an absence."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryobackup.errors import LocationError, RepositoryError
from cryobackup.postgres.archive_absence import doubt
from cryobackup.postgres.archive_fetch import Absent, WalFetch
from cryobackup.postgres.archive_outages import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, Outages
from cryobackup.postgres.wal import parse_wal_name
from cryobackup.storage.posix import PosixLocation
from tests.faults.small_repository import SEGMENT_SIZE, SYSTEM, SmallRepository

SIZE = 16 << 20
DOWN = LocationError("location 'far': no answer")


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def outages(tmp_path: Path, clock: Clock) -> Outages:
    return Outages(tmp_path / "state", clock=clock)


def test_a_location_that_fails_is_left_alone_for_longer_and_longer(outages: Outages, clock: Clock) -> None:
    assert outages.waiting("far") is None
    pauses = []
    for _unused in range(10):
        outages.failed("far", DOWN, 5.0)
        outage = outages.waiting("far")
        assert outage is not None
        assert outage.since == 1_000_000.0
        pauses.append(outage.next_try - clock.now)
        clock.now = outage.next_try
        assert outages.waiting("far") is None
    assert pauses[:3] == [FIRST_PAUSE_SECONDS, 2 * FIRST_PAUSE_SECONDS, 4 * FIRST_PAUSE_SECONDS]
    assert pauses[-1] == LONGEST_PAUSE_SECONDS
    outages.answered("far")
    assert outages.known("far") is None
    outages.failed("far", DOWN, 5.0)
    assert outages.known("far").failures == 1


def test_a_failure_that_shows_at_once_costs_nothing_and_is_tried_again_at_once(outages: Outages) -> None:
    outages.failed("far", DOWN, 0.01)
    assert outages.known("far") is not None
    assert outages.waiting("far") is None


def test_a_clock_that_was_set_back_keeps_nobody_out(outages: Outages, clock: Clock) -> None:
    outages.failed("far", DOWN, 5.0)
    clock.now -= 86_400
    assert outages.waiting("far") is None


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"since": "x"}', b"\xff"])
def test_what_cannot_be_read_is_no_outage(tmp_path: Path, outages: Outages, content: bytes) -> None:
    outages.failed("far", DOWN, 5.0)
    next((tmp_path / "state" / "outages").iterdir()).write_bytes(content)
    assert outages.known("far") is None


def test_where_nothing_can_be_written_nothing_is_remembered(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("in the way")
    outages = Outages(tmp_path / "state")
    outages.failed("far", DOWN, 5.0)
    outages.answered("far")
    assert outages.known("far") is None


def names(*found: str) -> list:
    return [parse_wal_name(name) for name in found]


def segment(number: int, timeline: int = 1) -> str:
    return f"{timeline:08X}{number // 256:08X}{number % 256:08X}"


@pytest.mark.parametrize(
    ("wanted", "present"),
    [
        (segment(5), [segment(3), segment(4)]),
        (segment(256), [segment(255)]),
        (segment(5, 2), [segment(4)]),  # a timeline that a promotion in segment 5 would have begun
        (segment(5), [segment(4, 2), segment(2)]),  # recovery looks on the older timelines, too
        (segment(5), [segment(4), segment(9, 2)]),
        ("00000002.history", [segment(4)]),
        ("00000001.history", [segment(4)]),
        (f"{segment(5)}.partial", [segment(4)]),
    ],
)
def test_an_absence_that_is_certain(wanted: str, present: list[str]) -> None:
    assert doubt(parse_wal_name(wanted), names(*present), SIZE) is None


@pytest.mark.parametrize(
    ("wanted", "present", "why"),
    [
        (segment(5), [], "no segment"),
        (segment(5), ["00000002.history"], "no segment"),
        (segment(5), [segment(4), segment(6)], "later segments"),
        (segment(5), [segment(3)], segment(3)),
        (segment(5), [f"{segment(4)}.partial", segment(3)], segment(3)),
        ("00000002.history", [segment(4), segment(5, 2)], "not its history"),
        ("00000002.history", [], "no segment"),
    ],
)
def test_an_absence_that_is_not(wanted: str, present: list[str], why: str) -> None:
    found = doubt(parse_wal_name(wanted), names(*present), SIZE if present else None)
    assert found is not None
    assert why in found


class TestUnexpected:
    """What nobody thought of must never pass for "there is no such file"."""

    @pytest.mark.parametrize("error", [ModuleNotFoundError("no boto3", name="boto3"), RuntimeError("a defect")])
    def test_a_location_that_cannot_be_asked_is_no_absence(
        self, tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        small = SmallRepository(tmp_path)
        small.push_wal(2 * SEGMENT_SIZE)
        keys = small.open().keys
        fetch = WalFetch(small.config.repository, keys, Outages(tmp_path / "state"))

        def fail(*_unused: object) -> bytes:
            raise error

        # The thread's own report of a defect goes to the log.
        monkeypatch.setattr("threading.excepthook", lambda _unused: None)
        assert isinstance(fetch.fetch(SYSTEM, segment(3), tmp_path / "out"), Absent)
        monkeypatch.setattr(PosixLocation, "read", fail)
        with pytest.raises(RepositoryError):
            fetch.fetch(SYSTEM, segment(3), tmp_path / "out")
        assert not (tmp_path / "out").exists()
