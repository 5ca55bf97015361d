# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Locks last as long as backups are kept, are only ever lengthened, and what is deleted goes when they are over."""

from __future__ import annotations

import dataclasses
import datetime as dt
import importlib
import json
import time
from pathlib import Path
from typing import Any

import pytest

from cryobackup.cli._frame import Context
from cryobackup.cli._parser import Parser
from cryobackup.cli.progress import StandardErrorReporter
from cryobackup.config import Config, RepositoryConfig
from cryobackup.config.locations import LocationConfig, LockMode, ObjectLock, S3Options
from cryobackup.errors import ConfigError
from cryobackup.events import Silent
from cryobackup.object_lock import LockReport, keep_locked
from cryobackup.prune import PruneResult, prune
from cryobackup.report.overview import overview
from cryobackup.repository import model, names
from cryobackup.repository.catalog import BackupRecord
from cryobackup.repository.locking import Terms
from cryobackup.repository.manifest import Manifest
from cryobackup.repository.model import pack_names
from cryobackup.repository.repository import Repository, init
from cryobackup.retention import Policy, Rule
from cryobackup.storage.base import put
from tests.faults.small_repository import SEGMENT_SIZE, SmallRepository, sample
from tests.faults.test_false_manifests import false_manifest
from tests.lab.ceph import Gateway

DAY = dt.timedelta(days=1)
SLACK = dt.timedelta(minutes=5)
BRIEF = dt.timedelta(seconds=8)
"""A lock that is soon over, and yet not before a store on a busy machine hears of it: that would be an error."""
RULES = {"full": Rule(keep_within=30 * DAY), "incremental": Rule(keep_within=60 * DAY)}
MODES = ["governance", "compliance"]


class LockedRepository(SmallRepository):
    """A small repository in a locked bucket, with backups of now."""

    def __init__(self, directory: Path, s3: Gateway, mode: LockMode, retain: dt.timedelta, policy: Policy) -> None:
        self.directory = directory
        self.bucket = s3.make_bucket("locked")
        found = self.bucket.config()
        options = S3Options(
            bucket=found["bucket"],
            region=found["region"],
            endpoint_url=found["endpoint_url"],
            credentials_file=Path(found["credentials_file"]),
            ca_file=Path(found["ca_file"]),
            object_lock=ObjectLock(mode, retain),
        )
        self.config = Config(
            path=directory / "config.yml",
            repository=RepositoryConfig({"cloud": LocationConfig("cloud", "s3", s3=options)}, directory / "keys"),
            retention=policy,
            state_directory=directory / "state",
        )
        self.mode = mode
        self.content = {}
        self._clock = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=30)
        init(self.config.repository, self._clock)

    def until(self, name: str, version: str | None = None) -> dt.datetime | None:
        which = {} if version is None else {"VersionId": version}
        answer = self.bucket.client.get_object_retention(Bucket=self.bucket.name, Key=name, **which)
        found: dt.datetime = answer["Retention"]["RetainUntilDate"]
        return found

    def lasting(self) -> list[str]:
        """The objects that are locked when they are created."""
        return [name for name in self.bucket.keys("") if not name.startswith(("leases/", "probe/"))]

    def lock(self, *, dry_run: bool = False, terms: Terms | None = None, **changes: Any) -> LockReport:
        config = dataclasses.replace(self.config, **changes)
        now = dt.datetime.now(dt.UTC)
        return keep_locked(config, terms or Terms(), now=now, dry_run=dry_run, reporter=Silent())

    def prune(self, **changes: Any) -> PruneResult:
        config = dataclasses.replace(self.config, **changes)
        now = dt.datetime.now(dt.UTC)
        none = dt.timedelta()
        return prune(config, now=now, dry_run=False, yes=True, reporter=Silent(), grace=none)


