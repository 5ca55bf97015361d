# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The oracle: is a restored data directory really the cluster it claims to be?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2

from .cluster import Cluster, ServerFailed, Setting
from .golden import Golden, golden_dump
from .installation import Installation

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from .workload import Expectation
    from .workspace import Workspace

__all__ = ["Golden", "RestoreProof", "golden_dump", "prove_restore"]

# Not before 14: the extension's own functions are used there.
FIRST_WITH_PG_AMCHECK = 14

INDEX_CHECK = """
SELECT c.oid::regclass::text, bt_index_check(c.oid, true)
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE c.relam = (SELECT oid FROM pg_am WHERE amname = 'btree')
  AND c.relkind = 'i' AND c.relpersistence <> 't' AND i.indisready AND i.indisvalid
"""

VISIBILITY_CHECK = """
SELECT c.oid::regclass::text, 'pg_check_frozen' AS check, t.t_ctid::text
FROM pg_class c, LATERAL pg_check_frozen(c.oid) AS t
WHERE c.relkind IN ('r', 'm', 't') AND c.relpersistence <> 't'
UNION ALL
SELECT c.oid::regclass::text, 'pg_check_visible', t.t_ctid::text
FROM pg_class c, LATERAL pg_check_visible(c.oid) AS t
WHERE c.relkind IN ('r', 'm', 't') AND c.relpersistence <> 't'
LIMIT 20
"""


@dataclass
class RestoreProof:
    """What was seen while a restore was proven."""

    system_identifier: str
    timeline: int = 0
    """The timeline that the server ended on."""
    was_paused: bool = False
    """Whether recovery paused at its target (and was then ended)."""
    checksums: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    """Duration of each step."""

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure a step."""
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 3)


def prove_restore(
    workspace: Workspace,
    data_dir: Path,
    *,
    golden: Golden | None = None,
    rows: Expectation | Sequence[Expectation] = (),
    tablespaces: Mapping[str, Path] | None = None,
    sql: Callable[[connection], None] | None = None,
    settings: Mapping[str, Setting] | None = None,
    installation: Installation | None = None,
    amcheck: bool = True,
    visibility: bool = True,
    timeout: float = 120.0,
) -> RestoreProof:
    """Start PostgreSQL on a restored directory, as a restore left it, and try to find something wrong.

    In this order: it starts and recovers; the tablespaces lie where they should; ``rows`` and ``sql`` hold;
    the dump equals the golden one; every table and index is sound (pg_amcheck with all heap tuples looked up);
    the visibility maps tell the truth; it stops cleanly; every page checksum is right. The first three are
    looked at while recovery is paused when its target action is to pause, which is then ended by promotion.

    Args:
        workspace: Where sockets and logs go, and what ends the server in any case.
        data_dir: The restored data directory. It is changed: recovery ends and extensions are installed.
        golden: The dump at the recovery point.
        rows: What writers had committed at the recovery point.
        tablespaces: Name and directory of each tablespace that must exist (with no others besides).
        sql: Called with a session in database ``postgres``; raises AssertionError when it does not like what
            it sees.
        settings: More settings for the server's command line.
        installation: The PostgreSQL to use; that of the directory's major by default.
        amcheck: Whether to run pg_amcheck (the dearest step).
        visibility: Whether to check visibility maps.
        timeout: Seconds for start-up and recovery.

    Raises:
        AssertionError: names the step and what was wrong.
    """
    cluster = workspace.adopt(data_dir, installation=installation, settings=settings)
    proof = RestoreProof(cluster.system_identifier)
    try:
        with proof.step("recovery"):
            cluster.start(timeout)
            proof.was_paused = _wait_recovered(cluster, timeout)
        with proof.step("content"):
            _check_tablespaces(cluster, tablespaces)
            for expectation in [rows] if not isinstance(rows, Sequence) else rows:
                with cluster.session(expectation.dbname) as session:
                    expectation.check(session)
            if sql is not None:
                with cluster.session() as session:
                    sql(session)
        if golden is not None:
            with proof.step("dump"):
                golden.compare(_dump(cluster))
        if proof.was_paused:
            with proof.step("promotion"):
                cluster.execute("SELECT pg_wal_replay_resume()")
                _wait_recovered(cluster, timeout)
        if amcheck:
            with proof.step("amcheck"):
                check_structure(cluster)
        if visibility:
            with proof.step("visibility"):
                check_visibility(cluster)
        with proof.step("stop"):
            cluster.stop("fast")
            control = cluster.control()
            _demand(control["Database cluster state"] == "shut down", "stop", str(control))
    finally:
        cluster.close()
    proof.timeline = int(control["Latest checkpoint's TimeLineID"])
    proof.checksums = control["Data page checksum version"] != "0"
    if proof.checksums:
        with proof.step("checksums"):
            result = cluster.run("pg_checksums", "--check", "-D", data_dir, check=False)
            _demand(result.returncode == 0, "pg_checksums", result.stdout + result.stderr)
    return proof


def _demand(holds: bool, step: str, words: str) -> None:
    if not holds:
        raise AssertionError(f"{step}: {words.strip()}")


def _wait_recovered(cluster: Cluster, timeout: float) -> bool:
    """Wait until recovery has ended (False) or is paused (True). Raises ServerFailed with the log's tail."""
    deadline = time.monotonic() + timeout
    paused = "CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE false END"
    if cluster.major >= 14:
        # Before, a pause that has only been asked for looks like one.
        paused = "CASE WHEN pg_is_in_recovery() THEN pg_get_wal_replay_pause_state() = 'paused' ELSE false END"
    while True:
        try:
            recovering, is_paused = cluster.query(f"SELECT pg_is_in_recovery(), {paused}")[0]
        except psycopg2.Error as error:
            # Recovery may end between the two questions, and the server may stop at an error or its target.
            if not cluster.running:
                raise ServerFailed(f"{cluster} stopped in recovery:\n{cluster.log_tail()}") from error
            recovering, is_paused = True, False
        if not recovering or is_paused:
            return bool(is_paused)
        if time.monotonic() > deadline:
            raise ServerFailed(f"{cluster} recovers for more than {timeout} s:\n{cluster.log_tail()}")
        time.sleep(0.02)


