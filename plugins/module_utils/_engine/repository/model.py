# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a manifest says: section 7 of docs/repository-format.md. Pure data."""

from __future__ import annotations

import typing as t

import msgspec

FULL, INCREMENTAL, LOGICAL, FILES = "full", "incremental", "logical", "files"
PHYSICAL = (FULL, INCREMENTAL)

OK, DAMAGED, PARTIAL = "ok", "damaged", "partial"

FILE, DIRECTORY, SYMLINK = 1, 2, 3

RACY = 1  # the file's times are too young to prove anything later
DAMAGED_PAGES = 2
INCOMPLETE = 4


class Entry(msgspec.Struct, array_like=True, frozen=True):
    """One file, directory or link. ``extents`` is packed: see ``extents.DTYPE``."""

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
    more: dict[str, t.Any] = {}


class PackRow(msgspec.Struct, array_like=True, frozen=True):
    """A pack that this backup wrote."""

    number: int
    size: int
    digest: bytes
    plain: int
    live: int = 0


class ForeignPackRow(msgspec.Struct, array_like=True, frozen=True):
    """A pack of an earlier backup that this one refers to."""

    backup_id: str
    number: int
    size: int
    digest: bytes
    plain: int
    live: int = 0


class Tablespace(msgspec.Struct, frozen=True):
    oid: int
    path: str


class Database(msgspec.Struct, frozen=True):
    oid: int
    name: str


class PostgresInfo(msgspec.Struct):
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
    tablespaces: list[Tablespace] = []
    databases: list[Database] = []
    settings: dict[str, str] = {}
    collation_versions: dict[str, str] = {}


class Damage(msgspec.Struct, frozen=True):
    """Pages of a source file that were already broken when they were read."""

    path: str
    blocks: list[int]


class Owners(msgspec.Struct):
    users: dict[int, str] = {}
    groups: dict[int, str] = {}


class Totals(msgspec.Struct):
    files: int = 0
    entries: int = 0
    bytes_source: int = 0
    bytes_read: int = 0
    bytes_stored: int = 0


class BackupHeader(msgspec.Struct):
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
    damage: list[Damage] = []
    packs: list[PackRow] = []
    foreign: list[ForeignPackRow] = []
    owners: Owners = msgspec.field(default_factory=Owners)

    @property
    def stored_bytes_own(self) -> int:
        return sum(pack.size for pack in self.packs)


class Lease(msgspec.Struct):
    backup_id: str
    source: str
    parent: str | None
    host: str
    boot_id: str
    pid: int
    started_at: str


class Mark(msgspec.Struct):
    mark_id: str
    created_at: str
    manifests: list[str] = []
    packs: list[str] = []
    wal: list[str] = []
    leases: list[str] = []


class Note(msgspec.Struct):
    backup_id: str
    source: str
    kind: str
    at: str
    data: dict[str, t.Any] = {}


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
