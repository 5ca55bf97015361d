# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rotation and recipients on every kind of location: names, create-only, deletion are those of the real thing."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from pathlib import Path

import pytest

from cryobackup.config import RepositoryConfig, load_config
from cryobackup.crypto.keys import KeyRing, new_keys
from cryobackup.crypto.recipients import Opener
from cryobackup.errors import KeyFileError
from cryobackup.repository.keepers import add_recipient, list_recipients, remove_recipient
from cryobackup.repository.recovery import recover
from cryobackup.repository.repository import Repository, init
from cryobackup.repository.rotation import STAGE, rotate
from tests.lab import Workspace

NOW = dt.datetime(2026, 11, 23, 1, 2, 3, tzinfo=dt.UTC)
ALICE, BOB = Opener.generate("alice"), Opener.generate("bob")

pytestmark = pytest.mark.every_location


@pytest.fixture
def config(workspace: Workspace) -> RepositoryConfig:
    store = workspace.stores.make(workspace.path / "store")
    return configured(workspace, store.settings(required=True), "keys")


def configured(workspace: Workspace, location: dict[str, object], keys: str) -> RepositoryConfig:
    path = workspace.path / f"{keys}.yml"
    path.write_text(json.dumps({"repository": {"locations": {"place": location}, "keys": str(workspace.path / keys)}}))
    config = load_config(path).repository
    init(config, NOW)
    return config


def objects(config: RepositoryConfig, prefix: str) -> list[str]:
    (location,) = Repository.open(config).locations
    return [info.key for info in location.list(prefix)]


def states(config: RepositoryConfig) -> dict[str, str]:
    _epoch, standings, lost = list_recipients(config)
    assert not lost
    return {each.name: each.state for each in standings}


def test_a_rotation_with_recipients(config: RepositoryConfig) -> None:
    for opener in (ALICE, BOB):
        add_recipient(config, opener.name, opener.recipient, NOW)
    done = rotate(config, NOW + dt.timedelta(seconds=1))
    assert (done.epoch, done.errors) == (2, {})
    assert objects(config, "keys/") == ["keys/1.pub", "keys/2.pub"]
    assert Repository.open(config).published["place"].keys() == {1, 2}
    found = recover(config, "alice", opener=ALICE)
    assert {key.line() for key in found.keys} == {key.line() for key in KeyRing.load(config.keys).keys}
    names, errors = remove_recipient(config, "bob")
    assert (len(names), errors) == (2, {})
    assert states(config) == {"alice": "current"}
    assert all("/alice/" in name for name in objects(config, "wraps/"))


def test_of_two_rotations_one_wins(config: RepositoryConfig, workspace: Workspace) -> None:
    """The other one sees that it is late, or that the name is taken."""
    other = RepositoryConfig(config.locations, workspace.path / "other")
    shutil.copytree(config.keys, other.keys)
    rotate(config, NOW)
    shutil.copytree(other.keys, workspace.path / "staged")
    with pytest.raises(KeyFileError) as caught:
        rotate(other, NOW)
    assert caught.value.id == "older-epoch"
    late = stage_of_its_own(workspace.path / "staged")
    with pytest.raises(KeyFileError) as caught:
        rotate(RepositoryConfig(config.locations, late), NOW)
    assert caught.value.id in ("rotation-conflict", "wrong-key")
    assert KeyRing.load(late).epoch == 1


def stage_of_its_own(keys: Path) -> Path:
    """As after a crash between the first step and the second."""
    lines = [key.line() for key in new_keys(KeyRing.load(keys).repository_id, 2)]
    (keys / STAGE).write_text("\n".join([*lines, ""]))
    (keys / STAGE).chmod(0o400)
    return keys
