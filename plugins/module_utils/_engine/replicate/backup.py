# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bringing one backup to one location: steps R1 to R8 of docs/repository-format.md, section 12."""

from __future__ import annotations

import contextlib
import os
import time
import typing as t

from ..errors import BusyError, DamageError, LocationError, LocationFull, ObjectMissing, RepositoryError, UnknownEpoch
from ..repository import names
from ..repository.lease import LEASE_PERIOD_SECONDS, is_dead, lease_held, new_lease, prunes_under_way, read_lease
from ..repository.model import REPLICATING, pack_names
from .result import Problem
from .stock import wal_needed
from .tasks import Task, do

if t.TYPE_CHECKING:
    from ..repository.catalog import BackupRecord
    from ..storage.base import Location
    from .delivery import Delivery

_PAUSE_SECONDS: t.Final = 0.5
_COMMIT_SECONDS: t.Final = 3600.0
"""A backup whose manifest has been somewhere for so long is not still on its way to other locations."""


class BackupCopy:
    """One backup on its way to one location. ``run`` once.

    Raises LocationError when the location does not answer, BusyError when a prune does not come to its end there.
    Everything else that goes wrong is in ``problems``: then the backup is not there, or not whole.
    """

    def __init__(self, delivery: Delivery, backup: BackupRecord) -> None:
        self._delivery = delivery
        self._transfer = delivery.transfer
        self._keys = delivery.transfer.keys
        self._place = delivery.transfer.destination
        self._backup = backup
        self._repair = delivery.job.options.repair
        self._lease_name = ""
        self._packs = pack_names(backup.header)
        self._listed: dict[str, dict[str, int]] = {}
        self.problems: list[Problem] = []

    def run(self) -> None:
        manifest = names.manifest(self._backup.source, self._backup.id)
        if self._is_left_to_its_run(manifest):
            return
        with contextlib.ExitStack() as leases:
            self._take_leases(leases)
            self._wait_for_prunes()
            was_there = self._place.stat(manifest) is not None
            changed = self._bring_what_it_needs(was_there=was_there)
            if not self.problems and not was_there:
                self._commit(manifest)
            elif not self.problems:
                self._complete(manifest, changed=changed)
            if self.problems:
                self._forgive_deletion(manifest)

    def _is_left_to_its_run(self, manifest: str) -> bool:
        """Wait a little while the run that makes it may be about to finish it there; it is a problem if it does not."""
        began = time.monotonic()
        while self._is_being_made(manifest):
            if self._place.stat(manifest) is not None:
                return True
            if time.monotonic() - began >= self._delivery.job.options.patience:
                self._problem(manifest, _being_made(self._place, self._backup))
                return True
            time.sleep(_PAUSE_SECONDS)
        return False

    def _is_being_made(self, manifest: str) -> bool:
        """Whether the run that makes it is still at work there: it will finish it itself.

        Its lease alone does not tell: it stays where the location failed in the middle of that run, and wherever
        nothing may be deleted. A run that goes on has one beside every manifest too, and writes all of them at once.
        """
        if not self._has_lease(self._place):
            return False
        for source in self._transfer.sources.others(self._place):
            with contextlib.suppress(LocationError):
                info = source.stat(manifest)
                is_new = info is not None and source.now() - info.modified < _COMMIT_SECONDS
                if is_new and self._has_lease(source):
                    return True
        return False

    def _has_lease(self, place: Location) -> bool:
        """Whether the run that makes the backup has a lease there, and may live."""
        info = place.stat(names.lease(self._backup.source, self._backup.id))
        if info is None:
            return False
        now = place.now()
        try:
            return not is_dead(read_lease(self._keys, place, info), info, now)
        except ObjectMissing:
            return False
        except (DamageError, UnknownEpoch):
            return now - info.modified <= LEASE_PERIOD_SECONDS

    def _forgive_deletion(self, manifest: str) -> None:
        """A prune may have deleted the backup meanwhile, everywhere: then nothing is missing."""
        if self._transfer.sources.breaker.failures:
            return
        with contextlib.suppress(LocationError):
            places = [self._place, *self._transfer.sources.others(self._place)]
            if all(place.stat(manifest) is None for place in places):
                self.problems.clear()

    def _take_leases(self, leases: contextlib.ExitStack) -> None:
        """R1. Where objects come from, a lease is welcome; where they go, there is no going on without."""
        header, now = self._backup.header, self._delivery.job.now
        lease = new_lease(
            self._backup.source,
            names.new_id(now, os.urandom(4)),
            self._backup.id,
            now,
            purpose=REPLICATING,
            packs=sorted(self._backup.pack_owners),
            wal=[header.postgres.system_identifier] if header.postgres is not None else [],
        )
        self._lease_name = leases.enter_context(lease_held(self._keys, self._place, lease))
        for source in self._transfer.sources.others(self._place):
            if source.name in self._backup.locations:
                with contextlib.suppress(LocationError):
                    leases.enter_context(lease_held(self._keys, source, lease))

    def _wait_for_prunes(self) -> None:
        """R2. A prune that looked at the leases before ours was there may still delete what a mark names."""
        began = time.monotonic()
        while prunes := prunes_under_way(self._keys, self._place):
            if time.monotonic() - began >= self._delivery.job.options.patience:
                raise BusyError(
                    f"location {self._place.name!r}: a prune of host {prunes[0].host} deletes there, "
                    f"since {prunes[0].started_at}",
                    hint="Nothing was lost. Run it again when the prune is over. If that host is gone for good, the "
                    "next prune takes the announcement away once it is seven days old.",
                    id="replicate-pruning",
                )
            time.sleep(_PAUSE_SECONDS)

    def _bring_what_it_needs(self, *, was_there: bool) -> bool:
        """R3 and R4: packs, WAL, notes. Whether anything was written."""
        tasks = []
        for name, (size, digest) in sorted(self._packs.items()):
            found = self._packs_there(name).get(name)
            if found is None:
                tasks.append(Task(name, size, digest))
            elif self._repair and name not in self._delivery.sound:
                tasks.append(Task(name, size, digest, check=True))
            elif found != size:
                self._problem(name, _wrong_size(self._place, name, found, size))
            elif not was_there and name not in self._delivery.durable:
                # Of a run that was killed, perhaps right before it could make the name durable.
                tasks.append(Task(name, size, digest, believed=True))
        for key, size in wal_needed(self._backup, self._delivery.others):
            name, is_there = names.wal(*key), key in self._delivery.stock.wal
            if name not in self._delivery.sound:
                tasks.append(Task(name, size, wal=key, check=self._repair and is_there, believed=is_there))
        try:
            self._delivery.must_have_room(sum(task.size for task in tasks if not (task.check or task.believed)))
        except LocationFull as full:
            self._problem(names.manifest(self._backup.source, self._backup.id), full)
            return False
        changed = self._do(tasks)
        self._delivery.bring_notes(self._backup)
        return changed

    def _do(self, tasks: list[Task]) -> bool:
        """Whether anything was written."""
        before = self._delivery.written
        for done in self._delivery.do_all(tasks):
            if done.problem is not None:
                self._problem(done.task.name, done.problem)
        return self._delivery.written > before

    def _packs_there(self, name: str) -> dict[str, int]:
        """Sizes of all packs of the backup that wrote this one, listed after R2."""
        owner = name.split("/")[1]
        if owner not in self._listed:
            self._listed[owner] = {info.key: info.size for info in self._place.list(names.packs(owner))}
        return self._listed[owner]

    def _problem(self, name: str, error: RepositoryError | BusyError) -> None:
        self.problems.append(Problem(self._place.name, name, error, self._backup.id))

    # The commit

    def _commit(self, manifest: str) -> None:
        """R5 to R7."""
        self._lease_is_there()
        done = do(self._transfer, Task(manifest, 0))
        if done.problem is not None:
            self._problem(manifest, done.problem)
            return
        self._delivery.brought.bytes += done.written
        try:
            self._lease_is_there()
            self._packs_are_there()
        except LocationError:
            self._place.delete(manifest)
            raise
        self._delivery.brought.backups.append(self._backup.id)

    def _complete(self, manifest: str, *, changed: bool) -> None:
        """The end for a backup that was there."""
        if self._repair:
            changed |= self._do([Task(manifest, 0, check=True)])
        if changed:
            self._packs_are_there()
            self._delivery.brought.completed.append(self._backup.id)

    def _lease_is_there(self) -> None:
        if self._place.stat(self._lease_name) is None:
            raise LocationError(
                f"location {self._place.name!r}: the lease of this replication was retired while it ran",
                hint="Earlier backups are untouched. Run it again.",
                id="replicate-overtaken",
            )

    def _packs_are_there(self) -> None:
        self._listed.clear()
        for name, (size, _digest) in self._packs.items():
            found = self._packs_there(name).get(name)
            if found != size:
                raise LocationError(
                    f"location {self._place.name!r}: {name} is {'missing' if found is None else 'incomplete'}",
                    hint="Something deletes objects there. Run `cryobackup verify --all`.",
                    id="backup-incomplete",
                )


def _being_made(location: Location, backup: BackupRecord) -> BusyError:
    return BusyError(
        f"location {location.name!r}: backup {backup.id} is not there, and the run that makes it, on host "
        f"{backup.header.host}, may be just about to finish it there",
        hint="Run it again later. If that run is over and could not remove its lease, it is brought there one "
        "hour after it ended.",
        id="replicate-being-made",
    )


def _wrong_size(location: Location, name: str, found: int, size: int) -> DamageError:
    return DamageError(
        f"location {location.name!r}: {name} has {found} bytes instead of {size}",
        hint="`cryobackup replicate --repair` replaces it where another location has it undamaged.",
    )
