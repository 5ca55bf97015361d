# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a manifest says: section 7 of docs/repository-format.md. Pure data."""

from __future__ import annotations

import dataclasses
import typing as t

FULL, INCREMENTAL, LOGICAL, FILES = "full", "incremental", "logical", "files"
PHYSICAL = (FULL, INCREMENTAL)

OK, DAMAGED, PARTIAL = "ok", "damaged", "partial"

BACKING_UP, RESTORING, REPLICATING, PRUNING = "backup", "restore", "replicate", "prune"  # purposes of leases

FILE, DIRECTORY, SYMLINK = 1, 2, 3

RACY = 1  # the file's times are too young to prove anything later
DAMAGED_PAGES = 2
INCOMPLETE = 4


class Entry(t.NamedTuple):
    """One file, directory or link. ``extents`` is packed: see ``extents.dtype``."""

    path: bytes
    type: int
    mode: int
    uid: int
    gid: int
    size: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    device: int = 0
    inode: int = 0
    flags: int = 0
    target: bytes = b""
    extents: bytes = b""
    more: t.Mapping[str, t.Any] = {}


class PackRow(t.NamedTuple):
    """A pack that this backup wrote."""

    number: int
    size: int
    digest: bytes
    plain: int
    live: int = 0


class ForeignPackRow(t.NamedTuple):
    """A pack of an earlier backup that this one refers to."""

    backup_id: str
    number: int
    size: int
    digest: bytes
    plain: int
    live: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Tablespace:
    oid: int
    path: str


@dataclasses.dataclass(frozen=True, slots=True)
class Database:
    oid: int
    name: str


@dataclasses.dataclass(slots=True)
class PostgresInfo:
    system_identifier: str
    version: int
    timeline: int
    start_lsn: str
    stop_lsn: str
    checkpoint_lsn: str
    wal_start: str
    wal_stop: str
    wal_segment_size: int
    block_size: int
    segment_blocks: int
    page_checksums: bool
    from_standby: bool
    data_directory: str
    next_oid: int
    tablespaces: list[Tablespace] = dataclasses.field(default_factory=list)
    databases: list[Database] = dataclasses.field(default_factory=list)
    settings: dict[str, str] = dataclasses.field(default_factory=dict)
    collation_versions: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Damage:
    """Pages of a source file that were already broken when they were read."""

    path: str
    blocks: list[int]


@dataclasses.dataclass(slots=True)
class Owners:
    users: dict[int, str] = dataclasses.field(default_factory=dict)
    groups: dict[int, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(slots=True)
class Totals:
    files: int = 0
    entries: int = 0
    bytes_source: int = 0
    bytes_read: int = 0
    bytes_stored: int = 0


@dataclasses.dataclass(slots=True)
class BackupHeader:
    backup_id: str
    source: str
    kind: str
    parent: str | None
    status: str
    label: str
    started_at: str
    finished_at: str
    host: str
    tool_version: str
    postgres: PostgresInfo | None
    change_detection: dict[str, t.Any]
    totals: Totals
    damage: list[Damage] = dataclasses.field(default_factory=list)
    packs: list[PackRow] = dataclasses.field(default_factory=list)
    foreign: list[ForeignPackRow] = dataclasses.field(default_factory=list)
    owners: Owners = dataclasses.field(default_factory=Owners)
    epochs: dict[str, int] = dataclasses.field(default_factory=dict)
    """By backup id, of this backup and of those in ``foreign``."""

    @property
    def epochs_needed(self) -> set[int]:
        """The epochs of the packs in which it lies."""
        return set(self.epochs.values()) or {1}

    @property
    def compaction(self) -> dict[str, t.Any] | None:
        """What was stored again although it had not changed: figures for people; None when nothing was."""
        found = self.change_detection.get("compaction")
        return found if isinstance(found, dict) else None

    @property
    def stored_bytes_own(self) -> int:
        """Bytes that came into the repository with it. Those of interrupted runs that it went on from are among them:
        they have no manifest. A full one refers to no others."""
        brought = [row for row in self.foreign if self.kind == FULL or row.backup_id in self.interrupted]
        return sum(row.size for row in self.packs) + sum(row.size for row in brought)

    @property
    def interrupted(self) -> list[str]:
        """The runs that it went on from, the last one first."""
        found = self.change_detection.get("interrupted")
        return [str(each) for each in found] if isinstance(found, list) else []


@dataclasses.dataclass(slots=True)
class Lease:
    backup_id: str
    source: str
    parent: str | None
    host: str
    boot_id: str
    pid: int
    started_at: str
    purpose: str = BACKING_UP
    packs: list[str] = dataclasses.field(default_factory=list)  # backups whose packs it holds besides its own
    wal: list[str] = dataclasses.field(default_factory=list)  # system identifiers whose WAL it holds


@dataclasses.dataclass(slots=True)
class Mark:
    mark_id: str
    created_at: str
    manifests: list[str] = dataclasses.field(default_factory=list)
    packs: list[str] = dataclasses.field(default_factory=list)
    wal: list[str] = dataclasses.field(default_factory=list)
    leases: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(slots=True)
class Note:
    backup_id: str
    source: str
    kind: str
    at: str
    data: dict[str, t.Any] = dataclasses.field(default_factory=dict)


VERIFIED, PIN, UNPIN = "verified", "pin", "unpin"


def pack_names(header: BackupHeader) -> dict[str, tuple[int, bytes]]:
    """Every pack that the backup needs: name to (size, digest) of the stored object."""
    from . import names

    own = {names.pack(header.backup_id, pack.number): (pack.size, pack.digest) for pack in header.packs}
    foreign = {names.pack(pack.backup_id, pack.number): (pack.size, pack.digest) for pack in header.foreign}
    return own | foreign


def sort_key(path: bytes) -> list[bytes]:
    """The order of entries: component by component."""
    return path.split(b"/")
