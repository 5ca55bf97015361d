# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a thief of the database host makes with its keys: objects that authenticate, and lie."""

from __future__ import annotations

import dataclasses
import datetime as dt
import os
import tempfile
from typing import Any

from cryobackup.crypto.keys import KeyRing
from cryobackup.repository import container, names
from cryobackup.repository.manifest import Manifest, ManifestWriter
from cryobackup.repository.model import BackupHeader, Lease, Mark, Note
from cryobackup.repository.repository import Repository

from .lab import SOURCE, Role


class _Catcher:
    """Takes the one object that a writer of manifests makes."""

    def __init__(self) -> None:
        self.data = bytearray()

    def create(self, _key: str) -> _Catcher:
        return self

    def write(self, data: bytes) -> None:
        self.data += data

    def commit(self) -> None:
        """Nothing to do."""

    def abort(self) -> None:
        """Nothing to do."""


class Forger:
    """With the files of one host: ``catalog.key`` and ``data.pub``."""

    def __init__(self, host: Role) -> None:
        self.repository = Repository.open(host.config().repository)
        self.keys: KeyRing = self.repository.keys

    def header(self, backup_id: str) -> BackupHeader:
        return Manifest(self.keys, self.repository.locations[0], SOURCE, backup_id).header

    def manifest(self, header: BackupHeader) -> tuple[str, bytes]:
        """Name and bytes of a manifest that says what ``header`` says, and lists no file."""
        catcher: Any = _Catcher()
        header.totals = dataclasses.replace(header.totals, entries=0)
        with tempfile.TemporaryFile() as spool:
            writer = ManifestWriter(self.keys, header.source, header.backup_id, level=3, spool=spool)
            writer.write(catcher, header)
        return names.manifest(header.source, header.backup_id), bytes(catcher.data)

    def backup(self, like: str, at: dt.datetime, **changes: Any) -> tuple[str, bytes]:
        """The manifest of a backup that never was, finished at ``at``."""
        header = self.header(like)
        moment = at.isoformat()
        new_id = names.new_id(at, os.urandom(4))
        made = dataclasses.replace(
            header, backup_id=new_id, started_at=moment, finished_at=moment, packs=[], foreign=[], parent=None
        )
        return self.manifest(dataclasses.replace(made, **changes))

    def emptied(self, backup_id: str) -> tuple[str, bytes]:
        """The manifest of a backup that is, which refers to nothing any more."""
        return self.manifest(dataclasses.replace(self.header(backup_id), packs=[], foreign=[]))

    def mark(self, *objects: str) -> tuple[str, bytes]:
        now = dt.datetime.now(dt.UTC)
        mark = Mark(names.new_id(now, os.urandom(4)), now.isoformat(), [*objects], [*objects], [*objects])
        name = names.mark(mark.mark_id)
        return name, container.encode_record(self.keys, container.MARK, name, mark)

    def note(self, backup_id: str, kind: str, **data: Any) -> tuple[str, bytes]:
        now = dt.datetime.now(dt.UTC)
        name = names.note(SOURCE, backup_id, names.new_id(now, os.urandom(4)))
        note = Note(backup_id, SOURCE, kind, now.isoformat(), data)
        return name, container.encode_record(self.keys, container.NOTE, name, note)

    def lease(self, parent: str | None) -> tuple[str, bytes]:
        now = dt.datetime.now(dt.UTC)
        new_id = names.new_id(now, os.urandom(4))
        lease = Lease(new_id, SOURCE, parent, "elsewhere", "boot", 1, now.isoformat())
        name = names.lease(SOURCE, new_id)
        return name, container.encode_record(self.keys, container.LEASE, name, lease)
