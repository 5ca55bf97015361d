# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One backup, from its lease to its commit: steps 2 to 9 of docs/repository-format.md, section 8.

Knows nothing of what is backed up: PostgreSQL and files use the same session.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import os
import pathlib
import time
import types
import typing as t

from ..errors import DamageError, LocationError, RepositoryError, UnknownEpoch
from ..state import Spool
from ..storage.base import Location
from . import extents as xt
from . import names
from .catalog import BackupRecord
from .draft import Draft, DraftWriter
from .epochs import publish_missing
from .lease import encode_lease, is_dead, mark_hits, new_lease, prunes_under_way, read_leases, read_marks
from .manifest import Manifest, ManifestWriter, open_manifest
from .model import BackupHeader, Entry, ForeignPackRow, PackRow, pack_names
from .packs import PackSet
from .repository import Repository

PRUNE_PATIENCE_SECONDS = 30.0
"""How long a backup waits for a prune that is deleting; a backup without parent is better than a late one."""
_PAUSE_SECONDS = 0.5


@dataclasses.dataclass(frozen=True, slots=True)
class CommitResult:
    locations: tuple[str, ...]  # where the backup is complete
    lost: dict[str, LocationError]  # where it is not, and why
    manifest_bytes: int


class BackupSession:
    """Use as a context manager; without ``commit`` nothing becomes visible.

    ``parent``: the backup whose packs may be referred to. It is None after entering when no parent
    was given or when it may be deleted; ``parent_refused`` then says why. ``draft``: what an interrupted backup with
    the same parent, or like this one without, had finished; it is None after entering when it is of no use any more.
    """

    def __init__(
        self,
        repository: Repository,
        *,
        source: str,
        parent: BackupRecord | None,
        now: dt.datetime,
        spool: pathlib.Path,
        draft: Draft | None = None,
    ) -> None:
        self.repository = repository
        self.source = names.check_source(source)
        self.backup_id = names.new_id(now, os.urandom(4))
        self.fanout = repository.fanout()
        self.parent = parent
        self.parent_refused: str | None = None
        self.draft = draft
        self._keeping: DraftWriter | None = None
        self._lease_name, self._lease = encode_lease(
            repository.keys,
            new_lease(source, self.backup_id, parent.id if parent else None, now, packs=draft.backups if draft else ()),
        )
        self.packs = PackSet(self.fanout, repository.keys, self.backup_id, level=repository.level)
        self._spool = spool
        self._open = contextlib.ExitStack()
        self._foreign = _ForeignPacks()
        self._live: dict[int, int] = {}

    def __enter__(self) -> t.Self:
        """Steps 2 and 3; waits up to ``PRUNE_PATIENCE_SECONDS`` where a prune deletes.

        Raises LocationError when no location takes the lease, or what ``Spool`` raises.
        """
        self.repository.require("write")
        publish_missing(self.repository)
        with contextlib.ExitStack() as undo:
            file = undo.enter_context(Spool(self._spool))
            self._manifest = ManifestWriter(
                self.repository.keys, self.source, self.backup_id, level=self.repository.level, spool=file
            )
            self.fanout.each(self._retire_dead_leases)
            undo.callback(self._give_lease_back)
            self.fanout.put(self._lease_name, self._lease)
            if self.parent is not None:
                self.parent_refused = self._parent_problem(self.parent)
                if self.parent_refused is not None:
                    self.parent = None
            if self.draft is not None and not self._can_go_on_from(self.draft):
                self.draft = None
            self._open = undo.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        """Step 9, also after a failure: then nothing in the repository refers to what was written."""
        if self._keeping is not None:
            self._keeping.close()
        self._open.close()

    def _give_lease_back(self) -> None:
        """What cannot be given back now is retired by a later run."""
        with contextlib.suppress(LocationError):
            self.fanout.delete(self._lease_name)

    def _retire_dead_leases(self, location: Location) -> None:
        """What a crashed run of this source on this host left. Deletion may not be allowed: then it stays."""
        now = location.now()
        try:
            leases = read_leases(self.repository.keys, location)
        except (UnknownEpoch, DamageError):
            # Hosts with newer keys are at work: theirs to retire. Nobody else's false or damaged one stops a backup.
            return
        for info, lease in leases:
            if lease.source == self.source and is_dead(lease, info, now):
                with contextlib.suppress(LocationError):
                    location.delete(info.key)

    def _parent_problem(self, parent: BackupRecord) -> str | None:
        """Step 3. The order is part of the proof in section 9: own lease, announcements, marks, manifest."""
        missing = [location.name for location in self.fanout.healthy if location.name not in parent.locations]
        if missing:
            return f"backup {parent.id} is not in location {', '.join(missing)}"
        try:
            if (deleting := self._wait_for_prunes()) is not None:
                return deleting
            if self._marked(parent.header):
                return f"backup {parent.id} is about to be deleted"
        except UnknownEpoch:
            return f"what is about to be deleted cannot be read with the keys here, perhaps backup {parent.id}"
        except DamageError as error:
            return f"perhaps backup {parent.id} is about to be deleted, which nobody can read: {error.message}"
        # Asked last: a prune or a mark that was over before we looked has taken the manifest with it.
        name = names.manifest(parent.source, parent.id)
        gone: list[bool] = []
        self.fanout.each(lambda location: gone.append(location.stat(name) is None))
        return f"backup {parent.id} was deleted" if any(gone) else None

    def _can_go_on_from(self, draft: Draft) -> bool:
        """Step 3 for a draft: nothing is about to delete its packs, and they are in every location."""
        if draft.header.parent != (self.parent.id if self.parent is not None else None):
            return False
        here: list[bool] = []

        def look(location: Location) -> None:
            marks = read_marks(self.repository.keys, location)
            here.append(not any(mark_hits(mark, draft.header) for _info, mark in marks))
            here.append(_absent(location, draft.header) is None)

        try:
            if self._wait_for_prunes() is not None:
                return False
            self.fanout.each(look)
        except (UnknownEpoch, DamageError):
            return False
        return all(here)

    def _wait_for_prunes(self) -> str | None:
        """Who still deletes when the patience is over.

        A prune that looked at the leases before ours was there may delete what stands in no mark any more.
        """
        began = time.monotonic()
        while prunes := self._prunes():
            if time.monotonic() - began >= PRUNE_PATIENCE_SECONDS:
                where, host = min(prunes)
                return f"a prune of host {host} deletes in location {where} right now"
            time.sleep(_PAUSE_SECONDS)
        return None

    def _prunes(self) -> list[tuple[str, str]]:
        """(location, host) of each prune under way."""
        found: list[tuple[str, str]] = []
        self.fanout.each(
            lambda location: found.extend(
                (location.name, prune.host) for prune in prunes_under_way(self.repository.keys, location)
            )
        )
        return found

    def _marked(self, header: BackupHeader) -> bool:
        hits: list[bool] = []
        self.fanout.each(
            lambda location: hits.extend(
                mark_hits(mark, header) for _info, mark in read_marks(self.repository.keys, location)
            )
        )
        return any(hits)

    def parent_manifest(self) -> Manifest:
        """The parent's manifest, from the first location that has it undamaged."""
        if self.parent is None:
            raise RepositoryError("a backup without parent has no parent manifest")
        repository = self.repository
        return open_manifest(
            repository.keys, self.fanout.healthy, self.source, self.parent.id, breaker=repository.breaker
        )

    def refer(self, extents: xt.Extents, *, draft: bool = False) -> xt.Extents:
        """Extents of the parent's manifest, or of the draft's entries, as extents of this one. One thread only."""
        base = self.draft if draft else self.parent
        if base is None:
            raise RepositoryError("a backup without parent has nothing to refer to")
        known = len(self._foreign.packs)
        referred = self._foreign.refer(base.header, extents)
        if self._keeping is not None:
            for row in self._foreign.packs[known:]:
                self._keeping.foreign(row)
        return referred

    def keep_draft(self, directory: pathlib.Path, header: BackupHeader) -> DraftWriter:
        """From now on keep what is finished in a draft there. Ends with the session."""
        header.epochs = self._epochs()
        self._keeping = DraftWriter(directory, self.repository.keys.digest_key, header)
        self.packs.on_written = self._keeping.pack
        return self._keeping

    def _epochs(self) -> dict[str, int]:
        known = dict[str, int]()
        for base in (self.parent, self.draft):
            if base is not None:
                known |= base.header.epochs
        return {**known, self.backup_id: self.repository.keys.epoch}

    def refers_to(self, field: int) -> bool:
        """Whether anything in that pack of the parent was taken over, so far. ``field``: as the parent has it."""
        return self.parent is not None and self._foreign.refers_to(self.parent.header, field)

    def add(self, entry: Entry, extents: xt.Extents, *, worth_noting: bool = True) -> None:
        """The next entry, in the order of the format. One thread only. ``worth_noting``: in a draft, too.

        Raises RepositoryError when the extents do not cover the file: such a backup must not exist.
        """
        if not xt.covers(extents, entry.size):
            raise RepositoryError(
                f"internal: the extents of {entry.path.decode('utf-8', 'backslashreplace')} do not cover it",
                hint="No backup was made. Please report this.",
            )
        for field, live in xt.live_bytes(extents).items():
            self._live[field] = self._live.get(field, 0) + live
        entry = entry._replace(extents=xt.pack(extents))
        self._manifest.add(entry)
        if self._keeping is not None and worth_noting:
            self._keeping.entry(entry)

    @property
    def entries(self) -> int:
        return self._manifest.entries

    def commit(self, header: BackupHeader) -> CommitResult:
        """Steps 6 to 8. All packs must be closed. On return the backup exists, durably, in ``locations``.

        Raises RepositoryError when it exists nowhere.
        """
        own = {row.number for row in self.packs.rows}
        if not {field for field in self._live if field < xt.FOREIGN} <= own:
            raise RepositoryError("internal: an entry refers to a pack that was not finished")
        header.packs = [row._replace(live=self._live.get(row.number, 0)) for row in self.packs.rows]
        header.foreign = self._foreign.rows(self._live)
        known = self._epochs()
        header.epochs = {pack.backup_id: known.get(pack.backup_id, 1) for pack in header.foreign}
        header.epochs[self.backup_id] = known[self.backup_id]
        header.totals.entries = self._manifest.entries
        header.totals.bytes_stored = header.stored_bytes_own
        self.fanout.each(self._still_safe)
        size = self._manifest.write(self.fanout, header)
        self.fanout.each(lambda location: self._look_again(location, header))
        return CommitResult(
            tuple(location.name for location in self.fanout.healthy),
            {**self.repository.lost, **self.fanout.lost},
            size,
        )

    def _still_safe(self, location: Location) -> None:
        """Raises LocationError when the lease was retired: then something may have been deleted under us.

        As long as the lease is there, every prune keeps what it holds, also what a mark names already.
        """
        if location.stat(self._lease_name) is None:
            raise LocationError(
                f"location {location.name!r}: the lease of backup {self.backup_id} was retired while it ran",
                hint="Earlier backups are untouched. Run the backup again.",
                id="backup-overtaken",
            )

    def _look_again(self, location: Location, header: BackupHeader) -> None:
        """Step 8: after the commit. A backup that is not complete is taken back."""
        try:
            self._still_safe(location)
            if (missing := _absent(location, header)) is not None:
                raise LocationError(
                    f"location {location.name!r}: {missing}",
                    hint="Something deletes objects there. The backup was taken back; run `cryobackup verify --all`.",
                    id="backup-incomplete",
                )
        except LocationError:
            with contextlib.suppress(LocationError):  # not allowed everywhere: a verification will tell of it
                location.delete(names.manifest(self.source, self.backup_id))
            raise


