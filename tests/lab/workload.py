# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A writer that knows exactly what it has committed, and when: the measure of exact recovery.

What PostgreSQL does at a recovery target (``recoveryStopsBefore`` and ``recoveryStopsAfter`` in
``src/backend/access/transam/xlogrecovery.c``): with a time, replay ends before the first commit record whose
timestamp is later; with an LSN, after the first record that begins at it or behind it; with a transaction or
a name, after its commit or its restore point. Both inclusive, as is the default.
"""

from __future__ import annotations

import contextlib
import datetime
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import psycopg2
from psycopg2 import sql

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from .cluster import Cluster


def lsn_number(lsn: str) -> int:
    """An LSN such as ``0/3000028`` as a byte position."""
    high, _unused, low = lsn.partition("/")
    return (int(high, 16) << 32) + int(low, 16)


@dataclass(frozen=True)
class Row:
    """One committed row: what surrounded its commit, all by the server's clock and WAL."""

    id: int
    xid: int
    begin_lsn: int
    """Insert position before the transaction wrote anything."""
    end_lsn: int
    """Write position after the commit was acknowledged."""
    committed_at: datetime.datetime
    """The commit record's own timestamp, as ``pg_xact_commit_timestamp`` has it."""
    acknowledged_at: datetime.datetime
    """The server's time after the acknowledgement."""


@dataclass(frozen=True)
class Moment:
    """An instant between two commits of the writer, nameable as any kind of recovery target.

    Every target below restores exactly the rows up to ``last_id`` (as long as something, a later row for
    instance, is written afterwards: a target that the WAL never reaches is an error).
    """

    last_id: int
    time: datetime.datetime
    lsn: str
    xid: int
    """The last row's transaction."""
    name: str | None
    """The restore point, when the moment was given one."""

    @property
    def time_text(self) -> str:
        """The time in ISO 8601 with microseconds and offset."""
        return self.time.isoformat(timespec="microseconds")


@dataclass(frozen=True)
class Expectation:
    """What must and what may be in the writer's table after a restore."""

    table: str
    dbname: str
    must: frozenset[int]
    may: frozenset[int] = frozenset()
    """Rows in flight: both outcomes are right."""

    def check(self, session: connection) -> None:
        """Compare with the table. Raises AssertionError that names lost and extra rows."""
        with session.cursor() as cursor:
            cursor.execute("SELECT to_regclass(%s) IS NOT NULL", (self.table,))
            exists = cursor.fetchone() == (True,)
            if exists:
                cursor.execute(sql.SQL("SELECT id FROM {}").format(sql.Identifier(self.table)))
            present = {row[0] for row in cursor.fetchall()} if exists else set()
        lost = self.must - present
        extra = present - self.must - self.may
        if lost or extra:
            raise AssertionError(
                f"table {self.table}: {len(lost)} committed rows are lost ({_some(lost)}), "
                f"{len(extra)} rows too many ({_some(extra)}); {len(present)} present"
            )


def _some(numbers: Iterable[int]) -> str:
    ordered = sorted(numbers)
    shown = ", ".join(map(str, ordered[:8]))
    return f"{shown}, …, {ordered[-1]}" if len(ordered) > 8 else shown or "none"


