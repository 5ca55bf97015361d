# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The oracle: it passes right restores of every major, and it notices every kind of wrong one."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import psycopg2.extensions
import pytest

from tests.lab import (
    Cluster,
    DdlStorm,
    Expectation,
    Installation,
    LiveWriter,
    Pgbench,
    Workspace,
    flip_byte,
    golden_dump,
    pgbench_consistent,
    prove_restore,
    sample_data,
)
from tests.lab.cluster import ServerFailed, Setting
from tests.lab.golden import Sequence, normalise
from tests.lab.reference import ReferenceArchive, ReferenceBackup

# Right restores


def test_a_busy_cluster_of_each_major_is_exact_at_every_kind_of_target(
    workspace: Workspace, pg: Installation, pg_major: Installation
) -> None:
    cluster = workspace.cluster(installation=pg_major)
    archive = ReferenceArchive(workspace)
    cluster.enable_archiving(archive.archive_command)
    cluster.create_tablespace("far")
    cluster.execute("CREATE TABLE kept TABLESPACE far AS SELECT generate_series(1, 1000) AS n")

    writer, load = LiveWriter(cluster), Pgbench(workspace, cluster, rate=200)
    storm = DdlStorm(workspace, cluster)
    with writer, load, storm:
        storm.wait_rounds(1)
        backup = ReferenceBackup(workspace, cluster)
        storm.wait_rounds(storm.rounds + 1)
        writer.wait_rows(writer.count + 20)
        moment = writer.moment("here")
        writer.wait_rows(writer.count + 20)
    cluster.wait_archived(cluster.switch_wal())

    def sums(session: psycopg2.extensions.connection) -> None:
        with contextlib.closing(session_in_bench(session)) as bench:
            pgbench_consistent(bench)

    targets: list[dict[str, Setting]] = [
        {"recovery_target_time": moment.time_text},
        {"recovery_target_lsn": moment.lsn},
        {"recovery_target_xid": str(moment.xid)},
        {"recovery_target_name": "here"},
    ]
    chosen = {pg_major.major % 4, (pg_major.major + 1) % 4}
    for number, target in enumerate(targets):
        if number not in chosen and pg_major != pg:
            continue
        storm.clear()
        action = ("pause", "promote")[number % 2]
        name = f"restored-{number}"
        restored = backup.restore(name, archive.restore_command, recovery_target_action=action, **target)
        thorough = number == pg_major.major % len(targets)
        proof = prove_restore(
            workspace,
            restored.data_dir,
            rows=writer.expect(moment),
            sql=sums,
            amcheck=thorough,
            visibility=thorough,
        )
        assert proof.timeline == 2
        assert proof.was_paused is (action == "pause")
        assert proof.checksums
        assert proof.system_identifier == cluster.system_identifier


def session_in_bench(session: psycopg2.extensions.connection) -> psycopg2.extensions.connection:
    """A session in pgbench's database of the same server."""
    where = session.get_dsn_parameters()
    return psycopg2.connect(host=where["host"], port=where["port"], user=where["user"], dbname="bench")


def test_a_quiet_cluster_of_each_major_equals_its_golden_dump(workspace: Workspace, pg_major: Installation) -> None:
    cluster = workspace.cluster(installation=pg_major)
    archive = ReferenceArchive(workspace)
    cluster.enable_archiving(archive.archive_command)
    far = cluster.create_tablespace("far")
    sample_data(cluster, 2)
    backup = ReferenceBackup(workspace, cluster)
    cluster.execute(
        "CREATE ROLE reader; GRANT SELECT ON orders TO reader;"
        "CREATE SEQUENCE numbers INCREMENT BY -5 MINVALUE -1000; SELECT nextval('numbers');"
        "CREATE TABLE counted (id bigint GENERATED ALWAYS AS IDENTITY, n int) TABLESPACE far;"
        "INSERT INTO counted (n) SELECT generate_series(1, 10);"
        "CREATE UNLOGGED TABLE lost AS SELECT 1 AS n;"
        "SELECT lo_create(4711), lo_put(4711, 0, 'large');"
        "DELETE FROM orders WHERE id < 50"
    )
    golden = golden_dump(cluster)
    cluster.wait_archived(cluster.switch_wal())
    restored = backup.restore("restored", archive.restore_command)
    assert len(restored.tablespaces) == 1
    oid = next(iter(restored.tablespaces))
    proof = prove_restore(
        workspace,
        restored.data_dir,
        golden=golden,
        tablespaces={"far": restored.tablespaces[oid]},
    )
    assert golden.sequences.keys() == {"postgres public.numbers", "postgres public.counted_id_seq"}
    steps = "recovery content dump amcheck visibility stop checksums"
    assert " ".join(proof.seconds) == steps
    assert far.exists()


