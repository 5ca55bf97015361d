# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether what a manifest or a lease says can be true at all. Pure.

Who owns a database host can authenticate anything: a time that is none, a segment size of nothing. One such object must
not keep anybody from restoring, locking or verifying all the others, so it is found out where it is read.
"""

from __future__ import annotations

import datetime as dt
import typing as t

from ..postgres.lsn import is_valid_segment_size, parse_lsn
from . import names
from .model import FILES, FULL, INCREMENTAL, LOGICAL

if t.TYPE_CHECKING:
    from collections.abc import Iterator

    from .model import BackupHeader, Lease, PostgresInfo

_KINDS: t.Final = (FULL, INCREMENTAL, LOGICAL, FILES)
_YEARS: t.Final = range(1971, 9000)
"""Times of which others can be added and subtracted, in every time zone."""
_MAX_SEGMENTS: t.Final = 1 << 20
"""Of one backup, from its start to its stop: a list of their names fits into memory."""
_MAX_PID: t.Final = 1 << 31


def is_time(text: str) -> bool:
    """ISO 8601, with an offset."""
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        return False
    return moment.utcoffset() is not None and moment.year in _YEARS


def absurdity(header: BackupHeader) -> str | None:
    """What cannot be true of a backup; None when all of it may be."""
    return next(_absurdities(header), None)


def _absurdities(header: BackupHeader) -> Iterator[str]:
    if header.kind not in _KINDS:
        yield f"it is of the unknown kind {header.kind!r}"
    for field in ("started_at", "finished_at"):
        if not is_time(getattr(header, field)):
            yield f"{field} is not a time: {getattr(header, field)!r}"
    if any(not names.is_id(pack.backup_id) for pack in header.foreign):
        yield "it lies in packs of something that is no backup"
    own = [(pack.number, pack.size, pack.plain) for pack in header.packs]
    foreign = [(pack.number, pack.size, pack.plain) for pack in header.foreign]
    if any(min(numbers) < 0 for numbers in own + foreign):
        yield "it lies in packs with impossible numbers"
    if header.postgres is not None:
        yield from _absurdities_of_cluster(header.postgres)


def _absurdities_of_cluster(info: PostgresInfo) -> Iterator[str]:
    if not is_system(info.system_identifier):
        yield f"{info.system_identifier!r} is no system identifier"
    if not is_valid_segment_size(info.wal_segment_size):
        yield f"{info.wal_segment_size} bytes are no size of WAL segments"
        return
    if not 0 < info.timeline < 1 << 32:
        yield f"{info.timeline} is no timeline"
    if not (0 < info.block_size <= 1 << 15 and info.block_size & (info.block_size - 1) == 0 < info.segment_blocks):
        yield f"pages of {info.block_size} bytes, {info.segment_blocks} in a file, cannot be"
    try:
        start, stop, _unused = map(parse_lsn, (info.start_lsn, info.stop_lsn, info.checkpoint_lsn))
    except ValueError as error:
        yield str(error)
        return
    if not start <= stop <= start + _MAX_SEGMENTS * info.wal_segment_size:
        yield f"no backup goes from {info.start_lsn} to {info.stop_lsn}"


def is_system(text: str) -> bool:
    """Whether it can identify a cluster, as PostgreSQL prints it: 64 bits, decimal."""
    return text.isascii() and text.isdigit() and len(text) <= 20


def absurdity_of_lease(lease: Lease) -> str | None:
    """What cannot be true of a lease."""
    if not 0 < lease.pid < _MAX_PID:
        return f"{lease.pid} is no process"
    if not all(map(is_system, lease.wal)):
        return "it holds the WAL of something that is no cluster"
    return None
