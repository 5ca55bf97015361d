# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One connection to a running cluster, kept for as long as a backup needs it."""

from __future__ import annotations

import contextlib
import select
import time
import types
import typing as t

from ..errors import ClusterError

if t.TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import psycopg2.extensions

CONNECT_TIMEOUT_SECONDS = 30.0
_PING_SECONDS = 30.0

Row: t.TypeAlias = "tuple[t.Any, ...]"


class Connection:
    """A session in autocommit mode. Use as a context manager; for one thread.

    It is driven without blocking (``select`` between the steps of libpq), so that a signal ends a wait for the
    server at once. Closing it while a backup is under way makes PostgreSQL abort that backup
    (``do_pg_abort_backup``).
    """

    def __init__(self, conninfo: str, *, application_name: str, timeout: float = CONNECT_TIMEOUT_SECONDS) -> None:
        """Connect. ``conninfo`` has no secrets: the configuration refuses them.

        Raises ClusterError: ``cluster-unreachable``.
        """
        import psycopg2

        self._asked = time.monotonic()
        self._conninfo = conninfo
        self._options: dict[str, t.Any] = {
            "application_name": application_name,
            "keepalives": 1,
            "keepalives_idle": 30,
            "keepalives_interval": 10,
            "keepalives_count": 6,
        }
        try:
            self._connection: psycopg2.extensions.connection = psycopg2.connect(conninfo, async_=True, **self._options)
            self._wait(timeout)
        except (psycopg2.Error, TimeoutError) as error:
            raise ClusterError(
                f"cannot connect to PostgreSQL ({conninfo}): {_text(error)}",
                hint="Is the cluster running, and does `connection` in the configuration name it? "
                "Try psql with the same settings, as the same user.",
                id="cluster-unreachable",
            ) from error
        with self._closing_on_error():
            self._settle()

    def _settle(self) -> None:
        """Nothing but ourselves may end this session while the backup runs."""
        self.query(
            "SELECT pg_catalog.set_config('search_path', 'pg_catalog', false),"
            " pg_catalog.set_config('client_encoding', 'UTF8', false),"
            " pg_catalog.set_config('datestyle', 'ISO', false)"
        )
        self.query(
            "SELECT set_config(name, '0', false) FROM pg_settings WHERE name IN"
            " ('statement_timeout', 'lock_timeout', 'idle_session_timeout', 'transaction_timeout',"
            " 'idle_in_transaction_session_timeout')"
        )

    @property
    def server_version(self) -> int:
        """``server_version_num``."""
        return self._connection.server_version

    @property
    def protocol_pid(self) -> int:
        """The process that the other side says we are connected to: not the server's, behind a pooler."""
        return self._connection.get_backend_pid()

    def query(self, statement: str, *values: object) -> list[Row]:
        """Run one statement and return its rows.

        Raises ClusterError: ``connection-lost``, ``cluster-privileges``, ``cluster`` for what else PostgreSQL
        refuses.
        """
        import psycopg2

        try:
            cursor = self._connection.cursor()
            cursor.execute(statement, values or None)
            self._wait(None)
            rows = cursor.fetchall() if cursor.description else []
        except psycopg2.Error as error:
            raise self._refused(error) from error
        except UnicodeDecodeError as error:
            raise ClusterError(
                f"PostgreSQL answered with text that is not UTF-8: {statement}",
                hint="Name a database with encoding UTF8 in `connection`; the database postgres usually is one.",
            ) from error
        except BaseException:
            # We were told to stop: so is the server, which would otherwise finish its checkpoint first.
            with contextlib.suppress(psycopg2.Error):
                self._connection.cancel()
            raise
        self._asked = time.monotonic()
        return rows

    def row(self, statement: str, *values: object) -> Row:
        """The only row of the answer."""
        rows = self.query(statement, *values)
        if len(rows) != 1:
            raise ClusterError(f"PostgreSQL answered with {len(rows)} rows instead of one: {statement}")
        return rows[0]

    def value(self, statement: str, *values: object) -> t.Any:
        """The first column of the only row."""
        return self.row(statement, *values)[0]

    def copy_out(self, statement: str, values: Sequence[object], write: Callable[[bytes], object]) -> None:
        """Run ``COPY … TO STDOUT`` in a session of its own, and hand on what it says, row by row.

        psycopg2 copies in blocking sessions only: a signal is noticed with the next row. Raises like ``query``.
        """
        import psycopg2

        try:
            with contextlib.closing(psycopg2.connect(self._conninfo, **self._options)) as session:
                session.set_session(autocommit=True)
                with session.cursor() as cursor:
                    cursor.execute("SELECT pg_catalog.set_config('search_path', 'pg_catalog', false)")
                    cursor.copy_expert(cursor.mogrify(statement, values), _Sink(write))
        except psycopg2.Error as error:
            raise self._refused(error) from error

    def keep_alive(self) -> None:
        """Ask something if nothing was asked for a while: to be called often while other work goes on.

        Raises ClusterError ``connection-lost``: then the backup is void.
        """
        if time.monotonic() - self._asked > _PING_SECONDS:
            self.query("SELECT 1")

    def close(self) -> None:
        """Idempotent."""
        self._connection.close()

    def __enter__(self) -> t.Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def _closing_on_error(self) -> t.Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _wait(self, timeout: float | None) -> None:
        """Drive libpq until it has finished what it was asked to do."""
        from psycopg2 import extensions

        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            state = self._connection.poll()
            if state == extensions.POLL_OK:
                return
            number = self._connection.fileno()
            reading = [number] if state == extensions.POLL_READ else []
            writing = [number] if state == extensions.POLL_WRITE else []
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(f"no answer within {timeout:g} s")
            select.select(reading, writing, [], left)

    def _refused(self, error: Exception) -> ClusterError:
        import psycopg2
        from psycopg2 import errors

        if self._connection.closed or isinstance(error, psycopg2.InterfaceError):
            return ClusterError(
                f"the connection to PostgreSQL was lost: {_text(error)}",
                hint="A backup under way is void; earlier backups are untouched. Did the server stop, or something "
                "end the session? Run it again.",
                id="connection-lost",
            )
        if isinstance(error, errors.InsufficientPrivilege):
            return ClusterError(
                f"PostgreSQL does not allow it: {_text(error)}",
                hint="Connect as a superuser, or grant what is missing.",
                id="cluster-privileges",
            )
        return ClusterError(
            f"PostgreSQL refused: {_text(error)}", hint="Its log may say more. Earlier backups are untouched."
        )


class _Sink:
    """What psycopg2 takes for a binary file."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self.write = write


def _text(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "; ".join(lines) or type(error).__name__
