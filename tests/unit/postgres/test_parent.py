# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which backup an incremental is based on when locations do not all have the same ones."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from cryobackup.postgres.changes import ClusterState, Witness
from cryobackup.postgres.parent import Choice, choose_parent
from cryobackup.postgres.timeline import TimelineHistory
from cryobackup.repository import names
from cryobackup.repository.catalog import BackupRecord, Catalog
from tests.faults.small_repository import BLOCK, SEGMENT_SIZE, START, SYSTEM, SmallRepository

DAY = dt.timedelta(days=1)


class Site:
    """A required location, "near", and an optional one, "far"."""

    def __init__(self, directory: Path) -> None:
        self.made = SmallRepository(directory, ("near", "far"), not_required="far")

    def backup(self, days: float, *, missing: str = "") -> BackupRecord:
        """Taken so many days after the start; ``missing`` was away."""
        self.made._clock = START + days * DAY
        record = self.made.backup({b"file": b"content"})
        if missing:
            (self.made.paths[missing] / names.manifest(record.source, record.id)).unlink()
        return record

    def choose(self) -> Choice:
        repository = self.made.open()
        state = ClusterState(
            str(SYSTEM), 150000, TimelineHistory(1), 99 * SEGMENT_SIZE, 20000, BLOCK, 131072, SEGMENT_SIZE, True, False,
            START + 99 * DAY,
            Witness("", "", None),
        )  # fmt: skip
        return choose_parent(Catalog.load(repository).backups, state, repository.locations)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_all_have_the_newest(site: Site) -> None:
    site.backup(0)
    newest = site.backup(1)
    assert site.choose() == Choice(newest, f"based on the newest backup, {newest.id}")


def test_an_optional_location_was_away_for_a_short_time(site: Site) -> None:
    """It catches up with the next backup."""
    common = site.backup(0)
    missed = site.backup(2, missing="far")
    choice = site.choose()
    assert choice.record == common
    assert choice.lagging == ()
    assert choice.reason == f"backup {missed.id} is not in location far"


def test_an_optional_location_was_away_for_long(site: Site) -> None:
    """It does not make the others store again what they have."""
    site.backup(0)
    newest = site.backup(8, missing="far")
    choice = site.choose()
    assert choice.record is not None
    assert choice.record.id == newest.id
    assert choice.lagging == ("far",)
    assert "that location is left out" in choice.reason


def test_an_optional_location_is_new(site: Site) -> None:
    newest = site.backup(0, missing="far")
    choice = site.choose()
    assert choice.record is not None
    assert (choice.record.id, choice.lagging) == (newest.id, ("far",))


def test_a_required_location_is_never_left_out(site: Site) -> None:
    common = site.backup(0)
    site.backup(20, missing="near")
    choice = site.choose()
    assert choice.record == common
    assert choice.lagging == ()


def test_required_locations_share_nothing(site: Site) -> None:
    missed = site.backup(0, missing="near")
    assert site.choose() == Choice(None, f"backup {missed.id} is not in location near")


def test_there_is_no_backup(site: Site) -> None:
    assert site.choose() == Choice(None, "there is no earlier backup of this cluster")
