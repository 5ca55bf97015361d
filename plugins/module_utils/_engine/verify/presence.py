# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The first rung: is every object there that a backup needs, and has it its size? Needs no identity."""

from __future__ import annotations

import typing as t

from ..errors import KeyFileError, LocationError, ObjectMissing, RepositoryError
from ..postgres.archive_index import backup_segments
from ..postgres.archive_object import look_at_wal
from ..postgres.wal import history_name
from ..repository import names
from ..repository.model import pack_names
from .result import DAMAGE, NOTICE, PARTLY, bare

if t.TYPE_CHECKING:
    from ..crypto.keys import KeyRing
    from ..repository.model import BackupHeader, PostgresInfo
    from ..storage.base import Location
    from .subjects import Subject


class Presence:
    """Looks in one location; what several backups need is looked at once."""

    def __init__(self, keys: KeyRing, location: Location) -> None:
        self._keys = keys
        self._location = location
        self._packs: dict[str, dict[str, int]] = {}
        self._wal: dict[tuple[int, str, int], tuple[str, str] | None] = {}
        self.objects: set[str] = set()
        """Names of all that was looked at."""

    def check(self, subject: Subject) -> None:
        """Add what is wrong to the subject. Raises LocationError when the location does not answer."""
        header = subject.header
        if header is None or self._location.name not in subject.holders:
            return
        self.objects.add(subject.manifest_name)
        self._check_manifest(subject)
        self._check_packs(subject, header)
        if header.postgres is not None:
            self._check_wal(subject, header.postgres)
            check_history(subject, header.postgres, self._location)

    def _check_manifest(self, subject: Subject) -> None:
        """Its end and its first entries: a manifest that was cut off shows."""
        manifest = subject.manifests.get(self._location.name)
        if manifest is None:
            return
        try:
            next(manifest.entries(), None)
        except LocationError:
            raise
        except (RepositoryError, KeyFileError) as error:
            subject.add("damaged", DAMAGE, self._location.name, manifest.name, bare(error.message, manifest.name))

    def _check_packs(self, subject: Subject, header: BackupHeader) -> None:
        for name, (size, _digest) in sorted(pack_names(header).items()):
            self.objects.add(name)
            found = self._sizes(name).get(name)
            if found is None:
                subject.add("missing", DAMAGE, self._location.name, name, "it is missing")
            elif found != size:
                what = f"it has {found} bytes instead of {size}"
                subject.add("size", DAMAGE, self._location.name, name, what)

    def _sizes(self, name: str) -> dict[str, int]:
        """Sizes of all packs of the backup that wrote this one."""
        of = name.split("/")[1]
        if of not in self._packs:
            self._packs[of] = {info.key: info.size for info in self._location.list(names.packs(of))}
        return self._packs[of]

    def _check_wal(self, subject: Subject, postgres: PostgresInfo) -> None:
        system = int(postgres.system_identifier)
        for segment in backup_segments(postgres):
            name = names.wal(system, segment)
            self.objects.add(name)
            problem = self._wal_problem(system, segment, postgres.wal_segment_size)
            if problem is not None:
                kind, what = problem
                severity = PARTLY if kind == "unreadable" else DAMAGE
                subject.add(kind, severity, self._location.name, name, what)

    def _wal_problem(self, system: int, segment: str, segment_size: int) -> tuple[str, str] | None:
        key = system, segment, segment_size
        if key not in self._wal:
            self._wal[key] = self._look_at_wal(system, segment, segment_size)
        return self._wal[key]

    def _look_at_wal(self, system: int, segment: str, segment_size: int) -> tuple[str, str] | None:
        """(kind, what) of what is wrong; the header is authenticated, the content is not looked at."""
        try:
            found = look_at_wal(self._keys, self._location, system, segment)
        except LocationError as error:
            self._location.stat(names.REPOSITORY_JSON)  # raises when it is the location that does not answer
            return "unreadable", error.message
        except ObjectMissing:
            found = None
        except (RepositoryError, KeyFileError) as error:
            return "damaged", bare(error.message, names.wal(system, segment))
        if found is None:
            return "missing", "it is missing, and the backup cannot become consistent without it"
        if found.size != segment_size:
            return "size", f"it holds {found.size} bytes of WAL instead of {segment_size}"
        return None


def check_history(subject: Subject, postgres: PostgresInfo, location: Location) -> None:
    """Whether the ancestry of the backup's timeline is archived; it need not be, if that is older than the archive."""
    name = names.wal(int(postgres.system_identifier), history_name(postgres.timeline))
    if postgres.timeline > 1 and location.stat(name) is None:
        what = "there is no history of the timeline: a recovery from here can follow this timeline only"
        subject.add("wal-history", NOTICE, location.name, name, what)
