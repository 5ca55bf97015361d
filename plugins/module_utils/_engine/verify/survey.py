# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""With ``--all``: everything that lies in the locations, whether a backup needs it or not."""

from __future__ import annotations

import dataclasses
import typing as t

from ..errors import KeyFileError, LocationError, ObjectMissing, RepositoryError
from ..postgres.archive_index import WalIndex, histories, missing_segments
from ..postgres.lsn import parse_lsn
from ..postgres.restore_plan import leads_to
from ..postgres.timeline import TimelineHistory
from ..postgres.wal import match_wal_name
from ..repository import container, names
from ..repository.lease import is_dead
from ..repository.model import Lease, Mark, Note, pack_names
from ..repository.wraps import problem, read_wraps
from .result import DAMAGE, NOTICE, PARTLY, Finding, bare

if t.TYPE_CHECKING:
    from ..crypto.keys import KeyRing
    from ..repository.model import PostgresInfo
    from ..repository.repository import Repository
    from ..storage.base import Location, ObjectInfo
    from .result import VerifyReport
    from .subjects import Subject

_RECORDS: t.Final[dict[str, tuple[int, type[Lease | Mark | Note]]]] = {
    "leases": (container.LEASE, Lease),
    "marks": (container.MARK, Mark),
    "notes": (container.NOTE, Note),
}
_KNOWN: t.Final = frozenset(("packs", "manifests", "wal", "keys", "wraps", "probe", names.REPOSITORY_JSON))
_UNKNOWN_LISTED: t.Final = 100


@dataclasses.dataclass(slots=True)
class Survey:
    """What one location held before the manifests were listed."""

    location: Location
    packs: dict[str, int] = dataclasses.field(default_factory=dict)
    """Name to size."""
    wal: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    running: set[str] = dataclasses.field(default_factory=set)
    """Ids of backups that may be under way."""
    records: int = 0


def survey(repository: Repository, report: VerifyReport) -> list[Survey]:
    """List every location. To be done before manifests are listed: a pack that is seen here has its lease by now, or
    its manifest by then.

    Adds damaged leases, marks and notes to the report, and what has no name of an object. Locations that fail are
    lost.
    """
    surveys = []
    for location in list(repository.locations):
        try:
            surveys.append(_survey(repository.keys, location, report))
        except LocationError as error:
            repository.lost[location.name] = error
            repository.locations.remove(location)
    if not surveys:
        raise next(iter(repository.lost.values()))
    return surveys


def _survey(keys: KeyRing, location: Location, report: VerifyReport) -> Survey:
    found = Survey(location)
    unknown: list[str] = []
    records: list[ObjectInfo] = []
    for info in location.list(""):
        top, _unused, _unused = info.key.partition("/")
        parsed = names.parse_pack(info.key)
        wal = _wal_name(info.key)
        if parsed is not None:
            found.packs[info.key] = info.size
        elif wal is not None:
            found.wal.append(wal)
        elif top in _RECORDS:
            records.append(info)
        elif top not in _KNOWN or top in ("packs", "wal"):
            unknown.append(info.key)
    for info in records:
        _read_record(keys, location, info, found, report)
    _look_at_wraps(keys, location, report)
    for name in unknown[:_UNKNOWN_LISTED]:
        report.others.append(Finding("unknown", NOTICE, location.name, name, "this is no name of an object"))
    return found


def _look_at_wraps(keys: KeyRing, location: Location, report: VerifyReport) -> None:
    """They may be all that brings the keys back some day."""
    lost: dict[str, LocationError] = {}
    for stored in read_wraps([location], lost=lost):
        what = problem(stored, keys)
        if what is not None:
            report.others.append(Finding("damaged", DAMAGE, location.name, stored.name, bare(what, stored.name)))
    for error in lost.values():
        raise error


def _wal_name(key: str) -> tuple[int, str] | None:
    parts = key.split("/")
    if len(parts) != 4 or parts[0] != "wal" or not parts[1].isascii() or not parts[1].isdigit():
        return None
    known = match_wal_name(parts[3]) is not None and parts[3].startswith(parts[2])
    return (int(parts[1]), parts[3]) if known and key == names.wal(int(parts[1]), parts[3]) else None


def _read_record(keys: KeyRing, location: Location, info: ObjectInfo, found: Survey, report: VerifyReport) -> None:
    """A lease, a mark or a note. One that is given back or deleted meanwhile is no matter."""
    kind, struct = _RECORDS[info.key.partition("/")[0]]
    if kind == container.LEASE:
        found.running.add(info.key.rpartition("/")[2])
    try:
        record = container.decode_record(keys, kind, info.key, location.read(info.key), struct)
    except ObjectMissing:
        return
    except LocationError as error:
        location.stat(names.REPOSITORY_JSON)
        report.others.append(Finding("unreadable", PARTLY, location.name, info.key, error.message))
        return
    except (RepositoryError, KeyFileError) as error:
        report.others.append(Finding("damaged", DAMAGE, location.name, info.key, bare(error.message, info.key)))
        return
    found.records += 1
    if isinstance(record, Lease):
        if is_dead(record, info, location.now()):
            found.running.discard(record.backup_id)
        else:
            found.running.update(record.packs)


def add_orphans(surveys: list[Survey], subjects: list[Subject], report: VerifyReport) -> None:
    """Packs that no manifest lists: left by backups that did not come to their end, or by a lost manifest."""
    for each in surveys:
        needed: set[str] = set()
        broken = False
        for subject in subjects:
            if each.location.name in subject.holders:
                broken = broken or subject.header is None
                needed |= pack_names(subject.header).keys() if subject.header is not None else set()
        what = "no backup needs it: `cryobackup prune` removes it"
        if broken:
            what = "no backup that can be read needs it"
        for name in sorted(each.packs.keys() - needed):
            if name.split("/")[1] not in each.running:
                report.others.append(Finding("orphan", NOTICE, each.location.name, name, what))


def add_gaps(repository: Repository, subjects: list[Subject]) -> None:
    """Where the WAL behind each backup is interrupted: no recovery that begins there gets further."""
    indexes: dict[int, tuple[WalIndex, dict[int, TimelineHistory]]] = {}
    for subject in subjects:
        header = subject.header
        if header is None or header.postgres is None:
            continue
        system = int(header.postgres.system_identifier)
        try:
            if system not in indexes:
                index = WalIndex.load(repository, system)
                indexes[system] = index, _histories(repository, index)
        except (RepositoryError, KeyFileError):
            continue  # nothing can be said; what is damaged is reported as such
        index, known = indexes[system]
        _add_gaps(subject, header.postgres, index, known)


def _histories(repository: Repository, index: WalIndex) -> dict[int, TimelineHistory]:
    """Without the identity nothing is known of any ancestry."""
    return histories(repository, index) if repository.keys.has_identity else {}


def _add_gaps(subject: Subject, postgres: PostgresInfo, index: WalIndex, known: dict[int, TimelineHistory]) -> None:
    record = subject.record
    ways = [history for history in known.values() if record is not None and leads_to(record, history)]
    way = max(ways, key=lambda history: history.timeline, default=TimelineHistory(postgres.timeline))
    stop = parse_lsn(postgres.stop_lsn)
    for name in subject.holders:
        if name not in index.locations:
            continue
        for gap in missing_segments(index, way, stop, None, postgres.wal_segment_size, location=name):
            where = names.wal(index.system_identifier, gap.first)
            what = f"point-in-time recovery from this backup ends here: {gap} is missing, and there is WAL behind it"
            subject.add("wal-gap", NOTICE, name, where, what)
            break
