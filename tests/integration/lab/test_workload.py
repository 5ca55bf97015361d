# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The writer's expectations, pgbench, and the storm of statements that move files."""

from __future__ import annotations

import contextlib
import datetime

import psycopg2
import pytest

from tests.lab import Cluster, DdlStorm, Installation, LiveWriter, Pgbench, Workspace, pgbench_consistent


def lsn_text(position: int) -> str:
    """A byte position in PostgreSQL's notation."""
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


def test_the_writer_expects_what_was_committed_up_to_a_moment(cluster: Cluster) -> None:
    with LiveWriter(cluster, interval=0) as writer:
        writer.wait_rows(10)
        moment = writer.moment("here")
        writer.wait_rows(moment.last_id + 10)
    assert moment.last_id >= 10
    assert moment.time.tzinfo is not None
    assert datetime.datetime.fromisoformat(moment.time_text) == moment.time
    exact = frozenset(range(1, moment.last_id + 1))
    for expectation in (
        writer.expect(moment),
        writer.expect_time(moment.time),
        writer.expect_lsn(moment.lsn),
    ):
        assert expectation.must == exact
        assert expectation.may == frozenset()
    assert writer.expect_all().must == frozenset(range(1, writer.count + 1))
    with cluster.session() as session:
        writer.expect_all().check(session)
        with pytest.raises(AssertionError, match="rows too many"):
            writer.expect(moment).check(session)


def test_what_the_writer_recorded_is_what_the_server_has(cluster: Cluster) -> None:
    with LiveWriter(cluster) as writer:
        writer.wait_rows(20)
    stored = dict(cluster.query("SELECT id, pg_xact_commit_timestamp(xmin) FROM lab_rows"))
    assert stored == {row.id: row.committed_at for row in writer.rows}
    for row, following in zip(writer.rows, writer.rows[1:], strict=False):
        assert row.begin_lsn < row.end_lsn <= following.begin_lsn
        assert row.committed_at <= row.acknowledged_at < following.committed_at


def test_a_target_inside_a_transaction_leaves_its_row_open(cluster: Cluster) -> None:
    with LiveWriter(cluster) as writer:
        writer.wait_rows(20)
    row = writer.rows[9]
    expectation = writer.expect_lsn(lsn_text(row.begin_lsn + 1))
    assert (expectation.must, expectation.may) == (frozenset(range(1, 10)), frozenset({10}))
    assert writer.expect_lsn(lsn_text(row.end_lsn)).must == frozenset(range(1, 11))
    before = row.committed_at - datetime.timedelta(microseconds=1)
    assert writer.expect_time(before).must == frozenset(range(1, 10))
    assert 10 not in writer.expect_time(before).may
    at_commit = writer.expect_time(row.committed_at)
    assert 10 in at_commit.must | at_commit.may


def test_nothing_is_committed_while_the_writer_is_paused(cluster: Cluster) -> None:
    with LiveWriter(cluster, interval=0) as writer:
        with writer.paused() as moment:
            first = cluster.value("SELECT max(id) FROM lab_rows")
            assert first == moment.last_id == cluster.value("SELECT max(id) FROM lab_rows")
        writer.wait_rows(moment.last_id + 5)


def test_a_crash_leaves_at_most_the_row_in_flight_open(cluster: Cluster) -> None:
    writer = LiveWriter(cluster, interval=0).start()
    writer.wait_rows(20)
    cluster.kill()
    writer.stop(check=False)
    assert isinstance(writer.error, psycopg2.Error)
    expectation = writer.expect_all()
    assert len(expectation.may) <= 1
    cluster.start()
    with cluster.session() as session:
        expectation.check(session)
    with pytest.raises(psycopg2.Error):
        writer.stop()


def test_the_writer_demands_commit_timestamps(workspace: Workspace, pg: Installation) -> None:
    cluster = workspace.cluster(installation=pg, settings={"track_commit_timestamp": False})
    with pytest.raises(ValueError, match="track_commit_timestamp"):
        LiveWriter(cluster).start()


@pytest.mark.parametrize("tablespaces", ["directory", "in_place"])
def test_the_storm_blows_and_leaves_only_its_database(workspace: Workspace, cluster: Cluster, tablespaces: str) -> None:
    with DdlStorm(workspace, cluster, tablespaces=tablespaces) as storm:
        storm.wait_rounds(3)
    assert storm.rounds >= 3
    assert cluster.value("SELECT count(*) FROM pg_tablespace") == 2
    assert "storm" in cluster.databases()
    assert not any(name.startswith("storm_") for name in cluster.databases())
    assert list((cluster.data_dir / "pg_tblspc").iterdir()) == []
    assert cluster.value("SELECT count(*) FROM storm_wide", dbname="storm") == 40
    storm.clear()


def test_pgbench_loads_and_its_sums_agree(workspace: Workspace, cluster: Cluster) -> None:
    with Pgbench(workspace, cluster) as load:
        while load.transactions < 50:
            pass
    with contextlib.closing(cluster.connect("bench")) as session:
        pgbench_consistent(session)
        with session.cursor() as cursor:
            cursor.execute("UPDATE pgbench_tellers SET tbalance = tbalance + 1 WHERE tid = 3")
        with pytest.raises(AssertionError, match="torn"):
            pgbench_consistent(session)
