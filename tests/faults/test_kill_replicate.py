# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""SIGKILL at random instants of a replication: what is there is whole, and the next run finishes."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from cryobackup.repository import model
from cryobackup.repository.catalog import Catalog
from cryobackup.repository.repository import Repository
from tests.unit.cli.conftest import Cli

from .small_repository import SEGMENT_SIZE, SmallRepository, sample

KILLS = 16
SEED = 20261123


class Far:
    """A repository in "near", and "far", which loses what it has again and again."""

    def __init__(self, directory: Path) -> None:
        self.made = SmallRepository(directory, ("near", "far"))
        files = sample()
        parent = None
        for number in range(6):
            lsn = (2 + number) * SEGMENT_SIZE + 40
            self.made.push_wal(lsn)
            parent = self.made.backup(files | {b"base/5/notes": b"%d" % number}, parent=parent, start_lsn=lsn)
        self.cli = Cli(directory)
        self.cli.write_config("near", "far")
        self.random = random.Random(SEED)

    def lose(self) -> None:
        for part in ("packs", "manifests", "wal"):
            shutil.rmtree(self.path / part, ignore_errors=True)

    @property
    def path(self) -> Path:
        return self.made.directory / "far"

    def objects(self) -> set[str]:
        found = (os.path.join(path, name) for path, _unused, names in os.walk(self.path) for name in names)
        return {name for each in found if not (name := os.path.relpath(each, self.path)).startswith(".tmp/")}

    def kill(self, after: int) -> bool:
        """Kill the run as soon as so many objects are there; whether that came before its end."""
        process = self.cli.start("--quiet", "replicate", "--workers", "2", stdin=subprocess.DEVNULL)
        while process.poll() is None and len(self.objects()) < after:
            time.sleep(0.001)
        process.kill()
        process.communicate()
        return process.returncode < 0

    def whole(self) -> int:
        """Every backup that is there restores from there alone. How many."""
        repository = self.made.open()
        repository.locations[:] = [place for place in repository.locations if place.name == "far"]
        catalog = Catalog.load(repository)
        assert catalog.broken == []
        for backup in catalog.backups:
            assert self.made.restored(repository, backup) == self.made.content[backup.id]
        return len(catalog.backups)

    def prune(self) -> None:
        assert self.cli("prune", "--grace", "0", "--yes").code == 0


@pytest.mark.parametrize("prune", [False, True], ids=["at-once", "after-a-prune"])
def test_replicate(tmp_path: Path, prune: bool) -> None:
    far = Far(tmp_path)
    start = len(far.objects() - {name for name in far.objects() if name.split("/")[0] in ("packs", "manifests", "wal")})
    killed = 0
    for number in range(KILLS):
        if number % 4 == 0:
            far.lose()
        # Leases come and go; with them, 6 packs, 6 segments and 6 manifests.
        killed += far.kill(start + far.random.randint(1, 20))
        far.whole()
        if prune and number % 2:
            far.prune()
            far.whole()
        if number % 4 == 3:
            done = far.cli("--json", "replicate")
            assert done.code == 0, done
            assert far.whole() == 6
    assert killed >= KILLS // 4
    far.prune()
    nothing_left_over(far)
    assert json.loads(far.cli("--json", "replicate").out)["changed"] is False


def nothing_left_over(far: Far) -> None:
    repository: Repository = far.made.open()
    needed = {name for backup in Catalog.load(repository).backups for name in model.pack_names(backup.header)}
    found = far.objects()
    assert {name for name in found if name.startswith("packs/")} == needed
    assert [name for name in found if name.startswith(("leases/", "marks/"))] == []
