# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which backups are to be verified, and where their manifests are."""

from __future__ import annotations

import dataclasses
import typing as t

from ..errors import KeyFileError, LocationError, ObjectMissing, RepositoryError
from ..repository import names
from ..repository.catalog import Catalog, newest
from ..repository.manifest import Manifest
from ..repository.model import PHYSICAL
from .result import ABSENT, DAMAGE, DAMAGED, INCOMPLETE, LOST, NOTICE, OK, PARTLY, BackupResult, Finding, bare

if t.TYPE_CHECKING:
    from collections.abc import Iterable

    from ..repository.catalog import BackupRecord
    from ..repository.model import BackupHeader
    from ..storage.base import Location
    from .opening import Opened


@dataclasses.dataclass(frozen=True, slots=True)
class Which:
    """The backups to verify; at most one field is set. None of them: the newest backup of every source."""

    backup: str | None = None
    """An id, or the beginning or end of one."""
    latest: str | None = None
    """A source."""
    all: bool = False


@dataclasses.dataclass(slots=True)
class Subject:
    """One backup to verify."""

    record: BackupRecord | None
    """None: its manifest is readable nowhere."""
    result: BackupResult
    manifests: dict[str, Manifest] = dataclasses.field(default_factory=dict)
    """By location: those whose header is sound."""

    @property
    def key(self) -> tuple[str, str]:
        return self.result.source, self.result.backup_id

    @property
    def manifest_name(self) -> str:
        return names.manifest(*self.key)

    @property
    def header(self) -> BackupHeader | None:
        return self.record.header if self.record is not None else None

    def add(
        self,
        kind: str,
        severity: str,
        location: str,
        name: str,
        what: str,
        *,
        files: t.Sequence[str] = (),
        files_total: int = 0,
        blocks: t.Sequence[int] = (),
    ) -> None:
        """A finding about this backup."""
        found = Finding(
            kind, severity, location, name, what, self.result.backup_id, tuple(files), files_total, tuple(blocks)
        )
        if found not in self.result.findings:
            self.result.findings.append(found)

    @property
    def holders(self) -> list[str]:
        """Locations that have the manifest, sound or not."""
        return [name for name, state in self.result.locations.items() if state not in (ABSENT, LOST)]


@dataclasses.dataclass(slots=True)
class Selection:
    subjects: list[Subject]
    catalog: Catalog
    others: list[Finding]
    """Manifests that cannot be read and are of no backup that was chosen."""


def select(opened: Opened, which: Which, *, physical_only: bool = False) -> Selection:
    """The subjects, oldest first, each with its state in every location as far as manifests tell it.

    ``physical_only``: for the newest of every source, only clusters count. Raises RepositoryError
    ``no-such-backup``, ``ambiguous-backup``; LocationError when no location can be listed.
    """
    repository = opened.repository
    catalog = Catalog.load(repository, which.latest)
    chosen = _chosen(catalog, which, physical_only=physical_only)
    broken = {broken.name: broken.error for broken in catalog.broken}
    lost = repository.lost
    subjects: list[Subject] = []
    others: list[Finding] = []
    for source, backup_id in _oldest_first(catalog):
        record = chosen.get((source, backup_id))
        name = names.manifest(source, backup_id)
        if record is None and name not in broken:
            continue
        kind = record.header.kind if record is not None else None
        subject = Subject(record, BackupResult(backup_id, source, kind))
        _look_in_all(subject, repository.locations, opened)
        if record is not None or which.all or (which.backup is not None and _matches(backup_id, which.backup)):
            subjects.append(subject)
        else:
            others += [dataclasses.replace(finding, backup=None) for finding in subject.result.findings]
        for lost_name in lost:
            subject.result.locations[lost_name] = LOST
    if not subjects:
        raise _nothing(which, others)
    return Selection(subjects, catalog, others)


def _oldest_first(catalog: Catalog) -> list[tuple[str, str]]:
    """The keys of all manifests. An id counts seconds: a readable manifest knows more exactly when it was begun."""
    parsed = (names.parse_source_object(broken.name, "manifests") for broken in catalog.broken)
    begun = {key: names.id_time(key[1]) for key in parsed if key is not None}
    begun |= {(record.source, record.id): record.started for record in catalog.backups}
    return sorted(begun, key=lambda key: (begun[key], key))


def _chosen(catalog: Catalog, which: Which, *, physical_only: bool) -> dict[tuple[str, str], BackupRecord]:
    backups: Iterable[BackupRecord]
    if which.all:
        backups = catalog.backups
    elif which.backup is not None:
        backups = _named(catalog, which.backup)
    else:
        suitable = [b for b in catalog.backups if not physical_only or b.header.kind in PHYSICAL]
        by_source = {source: [b for b in suitable if b.source == source] for source in {b.source for b in suitable}}
        backups = [record for found in by_source.values() if (record := newest(found)) is not None]
    return {(record.source, record.id): record for record in backups}


def _named(catalog: Catalog, text: str) -> list[BackupRecord]:
    """The backup of that name; none when it is one whose manifest is broken."""
    try:
        return [catalog.find(text)]
    except RepositoryError as error:
        keys = [names.parse_source_object(broken.name, "manifests") for broken in catalog.broken]
        if error.id == "no-such-backup" and any(key is not None and _matches(key[1], text) for key in keys):
            return []
        raise


def _matches(backup_id: str, text: str) -> bool:
    return backup_id.startswith(text) or backup_id.endswith(text)


def _nothing(which: Which, others: list[Finding]) -> RepositoryError:
    of = f" of {which.latest}" if which.latest is not None else ""
    unreadable = f"; {len({finding.object for finding in others})} manifests cannot be read" if others else ""
    return RepositoryError(
        f"there is no backup{of} to verify{unreadable}",
        hint="`cryobackup list` shows the backups, `cryobackup verify --all` looks at everything there is."
        if others
        else "`cryobackup backup` makes one.",
        id="no-such-backup",
    )


def _look_in_all(subject: Subject, locations: Iterable[Location], opened: Opened) -> None:
    """Open the manifest in every location. A location that fails is remembered as ``lost``."""
    for location in locations:
        try:
            subject.result.locations[location.name] = _look(subject, location, opened)
        except LocationError as error:
            subject.result.locations[location.name] = INCOMPLETE
            subject.add("unreadable", PARTLY, location.name, subject.manifest_name, error.message)


def _look(subject: Subject, location: Location, opened: Opened) -> str:
    name = subject.manifest_name
    try:
        manifest = Manifest(opened.repository.keys, location, *subject.key)
    except ObjectMissing:
        required = location.name in opened.required
        what = "the backup is not in this location"
        subject.add("absent", PARTLY if required else NOTICE, location.name, name, what)
        return ABSENT
    except LocationError:
        raise
    except (RepositoryError, KeyFileError) as error:
        subject.add("damaged", DAMAGE, location.name, name, bare(error.message, name))
        return DAMAGED
    subject.manifests[location.name] = manifest
    return OK
