# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All ways to find out what changed find the same: what a full backup finds, whatever happened to the cluster.

After each round of random changes there are one incremental by each way, all of one parent, and a full backup, taken
while nothing happens. Each has to hold the files as they lie on the disk. Then more is changed, and all are restored
to one point: their pages have to be the same, too, and the oracle has to be content.

``METHODS_SEED`` and ``METHODS_ROUNDS`` of the environment: other seeds, apart by blanks, and more rounds, by hand.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import Workspace, golden_dump, prove_restore, wait_until
from tests.lab.cluster import Setting

from .page_comparison import differences
from .random_changes import SETTINGS, SIDE, RandomChanges
from .test_wal_summaries import programs
from .ways import WaysLab, all_ways, ways_of

SEEDS = [int(word) for word in os.environ.get("METHODS_SEED", "1").split()]
ROUNDS = int(os.environ.get("METHODS_ROUNDS", "2"))
STEPS = 40
MORE_STEPS = 8
RESTORED_ROUNDS = 4
"""After so many rounds, and after the last, backups are restored as well."""

pytestmark = pytest.mark.only_on("posix")


@contextlib.contextmanager
def told(seed: int, changes: RandomChanges) -> Iterator[None]:
    """A failure says what it takes to see it again."""
    try:
        yield
    except BaseException as error:
        error.add_note("\n".join([f"METHODS_SEED={seed}, after:", *changes.done[-STEPS - MORE_STEPS - 5 :]]))
        raise


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("major", "checksums"),
    [("15", True), ("17", True), ("17", False), ("18", True)],
    ids=["pg15", "pg17", "pg17-no-checksums", "pg18"],
)
def test_methods_agree(workspace: Workspace, runtime: Path, major: str, checksums: bool, seed: int) -> None:
    settings: dict[str, Any] = {**SETTINGS, "wal_keep_size": "512MB"}
    if int(major) >= 17:
        settings["summarize_wal"] = True
    cluster = workspace.cluster(installation=programs(major), checksums=checksums, settings=settings)
    lab = WaysLab(workspace, runtime, cluster)
    changes, chance = RandomChanges(cluster, seed), random.Random(seed)
    with told(seed, changes):
        changes.begin()
        lab.settle()
        parent = lab.backup("full")["backup_id"]
        for number in range(ROUNDS):
            changes.steps(STEPS)
            is_last = number == ROUNDS - 1
            ways = [way for way in ways_of(cluster) if way.times or is_last]
            taken = all_ways(lab, parent, ways, full=True)
            changes.steps(MORE_STEPS)
            if number % RESTORED_ROUNDS == RESTORED_ROUNDS - 1 or is_last:
                compare_restored(lab, taken, f"point-{number}")
            # The next ones go on from a full backup, or from one by a way that leaves all of them open.
            closing = {way.name for way in ways if not way.same_boot}
            parent = chance.choice([each for name, each in taken.items() if name not in closing])
            lab.show(parent)


def compare_restored(lab: WaysLab, taken: dict[str, str], point: str) -> None:
    cluster = lab.cluster
    # Recovery that is stopped writes its pages when it met a checkpoint, and only then.
    cluster.checkpoint()
    cluster.execute("SELECT pg_create_restore_point(%s)", point)
    golden = golden_dump(cluster)
    lab.archive_everything()
    lab.show(*taken.values())
    places = {name: recovered(lab, backup_id, point) for name, backup_id in taken.items()}
    lab.hide(*taken.values())
    for name, place in places.items():
        assert list(differences(places["full"], place)) == [], name
    # What holds for two of them holds for all: they have the same pages.
    for name in ("full", ways_of(cluster)[0].name):
        prove_restore(lab.workspace, places[name], golden=golden, settings=wal_of(lab))
    for place in places.values():
        shutil.rmtree(place)
        shutil.rmtree(side_of(place))


def side_of(place: Path) -> Path:
    return place.with_name(f"{place.name}-side")


def wal_of(lab: WaysLab) -> dict[str, Setting]:
    """WAL as the living server has it: in a tenth of the time that the archive, whose tests are elsewhere, takes."""
    return {"restore_command": f"cp {lab.cluster.data_dir}/pg_wal/%f %p"}


def recovered(lab: WaysLab, backup_id: str, point: str) -> Path:
    """The backup's files after recovery up to the point."""
    target = lab.place(f"{point}-{backup_id}")
    side = lab.cluster.value("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = %s", SIDE)
    to_side = ("--tablespace", f"{side}={side_of(target)}")
    lab.restore(target, "--backup", backup_id, "--to-name", point, "--action", "pause", *to_side)
    server = lab.workspace.adopt(target, settings=wal_of(lab))
    server.start(120)
    wait_until(lambda: bool(server.value("SELECT pg_get_wal_replay_pause_state() = 'paused'")), "the end of recovery")
    server.stop()
    server.close()
    return target
