# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""WAL summaries of a running server (PostgreSQL 17 and newer): whether they can be used, and what they say.

The rules are those of PostgreSQL's own incremental backup (``PrepareForIncrementalBackup`` in
``basebackup_incremental.c``): every byte of WAL between the two backups is covered, on every timeline in between, or
none of it counts.
"""

from __future__ import annotations

import dataclasses
import time
import typing as t

from ..errors import ClusterError
from .changed_blocks import ChangedBlocks, row_dtype
from .changes import Summaries, names_visibility_maps
from .lsn import format_lsn, parse_lsn

if t.TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from ..repository.model import PostgresInfo
    from .changes import Guards
    from .connection import Connection
    from .timeline import TimelineHistory, TimelineSpan

_STALLED_SECONDS: t.Final = 60.0
"""Without progress of the summarizer, PostgreSQL itself gives up after so long (``WaitForWalSummarization``)."""
_PAUSE_SECONDS: t.Final = 0.1
_SIGNATURE: t.Final = b"PGCOPY\n\xff\r\n\0"
_HEADER_BYTES: t.Final = len(_SIGNATURE) + 8
_TRAILER: t.Final = b"\xff\xff"
_ROWS_AT_ONCE: t.Final = 1 << 16


class Position(t.NamedTuple):
    timeline: int
    lsn: int


class Summary(t.NamedTuple):
    timeline: int
    start: int
    end: int


def ask_server(
    connection: Connection,
    guards: Guards,
    info: PostgresInfo,
    version: int,
    history: TimelineHistory,
    start_lsn: int,
) -> Guards:
    """``guards`` for a parent that ``info`` describes, with what the server's summaries say; or why that is unknown.

    ``version``: the server's; ``history``: its timeline's. ``start_lsn``: where the backup under way started.
    """
    if guards.no_summaries is not None:
        return guards
    found = changed_blocks(connection, history.way(guards.since_lsn, start_lsn))
    if isinstance(found, str):
        return dataclasses.replace(guards, no_summaries=found)
    maps = names_visibility_maps(info.version) and names_visibility_maps(version)
    return dataclasses.replace(guards, summaries=Summaries(found, maps))


def changed_blocks(
    connection: Connection, spans: Sequence[TimelineSpan], *, stalled_seconds: float = _STALLED_SECONDS
) -> ChangedBlocks | str:
    """What WAL changed in ``spans``, the way from one backup's start to another's, each with both of its ends.

    Waits until the summarizer has come so far. Returns the reason when that cannot be known: then some other way
    has to be taken. Raises ClusterError when the connection is lost.
    """
    try:
        summaries = _await_summaries(connection, spans, stalled_seconds)
        if isinstance(summaries, str):
            return summaries
        changed = ChangedBlocks()
        for summary in summaries:
            stream = RowStream(changed.add)
            connection.copy_out(
                "COPY (SELECT relfilenode, reltablespace, reldatabase, relforknumber, relblocknumber, is_limit_block"
                " FROM pg_wal_summary_contents(%s, %s, %s)) TO STDOUT (FORMAT binary)",
                (summary.timeline, format_lsn(summary.start), format_lsn(summary.end)),
                stream.write,
            )
            stream.finish()
            connection.keep_alive()
    except ClusterError as error:
        if error.id == "connection-lost":
            raise
        return f"the WAL summaries cannot be read: {error.message}"
    return changed


def _await_summaries(
    connection: Connection, spans: Sequence[TimelineSpan], stalled_seconds: float
) -> list[Summary] | str:
    progress, since = -1, time.monotonic()
    while True:
        # Asked first: up to there, summaries are where we look for them next, or nowhere.
        reached, pending, pid = _position(connection)
        found = [each for span in spans for each in _summaries(connection, span)]
        gap = _first_gap(spans, found)
        if gap is None:
            return found
        if gap < reached:
            return f"there is no WAL summary from {format_lsn(gap.lsn)} of timeline {gap.timeline} on"
        if pending != progress:
            progress, since = pending, time.monotonic()
        elif time.monotonic() - since > stalled_seconds:
            state = f"has come to {format_lsn(pending)}" if pid else "is not running"
            return f"the WAL summarizer makes no progress: it {state}"
        time.sleep(_PAUSE_SECONDS)


def _summaries(connection: Connection, span: TimelineSpan) -> list[Summary]:
    """Those that have something of a span, in order."""
    rows = connection.query(
        "SELECT tli::int8, start_lsn::text, end_lsn::text FROM pg_available_wal_summaries() AS summary"
        " WHERE tli = %s AND end_lsn > %s::pg_lsn AND start_lsn < %s::pg_lsn"
        " ORDER BY summary.start_lsn, summary.end_lsn",  # not by their texts
        span.timeline,
        format_lsn(span.begin),
        format_lsn(_end(span)),
    )
    return [Summary(int(timeline), parse_lsn(start), parse_lsn(end)) for timeline, start, end in rows]


def _end(span: TimelineSpan) -> int:
    if span.end is None:
        raise ValueError("the way ends nowhere")
    return span.end


def _first_gap(spans: Sequence[TimelineSpan], found: Sequence[Summary]) -> Position | None:
    """The first byte of WAL that no summary covers."""
    for span in spans:
        reached = span.begin
        for summary in found:
            if summary.timeline == span.timeline and summary.start <= reached:
                reached = max(reached, summary.end)
        if reached < _end(span):
            return Position(span.timeline, reached)
    return None


def _position(connection: Connection) -> tuple[Position, int, int | None]:
    """Up to where there are summaries, the LSN up to which WAL was looked at, and the summarizer's process."""
    timeline, summarized, pending, pid = connection.row(
        "SELECT summarized_tli::int8, summarized_lsn::text, pending_lsn::text, summarizer_pid"
        " FROM pg_get_wal_summarizer_state()"
    )
    return Position(int(timeline), parse_lsn(summarized)), parse_lsn(pending), pid


