# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an incremental may take over from its parent. Pure: every decision, none of the reading.

Four ways, tried in this order for each file; in doubt, the next one:

1. *Unchanged*: size, times, inode and device are those the parent saw, and the parent saw them when they
   were old enough to prove something. The file is not even opened.
2. *WAL summaries* (main forks and visibility maps; PostgreSQL 17 and newer): the server has written down which
   blocks WAL changed, and those alone are read. What changes without WAL is a hint, and the parent's copy without it
   is as good (PostgreSQL's own incremental backups rest on the same).
3. *Page LSN* (main forks of relations): pages whose LSN lies before the parent's start are those the parent
   has. The checkpoint that the parent began with wrote every older change, and every change since then, hint
   bits and sequences included, had to raise the page's LSN, because it was the first since a checkpoint
   (``MarkBufferDirtyHint``, ``nextval_internal``). That needs page checksums or ``wal_log_hints``: without
   them, hint bits and PD_ALL_VISIBLE are set without a trace (``visibilitymap_set``). What an SP-GiST index remembers
   of pages with room is never logged: a crash may lose it, and so may we (``SpGistUpdateMetaPage``).
4. *Content*: bytes are compared with the digests in the parent's manifest, run by run. Needs no trust at all.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import typing as t

from ..repository import model
from .changed_blocks import Locator
from .lsn import parse_lsn
from .relfile import Fork

if t.TYPE_CHECKING:
    import os

    from ..repository.extents import Extents
    from ..repository.model import BackupHeader, Entry, PostgresInfo
    from .changed_blocks import Blocks, ChangedBlocks
    from .relfile import RelationFile
    from .timeline import TimelineHistory

FIRST_WITH_SUMMARIES: t.Final = 17
_MAPS_SUMMARIZED: t.Final = {17: 170011, 18: 180006}
_WORTH_CHOOSING: t.Final = 0.9
"""A file of which more has changed is stored whole (``GetFileBackupMethod``)."""

_OIDS_RESERVED: t.Final = 8192
"""The server reserves so many object identifiers at a time. A checkpoint names the first that is not reserved, that of
a shutdown the first that is not used, which is less (``VAR_OID_PREFETCH``, ``CreateCheckPoint``)."""

RACY_NANOSECONDS = 2_000_000_000
"""File systems stamp files with a clock that ticks coarsely, at worst in steps of two seconds (FAT)."""


class Method(enum.StrEnum):
    UNCHANGED = "unchanged"
    WAL_SUMMARY = "wal-summary"
    PAGE_LSN = "page-lsn"
    CONTENT = "content"
    STORE = "store"


_FORK_NUMBERS: t.Final = {Fork.MAIN: 0, Fork.VM: 2}
"""``ForkNumber``."""


class Identity(t.NamedTuple):
    """What tells whether a file is the one that was seen before."""

    size: int
    mtime_ns: int
    ctime_ns: int
    device: int
    inode: int

    @classmethod
    def of(cls, entry: Entry) -> Identity:
        return cls(entry.size, entry.mtime_ns, entry.ctime_ns, entry.device, entry.inode)

    @classmethod
    def of_status(cls, status: os.stat_result) -> Identity:
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_dev, status.st_ino)


def is_racy(identity: Identity, seen_ns: int) -> bool:
    """Whether a write right after ``seen_ns``, when the file was looked at, could leave its times as they are.

    Also true for times in the future: a clock was set.
    """
    return max(identity.mtime_ns, identity.ctime_ns) > seen_ns - RACY_NANOSECONDS


def is_unchanged(entry: Entry, found: Identity) -> bool:
    """Whether the file that was found is surely the one that the parent has, whole and sound."""
    return Identity.of(entry) == found and not entry.flags


