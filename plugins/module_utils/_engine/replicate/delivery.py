# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything that one location gets."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
import typing as t

from ..errors import LocationFull, ObjectConflict, ObjectMissing
from ..postgres.archive_backlog import note_stored
from ..repository import names
from ..repository.holdings import count as count_holdings
from ..repository.model import pack_names
from ..repository.wraps import read_wraps
from ..storage.base import put
from ..verify.parallel import in_parallel
from ..words import format_bytes
from .backup import BackupCopy
from .result import Problem
from .tasks import Done, Task, count, do
from .transfer import Transfer

if t.TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from ..crypto.keys import KeyRing
    from ..errors import RepositoryError
    from ..events import Reporter
    from ..postgres.throttle import Throttle
    from ..repository.catalog import BackupRecord
    from ..storage.base import Location
    from .result import Brought
    from .stock import Lack, Stock
    from .transfer import Sources
    from .wanted import Wanted

WORKERS: t.Final = 4
PATIENCE_SECONDS: t.Final = 60.0
"""How long a prune is waited for that is deleting in the location."""


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    sources: tuple[str, ...] = ()
    """Names of the locations to read from; none: all."""
    destinations: tuple[str, ...] = ()
    """Names of the locations to bring things to; none: all."""
    repair: bool = False
    """Also read what is there already, and replace what is damaged."""
    dry_run: bool = False
    workers: int = WORKERS
    """Objects under way at the same time."""
    bandwidth_limit: int | None = None
    """Bytes a second, of all that is read."""
    patience: float = PATIENCE_SECONDS


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """What is the same for every location."""

    keys: KeyRing
    sources: Sources
    wanted: Wanted
    options: Options
    state_directory: Path
    throttle: Throttle
    stop: threading.Event
    reporter: Reporter
    now: dt.datetime
    problems: list[Problem]
    owed: dict[str, list[str]]
    """What ``wal-push`` had noted, by location, before anything was listed (``read_backlog``)."""
    sees_all: bool
    """Whether all locations that there are can be read from."""
    quotas: Mapping[str, int]
    """Bytes that may lie in a location, by its name."""


