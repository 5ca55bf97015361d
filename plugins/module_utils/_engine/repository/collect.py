# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Deleting safely in one location: mark, wait, look again (docs/repository-format.md, section 9).

``Wish`` says what retention would like to see gone; what really goes is decided here, from what the
location holds at that moment. The order of the listings is part of the proof: do not change it
without the document.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import functools
import typing as t

from ..errors import DamageError, LocationError, ObjectMissing, RepositoryError, UnknownEpoch
from ..storage.base import Location, ObjectInfo, put
from ..storage.hidden import Hidden, sweep_hidden
from . import container, names
from .lease import LEASE_PERIOD_SECONDS, is_dead, pruning, read_lease, read_leases, read_marks
from .manifest import Manifest, open_manifest
from .model import PRUNING, BackupHeader, Lease, Mark, pack_names
from .repository import Repository

MARK_AT_MOST = 50_000  # names in one mark; the rest is for the next prune


@dataclasses.dataclass(frozen=True, slots=True)
class Wish:
    """What retention says now. Everything it does not name stays."""

    backups: frozenset[str]  # ids of the backups to drop
    wal_needed: t.Callable[[int, str], bool]  # (system identifier, file name) → whether it stays
    systems: frozenset[int] | None = None
    """System identifiers of which there is a backup anywhere; None: nobody can say, so no WAL is abandoned."""
    abandoned_after: float = 0.0
    """Seconds after the last WAL of a system without any backup, after which all of it goes."""


@dataclasses.dataclass(slots=True)
class Collected:
    """What was, or would be, done in one location."""

    marked: int = 0
    manifests: int = 0
    packs: int = 0
    wal: int = 0
    bytes_freed: int = 0
    waiting: int = 0  # objects in marks that are not old enough
    swept: int = 0
    hidden: Hidden | None = None  # what is deleted and still stored; None where no versions are kept


@dataclasses.dataclass
class _Look:
    """What a location holds and refers to, listed in the order that the proof needs."""

    packs: dict[str, ObjectInfo]
    leases: list[Lease]
    manifests: dict[tuple[str, str], BackupHeader]  # by (source, backup id)

    def referred(self, dropped: frozenset[str]) -> tuple[set[str], set[str]]:
        """Names of (manifests, packs) that must stay when the backups ``dropped`` go."""
        held = {(lease.source, lease.parent) for lease in self.leases if lease.parent}
        stay = {key for key in self.manifests if key[1] not in dropped or key in held}
        packs: set[str] = set()
        for key in stay:
            packs |= pack_names(self.manifests[key]).keys()
        running = {backup_id for lease in self.leases for backup_id in (lease.backup_id, *lease.packs)}
        for name in self.packs:
            parsed = names.parse_pack(name)
            if parsed is None or parsed.backup_id in running:
                packs.add(name)
        return {names.manifest(*key) for key in stay}, packs

    @functools.cached_property
    def wal_wanted(self) -> set[int]:
        """System identifiers whose WAL a running backup may need: where it begins is not known yet."""
        running = {lease.source for lease in self.leases if lease.purpose != PRUNING}
        held = {int(system) for lease in self.leases for system in lease.wal}
        return held | {
            int(header.postgres.system_identifier)
            for (source, _id), header in self.manifests.items()
            if source in running and header.postgres is not None
        }

    def wal_of(self, stay: t.AbstractSet[str]) -> _WalOf:
        """The WAL of the backups whose manifests, named in ``stay``, stay here, whatever the plan knows of them."""
        starts: dict[int, str] = {}
        for key, header in self.manifests.items():
            if header.postgres is not None and names.manifest(*key) in stay:
                system, start = int(header.postgres.system_identifier), header.postgres.wal_start[8:]
                starts[system] = min(start, starts.get(system, start))
        return _WalOf(starts)


@dataclasses.dataclass(frozen=True, slots=True)
class _WalOf:
    """From where on WAL stays: by system identifier, a segment's name without its timeline, which grows with it."""

    starts: dict[int, str]

    def needs(self, system_identifier: int, name: str) -> bool:
        start = self.starts.get(system_identifier)
        return start is not None and name[8:24] >= start


