# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of a data directory: what a path is, and what a backup does with it.

Paths are relative to the data directory, with ``/`` and without a leading ``./``. A tablespace is
seen through its link: ``pg_tblspc/16400/PG_17_202406281/5/16401``. Nothing here touches a disk.

What is copied is what PostgreSQL's own base backup copies (``sendDir`` in
``src/backend/backup/basebackup.c``); names of relation files are those of ``src/common/relpath.c``
and ``parse_filename_for_nontemp_relation`` in ``src/backend/storage/file/reinit.c``.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from dataclasses import dataclass

GLOBAL_TABLESPACE_OID = 1664
DEFAULT_TABLESPACE_OID = 1663
CONTROL_FILE = "global/pg_control"
BACKUP_LABEL_FILE = "backup_label"
TABLESPACE_MAP_FILE = "tablespace_map"
SIGNAL_FILES = ("recovery.signal", "standby.signal")
"""Copied by a backup as PostgreSQL's own does; a restore must remove or write them knowingly."""

_EMPTIED_DIRECTORIES = frozenset(
    ("pg_stat_tmp", "pg_replslot", "pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots", "pg_subtrans")
)
_SKIPPED_NAMES = frozenset(
    (
        "postgresql.auto.conf.tmp",
        "current_logfiles.tmp",
        BACKUP_LABEL_FILE,
        TABLESPACE_MAP_FILE,
        "backup_manifest",
        "postmaster.pid",
        "postmaster.opts",
        ".DS_Store",
    )
)
_SKIPPED_PREFIXES = ("pg_internal.init", "pgsql_tmp")

# An OID is 32 bits wide; PostgreSQL too takes ten digits and no more for one.
_RELATION_NAME = re.compile(r"(?:t(\d+)_)?(\d{1,10})(?:_(fsm|vm|init))?(?:\.(\d+))?", re.ASCII)
_DATABASE_DIRECTORY = re.compile(r"base/(\d{1,10})|pg_tblspc/(\d{1,10})/PG_[\d.]+_\d+/(\d{1,10})", re.ASCII)
_TABLESPACE_ENTRY = re.compile(r"pg_tblspc/\d+/([^/]+)", re.ASCII)


class Fork(enum.Enum):
    """One of the files that make up a relation; the value is the suffix of its name."""

    MAIN = "main"
    FSM = "fsm"
    VM = "vm"
    INIT = "init"


class FileKind(enum.Enum):
    """What a file of the data directory is, as far as a backup treats it differently."""

    RELATION = "relation"
    TEMPORARY_RELATION = "temporary-relation"
    RELATION_MAP = "relation-map"
    RELATION_CACHE = "relation-cache"
    CONTROL = "control"
    VERSION = "version"
    WAL = "wal"
    OTHER = "other"


class Treatment(enum.Enum):
    """What a backup does with a path."""

    COPY = "copy"
    COPY_LAST = "copy-last"
    """pg_control: read when everything else has been (``do_pg_backup_stop`` on a standby relies on it)."""
    CREATE_EMPTY = "create-empty"
    """The directory is restored, empty; nothing below it is looked at."""
    SKIP = "skip"
    """Neither the path nor anything below it is part of the backup."""


@dataclass(frozen=True, slots=True)
class RelationName:
    """The name of a relation's file within its database directory: ``16384_fsm.1``."""

    relfilenode: int
    fork: Fork
    segment: int
    backend: int | None
    """Of a temporary relation (``t3_16384``): the number of the session that owns it."""

    @property
    def is_temporary(self) -> bool:
        return self.backend is not None


@dataclass(frozen=True, slots=True)
class RelationFile:
    """One segment file of one fork of a relation, and where it lives."""

    tablespace: int
    database: int
    """0 for the relations that all databases share (``global/``)."""
    name: RelationName

    def first_block(self, relation_segment_blocks: int) -> int:
        """The number of the file's first block within the fork, as page checksums count."""
        return self.name.segment * relation_segment_blocks


def parse_relation_name(name: str) -> RelationName | None:
    """What ``name`` says, or None when no relation's file is called so."""
    match = _RELATION_NAME.fullmatch(name)
    if match is None:
        return None
    backend, relfilenode, fork, segment = match.groups()
    return RelationName(
        relfilenode=int(relfilenode),
        fork=Fork(fork or "main"),
        segment=int(segment or 0),
        backend=None if backend is None else int(backend),
    )