class Delivery:
    """``run`` once. Raises LocationError when the location, or the last source, does not answer; BusyError."""

    def __init__(self, job: Job, place: Location, stock: Stock, others: list[Stock], brought: Brought) -> None:
        self.job = job
        self.stock = stock
        self.others = others
        self.brought = brought
        self.sound: set[str] = set()
        """Names of objects that are there and whole, as far as this run saw."""
        self.durable = {
            name
            for backup in job.wanted.backups
            if place.name in backup.locations
            for name in pack_names(backup.header)
        }
        """Names of packs that a manifest relies on there already."""
        self.written = 0
        """Objects."""
        self.transfer = Transfer(
            job.keys, job.sources, place, spool=job.state_directory, throttle=job.throttle, stop=job.stop
        )
        self._hopeless: dict[str, RepositoryError] = {}

    def run(self, missing: Lack) -> None:
        self._bring_keys()
        self._bring_wraps()
        if not missing and not self.job.options.repair:
            self._settle_backlog()
            return
        self.job.reporter.phase(f"bringing to {self.stock.location.name}", missing.bytes or None)
        lacking = {backup.id for backup in (*missing.backups, *missing.incomplete)}
        self._bring_backups(self.job.wanted.first, lacking)
        self._bring_wal(missing)
        self._bring_backups(self.job.wanted.then, lacking)

    @functools.cached_property
    def _room(self) -> int | None:
        """Bytes that its quota left in the location when this run began; None where there is none."""
        quota = self.job.quotas.get(self.stock.location.name)
        return None if quota is None else max(0, quota - count_holdings(self.stock.location).bytes)

    def must_have_room(self, size: int) -> None:
        """Raises LocationFull when so many bytes more would go beyond the quota."""
        if self._room is None or self.brought.bytes + size <= self._room:
            return
        left = format_bytes(max(0, self._room - self.brought.bytes))
        raise LocationFull(
            f"location {self.stock.location.name!r}: its quota leaves {left}, and {format_bytes(size)} are needed",
            hint="Earlier backups are untouched. Let `cryobackup prune` make room, or raise the `quota`, then run it "
            "again.",
        )

    def _bring_keys(self) -> None:
        """The public part of every epoch, so that wrong keys are noticed there, too."""
        known = {info.key for info in self.stock.location.list("keys/")}
        for source in self.job.sources.others(self.stock.location):
            for info in list(source.list("keys/")):
                if info.key not in known and info.key.endswith(".pub"):
                    known.add(info.key)
                    self._tell(self.do_all([Task(info.key, info.size)]))

    def _bring_wraps(self) -> None:
        """The secrets of epochs, wrapped for recipients: a blank machine may have nothing but this location."""
        place = self.stock.location
        by_name = {source.name: source for source in self.job.sources.others(place)}
        for stored in read_wraps([*by_name.values(), place], lost={}):
            if stored.wrap is not None and place.name not in stored.locations:
                with contextlib.suppress(ObjectMissing, ObjectConflict):  # taken back, or brought by somebody else
                    put(place, stored.name, by_name[stored.locations[0]].read(stored.name))
                    self.brought.keys += 1

    def _bring_backups(self, backups: Iterable[BackupRecord], lacking: set[str]) -> None:
        for backup in backups:
            if backup.id in lacking or self.job.options.repair:
                copy = BackupCopy(self, backup)
                copy.run()
                self.job.problems.extend(copy.problems)
            else:
                self.bring_notes(backup)

    def bring_notes(self, backup: BackupRecord) -> None:
        """Notes are hints: what cannot be had is not missed."""
        known = set(self.stock.notes_of(backup))
        for stock in self.others:
            for name in stock.notes_of(backup):
                if name not in known:
                    known.add(name)
                    self.do_all([Task(name, 0)])

    def _bring_wal(self, missing: Lack) -> None:
        wanted = self.job.wanted
        tasks = [Task(names.wal(*key), missing.wal[key], wal=key) for key in wanted.wal_order(missing.wal)]
        if self.job.options.repair:
            there = {key: size for key, size in self.stock.wal.items() if wanted.wal(*key)}
            tasks += [Task(names.wal(*key), there[key], check=True, wal=key) for key in wanted.wal_order(there)]
        self._tell(self.do_all([task for task in tasks if task.name not in self.sound]))
        self._settle_backlog()

    def _settle_backlog(self) -> None:
        """What ``wal-push`` noted as owed to the location is not owed any more: it is there, or nowhere any more."""
        directory, name = self.job.state_directory, self.stock.location.name
        sees_all = self.job.sees_all and not self.job.sources.breaker.failures
        for owed in self.job.owed.get(name, []):
            system, _unused, file = owed.partition("/")
            if not system.isdigit():
                continue
            key = int(system), file
            is_there = key in self.stock.wal or names.wal(*key) in self.sound
            if is_there or (sees_all and not any(key in stock.wal for stock in self.others)):
                note_stored(directory, name, *key)

    def _tell(self, done: Iterable[Done]) -> None:
        place = self.stock.location.name
        self.job.problems.extend(Problem(place, each.task.name, each.problem) for each in done if each.problem)

    def do_all(self, tasks: Iterable[Task]) -> list[Done]:
        """Do tasks, several at once, and count what was written. Gives those that failed."""
        failed: list[Done] = []
        new = []
        for task in tasks:
            known = self._hopeless.get(task.name)
            if known is None:
                new.append(task)
            else:
                failed.append(Done(task, 0, known))
        if self.job.options.workers == 1:
            for task in new:
                self._note(do(self.transfer, task), failed)
            return failed
        with in_parallel(new, lambda task, _stop: do(self.transfer, task), self.job.options.workers) as results:
            try:
                for done in results:
                    self._note(done, failed)
            except BaseException:
                self.job.stop.set()  # before the threads are waited for
                raise
        return failed

    def _note(self, done: Done, failed: list[Done]) -> None:
        if done.written or not done.task.believed:
            self.job.reporter.advance(done.task.size)
        if done.problem is not None:
            self._hopeless[done.task.name] = done.problem
            failed.append(done)
            return
        self.sound.add(done.task.name)
        self.durable.add(done.task.name)
        if done.written:
            self.written += 1
            count(self.brought, self.transfer, done)
