# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups, prunes, crashes at every storage call and concurrent runs against promises 1 to 5.

The machine knows what every backup holds. After every step each manifest that exists must restore
to exactly that, from its location alone; every acknowledged backup that retention keeps must still
be there; no object may ever change.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import os
import pathlib
import tempfile
import typing as t
from unittest import mock

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cryobackup import retention
from cryobackup.crypto import suite
from cryobackup.crypto.keys import KeyRing, new_keys
from cryobackup.errors import BusyError, LocationError, RepositoryError
from cryobackup.events import Silent
from cryobackup.prune import prune_repository
from cryobackup.replicate.delivery import Options
from cryobackup.replicate.result import ReplicateResult
from cryobackup.replicate.run import replicate_repository
from cryobackup.replicate.wanted import Which
from cryobackup.repository import extents as xt
from cryobackup.repository import lease, names
from cryobackup.repository.catalog import Catalog, newest
from cryobackup.repository.manifest import Manifest
from cryobackup.repository.model import FILE, FULL, INCREMENTAL, BackupHeader, Entry, Totals
from cryobackup.repository.packs import PackReader
from cryobackup.repository.repository import Repository, _new_description
from cryobackup.repository.session import BackupSession

from .memory import Crash, Machine, MemoryLocation

REPOSITORY_ID = "5e" * 16
KEYS = KeyRing(new_keys(REPOSITORY_ID), "test")
START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
POLICY = retention.Policy(
    {kind: retention.Rule(keep_last=1) for kind in ("full", "incremental")}, minimum=1, max_delete_share=1
)
PLAN = retention.plan
PATHS = [b"base/1/1", b"base/1/2", b"global/3"]


@dataclasses.dataclass(eq=False)
class Running:
    """A backup under way on some host."""

    host: str
    session: BackupSession
    repository: Repository
    machine: Machine
    started: dt.datetime
    content: dict[bytes, bytes] = dataclasses.field(default_factory=dict)
    busy: bool = False
    overslept: bool = False  # its lease may have been taken for dead


@dataclasses.dataclass(frozen=True)
class Happening:
    name: str  # begin, write, commit; backup: all three of one; prune; replicate
    which: int  # replicate: odd to repair
    flag: bool  # begin: without parent; prune: without grace; replicate: also what retention drops
    paths: frozenset[bytes]
    hours: int  # that pass before it


@dataclasses.dataclass(frozen=True)
class Trouble:
    crash: int = 0
    fail: int = 0  # a call that ends with a LocationError, and everything goes on
    after: bool = False  # the call that crashes or fails had its effect
    pause: int = 0
    meanwhile: tuple[Happening, ...] = ()


CALM = Trouble()
TROUBLE = st.one_of(
    st.just(CALM),
    st.builds(Trouble, crash=st.integers(1, 40), after=st.booleans()),
    st.builds(Trouble, fail=st.integers(1, 40), after=st.booleans()),
)
HAPPENINGS = st.builds(
    Happening,
    name=st.sampled_from(["backup", "begin", "write", "commit", "prune", "replicate"]),
    which=st.integers(0, 3),
    flag=st.booleans(),
    paths=st.frozensets(st.sampled_from(PATHS), max_size=2),
    hours=st.sampled_from([0, 0, 0, 0, 2, 24 * 8]),
)


@contextlib.contextmanager
def tolerating(machine: Machine) -> t.Iterator[None]:
    """Only who met a failure may give up because of one."""
    try:
        yield
    except LocationError:
        assert machine.failed


