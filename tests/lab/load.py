# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Load on a cluster while it is being backed up: pgbench, and every kind of statement that moves files."""

from __future__ import annotations

import contextlib
import itertools
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import psycopg2
from psycopg2 import sql

from .cleanup import remove_tree

if TYPE_CHECKING:
    from psycopg2.extensions import connection, cursor

    from .cluster import Cluster
    from .workspace import Workspace


class Pgbench:
    """pgbench's TPC-B-like load on a database of its own, in the background. A context manager.

    Args:
        workspace: Ends the program should nothing else do so.
        cluster: A running cluster.
        dbname: Database, made when it does not exist.
        scale: 1 is 100,000 accounts, about 15 MB.
        clients: Sessions at the same time.
        seconds: It ends by itself after that time.
        rate: Transactions per second at most, over all clients; unlimited by default.
    """

    def __init__(
        self,
        workspace: Workspace,
        cluster: Cluster,
        *,
        dbname: str = "bench",
        scale: int = 1,
        clients: int = 2,
        seconds: int = 300,
        rate: int | None = None,
    ) -> None:
        self.workspace = workspace
        self.cluster = cluster
        self.dbname = dbname
        self.scale = scale
        self.clients = clients
        self.seconds = seconds
        self.rate = rate
        self._process: subprocess.Popen[Any] | None = None

    def prepare(self) -> Self:
        """Make the database and its tables; nothing happens when the database exists."""
        if self.dbname not in self.cluster.databases():
            self.cluster.create_database(self.dbname)
            self.cluster.run("pgbench", "--initialize", "--quiet", f"--scale={self.scale}", self.dbname)
        return self

    def start(self) -> Self:
        """Begin the load."""
        self.prepare()
        command = [self.cluster.installation.program("pgbench"), "--no-vacuum", f"--client={self.clients}"]
        command.append(f"--time={self.seconds}")
        if self.rate is not None:
            command.append(f"--rate={self.rate}")
        command.append(self.dbname)
        self._process = self.workspace.popen(
            command, env=self.cluster.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        return self

    @property
    def transactions(self) -> int:
        """Transactions committed up to now."""
        return int(self.cluster.value("SELECT count(*) FROM pgbench_history", dbname=self.dbname))

    def stop(self) -> None:
        """End the load; transactions under way are rolled back."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(30)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def pgbench_consistent(session: connection) -> None:
    """Check that every pgbench transaction is there as a whole or not at all. Raises AssertionError.

    Each adds the same amount to one account, one teller, one branch and one line of history.
    """
    with session.cursor() as cur:
        cur.execute(
            "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers),"
            " (SELECT sum(bbalance) FROM pgbench_branches),"
            " (SELECT coalesce(sum(delta), 0) FROM pgbench_history)"
        )
        sums = cur.fetchone()
    if sums is None or len(set(sums)) != 1:
        raise AssertionError(f"torn pgbench transactions: accounts, tellers, branches, history sum to {sums}")


class DdlStorm:
    """Statements that create, replace, truncate and remove files, in a loop until stopped. A context manager.

    Databases, tablespaces, TRUNCATE, VACUUM FULL, index builds (concurrent ones too), unlogged and temporary
    tables, tables dropped and made again under the same name, relations moved between tablespaces, values in
    TOAST tables. All is done in database ``dbname``, made by ``start``, and in short-lived ones.

    Args:
        workspace: Where tablespace directories are made. They stay until its end: replay of CREATE TABLESPACE
            needs the directory. ``stop`` drops the tablespaces, so that a restore on the same machine, whose
            replay makes them again at the same place, meets an empty directory; between two restores, call
            ``clear``.
        cluster: A running cluster.
        dbname: Database for the storm.
        tablespaces: ``directory`` for real ones, ``in_place`` for directories below ``pg_tblspc`` (PostgreSQL
            15 and later), None for no tablespaces.
    """

    def __init__(
        self,
        workspace: Workspace,
        cluster: Cluster,
        *,
        dbname: str = "storm",
        tablespaces: str | None = "directory",
    ) -> None:
        if tablespaces not in ("directory", "in_place", None):
            raise ValueError(f"tablespaces: {tablespaces!r}")
        self.workspace = workspace
        self.cluster = cluster
        self.dbname = dbname
        self.tablespaces = tablespaces
        self.rounds = 0
        self.error: Exception | None = None
        self._directories: list[Path] = []
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> Self:
        """Make the database and begin."""
        self.cluster.create_database(self.dbname)
        self._thread = threading.Thread(target=self._blow, name="storm", daemon=True)
        self._thread.start()
        return self

    def wait_rounds(self, count: int, timeout: float = 120.0) -> None:
        """Wait until the storm has gone round ``count`` times in all. Raises what ended it, or TimeoutError."""
        for _unused in range(int(timeout / 0.02)):
            if self.error is not None:
                raise self.error
            if self.rounds >= count:
                return
            self._stopping.wait(0.02)
        raise TimeoutError(f"{self.rounds} rounds after {timeout} s instead of {count}")

    def stop(self, *, check: bool = True) -> None:
        """End the round under way and drop its databases and tablespaces (not ``dbname``)."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(120)
        if check and self.error is not None:
            raise self.error

    def clear(self) -> None:
        """Empty the tablespaces' directories: what one restore's replay left there misleads the next one's."""
        for directory in self._directories:
            for path in directory.iterdir():
                remove_tree(path)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(check=kind is None)

    def _blow(self) -> None:
        try:
            with self.cluster.session(self.dbname) as session, session.cursor() as cur:
                cur.execute("SET client_min_messages = error")
                for number in itertools.count(1):
                    if self._stopping.is_set():
                        return
                    self._round(cur, number)
                    self.rounds += 1
        except (OSError, psycopg2.Error) as error:
            self.error = error

    def _round(self, cur: cursor, number: int) -> None:
        for statement in TABLE_STATEMENTS:
            if self._stopping.is_set():
                return
            cur.execute(statement, {"number": number})
        with self._tablespace(cur, number) as tablespace:
            self._database(cur, number, tablespace)

    @contextlib.contextmanager
    def _tablespace(self, cur: cursor, number: int) -> Iterator[str | None]:
        if self.tablespaces is None:
            yield None
            return
        name = f"storm_{number}"
        location = ""
        if self.tablespaces == "directory":
            path = self.workspace.directory(f"{self.dbname}-tablespace-{number}")
            self._directories.append(path)
            location = str(path)
        statement = sql.SQL("CREATE TABLESPACE {} LOCATION {}")
        cur.execute(statement.format(sql.Identifier(name), sql.Literal(location)))
        # Moves copy whole files and keep their pages' LSNs.
        cur.execute(sql.SQL("ALTER TABLE storm_wide SET TABLESPACE {}").format(sql.Identifier(name)))
        yield name
        cur.execute("ALTER TABLE storm_wide SET TABLESPACE pg_default")
        cur.execute(sql.SQL("DROP TABLESPACE {}").format(sql.Identifier(name)))

    def _database(self, cur: cursor, number: int, tablespace: str | None) -> None:
        options = [sql.SQL("TEMPLATE template0")]
        if tablespace is not None and number % 2:
            options.append(sql.SQL("TABLESPACE {}").format(sql.Identifier(tablespace)))
        if self.cluster.major >= 15:
            # Both ways a new database's files come about; one copies pages with their old LSNs.
            options.append(sql.SQL("STRATEGY file_copy" if number % 3 else "STRATEGY wal_log"))
        name = sql.Identifier(f"storm_{number}")
        cur.execute(sql.SQL("CREATE DATABASE {} WITH {}").format(name, sql.SQL(" ").join(options)))
        cur.execute(sql.SQL("DROP DATABASE {}").format(name))


TABLE_STATEMENTS = (
    "DROP TABLE IF EXISTS storm_plain",
    "CREATE TABLE storm_plain AS SELECT n AS id, md5(n::text) AS text FROM generate_series(1, 4000) n",
    "CREATE INDEX storm_plain_text ON storm_plain (text)",
    "UPDATE storm_plain SET text = text || 'x' WHERE id %% 7 = 0",
    "CREATE INDEX CONCURRENTLY storm_plain_id ON storm_plain (id)",
    "DELETE FROM storm_plain WHERE id > 3000",
    "VACUUM storm_plain",
    "VACUUM FULL storm_plain",
    "REINDEX INDEX CONCURRENTLY storm_plain_text",
    "CREATE TABLE IF NOT EXISTS storm_wide (id bigint PRIMARY KEY, big text)",
    "ALTER TABLE storm_wide ALTER COLUMN big SET STORAGE EXTERNAL",
    "TRUNCATE storm_wide",
    "INSERT INTO storm_wide SELECT n, repeat(md5(n::text || %(number)s), 1000) FROM generate_series(1, 40) n",
    "UPDATE storm_wide SET big = big || 'y' WHERE id %% 2 = 0",
    "DROP TABLE IF EXISTS storm_unlogged",
    "CREATE UNLOGGED TABLE storm_unlogged AS SELECT n AS id FROM generate_series(1, 5000) n",
    "CREATE INDEX ON storm_unlogged (id)",
    "CREATE TEMPORARY TABLE IF NOT EXISTS storm_temporary (id bigint, text text)",
    "INSERT INTO storm_temporary SELECT n, md5(n::text) FROM generate_series(1, 2000) n",
    "TRUNCATE storm_temporary",
    "CLUSTER storm_wide USING storm_wide_pkey",
    "DROP MATERIALIZED VIEW IF EXISTS storm_view",
    "CREATE MATERIALIZED VIEW storm_view AS SELECT id, length(big) AS length FROM storm_wide",
)
