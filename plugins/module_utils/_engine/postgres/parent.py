# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parent of an incremental: which backup it is, and its entries beside the files that are there now."""

from __future__ import annotations

import dataclasses
import datetime as dt
import typing as t

from ..errors import DamageError, LocationError, ObjectMissing
from ..repository import model
from ..repository.draft import Draft
from ..repository.manifest import Manifest
from . import relfile
from .changes import ClusterState, Guards, guards, parent_problem
from .summaries import ask_server

if t.TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..events import Reporter
    from ..repository.catalog import BackupRecord
    from ..repository.model import Entry
    from ..repository.repository import Repository
    from ..repository.session import BackupSession
    from ..storage.base import Location
    from .connection import Connection
    from .timeline import TimelineHistory


LAGGING_AT_MOST: t.Final = dt.timedelta(days=7)
"""How much older than the newest a parent may be for the sake of an optional location that lacks the newer ones."""


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """``record`` is None when there is no parent; ``reason`` says why this one, or why none."""

    record: BackupRecord | None
    reason: str
    lagging: tuple[str, ...] = ()
    """Optional locations that lack the parent, and so cannot take part."""


def choose_parent(backups: Iterable[BackupRecord], state: ClusterState, locations: Iterable[Location]) -> Choice:
    """The newest physical backup (of ``backups``, oldest first) that an incremental can be based on.

    None that a verification found damaged, and none that shares packs with such a one: the damage would be inherited.
    It is in all ``locations``; or in all that are required, where those that lack it lag too far behind.
    """
    places = list(locations)
    everywhere = {place.name for place in places}
    required = {place.name for place in places if place.required} or everywhere
    best: BackupRecord | None = None
    newest_problem = ""
    for record, problem in _candidates(backups, state):
        missing = sorted(everywhere - {*record.locations})
        if problem is None and required <= {*record.locations}:
            best = best or record
            if best.started - record.started > LAGGING_AT_MOST:
                break
            if not missing:
                return Choice(record, newest_problem or f"based on the newest backup, {record.id}")
        elsewhere = f"backup {record.id} is not in location {', '.join(missing)}" if missing else ""
        newest_problem = newest_problem or problem or elsewhere
    if best is None:
        return Choice(None, newest_problem or "there is no earlier backup of this cluster")
    lagging = tuple(sorted(everywhere - {*best.locations}))
    return Choice(best, f"{newest_problem}: that location is left out, the others go on from {best.id}", lagging)


def _candidates(backups: Iterable[BackupRecord], state: ClusterState) -> Iterator[tuple[BackupRecord, str | None]]:
    """Physical backups, newest first, each with why it cannot be a parent, wherever it is."""
    physical = [record for record in backups if record.header.kind in model.PHYSICAL]
    suspects = {owner: record.id for record in physical if record.failed_verification for owner in record.pack_owners}
    for record in reversed(physical):
        problem = parent_problem(record.header, state)
        suspect = next((suspects[owner] for owner in sorted(record.pack_owners) if owner in suspects), None)
        if problem is None and suspect is not None:
            shares = "" if suspect == record.id else f", and {record.id} shares packs with it"
            problem = f"backup {suspect} did not pass its verification{shares}"
        yield record, problem


def leave_out(repository: Repository, choice: Choice, reporter: Reporter) -> None:
    """Take the locations that lag out of an open repository, for one backup."""
    for name in choice.lagging:
        parent = choice.record.id if choice.record is not None else ""
        error = lags(name, parent)
        repository.lost[name] = error
        repository.locations[:] = [place for place in repository.locations if place.name != name]
        reporter.warn(f"location {name} does not take part: {error.message}. {error.hint}")


def lags(name: str, backup_id: str) -> LocationError:
    return LocationError(
        f"location {name!r} lacks backup {backup_id}",
        hint="`cryobackup replicate` brings it there; until then incremental backups go on without that location.",
        id="location-lags",
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Parent:
    """A parent whose manifest was read to its end once, so that it will not fail half-way."""

    manifest: Manifest | Draft
    """A draft: what an interrupted backup had finished, which takes a parent's place for the files in it."""
    guards: Guards
    versions: dict[bytes, Entry]
    """Entries of the PG_VERSION files of database directories, by path."""

    @property
    def is_draft(self) -> bool:
        return isinstance(self.manifest, Draft)

    def asked(self, connection: Connection, version: int, history: TimelineHistory, start_lsn: int) -> Parent:
        """The same, when the server was asked what has changed until ``start_lsn``; see ``summaries.ask_server``."""
        info = self.manifest.header.postgres
        if info is None:
            return self
        asked = ask_server(connection, self.guards, info, version, history, start_lsn)
        return dataclasses.replace(self, guards=asked)


def open_parent(session: BackupSession, state: ClusterState) -> Parent | str:
    """The session's parent, from the first location that has its manifest undamaged; or why there is none.

    Should that location fail while the files are compared, the others are asked.
    """
    record = session.parent
    if record is None:
        return session.parent_refused or "it has no parent"
    problem = f"no location has the manifest of backup {record.id}"
    for location in session.fanout.healthy:
        try:
            manifest = Manifest(
                session.repository.keys,
                location,
                session.source,
                record.id,
                others=[other for other in session.fanout.healthy if other is not location],
                breaker=session.repository.breaker,
            )
            versions = database_versions(manifest)
        except (DamageError, LocationError, ObjectMissing) as error:
            problem = f"the manifest of backup {record.id} cannot be read: {error.message}"
            continue
        return Parent(manifest, guards(record.header, state), versions)
    return problem


def database_versions(manifest: Manifest | Draft) -> dict[bytes, Entry]:
    """Entries of the PG_VERSION files of database directories, by path."""
    return {
        entry.path: entry
        for entry in manifest.entries()
        if entry.path.endswith(b"/PG_VERSION")
        and relfile.is_database_directory(entry.path.rpartition(b"/")[0].decode("utf-8", "surrogateescape"))
    }


_OUT_OF_ORDER = frozenset(
    name.encode() for name in (relfile.CONTROL_FILE, relfile.BACKUP_LABEL_FILE, relfile.TABLESPACE_MAP_FILE)
)


class ParentEntries:
    """The parent's entries, asked for in the order of paths."""

    def __init__(self, manifest: Manifest | Draft | None) -> None:
        self._entries: Iterator[Entry] = iter(manifest.entries() if manifest is not None else ())
        self._next: Entry | None = None
        self._key: list[bytes] = []
        self._advance()

    def _advance(self) -> None:
        # The last entries of a manifest are those that are written anew each time, in an order of their own.
        self._next = next((entry for entry in self._entries if entry.path not in _OUT_OF_ORDER), None)
        if self._next is not None:
            self._key = model.sort_key(self._next.path)

    def at(self, path: bytes) -> Entry | None:
        """The entry of that path. Paths must be asked for in ascending order."""
        wanted = model.sort_key(path)
        while self._next is not None and self._key < wanted:
            self._advance()
        return self._next if self._next is not None and self._key == wanted else None
