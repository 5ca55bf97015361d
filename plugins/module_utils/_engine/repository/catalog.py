# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What backups there are: read from the manifests themselves, never from an index."""

from __future__ import annotations

import concurrent.futures as cf
import dataclasses
import datetime as dt
import typing as t

from ..errors import CryoError, LocationError, RepositoryError
from ..storage.base import Location
from . import container, names, verdict
from .manifest import Manifest
from .model import OK, PIN, UNPIN, BackupHeader, Note
from .packs import first_good
from .plausible import is_time
from .repository import Repository

_READERS: t.Final = 8
"""Requests at the same time: manifests and notes are small, and a store takes its time for each."""


@dataclasses.dataclass(frozen=True, slots=True)
class BackupRecord:
    header: BackupHeader
    locations: tuple[str, ...]  # where its manifest is
    notes: tuple[Note, ...] = ()
    stored_at: dt.datetime | None = None
    """When the first location got its manifest, by that location's clock: whoever made the backup cannot set it."""
    epoch: int = 1
    """Of the keys that authenticate its manifest."""

    @property
    def id(self) -> str:
        return self.header.backup_id

    @property
    def source(self) -> str:
        return self.header.source

    @property
    def started(self) -> dt.datetime:
        return dt.datetime.fromisoformat(self.header.started_at)

    @property
    def finished(self) -> dt.datetime:
        return dt.datetime.fromisoformat(self.header.finished_at)

    @property
    def pin(self) -> Note | None:
        """The pin that it bears."""
        newest = next((note for note in reversed(self.notes) if note.kind in (PIN, UNPIN)), None)
        return newest if newest is not None and newest.kind == PIN else None

    @property
    def pinned(self) -> bool:
        return self.pin is not None

    @property
    def pinned_until(self) -> dt.datetime | None:
        """When the pin ends; None: never by itself, which is also what an end means that makes no sense."""
        text = self.pin.data.get("until") if self.pin is not None else None
        try:
            moment = dt.datetime.fromisoformat(text) if isinstance(text, str) else None
        except ValueError:
            return None
        return moment if moment is not None and moment.tzinfo is not None else None

    @property
    def verified(self) -> Note | None:
        """The newest verification, whatever its result, or an older one that failed and was not refuted since."""
        return verdict.standing(self.notes, self.locations)

    @property
    def restored(self) -> Note | None:
        """The newest restore of it that succeeded, if nothing was found wrong since."""
        return verdict.restored(self.notes, self.locations)

    @property
    def failed_verification(self) -> bool:
        """Whether the verification that counts found something wrong, in any location."""
        return self.verified is not None and self.verified.data.get("result") != OK

    @property
    def known_bad(self) -> bool:
        """Whether a restore of it has to be expected to fail: it was found whole in no location."""
        if self.verified is None or not self.failed_verification:
            return False
        states = self.verified.data.get("locations", {})
        return self.verified.data.get("result") != "damaged" or OK not in states.values()

    @property
    def pack_owners(self) -> frozenset[str]:
        """The backups in whose packs it lies, itself included."""
        return frozenset((self.id, *(pack.backup_id for pack in self.header.foreign)))


@dataclasses.dataclass(frozen=True, slots=True)
class BrokenManifest:
    name: str
    error: CryoError


