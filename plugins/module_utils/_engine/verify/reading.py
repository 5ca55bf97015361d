# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The level ``content``, over all backups and locations at once: each object is read once in each location."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import typing as t

from ..errors import KeyFileError, LocationError, RepositoryError
from ..postgres.archive_index import WalIndex, backup_segments, histories
from ..postgres.wal import history_name, match_wal_name
from ..repository import names
from ..repository.model import pack_names
from .blame import blame
from .content import Examined, describe, examine_pack, examine_wal
from .essentials import Essentials
from .needs import Claim, Needs, PackNeeds, claims_of
from .parallel import in_parallel
from .presence import check_history
from .result import DAMAGE, PARTLY, Finding, bare

if t.TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from ..events import Reporter
    from ..postgres.timeline import TimelineHistory
    from ..repository.manifest import Manifest
    from ..repository.repository import Repository
    from ..storage.base import Location
    from .essentials import Excerpt, Problem
    from .result import VerifyReport
    from .subjects import Subject

_WalKey: t.TypeAlias = tuple[int, str]


class _Task(t.NamedTuple):
    location: Location
    pack: PackNeeds | None
    wal: _WalKey | None


@dataclasses.dataclass(slots=True)
class _Archive:
    """What is known beforehand of the WAL of one cluster."""

    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Stored bytes by file name."""
    histories: Mapping[int, TimelineHistory] = dataclasses.field(default_factory=dict)


class Reading:
    """Reads what ``subjects`` need, and what ``more_wal`` names for each location."""

    def __init__(
        self,
        repository: Repository,
        subjects: Sequence[Subject],
        report: VerifyReport,
        reporter: Reporter,
        *,
        more_wal: Mapping[str, Sequence[_WalKey]] | None = None,
    ) -> None:
        self._repository = repository
        self._subjects = subjects
        self._report = report
        self._reporter = reporter
        self._more_wal = more_wal or {}
        self._needs = Needs()
        self._whole: dict[tuple[str, str], Manifest] = {}
        """Manifests that could be read to their end."""
        self._essentials: list[tuple[Subject, Manifest, Essentials]] = []
        self._excerpts: dict[tuple[Claim, Excerpt], bytes] = {}
        self._archives: dict[int, _Archive] = {}
        self._unsound: list[Examined] = []

    def run(self, workers: int) -> None:
        """Add what is wrong to the subjects and to the report. Locations that fail on the way are lost."""
        self._reporter.phase("reading manifests")
        for subject in self._subjects:
            self._read_manifests(subject)
        self._needs.settle()
        tasks = list(self._tasks())
        self._reporter.phase("verifying content", sum(self._size(task) for task in tasks))
        with in_parallel(self._still_wanted(tasks), self._examine, workers) as results:
            for found in results:
                self._note(found)
        self._look_into_essentials()
        self._blame()

    # Manifests

    def _read_manifests(self, subject: Subject) -> None:
        """In every location, to the end; the first that is whole says what is needed."""
        for name, manifest in subject.manifests.items():
            result = self._report.locations[name]
            result.objects += 1
            essentials = Essentials(manifest.header)
            try:
                if subject.key in self._whole:
                    for _unused in essentials.watch(manifest.entries()):
                        pass
                else:
                    self._add_needs(subject, manifest, essentials)
                self._add_essentials(subject, manifest, essentials)
                info = manifest.location.stat(manifest.name)
                result.bytes += info.size if info is not None else 0
            except LocationError as error:
                subject.add("unreadable", PARTLY, name, manifest.name, error.message)
            except (RepositoryError, KeyFileError) as error:
                subject.add("damaged", DAMAGE, name, manifest.name, bare(error.message, manifest.name))

    def _add_needs(self, subject: Subject, manifest: Manifest, essentials: Essentials) -> None:
        counted = self._needs.add(manifest, essentials)
        self._whole[subject.key] = manifest
        _add_problems(subject, manifest, counted.problems)
        header = manifest.header
        subject.result.figures |= {
            "files": counted.files,
            "extents": counted.extents,
            "packs": len(header.packs) + len(header.foreign),
            "bytes_stored": sum(size for size, _digest in pack_names(header).values()),
            "wal_segments": len(backup_segments(header.postgres)) if header.postgres is not None else 0,
        }

    def _add_essentials(self, subject: Subject, manifest: Manifest, essentials: Essentials) -> None:
        _add_problems(subject, manifest, essentials.problems())
        self._needs.add_essentials(manifest.header, essentials)
        self._essentials.append((subject, manifest, essentials))

    # What is to be read

    def _tasks(self) -> Iterator[_Task]:
        for location in self._repository.locations:
            packs: dict[Claim, PackNeeds] = {}
            wal: dict[_WalKey, None] = {}
            for subject in self._subjects:
                header = subject.header
                if header is None or location.name not in subject.holders:
                    continue
                for claim in claims_of(header).values():
                    packs[claim] = self._needs.packs.get(claim) or PackNeeds(claim)
                if header.postgres is not None:
                    wal |= dict.fromkeys(self._wal_of(subject, location))
            for needs in packs.values():
                yield _Task(location, needs, None)
            for key in {**wal, **dict.fromkeys(self._more_wal.get(location.name, ()))}:
                yield _Task(location, None, key)

    def _wal_of(self, subject: Subject, location: Location) -> list[_WalKey]:
        header = subject.header
        if header is None or header.postgres is None:
            return []
        system = int(header.postgres.system_identifier)
        keys = [(system, name) for name in backup_segments(header.postgres)]
        if header.postgres.timeline > 1:
            history = history_name(header.postgres.timeline)
            check_history(subject, header.postgres, location)
            if location.stat(names.wal(system, history)) is not None:
                keys.append((system, history))
        return keys

    def _size(self, task: _Task) -> int:
        if task.pack is not None:
            return task.pack.claim.size
        system, name = task.wal or (0, "")
        return self._archive(system).sizes.get(name, 0)

    def _still_wanted(self, tasks: Sequence[_Task]) -> Iterator[_Task]:
        """Nothing more is asked of a location that was lost on the way."""
        return (task for task in tasks if task.location.name not in self._repository.lost)

    def _archive(self, system_identifier: int) -> _Archive:
        known = self._archives.get(system_identifier)
        if known is None:
            known = self._archives[system_identifier] = _Archive()
            # What is wrong with the archive shows when each of its objects is read.
            with contextlib.suppress(RepositoryError, KeyFileError):
                index = WalIndex.load(self._repository, system_identifier)
                known.sizes = {name: file.size for name, file in index.files.items()}
                known.histories = histories(self._repository, index)
        return known

    # What was found

    def _examine(self, task: _Task, stop: threading.Event) -> Examined:
        keys = self._repository.keys
        if task.pack is not None:
            return examine_pack(task.location, keys, task.pack, stop)
        system, name = task.wal or (0, "")
        return examine_wal(task.location, keys, system, name, self._archive(system).histories, stop)

    def _note(self, found: Examined) -> None:
        self._reporter.advance(found.stored_bytes)
        if found.gone is not None:
            if found.location not in self._repository.lost:
                self._repository.lost[found.location] = found.gone
            return
        result = self._report.locations[found.location]
        result.objects += 1
        result.bytes += found.stored_bytes
        result.pages += found.pages
        if found.claim is not None and found.problem is None and not found.bad_frames:
            self._excerpts |= {(found.claim, excerpt): data for excerpt, data in found.excerpts.items()}
        if not found.sound:
            self._unsound.append(found)

    def _look_into_essentials(self) -> None:
        """What could not be read is found missing or damaged anyway."""
        for subject, manifest, essentials in self._essentials:
            claims = claims_of(manifest.header)

            def read(field: int, excerpt: Excerpt, claims: Mapping[int, Claim] = claims) -> bytes | None:
                return self._excerpts.get((claims[field], excerpt)) if field in claims else None

            _add_problems(subject, manifest, essentials.wrong(read))

    def _blame(self) -> None:
        unsound: dict[str, list[Examined]] = {}
        for found in self._unsound:
            unsound.setdefault(found.location, []).append(found)
        for subject in self._subjects:
            header = subject.header
            if header is None:
                continue
            in_holders = [found for name in subject.holders for found in unsound.get(name, [])]
            blame(subject, header, self._whole.get(subject.key), in_holders)
        for found in self._unsound:
            if found.name.startswith("wal/"):
                self._blame_wal(found)

    def _blame_wal(self, found: Examined) -> None:
        kind, what = describe(found)
        severity = PARTLY if kind == "unreadable" else DAMAGE
        needed = False
        for subject in self._subjects:
            header = subject.header
            if header is None or header.postgres is None or found.location not in subject.holders:
                continue
            system = int(header.postgres.system_identifier)
            if found.name in (names.wal(system, name) for name in backup_segments(header.postgres)):
                text = f"{what}; the backup cannot be restored without it"
                subject.add(kind, severity, found.location, found.name, text)
                needed = True
        if not needed:
            what = f"{what}; no recovery gets past it" if _is_segment(found.name) else what
            self._report.others.append(Finding(kind, severity, found.location, found.name, what))


def _add_problems(subject: Subject, manifest: Manifest, problems: Iterable[Problem]) -> None:
    where = manifest.location.name
    for what, paths in problems:
        subject.add("inconsistent", DAMAGE, where, manifest.name, what, files=paths, files_total=len(paths))


def _is_segment(name: str) -> bool:
    parsed = match_wal_name(name.rpartition("/")[2])
    return parsed is not None and str(parsed) == parsed.segment_name