def two_backups(made: LockedRepository) -> tuple[BackupRecord, BackupRecord, list[str]]:
    """A full backup, an incremental that refers to a pack of it, and the WAL of both."""
    files = sample()
    first, second = 2 * SEGMENT_SIZE + 40, 3 * SEGMENT_SIZE + 40
    wal = [made.push_wal(SEGMENT_SIZE), made.push_wal(first), made.push_wal(second)]
    full = made.backup(files, start_lsn=first)
    incremental = made.backup(files | {b"base/5/notes": b"short"}, parent=full, start_lsn=second)
    return full, incremental, wal


@pytest.fixture(params=MODES)
def made(request: pytest.FixtureRequest, tmp_path: Path, s3: Gateway) -> LockedRepository:
    return LockedRepository(tmp_path, s3, request.param, DAY, Policy(RULES, minimum=0, trash=dt.timedelta()))


def near(found: dt.datetime | None, expected: dt.datetime) -> bool:
    return found is not None and abs(found - expected) < SLACK


def test_locks_reach_as_far_as_retention_and_shared_packs_as_far_as_the_last_backup(made: LockedRepository) -> None:
    full, incremental, wal = two_backups(made)
    before = {name: made.until(name) for name in made.lasting()}
    dry = made.lock(dry_run=True).locations["cloud"]
    assert dry.lengthened == dry.short == dry.objects > 5
    assert "put" not in dry.requests
    assert before == {name: made.until(name) for name in before}

    done = made.lock().locations["cloud"]
    assert done.lengthened == dry.lengthened == done.requests["put"]
    margin = Terms().at_least
    of_full, of_incremental = full.finished + 30 * DAY + margin, incremental.finished + 60 * DAY + margin
    assert near(made.until(names.manifest("main", full.id)), of_full)
    assert near(made.until(names.manifest("main", incremental.id)), of_incremental)
    shared = {name for name in pack_names(incremental.header) if full.id in name}
    assert shared
    assert all(near(made.until(name), of_incremental) for name in pack_names(incremental.header))
    assert near(made.until("repository.json"), of_incremental)
    assert near(made.until("keys/1.pub"), of_incremental)
    # The first segment lies before both backups, the others are on the way of one of them.
    assert made.until(wal[0]) == before[wal[0]]
    assert near(made.until(wal[1]), of_full)
    assert near(made.until(wal[2]), of_incremental)
    assert done.least_until is not None
    assert near(done.least_until, of_full)

    again = made.lock()
    assert again.exit_code == 0
    assert again.locations["cloud"].lengthened == 0
    looks = {} if made.mode == "compliance" else {"get": done.objects}
    assert again.locations["cloud"].requests == {"list": 1, **looks}


def test_locks_are_never_shortened(made: LockedRepository) -> None:
    full, _incremental, _wal = two_backups(made)
    made.lock()
    kept = {name: made.until(name) for name in made.lasting()}
    short = Policy({"full": Rule(keep_within=DAY), "incremental": Rule(keep_within=DAY)}, minimum=0)
    assert made.lock(retention=short).locations["cloud"].lengthened == 0
    assert kept == {name: made.until(name) for name in kept}
    assert near(made.until(names.manifest("main", full.id)), full.finished + 30 * DAY + Terms().at_least)


def test_what_has_no_end_is_locked_for_a_while_and_what_has_a_far_one_not_so_far(made: LockedRepository) -> None:
    full, _incremental, _wal = two_backups(made)
    now = dt.datetime.now(dt.UTC)
    name = names.manifest("main", full.id)
    made.lock(retention=Policy({}))
    assert near(made.until(name), now + 14 * DAY)
    made.lock(retention=Policy({kind: Rule(keep_within=9000 * DAY) for kind in ("full", "incremental")}))
    assert near(made.until(name), now + 365 * DAY)


def test_objects_without_a_lock_and_written_over_are_locked_and_told(made: LockedRepository) -> None:
    full, _incremental, _wal = two_backups(made)
    name = names.manifest("main", full.id)
    original = next(version.version_id for version in made.bucket.versions(name))
    made.bucket.write(name, b"something else")
    report = made.lock()
    done = report.locations["cloud"]
    assert (done.overwritten, done.unlocked, done.missing, done.hidden) == (1, 1, 0, 0)
    assert report.exit_code == 3
    assert near(made.until(name, original), full.finished + 30 * DAY + Terms().at_least)
    assert made.lock().locations["cloud"].unlocked == 0