@dataclasses.dataclass(slots=True)
class Catalog:
    backups: list[BackupRecord]  # oldest first
    broken: list[BrokenManifest]  # in no location readable

    @classmethod
    def load(cls, repository: Repository, source: str | None = None) -> Catalog:
        """Read the headers of all manifests (of one source). Locations that fail are lost.

        Raises LocationError when no location can be listed.
        """
        prefix = f"manifests/{names.check_source(source)}/" if source else "manifests/"
        found: dict[tuple[str, str], list[tuple[Location, float]]] = {}
        notes: dict[tuple[str, str], dict[str, Location]] = {}
        notes_prefix = prefix.replace("manifests/", "notes/", 1)
        for location in list(repository.locations):
            try:
                for info in list(location.list(prefix)):
                    parsed = names.parse_source_object(info.key, "manifests")
                    if parsed is not None:
                        found.setdefault(parsed, []).append((location, info.modified))
                for key in [info.key for info in location.list(notes_prefix)]:
                    of_source, backup_id = key.split("/", 3)[1:3]
                    # From the first that has it: it is the nearest.
                    notes.setdefault((of_source, backup_id), {}).setdefault(key, location)
            except LocationError as error:
                repository.lost[location.name] = error
                repository.locations.remove(location)
                if not repository.locations:
                    raise
        catalog = cls([], [])
        in_order = sorted(found, key=lambda key: key[1])
        with cf.ThreadPoolExecutor(min(_READERS, len(in_order) or 1), thread_name_prefix="catalog") as pool:
            read = pool.map(lambda key: _read(repository, key[0], key[1], found[key], notes.get(key, {})), in_order)
            for record in read:
                if isinstance(record, BackupRecord):
                    catalog.backups.append(record)
                else:
                    catalog.broken.append(record)
        catalog.backups.sort(key=lambda backup: (backup.started, backup.id))
        return catalog

    def of(self, source: str) -> list[BackupRecord]:
        return [backup for backup in self.backups if backup.source == source]

    def find(self, text: str) -> BackupRecord:
        """The backup with this id, or the only one whose id begins or ends so."""
        matches = [backup for backup in self.backups if backup.id == text] or [
            backup for backup in self.backups if backup.id.startswith(text) or backup.id.endswith(text)
        ]
        if len(matches) != 1:
            raise RepositoryError(
                f"{len(matches) or 'no'} backups have an id like {text!r}",
                hint="`cryobackup list` shows the ids.",
                id="no-such-backup" if not matches else "ambiguous-backup",
            )
        return matches[0]


def _read(
    repository: Repository,
    source: str,
    backup_id: str,
    places: list[tuple[Location, float]],
    notes: dict[str, Location],
) -> BackupRecord | BrokenManifest:
    """One request for the manifest's header, and one for each note."""
    name = names.manifest(source, backup_id)
    locations = [location for location, _unused in places]
    try:
        manifest = first_good(
            locations,
            name,
            lambda place: Manifest(repository.keys, place, source, backup_id),
            repository.breaker,
        )
    except RepositoryError as error:
        return BrokenManifest(name, error)
    read = [_read_note(repository, notes[key], key) for key in sorted(notes)]
    # Ids count seconds; which of two notes is the newer one, they know more exactly themselves.
    known = (note for note in read if note is not None)
    in_order = sorted(known, key=lambda note: dt.datetime.fromisoformat(note.at))
    stored_at = dt.datetime.fromtimestamp(min(modified for _unused, modified in places), dt.UTC)
    return BackupRecord(
        manifest.header,
        tuple(location.name for location in locations),
        tuple(in_order),
        stored_at,
        manifest.epoch,
    )


def _read_note(repository: Repository, location: Location, key: str) -> Note | None:
    """Notes are hints: one that cannot be read is as good as none."""
    try:
        note = container.decode_record(repository.keys, container.NOTE, key, location.read(key), Note)
    except RepositoryError:
        return None
    return note if is_time(note.at) else None


def write_note(repository: Repository, note: Note, note_id: str) -> dict[str, LocationError]:
    """Record a note in every location that answers; returns those that failed meanwhile. Durable on return."""
    key = names.note(note.source, note.backup_id, note_id)
    fanout = repository.fanout()
    fanout.put(key, container.encode_record(repository.keys, container.NOTE, key, note))
    return fanout.lost


def locations_of(repository: Repository, backup: BackupRecord) -> list[Location]:
    """The locations that hold the backup, in the order of the configuration."""
    return [location for location in repository.locations if location.name in backup.locations]


def newest(backups: t.Iterable[BackupRecord]) -> BackupRecord | None:
    return max(backups, key=lambda backup: (backup.started, backup.id), default=None)
