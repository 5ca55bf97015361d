# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PostgreSQL's streaming replication, from its receiving end: "Streaming Replication Protocol" in its manual."""

from __future__ import annotations

import contextlib
import select
import time
import typing as t

from ..errors import ClusterError
from .lsn import parse_lsn

if t.TYPE_CHECKING:
    import types

_SILENT_SECONDS: t.Final = 120.0
"""A server says something every ``wal_sender_timeout`` / 2, which is 30 s unless somebody made it longer."""
_UNITS: t.Final = {"kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}


class System(t.NamedTuple):
    """Answer to ``IDENTIFY_SYSTEM``, and the size of segments."""

    identifier: int
    timeline: int
    flushed: int
    """The LSN up to which WAL can be had."""
    segment_size: int


class Chunk(t.NamedTuple):
    """Bytes of WAL."""

    lsn: int
    data: bytes
    server_end: int
    """Where the server's WAL ended when it sent them."""


class ReplicationConnection:
    """A walsender of a running server, without blocking between messages. A context manager; for one thread.

    Raises ClusterError from every method: ``replication`` for what the server refuses or says no more,
    ``cluster-unreachable``.
    """

    def __init__(self, conninfo: str, *, application_name: str, timeout: int = 30) -> None:
        import psycopg2
        import psycopg2.extras

        self._conninfo = conninfo
        with self._errors("cluster-unreachable"):
            self._connection = psycopg2.connect(
                conninfo,
                connection_factory=psycopg2.extras.PhysicalReplicationConnection,
                application_name=application_name,
                connect_timeout=timeout,
            )
            self._cursor: t.Any = self._connection.cursor()
        self._heard = time.monotonic()
        self._confirms_flush = False

    def __enter__(self) -> t.Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: types.TracebackType | None) -> None:
        import psycopg2

        with contextlib.suppress(psycopg2.Error):
            self._connection.close()

    def identify(self) -> System:
        with self._errors():
            identifier, timeline, flushed = self._row("IDENTIFY_SYSTEM")[:3]
            size = self._row("SHOW wal_segment_size")[0]
        return System(int(identifier), int(timeline), parse_lsn(flushed), int(size[:-2]) * _UNITS[size[-2:]])

    def history(self, timeline: int) -> bytes:
        """The content of a timeline's history file."""
        import psycopg2.extensions

        # The server sends the file's bytes as they are, and calls them text or bytea, as its version has it.
        as_sent = psycopg2.extensions.new_type((17, 25), "AS_SENT", lambda value, _cursor: value)
        psycopg2.extensions.register_type(as_sent, self._cursor)
        with self._errors():
            return str(self._row(f"TIMELINE_HISTORY {timeline:d}")[1]).encode()

    def _row(self, command: str) -> tuple[t.Any, ...]:
        self._cursor.execute(command)
        return self._cursor.fetchone() or ()

    def make_slot(self, name: str) -> None:
        """Create a physical slot that keeps WAL from now on. Nothing is done when it is there."""
        import psycopg2.errors
        import psycopg2.extensions

        quoted = psycopg2.extensions.quote_ident(name, self._cursor)
        with self._errors(), contextlib.suppress(psycopg2.errors.DuplicateObject):
            self._cursor.execute(f"CREATE_REPLICATION_SLOT {quoted} PHYSICAL RESERVE_WAL")

    def start(self, timeline: int, lsn: int, slot: str | None) -> None:
        self._confirms_flush = slot is not None
        with self._errors():
            self._cursor.start_replication(slot_name=slot, start_lsn=lsn, timeline=timeline)
        self._heard = time.monotonic()

    def receive(self, seconds: float) -> Chunk | None:
        """The next bytes; None when there are none so long. A server that fell silent is taken for lost."""
        with self._errors():
            message = self._cursor.read_message()
            if message is None:
                if select.select([self._connection], [], [], max(0.0, seconds))[0]:
                    message = self._cursor.read_message()
                    self._heard = time.monotonic()
                elif time.monotonic() - self._heard > _SILENT_SECONDS:
                    raise self._lost(f"it said nothing for {_SILENT_SECONDS:g} s", "replication")
        if message is None:
            return None
        self._heard = time.monotonic()
        return Chunk(message.data_start, message.payload, message.wal_end)

    def confirm(self, lsn: int) -> None:
        """Tell the server that all WAL before ``lsn`` is safe.

        As flushed only where a slot wants to know it: who confirms that may be counted among the synchronous standbys
        (``SyncRepGetCandidateStandbys``), and commits would wait for us.
        """
        with self._errors():
            flushed = lsn if self._confirms_flush else 0
            self._cursor.send_feedback(write_lsn=lsn, flush_lsn=flushed, force=True)

    @contextlib.contextmanager
    def _errors(self, identifier: str = "replication") -> t.Iterator[None]:
        import psycopg2

        try:
            yield
        except psycopg2.Error as error:
            raise self._lost(str(error).strip() or type(error).__name__, identifier) from error

    def _lost(self, why: str, identifier: str) -> ClusterError:
        return ClusterError(
            f"cannot stream WAL from PostgreSQL ({self._conninfo}): {' '.join(why.split())}",
            hint="Archiving goes on as it does without. Is the server running, does its role have REPLICATION, and has "
            "pg_hba.conf a line for the database `replication`?",
            id=identifier,
        )
