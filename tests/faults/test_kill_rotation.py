# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""SIGKILL before every single change that a rotation makes to the disk: the next one finishes it.

Never is an epoch in use whose keys are in memory only, or not yet wrapped for the recipients.
"""

from __future__ import annotations

import datetime as dt
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cryobackup.config import LocationConfig, RepositoryConfig
from cryobackup.crypto.key_store import writer_keys
from cryobackup.crypto.keys import KeyRing
from cryobackup.crypto.recipients import Opener
from cryobackup.repository.keepers import add_recipient, list_recipients
from cryobackup.repository.recovery import recover
from cryobackup.repository.repository import Repository, init
from cryobackup.repository.rotation import STAGE

NOW = dt.datetime(2026, 11, 23, 1, 2, 3, tzinfo=dt.UTC)
ALICE, BOB = Opener.generate("alice"), Opener.generate("bob")

# The command, killed before the n-th call of one of the functions that change the disk.
PROGRAM = """
import os, signal, sys
left = int(sys.argv[1])
def counting(real):
    def call(*words, **options):
        global left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*words, **options)
    return call
for name in ("fsync", "fdatasync", "link", "rename", "replace", "unlink", "mkdir"):
    setattr(os, name, counting(getattr(os, name)))
from cryobackup.cli import main
sys.exit(main(["--config", sys.argv[2], "--quiet", "key", "rotate"]))
"""


class Place:
    """A repository in two directories, with two recipients; copied for every kill."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = RepositoryConfig(
            {name: LocationConfig(name, "posix", path=root / name) for name in ("one", "two")}, root / "keys"
        )

    def make(self) -> None:
        init(self.config, NOW)
        for opener in (ALICE, BOB):
            add_recipient(self.config, opener.name, opener.recipient, NOW)

    def copy(self, root: Path) -> Place:
        shutil.copytree(self.root, root)
        return Place(root)

    def rotate(self, killed_before: int = 0) -> int:
        """The exit code of the command; ``killed_before`` the n-th change to the disk."""
        config = self.root / "config.yml"
        places = ", ".join(f"{name}: {{type: posix, path: {self.root / name}}}" for name in ("one", "two"))
        config.write_text(f"repository: {{locations: {{{places}}}, keys: {self.root}/keys}}\n")
        program = self.root / "rotate.py"
        program.write_text(PROGRAM)
        done = subprocess.run(
            [sys.executable, program, str(killed_before), config], check=False, capture_output=True, text=True
        )
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        return done.returncode

    def ring(self) -> KeyRing:
        return KeyRing.load(self.config.keys, need_identity=True)

    def recovered(self, opener: Opener) -> set[str]:
        return {key.line() for key in recover(self.config, opener.name, opener=opener).keys}

    def is_safe(self) -> None:
        """Whatever happened: what is in use is with the recipients, and the repository opens."""
        ring = self.ring()
        repository = Repository.open(self.config)
        if ring.epoch == 2:
            assert all(2 in repository.published[name] for name in ("one", "two"))
            assert {key.line() for key in ring.keys if key.role != "public"} <= self.recovered(ALICE)
            assert {key.line() for key in ring.keys if key.role != "public"} <= self.recovered(BOB)

    def is_done(self) -> None:
        self.is_safe()
        ring = self.ring()
        assert ring.epoch == 2
        assert ring.epochs("identity") == ring.epochs("catalog") == ring.epochs("public") == {1, 2}
        assert sorted(path.name for path in self.config.keys.iterdir()) == ["catalog.key", "data.identity", "data.pub"]
        assert {line.line() for line in writer_keys(ring)} <= self.recovered(BOB)
        _epoch, standings, _lost = list_recipients(self.config)
        assert {each.name: each.state for each in standings} == {"alice": "current", "bob": "current"}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("rotation") / "place")
    place.root.mkdir()
    place.make()
    return place


def test_killed_before_every_change(begun: Place, tmp_path: Path) -> None:
    kills, epochs = 0, set()
    for number in range(1, 500):
        place = begun.copy(tmp_path / str(number))
        if place.rotate(killed_before=number) == 0:
            place.is_done()
            break
        kills += 1
        place.is_safe()
        epochs.add(place.ring().epoch)
        staged = place.config.keys / STAGE
        lines = staged.read_text().splitlines()[1:] if staged.exists() else []
        if place.ring().epoch == 1 or staged.exists():  # else it was done, and only its end was not told
            assert place.rotate() == 0
        place.is_done()
        assert set(lines) <= {key.line() for key in place.ring().keys}, "it went on with the keys it had begun with"
        shutil.rmtree(place.root)
    assert kills > 30
    assert epochs == {1, 2}


def test_killed_again_and_again(begun: Place, tmp_path: Path) -> None:
    """Every run gets a little further than the one before."""
    place = begun.copy(tmp_path / "place")
    number = 1
    while place.rotate(killed_before=number) != 0:
        place.is_safe()
        number += 1
        assert number < 500
    place.is_done()