# Wrong restores


def stopped(cluster: Cluster) -> Path:
    """A data directory that could be a restore's."""
    cluster.checkpoint()
    cluster.stop()
    return cluster.data_dir


def wrong(workspace: Workspace, cluster: Cluster, words: str, **checks: Any) -> None:
    """Demand that the oracle finds something wrong, in these words."""
    with pytest.raises(AssertionError, match=words):
        prove_restore(workspace, cluster.data_dir, **checks)


def test_a_changed_row_or_grant_or_database_differs_from_the_golden_dump(
    workspace: Workspace, cluster: Cluster
) -> None:
    cluster.execute("CREATE TABLE t AS SELECT generate_series(1, 9) AS n; CREATE ROLE reader")
    golden = golden_dump(cluster)
    for statement, sign in [
        ("DELETE FROM t WHERE n = 5", "-5"),
        ("INSERT INTO t VALUES (5), (10)", r"\+10"),
        ("GRANT SELECT ON t TO reader", r"\+GRANT SELECT"),
        ("CREATE DATABASE extra", r"\+CREATE DATABASE extra"),
    ]:
        cluster.execute(statement)
        with pytest.raises(AssertionError, match=rf"(?m)golden dump(.|\n)*^{sign}"):
            golden.compare(golden_dump(cluster))
    stopped(cluster)
    wrong(workspace, cluster, "differs from the golden dump", golden=golden)


def test_a_lost_and_an_extra_row_of_the_writer_are_named(workspace: Workspace, cluster: Cluster) -> None:
    with LiveWriter(cluster) as writer:
        writer.wait_rows(5)
    stopped(cluster)
    exact = writer.expect_all()
    prove_restore(workspace, cluster.data_dir, rows=exact, amcheck=False, visibility=False)
    fewer = Expectation(exact.table, exact.dbname, exact.must - {3}, frozenset())
    wrong(workspace, cluster, r"1 rows too many \(3\)", rows=[exact, fewer])
    more = Expectation(exact.table, exact.dbname, exact.must | {999_999})
    wrong(workspace, cluster, r"1 committed rows are lost \(999999\)", rows=more)
    nothing = Expectation("no_such_table", exact.dbname, frozenset({1, 2}))
    wrong(workspace, cluster, "2 committed rows are lost", rows=nothing)


def test_a_missing_or_moved_tablespace_is_noticed(workspace: Workspace, cluster: Cluster) -> None:
    path = cluster.create_tablespace("far")
    stopped(cluster)
    proof = prove_restore(workspace, cluster.data_dir, tablespaces={"far": path}, amcheck=False)
    assert proof.timeline == 1
    wrong(workspace, cluster, "tablespaces: found", tablespaces={"far": Path("/elsewhere")})
    wrong(workspace, cluster, "tablespaces: found", tablespaces={})


def test_a_damaged_page_fails_its_checksum(workspace: Workspace, cluster: Cluster) -> None:
    cluster.execute("CREATE TABLE t AS SELECT generate_series(1, 100) AS n")
    heap = cluster.relation_path("t")
    stopped(cluster)
    # Between the line pointers and the tuples nothing is used: only the checksum covers it.
    flip_byte(heap, 1000)
    wrong(workspace, cluster, "pg_checksums: (.|\n)*checksum verification failed", amcheck=False, visibility=False)
    wrong(workspace, cluster, "pg_amcheck: (.|\n)*invalid page")


def test_a_changed_value_without_checksums_contradicts_its_index(workspace: Workspace, pg: Installation) -> None:
    cluster = workspace.cluster(installation=pg, checksums=False)
    cluster.execute("CREATE TABLE t AS SELECT 'value ' || n AS v FROM generate_series(1, 100) n")
    cluster.execute("CREATE INDEX t_v ON t (v)")
    heap = cluster.relation_path("t")
    stopped(cluster)
    prove_restore(workspace, cluster.data_dir)
    flip_byte(heap, heap.read_bytes().index(b"value 77"), 0x01)
    wrong(workspace, cluster, "pg_amcheck: (.|\n)*lacks matching index tuple")