def test_objects_that_somebody_deleted_are_told_and_stay_locked_below_their_marker(made: LockedRepository) -> None:
    full, incremental, _wal = two_backups(made)
    pack = next(iter(pack_names(full.header)))
    (version,) = made.bucket.versions(pack)
    before = made.until(pack, version.version_id)
    made.bucket.delete(pack)
    assert made.lock(dry_run=True).locations["cloud"].hidden == 1
    assert made.until(pack, version.version_id) == before
    report = made.lock()
    assert report.exit_code == 3
    assert report.locations["cloud"].hidden == 1
    assert any("gone" in text for text in report.attention)
    kept = incremental.finished + 60 * DAY
    assert near(made.until(pack, version.version_id), kept + Terms().at_least)
    made.prune()
    assert version.version_id in {each.version_id for each in made.bucket.versions(pack)}


def test_a_manifest_that_nobody_can_read_is_told_and_keeps_no_other_from_being_locked(made: LockedRepository) -> None:
    full, _incremental, _wal = two_backups(made)
    name = names.manifest("main", names.new_id(dt.datetime.now(dt.UTC), b"junk"))
    put(made.open().locations[0], name, b"nonsense")
    report = made.lock()
    assert report.exit_code == 3
    assert [text for text in report.attention if name in text]
    assert near(made.until(names.manifest("main", full.id)), full.finished + 30 * DAY + Terms().at_least)


def test_a_lock_that_ends_soon_is_told(tmp_path: Path, s3: Gateway) -> None:
    made = LockedRepository(tmp_path, s3, "governance", 2 * DAY, Policy(RULES))
    two_backups(made)
    report = made.lock(dry_run=True)
    assert report.exit_code == 3
    assert any("ends at" in text for text in report.attention)


LAST = Policy({"full": Rule(keep_last=1), "incremental": Rule(keep_last=1)}, minimum=0, trash=dt.timedelta())


def test_what_is_locked_is_left_without_an_error_and_goes_when_the_lock_is_over(tmp_path: Path, s3: Gateway) -> None:
    seconds = 25
    made = LockedRepository(tmp_path, s3, "compliance", dt.timedelta(seconds=seconds), LAST)
    old = made.backup(sample())
    new = made.backup({b"PG_VERSION": b"15\n", b"global/1": b"other" * 100})
    created = time.monotonic()
    gone = {names.manifest("main", old.id), *pack_names(old.header)}

    first = made.prune()
    hidden = first.locations["cloud"].hidden
    assert first.errors == {}
    assert (first.locations["cloud"].manifests, first.locations["cloud"].packs) == (1, len(gone) - 1)
    assert hidden is not None
    assert hidden.locked == len(gone)
    assert first.locations["cloud"].bytes_freed == hidden.bytes_removed
    assert gone <= {version.key for version in made.bucket.versions()}
    assert not gone & set(made.bucket.keys())
    # Leases are not locked: of them nothing is left.
    assert not made.bucket.versions("leases/")[2:]

    time.sleep(max(0.0, created + seconds + 2 - time.monotonic()))
    second = made.prune()
    hidden = second.locations["cloud"].hidden
    assert hidden is not None
    assert hidden.locked == 0
    assert second.locations["cloud"].bytes_freed >= sum(size for size, _unused in pack_names(old.header).values())
    assert not gone & {version.key for version in made.bucket.versions()}
    assert {names.manifest("main", new.id), *pack_names(new.header)} <= set(made.bucket.keys())
    assert made.restored(made.open(), new) == made.content[new.id]


def test_the_trash_keeps_what_was_deleted_for_its_time(tmp_path: Path, s3: Gateway) -> None:
    made = LockedRepository(tmp_path, s3, "governance", BRIEF, dataclasses.replace(LAST, trash=DAY))
    old = made.backup(sample())
    made.backup({b"PG_VERSION": b"15\n"})
    time.sleep(BRIEF.total_seconds() + 1)
    hidden = made.prune().locations["cloud"].hidden
    assert hidden is not None
    assert hidden.removed == hidden.locked == 0
    assert {names.manifest("main", old.id), *pack_names(old.header)} <= {each.key for each in made.bucket.versions()}