def relation_file(path: str) -> RelationFile | None:
    """The relation file at ``path``, temporary ones included, or None when it is none."""
    directory, _unused, name = path.rpartition("/")
    parsed = parse_relation_name(name)
    if parsed is None:
        return None
    if directory == "global":
        return None if parsed.is_temporary else RelationFile(GLOBAL_TABLESPACE_OID, 0, parsed)
    match = _DATABASE_DIRECTORY.fullmatch(directory)
    if match is None:
        return None
    default_database, tablespace, database = match.groups()
    if tablespace is None:
        return RelationFile(DEFAULT_TABLESPACE_OID, int(default_database), parsed)
    return RelationFile(int(tablespace), int(database), parsed)


def is_database_directory(path: str) -> bool:
    """Whether ``path`` is a directory of relations of one database (not ``global``)."""
    return _DATABASE_DIRECTORY.fullmatch(path) is not None


def classify(path: str) -> FileKind:
    """What the file at ``path`` is."""
    relation = relation_file(path)
    if relation is not None:
        return FileKind.TEMPORARY_RELATION if relation.name.is_temporary else FileKind.RELATION
    name = path.rpartition("/")[2]
    if path == CONTROL_FILE:
        return FileKind.CONTROL
    if path.startswith("pg_wal/"):
        return FileKind.WAL
    if name == "PG_VERSION":
        return FileKind.VERSION
    if name == "pg_filenode.map":
        return FileKind.RELATION_MAP
    if name.startswith("pg_internal.init"):
        return FileKind.RELATION_CACHE
    return FileKind.OTHER


def has_page_checksums(path: str) -> bool:
    """Whether the file at ``path`` consists of pages with checksums (if the cluster has them at all).

    Every fork of every relation does, ``_init`` and ``_fsm`` included (``pg_checksums`` checks the same).
    """
    return relation_file(path) is not None


def treatment(path: str, is_dir: bool, *, tablespace_directory: str | None = None) -> Treatment:
    """What a backup does with ``path``; not to be asked for what lies below a path it says to skip or empty.

    ``is_dir`` is true for a directory and for a link to one: of the directories that are emptied, the
    link becomes a directory. ``tablespace_directory`` is the cluster's :func:`version_directory`; given
    it, directories of other clusters that share a tablespace's location (left by ``pg_upgrade``) are
    skipped. Unlogged relations need a look at the whole directory: :func:`unlogged_relations`.
    """
    directory, _unused, name = path.rpartition("/")
    if name in _SKIPPED_NAMES or name.startswith(_SKIPPED_PREFIXES):
        return Treatment.SKIP
    if path == CONTROL_FILE:
        return Treatment.COPY_LAST
    if is_dir:
        return _directory_treatment(path, name, tablespace_directory)
    parsed = parse_relation_name(name)
    if parsed is not None and parsed.is_temporary and is_database_directory(directory):
        return Treatment.SKIP
    return Treatment.COPY


def _directory_treatment(path: str, name: str, tablespace_directory: str | None) -> Treatment:
    if name in _EMPTIED_DIRECTORIES or path == "pg_wal":
        return Treatment.CREATE_EMPTY
    match = _TABLESPACE_ENTRY.fullmatch(path)
    if match is not None and tablespace_directory not in (None, match[1]):
        return Treatment.SKIP
    return Treatment.COPY


def wal_subdirectories(postgres_major: int) -> tuple[str, ...]:
    """The directories a restored, otherwise empty ``pg_wal`` must have."""
    if postgres_major >= 17:
        return ("pg_wal/archive_status", "pg_wal/summaries")
    return ("pg_wal/archive_status",)


def version_directory(postgres_major: int, catalog_version: int) -> str:
    """The cluster's own directory within each of its tablespaces: ``PG_17_202406281``."""
    return f"PG_{postgres_major}_{catalog_version}"


def unlogged_relations(names: Iterable[str]) -> frozenset[int]:
    """The relfilenodes of unlogged relations, from the names of everything in one database directory.

    A relation is unlogged when it has an init fork. Not for ``global``, where there are none.
    """
    parsed = (parse_relation_name(name) for name in names)
    return frozenset(
        name.relfilenode for name in parsed if name is not None and name.fork is Fork.INIT and not name.is_temporary
    )


def is_unlogged_data(name: str, unlogged: frozenset[int]) -> bool:
    """Whether the file ``name`` need not be copied, since PostgreSQL resets it from its relation's init fork.

    ``unlogged`` is what :func:`unlogged_relations` found in the same directory.
    """
    if not unlogged:
        return False
    parsed = parse_relation_name(name)
    return (
        parsed is not None
        and not parsed.is_temporary
        and parsed.fork is not Fork.INIT
        and parsed.relfilenode in unlogged
    )