def test_a_false_visibility_bit_is_noticed(workspace: Workspace, pg_major: Installation) -> None:
    cluster = workspace.cluster(installation=pg_major, checksums=False, settings={"autovacuum": False})
    cluster.execute("CREATE TABLE t AS SELECT generate_series(1, 100) AS n")
    cluster.execute("VACUUM (FREEZE) t")
    cluster.execute("DELETE FROM t WHERE n = 50")
    heap = cluster.relation_path("t")
    stopped(cluster)
    prove_restore(workspace, cluster.data_dir, amcheck=False)
    # Behind the page header (24 bytes), two bits for each page of the table: all visible, all frozen.
    flip_byte(heap.with_name(f"{heap.name}_vm"), 24, 0x03)
    wrong(workspace, cluster, "pg_visibility: database postgres: .*pg_check_frozen")


def test_a_statement_of_the_users_may_object(workspace: Workspace, cluster: Cluster) -> None:
    stopped(cluster)

    def object_to_it(session: psycopg2.extensions.connection) -> None:
        with session.cursor() as cursor:
            cursor.execute("SELECT current_setting('archive_mode'), current_setting('listen_addresses')")
            assert cursor.fetchone() == ("on", ""), "not archiving"

    wrong(workspace, cluster, "not archiving", sql=object_to_it)


def test_a_target_that_is_never_reached_is_an_error(workspace: Workspace, cluster: Cluster) -> None:
    archive = ReferenceArchive(workspace)
    cluster.enable_archiving(archive.archive_command)
    backup = ReferenceBackup(workspace, cluster)
    cluster.wait_archived(cluster.switch_wal())
    restored = backup.restore("restored", archive.restore_command, recovery_target_name="never")
    with pytest.raises(ServerFailed, match="recovery ended before configured recovery target was reached"):
        prove_restore(workspace, restored.data_dir)


def test_a_backup_without_its_wal_is_an_error(workspace: Workspace, cluster: Cluster) -> None:
    archive = ReferenceArchive(workspace)
    cluster.enable_archiving(archive.archive_command)
    backup = ReferenceBackup(workspace, cluster)
    restored = backup.restore("restored", "false")
    with pytest.raises(ServerFailed, match="could not locate required checkpoint record"):
        prove_restore(workspace, restored.data_dir)


# The normalised dump


def test_random_keys_versions_and_directories_do_not_count() -> None:
    dumps = [
        f"\\restrict {key}\n-- Dumped from database version {version}\nCREATE TABLE t ();\n"
        f"CREATE TABLESPACE far OWNER postgres LOCATION '/{key}';\n\\unrestrict {key}\n"
        for key, version in (("abc", "17.1"), ("xyz", "17.2"))
    ]
    first, second = map(normalise, dumps)
    first.compare(second)
    assert first.text == "CREATE TABLE t ();\nCREATE TABLESPACE far OWNER postgres LOCATION '';"


SEQUENCE_DUMP = """\\connect shop
CREATE SEQUENCE public.numbers
    START WITH 1
    INCREMENT BY {increment}
    NO MINVALUE;
SELECT pg_catalog.setval('public.numbers', {value}, {called});
"""


@pytest.mark.parametrize(
    ("increment", "before", "after", "right"),
    [
        (1, (7, "true"), (7, "true"), True),
        (1, (7, "true"), (39, "true"), True),
        (1, (7, "true"), (40, "true"), False),
        (1, (7, "true"), (6, "true"), False),
        (-5, (-10, "true"), (-170, "true"), True),
        (-5, (-10, "true"), (-5, "true"), False),
        (1, (1, "false"), (1, "true"), True),
        (1, (1, "true"), (1, "false"), False),
    ],
)
def test_replay_may_skip_values_of_a_sequence_but_not_repeat_any(
    increment: int, before: tuple[int, str], after: tuple[int, str], right: bool
) -> None:
    golden, restored = (
        normalise(SEQUENCE_DUMP.format(increment=increment, value=value, called=called))
        for value, called in (before, after)
    )
    assert golden.sequences == {"shop public.numbers": Sequence(before[0], before[1] == "true", increment)}
    if right:
        golden.compare(restored)
        return
    with pytest.raises(AssertionError, match="sequences differ"):
        golden.compare(restored)