def test_an_object_that_was_written_over_counts_as_it_was_first(tmp_path: Path, s3: Gateway) -> None:
    made = LockedRepository(tmp_path, s3, "governance", BRIEF, LAST)
    kept = made.backup(sample())
    objects = [names.manifest("main", kept.id), *pack_names(kept.header), "repository.json"]
    for name in objects:
        made.bucket.write(name, b"something else")
    time.sleep(BRIEF.total_seconds() + 1)
    result = made.prune()
    assert result.errors == {}
    hidden = result.locations["cloud"].hidden
    assert hidden is not None
    assert hidden.overwritten == len(objects)
    trusted = dataclasses.replace(made.config, repository=made.config.repository.as_written())
    made.config = trusted
    assert made.restored(made.open(), kept) == made.content[kept.id]


def shown(made: LockedRepository, command: str, backup_id: str) -> Any:
    if command == "overview":
        return overview(made.config, backup=backup_id, now=made.now(), reporter=Silent())
    context = Context(config_path=None, json=True, reporter=StandardErrorReporter(quiet=True))
    context.config = made.config
    module = importlib.import_module(f"cryobackup.cli.{command}")
    parser = Parser.of_command(command, command)
    module.add_arguments(parser)
    words = {"info": [backup_id], "pin": [backup_id, "--reason", "x"]}
    outcome = module.run(parser.parse(words.get(command, [])), context)
    assert outcome.exit_code == 0
    return outcome.result


def test_who_only_looks_sees_what_was_first_too(tmp_path: Path, s3: Gateway) -> None:
    """A manifest that authenticates was put on top of the true one, by somebody with the writer's keys."""
    made = LockedRepository(tmp_path, s3, "governance", BRIEF, LAST)
    kept = made.backup(sample())
    name, keys = names.manifest("main", kept.id), made.open().keys
    false = dataclasses.replace(kept.header, label="false", totals=model.Totals(bytes_source=1234567))
    made.bucket.write(name, false_manifest(keys, false, bytes, ()))
    assert Manifest(keys, made.open().locations[0], "main", kept.id).header.label == "false", "as the bucket shows it"
    for command in ("list", "info", "status", "capacity", "overview"):
        told = json.dumps(shown(made, command, kept.id), default=str)
        assert '"false"' not in told, command
        assert "1234567" not in told, command
    made.bucket.write(name, b"something else")
    assert shown(made, "pin", kept.id)["changed"]


def test_an_object_that_was_deleted_and_made_anew_is_not_written_over(tmp_path: Path, s3: Gateway) -> None:
    made = LockedRepository(tmp_path, s3, "governance", BRIEF, LAST)
    kept = made.backup(sample())
    trusted = Repository.open(made.config.repository.as_written(), need_identity=True)
    (location,) = trusted.locations
    name = next(iter(pack_names(kept.header)))
    good = location.read(name)
    location.delete(name)
    assert location.stat(name) is None
    put(location, name, good)
    assert location.read(name) == good
    time.sleep(BRIEF.total_seconds() + 1)
    hidden = made.prune().locations["cloud"].hidden
    assert hidden is not None
    assert hidden.overwritten == 0
    # The one that was deleted is gone for good, and the marker with it.
    assert [version.delete_marker for version in made.bucket.versions(name)] == [False]
    assert made.restored(made.open(), kept) == made.content[kept.id]


def test_no_lock_in_the_configuration_is_an_error(tmp_path: Path) -> None:
    made = SmallRepository(tmp_path)
    with pytest.raises(ConfigError) as caught:
        keep_locked(made.config, Terms(), now=dt.datetime.now(dt.UTC), dry_run=True, reporter=Silent())
    assert caught.value.id == "no-object-lock"