class Protocol(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.spool = pathlib.Path(self.directory.name)
        self.now = START
        self.stores: dict[str, dict[str, tuple[bytes, float]]] = {"one": {}, "two": {}}
        for name in self.stores:
            place = MemoryLocation(name, Machine(), self.stores[name])
            place.add("repository.json", _new_description(REPOSITORY_ID, START))
        self.skew = {"one": 0.0, "two": 0.0}
        self.content: dict[str, dict[bytes, bytes]] = {}  # by backup id, known before its commit
        self.acknowledged: dict[str, set[str]] = {}  # backup id → locations that were promised
        self.dropped: set[str] = set()  # ids that a retention plan let go
        self.seen: dict[tuple[str, str], bytes] = {}
        self.running: list[Running] = []
        self.starting: list[Running] = []
        self.watch = Silent()
        self.hosts = 0

    def teardown(self) -> None:
        while self.running:
            self.give_up(self.running[0])
        self.directory.cleanup()

    # Parts.

    def open(self, machine: Machine) -> Repository:
        locations = [MemoryLocation(name, machine, objects) for name, objects in self.stores.items()]
        for location in locations:
            location.clock = 1e9 + (self.now - START).total_seconds() + self.skew[location.name]
        return Repository(KEYS, locations)

    def tick(self, seconds: float = 1.0) -> None:
        self.now += dt.timedelta(seconds=seconds)
        for run in [*self.running, *self.starting]:
            run.overslept |= (self.now - run.started).days >= 7 or any(self.skew.values())
            for location in run.repository.locations:
                location.clock = 1e9 + (self.now - START).total_seconds() + self.skew[location.name]

    @staticmethod
    def as_host(host: str) -> None:
        lease.host_name = lambda: host  # type: ignore[assignment]

    # What can happen. Each may crash at any storage call, and anything else may happen in the middle of it.

    @rule(what=HAPPENINGS, trouble=TROUBLE)
    def happen(self, what: Happening, trouble: Trouble) -> None:
        self.do(what, trouble)

    @rule(what=HAPPENINGS, at=st.integers(1, 25), meanwhile=st.lists(HAPPENINGS, min_size=1, max_size=3))
    def happen_meanwhile(self, what: Happening, at: int, meanwhile: list[Happening]) -> None:
        self.do(what, Trouble(pause=at, meanwhile=tuple(meanwhile)))

    def do(self, what: Happening, trouble: Trouble) -> None:
        outer = lease.host_name
        self.tick(what.hours * 3600.0 + 1)
        try:
            getattr(self, what.name)(what, trouble)
        finally:
            lease.host_name = outer

    def prepare(self, machine: Machine, trouble: Trouble) -> None:
        if trouble.crash:
            machine.crash_at(trouble.crash, after=trouble.after)
        if trouble.fail:
            machine.fail_at(trouble.fail, after=trouble.after)
        if trouble.pause:
            machine.pause_at(trouble.pause, lambda: [self.do(what, CALM) for what in trouble.meanwhile])

    def begin(self, what: Happening, trouble: Trouble) -> None:
        self.hosts += 1
        host, machine = f"host-{self.hosts}", Machine()
        self.as_host(host)
        repository = self.open(machine)
        backups = Catalog.load(repository).of("main")
        parent = None
        if not what.flag and backups:
            parent = backups[0] if what.which % 2 else newest(backups)
        session = BackupSession(repository, source="main", parent=parent, now=self.now, spool=self.spool)
        run = Running(host, session, repository, machine, self.now, overslept=any(self.skew.values()))
        self.starting.append(run)
        self.prepare(machine, trouble)
        try:
            with mock.patch("cryobackup.repository.session.PRUNE_PATIENCE_SECONDS", 0):
                session.__enter__()
        except Crash:
            return
        except LocationError:
            assert machine.failed
            return
        finally:
            self.starting.remove(run)
        self.running.append(run)

    def backup(self, what: Happening, trouble: Trouble) -> None:
        before = len(self.running)
        self.begin(what, trouble)
        if len(self.running) == before + 1:
            last = dataclasses.replace(what, which=-1)
            self.write(last, CALM)
            self.commit(last, CALM)

    def take(self, which: int, *, written: bool) -> Running | None:
        """A run that is not in the middle of something."""
        idle = [run for run in self.running if bool(run.content) == written and not run.busy]
        return idle[which % len(idle)] if idle else None

    def write(self, what: Happening, trouble: Trouble) -> None:
        run = self.take(what.which, written=False)
        if run is None:
            return
        self.as_host(run.host)
        self.prepare(run.machine, trouble)
        run.busy = True
        try:
            self.store(run, what.paths)
        except Crash:
            self.give_up(run)
        except RepositoryError:
            assert run.overslept or run.machine.failed, "a backup lost its parent though its lease was alive"
            self.give_up(run)
        run.busy = False

    def store(self, run: Running, changed: frozenset[bytes]) -> None:
        session = run.session
        old: dict[bytes, Entry] = {}
        if session.parent is not None:
            old = {entry.path: entry for entry in session.parent_manifest().entries()}
        sink = session.packs.sink()
        content: dict[bytes, bytes] = {}
        for path in PATHS:
            if path in old and path not in changed and session.parent is not None:
                content[path] = self.content[session.parent.id][path]
                extents = session.refer(xt.unpack(old[path].extents))
            else:
                content[path] = path + session.backup_id.encode()
                reference = sink.store(content[path])
                digest = suite.keyed_digest(KEYS.digest_key, content[path])[:16]
                extents = xt.build([(0, len(content[path]), reference.pack, reference.frame, 0, digest)])
            session.add(Entry(path, FILE, 0o600, 0, 0, len(content[path])), extents)
        sink.close()
        run.content = self.content[session.backup_id] = content

    def commit(self, what: Happening, trouble: Trouble) -> None:
        run = self.take(what.which, written=True)
        if run is None:
            return
        self.as_host(run.host)
        self.prepare(run.machine, trouble)
        run.busy = True
        parent = run.session.parent
        header = BackupHeader(
            run.session.backup_id, "main", INCREMENTAL if parent else FULL, parent.id if parent else None, "ok", "",
            run.started.isoformat(), self.now.isoformat(), run.host, "test", None, {}, Totals(),
        )  # fmt: skip
        try:
            result = run.session.commit(header)
        except Crash:
            pass
        except LocationError:
            assert run.overslept or run.machine.failed, "a backup could not be committed though its lease was alive"
        else:
            assert run.overslept or run.machine.failed or not result.lost
            self.acknowledged[run.session.backup_id] = set(result.locations)
        self.give_up(run)

    def give_up(self, run: Running) -> None:
        """The end of a run: in order, unless its machine is down."""
        if run in self.running:
            self.running.remove(run)
        with contextlib.suppress(Crash):
            run.session.__exit__(None, None, None)

    def prune(self, what: Happening, trouble: Trouble) -> None:
        self.hosts += 1
        self.as_host(f"host-{self.hosts}")
        machine, began = Machine(), self.now
        repository = self.open(machine)
        policy = dataclasses.replace(POLICY, grace=dt.timedelta(hours=0 if what.flag else 1))
        self.prepare(machine, trouble)
        with contextlib.suppress(Crash), tolerating(machine), mock.patch.object(retention, "plan", self.plan):
            result = prune_repository(repository, policy, now=self.now, dry_run=False, yes=True, reporter=self.watch)
            # It may have slept until another prune took it for dead: then it deletes nothing more.
            overslept = (self.now - began).days >= 7 or any(self.skew.values())
            overtaken = overslept and all(error.id == "prune-overtaken" for error in result.errors.values())
            assert result.complete or machine.failed or overtaken, result.errors

    def replicate(self, what: Happening, trouble: Trouble) -> ReplicateResult | None:
        """Bring to each location what the other has. None when it crashed."""
        self.hosts += 1
        self.as_host(f"host-{self.hosts}")
        machine, began = Machine(), self.now
        repository = self.open(machine)
        self.prepare(machine, trouble)
        with contextlib.suppress(Crash), tolerating(machine):
            result = replicate_repository(
                repository,
                POLICY,
                Which(all=what.flag),
                Options(workers=1, patience=0, repair=what.which % 2 == 1),
                configured=list(self.stores),
                state_directory=self.spool,
                reporter=self.watch,
                now=self.now,
            )
            errors = [brought.error for brought in result.locations.values() if brought.error is not None]
            # A prune is at work there, or one crashed and nobody can know; or this one was taken for dead.
            overslept = (self.now - began).days >= 7 or any(self.skew.values()) or machine.failed
            assert all(isinstance(error, BusyError) or overslept for error in errors), errors
            # A backup may be just about to be finished there by its own run.
            problems = [problem for problem in result.problems if not isinstance(problem.error, BusyError)]
            assert not problems or machine.failed, problems
            return result
        return None

    @rule(name=st.sampled_from(["one", "two"]), which=st.integers(0, 50))
    def lose_a_location(self, name: str, which: int) -> None:
        if not which and not self.running:
            self.lose(name)

    def lose(self, name: str) -> None:
        """Everything in it is gone but what `init` makes: what a replication brings is all there is."""
        for key in [key for key in self.stores[name] if key != "repository.json"]:
            del self.stores[name][key]
            self.seen.pop((name, key), None)
        for locations in self.acknowledged.values():
            locations.discard(name)

    def plan(self, *args: t.Any) -> retention.Plan:
        """The planner, and a note of what it let go: it may be gone even if the prune crashes later."""
        plan = PLAN(*args)
        self.dropped |= {backup.backup_id for backup in plan.deletes}
        return plan

    @rule(name=st.sampled_from(["one", "two"]), seconds=st.sampled_from([-1e6, -3600.0, 0.0, 3600.0, 1e6]))
    def step_the_clock(self, name: str, seconds: float) -> None:
        self.skew[name] = seconds

    # Promises.

    @invariant()
    def every_backup_restores(self) -> None:
        repository = self.open(Machine())
        for location in repository.locations:
            for info in list(location.list("manifests/")):
                parsed = names.parse_source_object(info.key, "manifests")
                assert parsed is not None
                manifest = Manifest(KEYS, location, *parsed)
                restored = dict(self.restore(manifest, location))
                assert restored == self.content[parsed[1]]

    @staticmethod
    def restore(manifest: Manifest, location: MemoryLocation) -> list[tuple[bytes, bytes]]:
        files = []
        for entry in manifest.entries():
            data = b""
            for extent in xt.unpack(entry.extents):
                field = int(extent["pack"])
                if field < xt.FOREIGN:
                    name = names.pack(manifest.header.backup_id, field)
                else:
                    row = manifest.header.foreign[field - xt.FOREIGN]
                    name = names.pack(row.backup_id, row.number)
                frame = PackReader([location], KEYS, name).frame(int(extent["frame"]))
                start = int(extent["frame_offset"])
                data += frame[start : start + int(extent["length"])]
            files.append((entry.path, data))
        return files

    @invariant()
    def acknowledged_backups_stay(self) -> None:
        for backup_id, locations in self.acknowledged.items():
            if backup_id not in self.dropped:
                for name in locations:
                    assert names.manifest("main", backup_id) in self.stores[name]

    @invariant()
    def objects_never_change(self) -> None:
        for name, objects in self.stores.items():
            for key, (data, _unused) in objects.items():
                assert self.seen.setdefault((name, key), data) == data


# CI takes the same paths each time, so that a red run says something of the change; people explore.
Protocol.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    derandomize=os.environ.get("CI") == "true",
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
TestProtocol = Protocol.TestCase
