# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Questions to a restored cluster: is everything in it whole, and does it make sense?"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
import typing as t

from ..errors import RestoreError

if t.TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import psycopg2.extensions

    from ..config import Assertion
    from .sandbox import Sandbox

_LINES_SHOWN: t.Final = 20
_FIRST_WITH_PG_AMCHECK: t.Final = 14
_DATABASES: t.Final = "SELECT datname FROM pg_catalog.pg_database WHERE datallowconn AND datconnlimit <> -2 ORDER BY 1"
_TABLES: t.Final = """
SELECT pg_catalog.count(*) FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'm') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
"""
_SUPERUSERS: t.Final = "SELECT rolname FROM pg_catalog.pg_roles WHERE rolsuper AND rolcanlogin ORDER BY oid"
_INDEXES: t.Final = """
SELECT c.oid::regclass::text, bt_index_check(c.oid, true)
FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
WHERE c.relam = (SELECT oid FROM pg_catalog.pg_am WHERE amname = 'btree')
  AND c.relkind = 'i' AND c.relpersistence <> 't' AND i.indisready AND i.indisvalid
"""
# They see what amcheck does not: a map that says "visible to all" of rows that are not.
_VISIBILITY: t.Final = """
SELECT c.oid::regclass::text, 'pg_check_frozen' AS check, t.t_ctid::text
FROM pg_catalog.pg_class c, LATERAL pg_check_frozen(c.oid) AS t
WHERE c.relkind IN ('r', 'm', 't') AND c.relpersistence <> 't'
UNION ALL
SELECT c.oid::regclass::text, 'pg_check_visible', t.t_ctid::text
FROM pg_catalog.pg_class c, LATERAL pg_check_visible(c.oid) AS t
WHERE c.relkind IN ('r', 'm', 't') AND c.relpersistence <> 't'
LIMIT 20
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """``ok`` is None when the question could not be asked; ``detail`` says why."""

    name: str
    ok: bool | None
    detail: str
    seconds: float


class QueryFailed(Exception):
    """What PostgreSQL said."""


class Session:
    """One session, in autocommit mode, whose answers are text as PostgreSQL prints it. For one thread.

    Waits for the server without blocking, so that a signal ends the wait.
    """

    def __init__(self, conninfo: str) -> None:
        """Raises QueryFailed."""
        import psycopg2
        from psycopg2 import extensions

        try:
            self._connection: psycopg2.extensions.connection = psycopg2.connect(
                conninfo, application_name="cryobackup verify", async_=True
            )
            self._wait()
        except psycopg2.Error as error:
            raise QueryFailed(_words(error)) from error
        as_text = extensions.new_type(tuple(extensions.string_types), "AS_TEXT", lambda value, _cursor: value)
        extensions.register_type(as_text, self._connection)

    def query(self, statement: str, *values: str) -> list[tuple[str | None, ...]]:
        """Rows of the last statement. Raises QueryFailed."""
        import psycopg2

        try:
            cursor = self._connection.cursor()
            cursor.execute(statement, values or None)
            self._wait()
            return cursor.fetchall() if cursor.description else []
        except psycopg2.Error as error:
            raise QueryFailed(_words(error)) from error

    def value(self, statement: str) -> str | None:
        """First column of the first row; None also when there is none."""
        rows = self.query(statement)
        return rows[0][0] if rows else None

    def _wait(self) -> None:
        from psycopg2.extras import wait_select

        wait_select(self._connection)

    def __enter__(self) -> t.Self:
        return self

    def __exit__(self, *_unused: object) -> None:
        self._connection.close()


def log_in(sandbox: Sandbox, candidates: Sequence[str]) -> None:
    """Find a superuser to work as, starting with roles that probably exist.

    Raises RestoreError, id ``sandbox-login``.
    """
    errors = []
    for user, database in itertools.product(dict.fromkeys(candidates), ("postgres", "template1")):
        try:
            with Session(sandbox.conninfo(database, user)) as session:
                found = session.value(_SUPERUSERS)
        except QueryFailed as error:
            errors.append(str(error))
            continue
        if found is not None:
            sandbox.user = found
            return
        errors.append("there is no superuser that may log in")
    raise RestoreError(
        f"there is no role known to connect to the restored cluster with: {errors[-1]}",
        hint="The sandbox knows the user in the cluster's `connection` and tries postgres: name one that exists there.",
        id="sandbox-login",
    )


class Checks:
    """All questions, one after the other. What is wrong is an answer, not an error."""

    def __init__(self, sandbox: Sandbox, version: int, workers: int) -> None:
        self._sandbox = sandbox
        self._version = version
        self._workers = workers
        self._databases: list[str] = []
        self.tables = 0

    @property
    def databases(self) -> int:
        return len(self._databases)

    def of_the_running_server(self, assertions: Sequence[Assertion]) -> Iterator[Answer]:
        """Before it is stopped."""
        yield self._ask("databases", self._count)
        yield self._ask("amcheck", self._amcheck)
        yield self._ask("visibility", self._visibility)
        for number, assertion in enumerate(assertions, 1):
            yield self._ask(f"assertion {number}", functools.partial(self._assertion, assertion))

    def of_the_stopped_server(self, *, page_checksums: bool) -> Answer:
        """After a clean stop."""
        return self._ask("pg_checksums", lambda: self._checksums(page_checksums=page_checksums))

    @staticmethod
    def _ask(name: str, question: Callable[[], tuple[bool | None, str]]) -> Answer:
        began = time.monotonic()
        try:
            ok, detail = question()
        except QueryFailed as error:
            ok, detail = False, str(error)
        return Answer(name, ok, detail, time.monotonic() - began)

    def _session(self, database: str) -> Session:
        return Session(self._sandbox.conninfo(database))

    def _count(self) -> tuple[bool, str]:
        with any_session(self._sandbox) as session:
            self._databases = [row[0] for row in session.query(_DATABASES) if row[0] is not None]
        for database in self._databases:
            with self._session(database) as session:
                self.tables += int(session.value(_TABLES) or 0)
        return True, f"{len(self._databases)} databases with {self.tables} tables"

    def _amcheck(self) -> tuple[bool | None, str]:
        if not self._available("amcheck"):
            return None, "the extension amcheck is not installed on this host"
        if self._version // 10000 < _FIRST_WITH_PG_AMCHECK or not self._sandbox.has("pg_amcheck"):
            return self._in_every_database("amcheck", self._btree_problems, "indexes match their tables")
        result = self._sandbox.run(
            "pg_amcheck",
            "--all",
            "--heapallindexed",
            "--install-missing",
            f"--jobs={self._workers}",
            f"--maintenance-db={self._databases[0] if self._databases else 'postgres'}",
        )
        said = _some_lines(result.stdout + result.stderr)
        if result.returncode == 0:
            return True, "tables and indexes are sound"
        return False, said or f"pg_amcheck ended with exit code {result.returncode}"

    @staticmethod
    def _btree_problems(session: Session) -> list[str]:
        session.query(_INDEXES)  # raises at the first one that is wrong
        return []

    def _visibility(self) -> tuple[bool | None, str]:
        if not self._available("pg_visibility"):
            return None, "the extension pg_visibility is not installed on this host"
        return self._in_every_database("pg_visibility", self._visibility_problems, "visibility maps are right")

    @staticmethod
    def _visibility_problems(session: Session) -> list[str]:
        return [f"{table} {where} ({check})" for table, check, where in session.query(_VISIBILITY)]

    def _available(self, extension: str) -> bool:
        query = "SELECT name FROM pg_catalog.pg_available_extensions WHERE name = %s"
        with any_session(self._sandbox) as session:
            return bool(session.query(query, extension))

    def _in_every_database(self, extension: str, look: Callable[[Session], list[str]], fine: str) -> tuple[bool, str]:
        problems = []
        for database in self._databases:
            with self._session(database) as session:
                _use_extension(session, extension)
                problems += [f"{database}: {problem}" for problem in look(session)]
        return not problems, _some_lines("\n".join(problems)) or fine

    def _assertion(self, assertion: Assertion) -> tuple[bool, str]:
        what = " ".join(assertion.query.split())
        with self._session(assertion.database) as session:
            session.query("BEGIN")
            rows = session.query(assertion.query)
            session.query("ROLLBACK")
        found = rows[0][0] if rows and rows[0] else None
        said = "no row" if not rows else "null" if found is None else repr(found)
        if assertion.expect is not None:
            ok = found == assertion.expect
            return ok, f"{what}: {said}" + ("" if ok else f", expected {assertion.expect!r}")
        ok = found is not None and found != "f"
        return ok, f"{what}: {said}"

    def _checksums(self, *, page_checksums: bool) -> tuple[bool | None, str]:
        if not page_checksums:
            return None, "the cluster has no data checksums"
        if not self._sandbox.has("pg_checksums"):
            return None, f"there is no pg_checksums in {self._sandbox.programs}"
        result = self._sandbox.run("pg_checksums", "--check", "-D", str(self._sandbox.place.data))
        if result.returncode == 0:
            return True, "every page has the right checksum"
        return False, _some_lines(result.stderr + result.stdout)


def _use_extension(session: Session, extension: str) -> None:
    """Make its functions callable without their schema, as ``pg_amcheck --install-missing`` does."""
    where = (
        "SELECT pg_catalog.set_config('search_path', pg_catalog.quote_ident(n.nspname) || ', pg_catalog', false)"
        " FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace"
        " WHERE e.extname = %s"
    )
    if not session.query(where, extension):
        session.query(f"CREATE EXTENSION {extension} WITH SCHEMA pg_catalog")
        session.query(where, extension)


def any_session(sandbox: Sandbox) -> Session:
    """In a database that nearly every cluster has. Raises QueryFailed."""
    try:
        return Session(sandbox.conninfo("postgres"))
    except QueryFailed:
        return Session(sandbox.conninfo("template1"))


def _some_lines(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    more = [f"… {len(lines) - _LINES_SHOWN} more lines"] if len(lines) > _LINES_SHOWN else []
    return "\n".join([*lines[:_LINES_SHOWN], *more])


def _words(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "; ".join(lines) or type(error).__name__