def _absent(location: Location, header: BackupHeader) -> str | None:
    """The first pack that is not there as it should be, in words."""
    wanted = {name: size for name, (size, _digest) in pack_names(header).items()}
    found: dict[str, int] = {}
    for backup_id in sorted({name.split("/")[1] for name in wanted}):
        found |= {info.key: info.size for info in location.list(names.packs(backup_id))}
    for name, size in wanted.items():
        if found.get(name) != size:
            return f"{name} is {'incomplete' if name in found else 'missing'}"
    return None


class _ForeignPacks:
    """The packs of earlier backups that this one refers to, numbered as they turn up."""

    def __init__(self) -> None:
        self._index: dict[tuple[str, int], int] = {}
        self.packs: list[ForeignPackRow] = []
        self._mappings: dict[str, dict[int, int]] = {}
        """By the backup that numbered them."""
        self._own: dict[str, dict[int, PackRow]] = {}

    def refer(self, base: BackupHeader, extents: xt.Extents) -> xt.Extents:
        mapping = self._mappings.setdefault(base.backup_id, {})
        for field in xt.pack_fields(extents):
            if field not in mapping:
                mapping[field] = xt.FOREIGN + self._number(base, field)
        return xt.renumber(extents, mapping)

    def refers_to(self, base: BackupHeader, field: int) -> bool:
        row = self._row(base, field)
        return (row.backup_id, row.number) in self._index

    def _row(self, base: BackupHeader, field: int) -> ForeignPackRow:
        if field >= xt.FOREIGN:
            return base.foreign[field - xt.FOREIGN]
        if base.backup_id not in self._own:
            self._own[base.backup_id] = {pack.number: pack for pack in base.packs}
        own = self._own[base.backup_id][field]
        return ForeignPackRow(base.backup_id, own.number, own.size, own.digest, own.plain)

    def _number(self, base: BackupHeader, field: int) -> int:
        row = self._row(base, field)
        key = row.backup_id, row.number
        if key not in self._index:
            self._index[key] = len(self.packs)
            self.packs.append(row)
        return self._index[key]

    def rows(self, live: dict[int, int]) -> list[ForeignPackRow]:
        return [row._replace(live=live.get(xt.FOREIGN + index, 0)) for index, row in enumerate(self.packs)]
