# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One pass, many places: a place that fails is left out, and only all of them fail the run."""

from __future__ import annotations

import pytest

from cryobackup.errors import LocationError, ObjectConflict
from cryobackup.storage.base import put
from cryobackup.storage.fanout import Fanout
from cryobackup.storage.posix import PosixLocation


@pytest.fixture
def places(tmp_path):
    found = [PosixLocation(name, tmp_path / name) for name in ("one", "two")]
    for place in found:
        place.prepare()
    return found


def lose(place: PosixLocation) -> None:
    place.path.rename(place.path.with_name("gone"))


def test_everything_goes_everywhere(places):
    fanout = Fanout(places)
    writer = fanout.create("a/b")
    writer.write(b"x")
    writer.commit()
    assert [place.read("a/b") for place in places] == [b"x", b"x"]
    assert fanout.lost == {}


def test_a_place_lost_half_way_keeps_nothing_and_the_other_goes_on(places):
    fanout = Fanout(places)
    writer = fanout.create("a")
    writer.write(b"x")
    lose(places[0])
    writer.commit()
    assert places[1].read("a") == b"x"
    assert list(fanout.lost) == ["one"]
    assert [place.name for place in fanout.healthy] == ["two"]
    fanout.put("b", b"y")  # goes to what is left
    assert places[1].read("b") == b"y"


def test_with_no_place_left_the_run_fails(places):
    fanout = Fanout(places)
    writer = fanout.create("a")
    lose(places[0])
    places[1].path.rename(places[1].path.with_name("gone-too"))
    with pytest.raises(LocationError):
        writer.commit()
    assert sorted(fanout.lost) == ["one", "two"]


def test_a_conflict_is_no_outage(places):
    put(places[1], "a", b"other")
    fanout = Fanout(places)
    with pytest.raises(ObjectConflict):
        fanout.put("a", b"x")
    assert fanout.lost == {}
    assert places[1].read("a") == b"other"