class RowStream:
    """Takes COPY's binary format apart (docs: sql-copy, "Binary Format"); hands rows on, many at a time."""

    def __init__(self, consume: Callable[[np.ndarray[t.Any, np.dtype[np.void]]], None]) -> None:
        import numpy as np

        native = row_dtype()
        self._consume = consume
        self._native = native
        self._fields = len(native.names or ())
        lengths = [(f"{name}_length", ">i4") for name in native.names or ()]
        fields = [(name, native[name].newbyteorder(">")) for name in native.names or ()]
        pairs = [field for pair in zip(lengths, fields, strict=True) for field in pair]
        self._wire = np.dtype([("fields", ">i2"), *pairs])
        self._data = bytearray()
        self._begun = False

    def write(self, data: bytes) -> int:
        """The next bytes: libpq hands out row by row. Raises ClusterError for what is no such format."""
        self._data += data
        if len(self._data) > self._wire.itemsize * _ROWS_AT_ONCE:
            self._begin()
            self._take(len(self._data) // self._wire.itemsize)
        return len(data)

    def finish(self) -> None:
        """Raises ClusterError when the end is missing."""
        self._begin()
        self._take(len(self._data) // self._wire.itemsize)
        if self._data != _TRAILER:
            raise _unknown_format()

    def _begin(self) -> None:
        if self._begun:
            return
        if not self._data.startswith(_SIGNATURE):
            raise _unknown_format()
        del self._data[: _HEADER_BYTES + int.from_bytes(self._data[_HEADER_BYTES - 4 : _HEADER_BYTES], "big")]
        self._begun = True

    def _take(self, count: int) -> None:
        import numpy as np

        size = count * self._wire.itemsize
        rows = np.frombuffer(bytes(self._data[:size]), self._wire)
        if np.any(rows["fields"] != self._fields):
            raise _unknown_format()
        result = np.empty(count, self._native)
        for name in self._native.names or ():
            if np.any(rows[f"{name}_length"] != self._native[name].itemsize):
                raise _unknown_format()
            result[name] = rows[name]
        del self._data[:size]
        self._consume(result)


def _unknown_format() -> ClusterError:
    return ClusterError("PostgreSQL's answer is in an unknown format", hint="Earlier backups are untouched.")