class LiveWriter:
    """Commits one numbered row after another in a thread of its own until it is stopped.

    Args:
        cluster: A running cluster with ``track_commit_timestamp`` on (the laboratory's default).
        dbname: Database of the table.
        table: Made by ``start``; must not exist.
        interval: Seconds between two commits.
        payload: Characters of text in each row, so that the writer can fill WAL as well.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        dbname: str = "postgres",
        table: str = "lab_rows",
        interval: float = 0.002,
        payload: int = 100,
    ) -> None:
        self.cluster = cluster
        self.dbname = dbname
        self.table = table
        self.interval = interval
        self.payload = payload
        self.rows: list[Row] = []
        self.error: psycopg2.Error | None = None
        """What ended the writer when the server went away."""
        self._in_flight: int | None = None
        self._between = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._session: connection | None = None

    def start(self) -> Self:
        """Make the table and begin to write."""
        session = self.cluster.connect(self.dbname)
        with session.cursor() as cursor:
            cursor.execute("SHOW track_commit_timestamp")
            if cursor.fetchone() != ("on",):
                raise ValueError("the writer needs track_commit_timestamp = on")
            cursor.execute(
                sql.SQL(
                    "CREATE TABLE {} (id bigint PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp(),"
                    " payload text NOT NULL)"
                ).format(sql.Identifier(self.table))
            )
        self._session = session
        self._thread = threading.Thread(target=self._write, name=f"writer of {self.table}", daemon=True)
        self._thread.start()
        return self

    def stop(self, *, check: bool = True) -> None:
        """End writing; with ``check``, raises the error that ended it before."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(60)
        if self._session is not None:
            self._session.close()
        if check and self.error is not None:
            raise self.error

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(check=kind is None)

    def _write(self) -> None:
        number = 0
        try:
            while not self._stopping.is_set():
                number += 1
                with self._between:
                    self.rows.append(self._commit(number))
                self._stopping.wait(self.interval)
        except psycopg2.Error as error:
            self.error = error

    def _ask(self, statement: sql.Composable | str, values: tuple[Any, ...] = ()) -> tuple[Any, ...]:
        if self._session is None:
            raise ValueError("the writer was not started")
        with self._session.cursor() as cursor:
            cursor.execute(statement, values or None)
            row = cursor.fetchone()
        if row is None:
            raise ValueError(f"no row from {statement!r}")
        return row

    def _commit(self, number: int) -> Row:
        (begin,) = self._ask("SELECT pg_current_wal_insert_lsn()::text")
        self._in_flight = number
        insert = sql.SQL("INSERT INTO {} (id, payload) VALUES (%s, %s) RETURNING pg_current_xact_id()::text::bigint")
        statement = insert.format(sql.Identifier(self.table))
        (xid,) = self._ask(statement, (number, f"row {number} ".ljust(self.payload, ".")))
        committed, acknowledged, end = self._ask(
            "SELECT pg_xact_commit_timestamp((%s)::text::xid), clock_timestamp(), pg_current_wal_lsn()::text",
            (xid % 2**32,),
        )
        self._in_flight = None
        return Row(number, xid, lsn_number(begin), lsn_number(end), committed, acknowledged)

    @property
    def count(self) -> int:
        """Rows committed up to now."""
        return len(self.rows)

    def wait_rows(self, count: int, timeout: float = 60.0) -> None:
        """Wait until at least ``count`` rows are committed. Raises what ended the writer, or TimeoutError."""
        deadline = time.monotonic() + timeout
        while self.count < count:
            if self.error is not None:
                raise self.error
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.count} rows after {timeout} s instead of {count}")
            time.sleep(0.005)

    @contextlib.contextmanager
    def paused(self, name: str | None = None) -> Iterator[Moment]:
        """Hold the writer between two commits; yields that moment. The writer goes on afterwards.

        With ``name`` a restore point of that name is written. Other sessions are not held.
        """
        self.wait_rows(1)
        with self._between:
            if self.error is not None:
                raise self.error
            last = self.rows[-1]
            (now,) = self._ask("SELECT clock_timestamp()")
            (lsn,) = self._ask("SELECT pg_current_wal_lsn()::text")
            if name is not None:
                self._ask("SELECT pg_create_restore_point(%s)", (name,))
            yield Moment(last.id, now, lsn, last.xid, name)
            # A commit in the same microsecond would belong to the moment, too.
            time.sleep(0.001)

    def moment(self, name: str | None = None) -> Moment:
        """A recovery point between two commits, now; writing goes on."""
        with self.paused(name) as moment:
            return moment

    # What must be there

    def _expect(self, must: Iterable[int], may: Iterable[int] = ()) -> Expectation:
        return Expectation(self.table, self.dbname, frozenset(must), frozenset(may))

    def _unknown(self) -> list[int]:
        # A commit that the server was never heard to acknowledge may have happened.
        number = self._in_flight
        return [] if number is None else [number]

    def expect(self, moment: Moment) -> Expectation:
        """Exactly the rows up to the moment."""
        return self._expect(row.id for row in list(self.rows) if row.id <= moment.last_id)

    def expect_all(self) -> Expectation:
        """Every acknowledged row; one that was in flight at a crash may be there."""
        return self._expect((row.id for row in list(self.rows)), self._unknown())

    def expect_time(self, when: datetime.datetime) -> Expectation:
        """The rows that a recovery to this time restores.

        A row that was committed before but acknowledged after that time may be missing: a later commit of
        another session may lie before it in the WAL.
        """
        rows = list(self.rows)
        must = [row.id for row in rows if row.acknowledged_at <= when]
        may = [row.id for row in rows if row.committed_at <= when < row.acknowledged_at]
        return self._expect(must, may + (self._unknown() if rows and when > rows[-1].acknowledged_at else []))

    def expect_lsn(self, lsn: str) -> Expectation:
        """The rows that a recovery to this LSN restores; one whose records surround it may be there."""
        rows, position = list(self.rows), lsn_number(lsn)
        must = [row.id for row in rows if row.end_lsn <= position]
        may = [row.id for row in rows if row.begin_lsn < position < row.end_lsn]
        return self._expect(must, may + (self._unknown() if rows and position > rows[-1].end_lsn else []))
