# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bringing one backup to one location: steps R1 to R8 of docs/repository-format.md, section 12."""

from __future__ import annotations

import contextlib
import os
import time
import typing as t

from ..errors import BusyError, DamageError, LocationError, RepositoryError
from ..repository import names
from ..repository.lease import is_dead, lease_held, new_lease, prunes_under_way, read_leases
from ..repository.model import REPLICATING, pack_names
from .result import Problem
from .stock import wal_needed
from .tasks import Task, do

if t.TYPE_CHECKING:
    from ..repository.catalog import BackupRecord
    from ..storage.base import Location
    from .delivery import Delivery

_PAUSE_SECONDS: t.Final = 0.5


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
        if self._is_being_made():
            return
        with contextlib.ExitStack() as leases:
            self._take_leases(leases)
            self._wait_for_prunes()
            manifest = names.manifest(self._backup.source, self._backup.id)
            was_there = self._place.stat(manifest) is not None
            changed = self._bring_what_it_needs()
            if not self.problems and not was_there:
                self._commit(manifest)
            elif not self.problems:
                self._complete(manifest, changed=changed)
            if self.problems:
                self._forgive_deletion(manifest)

    def _is_being_made(self) -> bool:
        """Whether the run that makes it is still at work there: it will finish it itself."""
        name = names.lease(self._backup.source, self._backup.id)
        now = self._place.now()
        for info, lease in read_leases(self._keys, self._place):
            if info.key == name and not is_dead(lease, info, now):
                return True
        return False

    def _forgive_deletion(self, manifest: str) -> None:
        """A prune may have deleted the backup meanwhile: then nothing is missing."""
        with contextlib.suppress(LocationError):
            if all(place.stat(manifest) is None for place in self._transfer.sources.others(self._place)):
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

    def _bring_what_it_needs(self) -> bool:
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
        for key, size in wal_needed(self._backup, self._delivery.others):
            name, is_there = names.wal(*key), key in self._delivery.stock.wal
            if name not in self._delivery.sound:
                tasks.append(Task(name, size, wal=key, check=self._repair and is_there, believed=is_there))
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

    def _problem(self, name: str, error: RepositoryError) -> None:
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


def _wrong_size(location: Location, name: str, found: int, size: int) -> DamageError:
    return DamageError(
        f"location {location.name!r}: {name} has {found} bytes instead of {size}",
        hint="`cryobackup replicate --repair` replaces it where another location has it undamaged.",
    )