class Collector:
    """Marks and deletes in one location. Idempotent; a crash at any point is harmless."""

    def __init__(self, repository: Repository, location: Location, *, dry_run: bool) -> None:
        self._repository = repository
        self._keys = repository.keys
        self._location = location
        self._dry_run = dry_run
        self.done = Collected()

    def finish_marks(self, wish: Wish, grace: dt.timedelta) -> None:
        """Delete what open marks name and nothing refers to any more: P6 to P9."""
        marks = read_marks(self._keys, self._location)
        if not marks:
            return
        now = self._location.now()
        due = []
        for info, mark in marks:
            if now - info.modified >= grace.total_seconds():
                due.append((info, mark))
            else:
                self.done.waiting += len(mark.manifests) + len(mark.packs) + len(mark.wal)
        nothing_to_tell = self._dry_run or not due
        with contextlib.nullcontext("") if nothing_to_tell else pruning(self._keys, self._location) as announcement:
            for info, mark in due:
                self._finish(info, mark, wish, announcement)

    def _finish(self, info: ObjectInfo, mark: Mark, wish: Wish, announcement: str) -> None:
        look = self._look()
        if announcement and self._location.stat(announcement) is None:
            raise LocationError(
                f"location {self._location.name!r}: this prune was taken for dead by another one",
                hint="Nothing more was deleted there. Did this host sleep for days? Run it again.",
                id="prune-overtaken",
            )
        # A mark proves only that somebody with the catalog key wrote it. What goes is what this look has seen and
        # this plan does not want, and of the kind that the mark says: no mark can name anything else.
        there = {names.manifest(*key) for key in look.manifests}
        marked = {key[1] for key in look.manifests if names.manifest(*key) in set(mark.manifests)}
        manifests, packs = look.referred(frozenset(marked) & wish.backups)
        gone = {names.parse_source_object(name, "manifests") for name in mark.manifests} - {None}
        for name in mark.manifests:
            if name in there and name not in manifests and self._delete(name):
                self.done.manifests += 1
        for name in mark.packs:
            if name in look.packs and name not in packs and self._delete(name, look.packs[name]):
                self.done.packs += 1
        wal_here = look.wal_of(manifests)
        abandoned = self._abandoned(wish, look) if mark.wal else frozenset()
        streamed = {name for name in mark.wal if name.startswith(names.STREAMED)}
        for name in sorted(set(mark.wal) - streamed):
            if not self._wal_stays(name, wish, look, wal_here, abandoned) and self._delete(name):
                self.done.wal += 1
        for name in sorted(streamed & self._streamed() if streamed else ()):
            if self._is_archived(name) or not self._wal_stays(name, wish, look, wal_here, abandoned):
                self.done.wal += sum(self._delete(info.key, info) for info in list(self._location.list(name)))
        for key in gone:
            if key is not None and names.manifest(*key) not in manifests:
                self._delete_notes(*key)
        if not self._dry_run:
            self._location.delete(info.key)

    def mark(self, wish: Wish, now: dt.datetime, random: bytes) -> None:
        """Announce what will be deleted: P1 to P5."""
        look = self._look()
        open_marks = [mark for _info, mark in read_marks(self._keys, self._location)]
        already = {name for mark in open_marks for name in (*mark.manifests, *mark.packs, *mark.wal)}
        manifests, packs = look.referred(wish.backups)
        mark = Mark(names.new_id(now, random), now.isoformat())
        mark.manifests = [
            name for key in sorted(look.manifests) if (name := names.manifest(*key)) not in manifests | already
        ]
        mark.packs = sorted(look.packs.keys() - packs - already)
        mark.wal = self._unneeded_wal(wish, look, look.wal_of(manifests), already)
        self.done.marked = len(mark.manifests) + len(mark.packs) + len(mark.wal)
        if self.done.marked and not self._dry_run:
            name = names.mark(mark.mark_id)
            put(self._location, name, container.encode_record(self._keys, container.MARK, name, mark))

    def sweep(self, older_than: float, trash: dt.timedelta) -> None:
        """What crashed writers left, and versions of what was deleted longer ago than ``trash``."""
        if not self._dry_run:
            self.done.swept += self._location.sweep(older_than)
        self.done.hidden = sweep_hidden(self._location, trash.total_seconds(), dry_run=self._dry_run)
        if self.done.hidden is not None:
            # Where versions are kept, a deletion frees nothing yet.
            self.done.bytes_freed = self.done.hidden.bytes_removed

    @staticmethod
    def _wal_stays(key: str, wish: Wish, look: _Look, here: _WalOf, abandoned: frozenset[int]) -> bool:
        system_identifier, name = _wal_name(key)
        return (
            system_identifier in look.wal_wanted
            or (system_identifier not in abandoned and wish.wal_needed(system_identifier, name))
            or here.needs(system_identifier, name)
        )

    def _abandoned(self, wish: Wish, look: _Look) -> frozenset[int]:
        """Systems without a backup anywhere, which nobody has archived for since long: no restore can use their WAL.

        A cluster that archives and has no backup yet, or an archive whose last backup has just gone, is not abandoned.
        """
        if wish.systems is None:
            return frozenset()
        here = {int(header.postgres.system_identifier) for header in look.manifests.values() if header.postgres}
        newest: dict[int, float] = {}
        for info in self._location.list("wal/"):
            system, name = _wal_name(info.key)
            if name and system not in here | wish.systems | look.wal_wanted:
                newest[system] = max(info.modified, newest.get(system, 0.0))
        limit = self._location.now() - wish.abandoned_after
        return frozenset(system for system, modified in newest.items() if modified < limit)

    def _unneeded_wal(self, wish: Wish, look: _Look, here: _WalOf, already: set[str]) -> list[str]:
        found = []
        abandoned = self._abandoned(wish, look)
        for info in self._location.list("wal/"):
            if info.key not in already and not self._wal_stays(info.key, wish, look, here, abandoned):
                found.append(info.key)
                if len(found) == MARK_AT_MOST:
                    return found
        found += [
            key
            for key in sorted(self._streamed() - already)[: MARK_AT_MOST - len(found)]
            if self._is_archived(key) or not self._wal_stays(key, wish, look, here, abandoned)
        ]
        return found

    def _streamed(self) -> set[str]:
        """The segments of which something was streamed, each as the beginning of all its names."""
        found = (names.parse_streamed_part(info.key) for info in self._location.list(names.STREAMED))
        return {names.streamed_of(system, part.segment) for system, part in filter(None, found)}

    def _is_archived(self, streamed: str) -> bool:
        """Whether this location has the segment that so much was streamed of: then nobody needs that any more."""
        return self._location.stat(names.wal(*_wal_name(streamed))) is not None

    def _look(self) -> _Look:
        """P1 to P3, and P7."""
        packs = {info.key: info for info in self._location.list("packs/")}
        leases = self._living_leases()
        manifests: dict[tuple[str, str], BackupHeader] = {}
        for info in self._location.list("manifests/"):
            key = names.parse_source_object(info.key, "manifests")
            header = None if key is None else self._header(*key)
            if key is not None and header is not None:
                manifests[key] = header
        return _Look(packs, leases, manifests)

    def _living_leases(self) -> list[Lease]:
        now = self._location.now()
        self._retire_unreadable_leases(now)
        living = []
        for info, lease in read_leases(self._keys, self._location):
            if not is_dead(lease, info, now):
                living.append(lease)
            elif not self._dry_run:
                self._location.delete(info.key)
        return living

    def _retire_unreadable_leases(self, now: float) -> None:
        """One that nobody can read blocks a prune, but not for longer than any lease does."""
        for info in list(self._location.list("leases/")):
            if now - info.modified <= LEASE_PERIOD_SECONDS or self._dry_run:
                continue
            try:
                read_lease(self._keys, self._location, info)
            except DamageError:
                self._location.delete(info.key)
            except ObjectMissing:
                continue

    def _header(self, source: str, backup_id: str) -> BackupHeader | None:
        """From here, or from another location when it is damaged here: they are the same bytes.

        None when it is gone: another prune deleted it since it was listed.
        """
        try:
            return Manifest(self._keys, self._location, source, backup_id).header
        except ObjectMissing:
            return None
        except LocationError:
            raise
        except RepositoryError as here:
            others = [place for place in self._repository.locations if place is not self._location]
            try:
                return open_manifest(self._keys, others, source, backup_id).header
            except RepositoryError as error:
                if not isinstance(here, UnknownEpoch):
                    raise self._blocked(names.manifest(source, backup_id)) from error
                raise RepositoryError(
                    f"the keys of epoch {here.epoch} are not here, so nobody can tell which packs "
                    f"{names.manifest(source, backup_id)} needs",
                    hint="Nothing was deleted. Prune where all catalog keys are, or bring this one here: `cryobackup "
                    "key import`.",
                    id="prune-blocked",
                ) from error

    def _blocked(self, name: str) -> RepositoryError:
        return RepositoryError(
            f"location {self._location.name!r}: {name} is damaged, so nobody can tell which packs it needs",
            hint="Nothing was deleted there. Bring the manifest back from another copy, or, "
            "if that backup is given up for good, remove this object by hand and prune again.",
            id="prune-blocked",
        )

    def _delete(self, name: str, info: ObjectInfo | None = None) -> bool:
        """Whether the object was there."""
        info = info or self._location.stat(name)
        if info is None:
            return False
        if not self._dry_run:
            self._location.delete(name)
        self.done.bytes_freed += info.size
        return True

    def _delete_notes(self, source: str, backup_id: str) -> None:
        if not self._dry_run:
            for info in list(self._location.list(f"notes/{source}/{backup_id}/")):
                self._location.delete(info.key)


def _wal_name(key: str) -> tuple[int, str]:
    """(system identifier, file name) of ``wal/…`` and of what was streamed of one segment (``names.streamed_of``).

    An odd key gets an empty name, which always stays.
    """
    parts = key.removesuffix("/").split("/")
    if len(parts) != 4 or f"{parts[0]}/" not in ("wal/", names.STREAMED) or not parts[1].isdigit():
        return 0, ""
    return int(parts[1]), parts[3]
