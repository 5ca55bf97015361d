# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A parent is not used while a prune deletes: section 9 of docs/repository-format.md."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import pytest

from cryobackup.repository import names, session
from cryobackup.repository.catalog import BackupRecord, Catalog
from cryobackup.repository.lease import lease_held, new_lease
from cryobackup.repository.model import PRUNING
from cryobackup.repository.session import BackupSession
from tests.faults.small_repository import START, SmallRepository, sample


@pytest.fixture
def made(tmp_path: Path) -> SmallRepository:
    return SmallRepository(tmp_path, ("here", "there"))


@pytest.fixture
def parent(made: SmallRepository) -> BackupRecord:
    return made.backup(sample())


@contextlib.contextmanager
def announced(made: SmallRepository, **changes):
    """A prune under way in the second location."""
    repository = made.open()
    [there] = [place for place in repository.locations if place.name == "there"]
    lease = new_lease("prune", names.new_id(START, b"abcd"), None, START, purpose=PRUNING)
    with lease_held(repository.keys, there, dataclasses.replace(lease, **changes)):
        yield


def begin(made: SmallRepository, parent: BackupRecord) -> BackupSession:
    return BackupSession(made.open(), source="main", parent=parent, now=made.now(), spool=made.directory)


def test_a_backup_waits_for_a_prune_and_goes_on_from_its_parent(
    made: SmallRepository, parent: BackupRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases: list[int] = []
    with contextlib.ExitStack() as prune:
        prune.enter_context(announced(made, host="elsewhere"))

        def sleep(_seconds: float) -> None:
            leases.append(len(list((made.paths["there"] / "leases/main").iterdir())))
            prune.close()

        monkeypatch.setattr(session.time, "sleep", sleep)
        with begin(made, parent) as child:
            assert child.parent is parent
            assert child.parent_refused is None
    assert leases == [1], "the backup's own lease must be there before it looks for prunes"


def test_a_backup_goes_without_parent_when_a_prune_takes_long(
    made: SmallRepository, parent: BackupRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "PRUNE_PATIENCE_SECONDS", 0)
    with announced(made, host="elsewhere"):
        with begin(made, parent) as child:
            assert child.parent is None
            assert child.parent_refused == "a prune of host elsewhere deletes in location there right now"
        full = made.backup(sample())
    assert made.restored(made.open(), full) == made.content[full.id]
    assert set(full.locations) == {"here", "there"}


def test_a_prune_of_this_host_whose_process_is_gone_hinders_nobody(
    made: SmallRepository, parent: BackupRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "PRUNE_PATIENCE_SECONDS", 0)
    with announced(made, boot_id="another/1"), begin(made, parent) as child:
        assert child.parent is parent


def test_a_parent_that_a_prune_deleted_while_it_was_waited_for_is_not_used(
    made: SmallRepository, parent: BackupRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest is looked for last."""
    with contextlib.ExitStack() as prune:
        prune.enter_context(announced(made, host="elsewhere"))

        def sleep(_seconds: float) -> None:
            (made.paths["there"] / names.manifest("main", parent.id)).unlink()
            prune.close()

        monkeypatch.setattr(session.time, "sleep", sleep)
        with begin(made, parent) as child:
            assert child.parent is None
            assert child.parent_refused == f"backup {parent.id} was deleted"
    assert [record.id for record in Catalog.load(made.open()).backups] == [parent.id]
