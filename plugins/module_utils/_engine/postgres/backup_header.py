# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The header of a physical backup's manifest: what was learnt on the way, in its format."""

from __future__ import annotations

import dataclasses
import grp
import os
import pwd
import typing as t

from .. import __version__
from ..repository import model
from ..repository.lease import host_name
from ..repository.model import BackupHeader, Owners, PostgresInfo, Tablespace, Totals
from .compaction import compaction_done
from .lsn import format_lsn
from .wal import segment_names

if t.TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterable

    from ..repository.session import BackupSession
    from .backup_mode import Stopped
    from .basis import Basis
    from .changes import ClusterState
    from .copier import Copier
    from .preflight import Facts


@dataclasses.dataclass(frozen=True, slots=True)
class Copied:
    """What the time between start and stop brought."""

    copier: Copier
    basis: Basis
    stopped: Stopped
    tablespaces: dict[int, str]
    """Those whose links were met: OID to directory."""
    start_lsn: int
    next_oid: int


def draft_header(
    session: BackupSession, facts: Facts, state: ClusterState, basis: Basis, start_lsn: int, next_oid: int
) -> BackupHeader:
    """What a backup that has just started says of itself, should it be interrupted."""
    at = state.now.isoformat(timespec="microseconds")
    position, control = format_lsn(start_lsn), facts.control
    segment = next(segment_names(facts.history.timeline, start_lsn, start_lsn + 1, control.wal_segment_size))
    info = PostgresInfo(
        system_identifier=str(facts.system_identifier),
        version=facts.version,
        timeline=facts.history.timeline,
        start_lsn=position,
        stop_lsn=position,
        checkpoint_lsn=position,
        wal_start=segment,
        wal_stop=segment,
        wal_segment_size=control.wal_segment_size,
        block_size=control.block_size,
        segment_blocks=control.relation_segment_blocks,
        page_checksums=facts.page_checksums,
        from_standby=facts.standby,
        data_directory=facts.data_directory,
        next_oid=next_oid,
    )
    parent = basis.parent
    return BackupHeader(
        backup_id=session.backup_id,
        source=session.source,
        kind=model.FULL if parent is None else model.INCREMENTAL,
        parent=None if parent is None else parent.manifest.header.backup_id,
        status=model.OK,
        label="",
        started_at=at,
        finished_at=at,
        host=host_name(),
        tool_version=__version__,
        postgres=info,
        change_detection={"witness": state.witness.as_dict(), "interrupted": basis.interrupted},
        totals=Totals(),
    )


def new_header(
    session: BackupSession,
    facts: Facts,
    state: ClusterState,
    copied: Copied,
    reason: str,
    label: str,
    started_at: dt.datetime,
    finished_at: dt.datetime,
) -> BackupHeader:
    """``reason``: why there is this parent, or none."""
    copier, parent = copied.copier, copied.basis.parent
    return BackupHeader(
        backup_id=session.backup_id,
        source=session.source,
        kind=model.FULL if parent is None else model.INCREMENTAL,
        parent=None if parent is None else parent.manifest.header.backup_id,
        status=model.DAMAGED if copier.damage else model.OK,
        label=label,
        started_at=started_at.isoformat(timespec="microseconds"),
        finished_at=finished_at.isoformat(timespec="microseconds"),
        host=host_name(),
        tool_version=__version__,
        postgres=_postgres_info(facts, copied),
        change_detection=_change_detection(
            copied, reason, state, compaction_done(copier.compactor, session, copier.pages_kept)
        ),
        totals=Totals(
            files=copier.counters.files,
            bytes_source=copier.counters.bytes_source,
            bytes_read=copier.counters.bytes_read,
        ),
        damage=copier.damage,
        owners=_owners(copier.users, copier.groups),
    )


def _postgres_info(facts: Facts, copied: Copied) -> PostgresInfo:
    stopped, label, control = copied.stopped, copied.stopped.label, facts.control
    segments = list(segment_names(label.start_timeline, copied.start_lsn, stopped.stop_lsn, control.wal_segment_size))
    # A tablespace that was dropped meanwhile is in the one, one that was made meanwhile in the other.
    return PostgresInfo(
        system_identifier=str(facts.system_identifier),
        version=facts.version,
        timeline=label.start_timeline,
        start_lsn=format_lsn(copied.start_lsn),
        stop_lsn=format_lsn(stopped.stop_lsn),
        checkpoint_lsn=format_lsn(label.checkpoint_lsn),
        wal_start=segments[0],
        wal_stop=segments[-1],
        wal_segment_size=control.wal_segment_size,
        block_size=control.block_size,
        segment_blocks=control.relation_segment_blocks,
        page_checksums=facts.page_checksums,
        from_standby=label.from_standby,
        data_directory=facts.data_directory,
        next_oid=copied.next_oid,
        tablespaces=[Tablespace(oid, _text(path)) for oid, path in sorted(copied.tablespaces.items())],
        databases=facts.databases,
        settings=facts.settings,
        collation_versions=facts.collation_versions,
    )


def _text(path: str) -> str:
    """The header is text; the entry of the link has the path's own bytes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _change_detection(
    copied: Copied, reason: str, state: ClusterState, compaction: dict[str, t.Any] | None
) -> dict[str, t.Any]:
    basis, copier = copied.basis, copied.copier
    found: dict[str, t.Any] = {"method": "full", "reason": reason}
    if basis.draft is not None:
        found["resumed"] = basis.draft.manifest.header.backup_id
        found["interrupted"] = basis.interrupted
    parent = basis.parent or basis.draft
    if parent is not None:
        guards = parent.guards
        if basis.parent is not None:
            found["method"] = str(guards.method)
        found["since_lsn"] = format_lsn(guards.since_lsn)
        # Why a better way was not open, for those who wonder about the size of the backup.
        if guards.no_identity:
            found["unchanged_not_trusted"] = guards.no_identity
        if guards.no_summaries:
            found["wal_summary_not_used"] = guards.no_summaries
        if guards.no_page_lsn:
            found["page_lsn_not_trusted"] = guards.no_page_lsn
    counters = dataclasses.asdict(copier.counters)
    for name in ("files", "bytes_source", "bytes_read"):  # they are in the totals
        del counters[name]
    if compaction is not None:
        found["compaction"] = compaction
    return {**found, **counters, "witness": state.witness.as_dict()}


def _owners(users: Iterable[int], groups: Iterable[int]) -> Owners:
    """Names, where this host has any: a restore on another host may give them other numbers."""
    owners = Owners()
    for uid in users:
        try:
            owners.users[uid] = pwd.getpwuid(uid).pw_name
        except KeyError:
            continue
    for gid in groups:
        try:
            owners.groups[gid] = grp.getgrgid(gid).gr_name
        except KeyError:
            continue
    return owners