def _check_tablespaces(cluster: Cluster, expected: Mapping[str, Path] | None) -> None:
    if expected is None:
        return
    rows = cluster.query(
        "SELECT spcname, pg_tablespace_location(oid) FROM pg_tablespace"
        " WHERE spcname NOT IN ('pg_default', 'pg_global')"
    )
    found = {name: Path(location) for name, location in rows}
    _demand(found == dict(expected), "tablespaces", f"found {found}, expected {dict(expected)}")


def _dump(cluster: Cluster) -> Golden:
    try:
        return golden_dump(cluster)
    except ServerFailed as error:
        raise AssertionError(f"dump: the restored cluster cannot be read: {error}") from error


def check_structure(cluster: Cluster) -> None:
    """Check every table and index of every database. Raises AssertionError naming what is damaged."""
    if cluster.major >= FIRST_WITH_PG_AMCHECK:
        options = ["--all", "--install-missing", "--heapallindexed", "--parent-check", "--no-strict-names"]
        result = cluster.run("pg_amcheck", *options, check=False)
        _demand(result.returncode == 0, "pg_amcheck", result.stdout + result.stderr)
        return
    _each_database(cluster, "amcheck", INDEX_CHECK, lambda rows: [])


def check_visibility(cluster: Cluster) -> None:
    """Check every visibility map of every database. Raises AssertionError naming relation and tuple."""
    _each_database(cluster, "pg_visibility", VISIBILITY_CHECK, lambda rows: rows)


def _each_database(
    cluster: Cluster,
    extension: str,
    statement: str,
    wrong: Callable[[list[tuple[Any, ...]]], list[tuple[Any, ...]]],
) -> None:
    for database in cluster.databases():
        try:
            cluster.execute(f"CREATE EXTENSION IF NOT EXISTS {extension}", dbname=database)
            found = wrong(cluster.query(statement, dbname=database))
        except psycopg2.Error as error:
            raise AssertionError(f"{extension} in database {database}: {error}") from error
        _demand(not found, extension, f"database {database}: {found}")
