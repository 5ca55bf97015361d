# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever changes the files of a cluster, in an order that a seed decides.

What there is to be changed is asked of the server each time, so that a crash may undo what it likes. One statement
runs at a time: when a step has returned, nothing goes on.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import psycopg2.errors

from tests.integration.restore.lab import wait_promoted

if TYPE_CHECKING:
    from tests.lab import Cluster

SETTINGS: dict[str, str | int | bool] = {
    "autovacuum": False,
    # Pages reach the disk by checkpoints, not at a moment of its own.
    "bgwriter_lru_maxpages": 0,
    "max_prepared_transactions": 4,
    "lock_timeout": "60s",
}
"""Of a cluster that is changed: nothing in it happens by itself."""

SIDE = "side"
"""A tablespace in a directory of its own, there from the beginning. Others come and go, and are in place."""

_TABLES = 7
_DATABASES = 2
_LARGE_BYTES = 2_000_000
_FIRST_OID = 70001
_INDEXES = (
    "USING btree (grp, id)",
    "USING btree (note) WHERE length(note) < 500",
    "USING hash (id)",
    "USING gin (tags)",
    "USING gist (point(id, grp))",
    "USING spgist (point(id, grp))",
    "USING brin (id) WITH (pages_per_range = 4)",
)
_VACUUMS = (
    *("", "", "(FREEZE)", "(FREEZE, DISABLE_PAGE_SKIPPING)", "(FULL)", "(FULL, FREEZE)", "(INDEX_CLEANUP off)"),
    *("(INDEX_CLEANUP on)", "(TRUNCATE off)", "(ANALYZE)"),
)
_CATALOGS = ("pg_class", "pg_attribute", "pg_proc", "pg_depend", "pg_database", "pg_largeobject", "pg_statistic")