@dataclasses.dataclass(frozen=True, slots=True)
class Witness:
    """What the next incremental compares, to know how far it may trust times and LSNs."""

    boot_id: str
    postmaster_started_at: str
    wal_log_hints: bool

    def as_dict(self) -> dict[str, t.Any]:
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, header: BackupHeader) -> Witness | None:
        found = header.change_detection.get("witness")
        if not isinstance(found, dict):
            return None
        return cls(
            str(found.get("boot_id")),
            str(found.get("postmaster_started_at")),
            found.get("wal_log_hints") is True,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class ClusterState:
    """The cluster as it is when an incremental is about to begin."""

    system_identifier: str
    version: int
    history: TimelineHistory
    """Its timeline, and how it got there."""
    lsn: int
    """A parent must have ended by then: where WAL ends now, or on a standby its last restartpoint."""
    next_oid: int
    block_size: int
    segment_blocks: int
    wal_segment_size: int
    page_checksums: bool
    summarize_wal: bool
    now: dt.datetime
    witness: Witness
    standby: bool = False

    @property
    def has_summaries(self) -> bool:
        return self.version // 10000 >= FIRST_WITH_SUMMARIES


def parent_problem(parent: BackupHeader, state: ClusterState) -> str | None:
    """Why nothing of ``parent`` may be taken over at all; None when it will do."""
    info = parent.postgres
    if parent.kind not in model.PHYSICAL or info is None:
        return f"backup {parent.backup_id} is not a physical one"
    if parent.status not in (model.OK, model.DAMAGED):
        return f"backup {parent.backup_id} is not complete"
    if info.system_identifier != state.system_identifier:
        return f"backup {parent.backup_id} is of another cluster (system identifier {info.system_identifier})"
    if not state.history.is_ancestor(info.timeline, parse_lsn(info.stop_lsn) - 1):
        # What it saw may have been left behind: pages are told apart by their LSN only on the way that led here.
        here = f"the cluster is on timeline {state.history.timeline}"
        return f"{here}, to which backup {parent.backup_id} on timeline {info.timeline} does not lead"
    if info.version // 10000 != state.version // 10000:
        return f"backup {parent.backup_id} is of PostgreSQL {info.version // 10000}"
    if (info.block_size, info.segment_blocks, info.wal_segment_size) != (
        state.block_size,
        state.segment_blocks,
        state.wal_segment_size,
    ):
        return f"backup {parent.backup_id} has other block or segment sizes"
    if parse_lsn(info.stop_lsn) > state.lsn:
        if state.standby:
            return f"the standby's last restartpoint lies before the end of backup {parent.backup_id}"
        return f"the cluster's WAL ends before that of backup {parent.backup_id}: it was set back"
    return None


@dataclasses.dataclass(frozen=True, slots=True)
class Summaries:
    """What changed, from the parent's start to this backup's."""

    changed: ChangedBlocks
    maps: bool
    """Whether they tell all changes of visibility maps, too."""


@dataclasses.dataclass(frozen=True, slots=True)
class Guards:
    """Which of the ways hold for this parent. A text is the reason why one does not."""

    since_lsn: int
    """The parent's start."""
    no_identity: str | None = None
    no_page_lsn: str | None = None
    no_summaries: str | None = None
    summaries: Summaries | None = None
    """What the server has summarised, once it was asked. Only the backup's start makes that possible."""

    @property
    def method(self) -> Method:
        """The best way for files that did change."""
        if self.summaries is not None:
            return Method.WAL_SUMMARY
        return Method.CONTENT if self.no_page_lsn else Method.PAGE_LSN


def guards(parent: BackupHeader, state: ClusterState) -> Guards:
    """What may be trusted, of a parent that :func:`parent_problem` accepts."""
    if parent.postgres is None:
        raise ValueError(f"backup {parent.backup_id} is not a physical one")
    info, witness = parent.postgres, Witness.of(parent)
    return Guards(
        parse_lsn(info.start_lsn),
        _identity_problem(parent, witness, state),
        _page_lsn_problem(info, witness, state),
        _summaries_problem(info, state),
    )


def _identity_problem(parent: BackupHeader, witness: Witness | None, state: ClusterState) -> str | None:
    if witness is None or witness.boot_id != state.witness.boot_id:
        # A crash of the machine can keep a page that was written and lose the file's new time.
        return "the host was started anew since the parent: the times of files prove nothing"
    if state.now <= dt.datetime.fromisoformat(parent.finished_at):
        return "the clock of the host was set back since the parent"
    return None


def _page_lsn_problem(info: PostgresInfo, witness: Witness | None, state: ClusterState) -> str | None:
    now = state.witness
    if info.page_checksums != state.page_checksums:
        return "page checksums were turned on or off since the parent"
    if witness is None or witness.boot_id != now.boot_id:
        return "the host was started anew since the parent"
    if not state.page_checksums:
        if not (witness.wal_log_hints and now.wal_log_hints):
            return "hint bits change without a trace: the cluster has neither page checksums nor wal_log_hints"
        if witness.postmaster_started_at != now.postmaster_started_at:
            return "PostgreSQL was started anew since the parent: wal_log_hints may have been off for a while"
    if state.next_oid < info.next_oid - _OIDS_RESERVED:
        return "the counter of object identifiers went back: names of files may have been used again"
    return None


def _summaries_problem(info: PostgresInfo, state: ClusterState) -> str | None:
    if not state.has_summaries:
        return f"PostgreSQL {state.version // 10000} has no WAL summaries: they came with {FIRST_WITH_SUMMARIES}"
    if not state.summarize_wal:
        return "summarize_wal is off"
    if info.page_checksums != state.page_checksums:
        # pg_checksums writes pages without WAL.
        return "page checksums were turned on or off since the parent"
    return None


def names_visibility_maps(version: int) -> bool:
    """Whether a server's summaries name every changed block of visibility maps. ``version``: server_version_num.

    Clearing a bit counted as no change before 17.11 and 18.6 (``visibilitymap_clear``).
    """
    return version >= _MAPS_SUMMARIZED.get(version // 10000, FIRST_WITH_SUMMARIES * 10000)


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done with one file. ``parent`` is there for all methods but STORE.

    ``blocks``: for WAL_SUMMARY, the numbers within the file of those to be read. The rest is compaction's: ``again``,
    the numbers of blocks that are stored though they did not change (for UNCHANGED, ``blocks`` has them, too);
    ``comparable``, for CONTENT, what alone of the parent's extents may be taken over.
    """

    method: Method
    parent: Entry | None = None
    blocks: Blocks | None = None
    again: Blocks | None = None
    comparable: Extents | None = None

    @property
    def reads(self) -> bool:
        """Whether the file has to be opened."""
        return self.method is not Method.UNCHANGED or self.blocks is not None


_STORE = Plan(Method.STORE)


def plan_file(
    found: Identity,
    relation: RelationFile | None,
    parent: Entry | None,
    guards: Guards,
    *,
    same_directory: bool,
    block_size: int,
    segment_blocks: int,
) -> Plan:
    """How the file can be had with the least reading and storing.

    ``parent`` is the parent's entry of the same path. ``same_directory``: the file's database directory is
    surely the one that the parent saw (see :func:`is_same_version_file`), not one of the same name.
    """
    if parent is None or parent.type != model.FILE or parent.flags & (model.DAMAGED_PAGES | model.INCOMPLETE):
        # Damaged pages are read again: the damage is reported again, or it was mended.
        return _STORE
    if guards.no_identity is None and is_unchanged(parent, found):
        return Plan(Method.UNCHANGED, parent)
    # Where inodes mean something, another one is a file that somebody put there. On another host they mean nothing.
    replaced = guards.no_identity is None and found.inode != parent.inode
    if guards.summaries is not None and relation is not None and not replaced:
        plan = _plan_by_summary(found, relation, parent, guards.summaries, block_size, segment_blocks)
        if plan is not None:
            return plan
    same_file = (found.device, found.inode) == (parent.device, parent.inode)
    if (
        guards.no_page_lsn is None
        and relation is not None
        and relation.name.fork is Fork.MAIN
        and same_file
        and same_directory
    ):
        return Plan(Method.PAGE_LSN, parent)
    return Plan(Method.CONTENT, parent)


def _plan_by_summary(
    found: Identity, relation: RelationFile, parent: Entry, summaries: Summaries, block_size: int, segment_blocks: int
) -> Plan | None:
    """None for what summaries do not tell."""
    fork = relation.name.fork
    if fork is not Fork.MAIN and not (fork is Fork.VM and summaries.maps):
        return None  # free space maps change without WAL
    if found.size % block_size:
        return None
    first, blocks = relation.first_block(segment_blocks), found.size // block_size
    needed = summaries.changed.needed(
        Locator(relation.tablespace, relation.database, relation.name.relfilenode, _FORK_NUMBERS[fork]),
        first,
        first + blocks,
        first + parent.size // block_size,
    )
    if needed is None or len(needed) > _WORTH_CHOOSING * blocks:
        return _STORE
    return Plan(Method.WAL_SUMMARY, parent, needed - first)


def is_same_version_file(entry: Entry | None, found: Identity | None) -> bool:
    """Whether a database directory is the one the parent saw, told by its PG_VERSION (the parent's entry of it).

    That file is written once, when the directory is made: by CREATE DATABASE, or by ALTER DATABASE SET
    TABLESPACE, which both may copy relations with their old LSNs.
    """
    return entry is not None and found is not None and is_unchanged(entry, found)
