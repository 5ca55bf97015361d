# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Marks and leases that somebody with the catalog key made up, where no policy keeps him from writing them."""

from __future__ import annotations

import dataclasses
import datetime as dt
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cryobackup.events import Silent
from cryobackup.prune import PruneResult, prune
from cryobackup.repository import container, names
from cryobackup.repository.catalog import Catalog, write_note
from cryobackup.repository.lease import LEASE_PERIOD_SECONDS, encode_lease, new_lease
from cryobackup.repository.model import PIN, Mark, Note
from cryobackup.retention import Policy, Rule
from cryobackup.storage.base import put

from .small_repository import START, SmallRepository, two_backups

if TYPE_CHECKING:
    import pytest

NONE = dt.timedelta()
LATER = START + dt.timedelta(days=1)
RULES = {kind: Rule(keep_last=1) for kind in ("full", "incremental")}


def run_prune(made: SmallRepository) -> PruneResult:
    config = dataclasses.replace(made.config, retention=Policy(RULES, minimum=1))
    return prune(config, now=LATER, dry_run=False, yes=True, reporter=Silent(), grace=NONE)


def everything(made: SmallRepository) -> set[str]:
    (location,) = made.open().locations
    return {info.key for info in location.list("")}


def add_mark(made: SmallRepository, manifests: list[str], packs: list[str], wal: list[str]) -> str:
    repository = made.open()
    mark = Mark(names.new_id(LATER, os.urandom(4)), LATER.isoformat(), manifests, packs, wal)
    name = names.mark(mark.mark_id)
    (location,) = repository.locations
    put(location, name, container.encode_record(repository.keys, container.MARK, name, mark))
    return name


@settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_mark_deletes_nothing_that_the_plan_keeps_whatever_it_names(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    made = two_backups(tmp_path_factory.mktemp("marks"))
    repository = made.open()
    first = Catalog.load(repository).backups[0]
    write_note(repository, Note(first.id, "main", PIN, LATER.isoformat()), names.new_id(LATER, os.urandom(4)))
    before = everything(made)
    odd = ["repository.json", "keys/1.pub", "../keys/catalog.key", "wal/x", "manifests/main/nothing", ""]
    objects = st.lists(st.sampled_from(sorted(before) + odd), max_size=12)
    add_mark(made, data.draw(objects), data.draw(objects), data.draw(objects))
    result = run_prune(made)
    assert result.errors == {}
    assert everything(made) == before


def test_a_mark_cannot_name_what_is_created_after_it(tmp_path: Path) -> None:
    made = two_backups(tmp_path)
    add_mark(made, ["manifests/main/20260301T120500Z-00000000"], ["packs/20260301T120500Z-00000000/000000.pack"], [])
    before = everything(made)
    run_prune(made)
    assert {name for name in before if not name.startswith("marks/")} == everything(made)


def test_a_flood_of_leases_keeps_what_they_name_and_deletes_nothing(tmp_path: Path) -> None:
    made = two_backups(tmp_path)
    third = made.backup({b"PG_VERSION": b"15\n"})
    repository = made.open()
    (location,) = repository.locations
    first = Catalog.load(repository).backups[0]
    for _unused in range(50):
        lease = new_lease("main", names.new_id(LATER, os.urandom(4)), first.id, LATER)
        put(location, *encode_lease(repository.keys, dataclasses.replace(lease, host="elsewhere")))
    before = everything(made)
    result = run_prune(made)
    assert result.errors == {}
    assert third.id in result.plan.after
    assert first.id not in result.plan.after
    assert everything(made) == before


def test_a_lease_that_nobody_can_read_blocks_a_prune_for_as_long_as_a_lease_lasts(tmp_path: Path) -> None:
    made = two_backups(tmp_path)
    (location,) = made.open().locations
    name = names.lease("main", names.new_id(LATER, os.urandom(4)))
    put(location, name, b"nonsense")
    before = everything(made)
    assert run_prune(made).errors.keys() == {"here"}
    assert everything(made) == before
    path = made.paths["here"] / name
    old = time.time() - LEASE_PERIOD_SECONDS - 60
    os.utime(path, (old, old))
    assert run_prune(made).errors == {}
    assert everything(made) == before - {name}