class RandomChanges:
    """``step`` makes one change. ``done`` has the words of all that were made."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.cluster = cluster
        self.done: list[str] = []
        self._random = random.Random(seed)
        self._number = 0
        self._steps: list[tuple[Callable[[], None], int]] = [
            *((self.insert, 14), (self.copy, 8), (self.update, 10), (self.update_key, 4), (self.delete_some, 6)),
            *((self.delete_tail, 6), (self.vacuum, 14), (self.look, 5), (self.truncate, 3), (self.drop_table, 3)),
            *((self.create_table, 4), (self.create_index, 5), (self.drop_index, 2), (self.reindex, 4)),
            *((self.move_table, 4), (self.persistence, 3), (self.rewrite, 2), (self.sequence, 4)),
            *((self.large_object, 2), (self.temporary, 1), (self.roll_back, 3), (self.catalogs, 3)),
            *((self.prepare, 2), (self.create_database, 4), (self.drop_database, 3), (self.move_database, 1)),
            *((self.create_tablespace, 2), (self.drop_tablespace, 2), (self.checkpoint, 3)),
            *((self.crash, 2), (self.restart, 1), (self.new_timeline, 1)),
        ]

    def begin(self) -> None:
        """What there is before the first backup."""
        self.cluster.create_tablespace(SIDE)
        self._run("CREATE SEQUENCE numbers")
        self._run("CREATE TABLE ledger (id int)")
        self.create_database()
        for _unused in range(3):
            self.create_table()
            self.insert()

    def steps(self, count: int) -> None:
        weights = [weight for _unused, weight in self._steps]
        for step, _unused in self._random.choices(self._steps, weights, k=count):
            step()

    # Rows

    def insert(self) -> None:
        table, dbname = self._table()
        if table is None:
            self.create_table()
            return
        first, count = self._random.randrange(100_000), self._random.choice((1, 100, 2000, 2000))
        if self._bytes(table, dbname) > _LARGE_BYTES:
            count = 1
        note = self._random.choice(("md5(n::text)", "repeat(md5(n::text), n % 40)", "NULL"))
        self._run(
            f"INSERT INTO {table} SELECT n, n % 97, 0, {note}, ARRAY[n % 10, n % 7]"
            f" FROM generate_series({first}, {first + count - 1}) n",
            dbname,
        )

    def copy(self) -> None:
        """Extends the file by many pages at once; those that it does not need stay zero, and WAL knows nothing of them.

        Some end with a row that is none, and so in a rollback.
        """
        end = self._random.choice(("", "", "; echo none"))
        with contextlib.suppress(psycopg2.errors.InvalidTextRepresentation):
            self._in_table(
                lambda table: f"COPY {table} (id) FROM PROGRAM 'seq 1 {self._random.choice((300, 4000))}{end}'"
            )

    def update(self) -> None:
        """Of a column without an index: where a page has room, no index changes."""
        self._in_table(lambda table: f"UPDATE {table} SET amount = amount + 1 WHERE id % {self._some()} = 0")

    def update_key(self) -> None:
        change = "id = id + 100000, grp = grp + 1"
        self._in_table(lambda table: f"UPDATE {table} SET {change} WHERE id % {self._some()} = 1")

    def delete_some(self) -> None:
        self._in_table(lambda table: f"DELETE FROM {table} WHERE id % {self._some()} = 0")

    def delete_tail(self) -> None:
        """So that VACUUM can cut the file."""
        page = self._random.choice((0, 1, 5, 40, 100))
        table = self._in_table(lambda table: f"DELETE FROM {table} WHERE ctid >= '({page},1)'::tid")
        if table is not None and self._random.random() < 0.7:
            self._run(f"VACUUM {table[0]}", table[1])

    def vacuum(self) -> None:
        self._in_table(lambda table: f"VACUUM {self._random.choice(_VACUUMS)} {table}")

    def look(self) -> None:
        """Sets hint bits, and prunes pages."""
        scan = self._random.choice(("enable_seqscan", "enable_indexscan"))
        self._in_table(lambda table: f"SET {scan} = off; SELECT count(note) FROM {table} WHERE id > 1000")

    def sequence(self) -> None:
        count = self._random.choice((1, 10, 40, 1000))
        statement = f"SELECT nextval('numbers') FROM generate_series(1, {count})"
        self._run(self._random.choice((statement, statement, "ALTER SEQUENCE numbers RESTART WITH 5")))

    def large_object(self) -> None:
        self._run(f"SELECT lo_from_bytea(0, decode(repeat('ab', {self._random.choice((10, 5000, 200_000))}), 'hex'))")
        self._run("SELECT lo_unlink(oid) FROM pg_largeobject_metadata WHERE oid::int8 % 3 = 0")

    def prepare(self) -> None:
        prepared = [row[0] for row in self.cluster.query("SELECT gid FROM pg_prepared_xacts ORDER BY gid")]
        if prepared:
            self._run(f"{self._random.choice(('COMMIT', 'ROLLBACK'))} PREPARED '{prepared[0]}'")
            return
        name = self._name("p")
        self._run(f"BEGIN; INSERT INTO ledger SELECT generate_series(1, 500); PREPARE TRANSACTION '{name}'")

    # Files

    def create_table(self) -> None:
        dbname = self._database()
        tables = self._tables(dbname)
        if len(tables) >= _TABLES:
            self.drop_table()
            return
        name = self._name("t")
        unlogged = self._random.choice(("", "", "", "UNLOGGED"))
        fill = self._random.choice((20, 70, 100))
        self._run(
            f"CREATE {unlogged} TABLE {name} (id int, grp int, amount int, note text, tags int[])"
            f" WITH (fillfactor = {fill}) TABLESPACE {self._tablespace()}; CREATE INDEX ON {name} (id)",
            dbname,
        )
        if self._random.random() < 0.5:
            self._run(f"ALTER TABLE {name} ALTER note SET STORAGE external", dbname)

    def truncate(self) -> None:
        self._in_table(lambda table: f"TRUNCATE {table}")

    def drop_table(self) -> None:
        self._in_table(lambda table: f"DROP TABLE {table}")

    def create_index(self) -> None:
        self._in_table(lambda table: f"CREATE INDEX ON {table} {self._random.choice(_INDEXES)}")

    def drop_index(self) -> None:
        dbname = self._database()
        indexes = self._ask("SELECT indexname FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1", dbname)
        if len(indexes) > 2:
            self._run(f"DROP INDEX {self._random.choice(indexes)}", dbname)

    def reindex(self) -> None:
        how = self._random.choice(("", "", "CONCURRENTLY"))
        self._in_table(lambda table: f"REINDEX TABLE {how} {table}")

    def move_table(self) -> None:
        self._in_table(lambda table: f"ALTER TABLE {table} SET TABLESPACE {self._tablespace()}")

    def persistence(self) -> None:
        kind = self._random.choice(("LOGGED", "UNLOGGED"))
        self._in_table(lambda table: f"ALTER TABLE {table} SET {kind}")

    def rewrite(self) -> None:
        kind = self._random.choice(("int", "bigint"))
        self._in_table(lambda table: f"ALTER TABLE {table} ALTER amount TYPE {kind}")

    def temporary(self) -> None:
        """Leaves dead rows in the catalogs."""
        self._run("CREATE TEMPORARY TABLE scratch AS SELECT n FROM generate_series(1, 3000) n", self._database())

    def catalogs(self) -> None:
        """Of these, some have their file's number in pg_filenode.map."""
        name = self._random.choice(_CATALOGS)
        how = ("VACUUM FULL {}", "VACUUM FREEZE {}", "REINDEX TABLE {}", "VACUUM {}", "ANALYZE {}")
        self._run(self._random.choice(how).format(name), self._database())

    def roll_back(self) -> None:
        table, dbname = self._table()
        name = self._name("undone")
        undo = f"CREATE TABLE {name} AS SELECT n FROM generate_series(1, 5000) n"
        more = f"; DELETE FROM {table} WHERE id % 5 = 0; TRUNCATE {table}" if table is not None else ""
        self._run(f"BEGIN; {undo}{more}; ROLLBACK", dbname)

    # Databases and tablespaces

    def create_database(self) -> None:
        present = self._databases()
        if len(present) >= _DATABASES + 1:
            self.drop_database()
            return
        template = self._random.choice([*(name for name in present if name != "postgres"), "template0"])
        strategy = self._random.choice(("wal_log", "file_copy", "file_copy"))
        # The number, and with it the directory, of one that was dropped.
        used = self._ask("SELECT oid FROM pg_database")
        oid = next(number for number in range(_FIRST_OID, _FIRST_OID + 10) if number not in used)
        with self._perhaps():
            self._run(
                f"CREATE DATABASE {self._name('d')} TEMPLATE {template} STRATEGY {strategy} OID {oid}"
                f" TABLESPACE {self._tablespace()}"
            )

    def drop_database(self) -> None:
        self._in_database(lambda name: f"DROP DATABASE {name} WITH (FORCE)")

    def move_database(self) -> None:
        with self._perhaps():
            self._in_database(lambda name: f"ALTER DATABASE {name} SET TABLESPACE {self._tablespace()}")

    def create_tablespace(self) -> None:
        if len(self._tablespaces()) < 4:
            self._run(f"CREATE TABLESPACE {self._name('s')} LOCATION ''")

    def drop_tablespace(self) -> None:
        name = self._tablespace()
        if name not in (SIDE, "pg_default"):
            with self._perhaps():
                self._run(f"DROP TABLESPACE {name}")

    # The server

    def checkpoint(self) -> None:
        self._run("CHECKPOINT")

    def crash(self) -> None:
        """In the midst of a transaction: what it wrote stays in files that nobody will remove."""
        table, dbname = self._table()
        mode = self._random.choice(("immediate", "kill"))
        self._flush()
        self.done.append(f"crash: {mode}")
        with self.cluster.session(dbname) as session, session.cursor() as cursor:
            name = self._name("lost")
            cursor.execute(f"BEGIN; CREATE TABLE {name} AS SELECT n FROM generate_series(1, 5000) n")
            if table is not None:
                cursor.execute(f"UPDATE {table} SET amount = 7; INSERT INTO {table} TABLE {table} LIMIT 1000")
            if self._random.random() < 0.5:
                self.checkpoint()
            if mode == "kill":
                self.cluster.kill()
            else:
                self.cluster.stop("immediate")
        self.cluster.start()

    def restart(self) -> None:
        self.done.append("restart")
        self.cluster.restart()

    def new_timeline(self) -> None:
        """As a standby without a primary, it replays what it has and is promoted."""
        mode = self._random.choice(("fast", "immediate"))
        self._flush()
        self.done.append(f"new timeline: {mode}")
        self.cluster.stop(mode)
        signal_file = self.cluster.data_dir / "standby.signal"
        signal_file.touch()
        self.cluster.account.own(signal_file)
        self.cluster.start()
        self.cluster.execute("SELECT pg_promote()")
        wait_promoted(self.cluster)

    def _flush(self) -> None:
        """A rollback's record is in no hurry to reach the disk, and without it the server may not start again.

        It finds the file of an unlogged relation that is gone, and fails to make it anew from its init fork
        (``ResetUnloggedRelations`` in ``reinit.c``).
        """
        self._run("INSERT INTO ledger VALUES (1)")

    # What there is

    def _run(self, statement: str, dbname: str = "postgres") -> None:
        self.done.append(f"{dbname}: {statement}")
        self.cluster.execute(statement, dbname=dbname)

    @staticmethod
    def _perhaps() -> contextlib.AbstractContextManager[None]:
        """The server may refuse: a tablespace is not empty, or a database has tables where it shall go."""
        return contextlib.suppress(psycopg2.errors.ObjectNotInPrerequisiteState, psycopg2.errors.FeatureNotSupported)

    def _ask(self, statement: str, dbname: str = "postgres") -> list[Any]:
        return [row[0] for row in self.cluster.query(statement, dbname=dbname)]

    def _name(self, prefix: str) -> str:
        self._number += 1
        return f"{prefix}{self._number}"

    def _some(self) -> int:
        return self._random.choice((2, 7, 50, 500))

    def _databases(self) -> list[str]:
        return [name for name in self.cluster.databases() if name != "template1"]

    def _database(self) -> str:
        return self._random.choice(self._databases())

    def _tables(self, dbname: str) -> list[str]:
        named = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename LIKE 't%' ORDER BY 1"
        return self._ask(named, dbname)

    def _table(self) -> tuple[str | None, str]:
        dbname = self._database()
        tables = self._tables(dbname)
        return (self._random.choice(tables) if tables else None), dbname

    def _bytes(self, table: str, dbname: str) -> int:
        return int(self._ask(f"SELECT pg_total_relation_size('{table}')", dbname)[0])

    def _tablespaces(self) -> list[str]:
        return self._ask("SELECT spcname FROM pg_tablespace WHERE spcname <> 'pg_global' ORDER BY 1")

    def _tablespace(self) -> str:
        return str(self._random.choice(self._tablespaces()))

    def _in_table(self, statement: Callable[[str], str]) -> tuple[str, str] | None:
        table, dbname = self._table()
        if table is None:
            return None
        self._run(statement(table), dbname)
        return table, dbname

    def _in_database(self, statement: Callable[[str], str]) -> None:
        names = [name for name in self._databases() if name != "postgres"]
        if names:
            self._run(statement(self._random.choice(names)))
