# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was streamed is restored when its server is gone, and never stands in the way of what was archived."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from cryobackup.repository import names
from tests.integration.restore.lab import RestoreLab
from tests.lab import Cluster, Installation, LiveWriter, Workspace, golden_dump, prove_restore, wait_until

from .stream import Stream, parts

QUICK = {"amcheck": False, "visibility": False}


@pytest.fixture
def restores(workspace: Workspace, runtime: Path, cluster: Cluster) -> RestoreLab:
    """With a backup."""
    made = RestoreLab(workspace, runtime, cluster)
    cluster.execute("CREATE TABLE numbers (n int PRIMARY KEY)")
    made.backup()
    return made


def count(restores: RestoreLab, target: str, *options: str) -> int:
    """Rows after a restore."""
    restores.restore(target, *options)
    found: list[int] = []

    def look(session) -> None:
        with session.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM numbers")
            found.extend(cursor.fetchone())

    prove_restore(restores.workspace, restores.place(target), sql=look, **QUICK)
    return found[0]


def insert(cluster: Cluster, number: int, rows: int = 1) -> None:
    cluster.execute("INSERT INTO numbers SELECT generate_series(%s, %s)", number, number + rows - 1)


def fetch(restores: RestoreLab, name: str, *options: str) -> tuple[int, Path]:
    """Exit code of wal-get, asked as a recovery does that goes on in this directory."""
    place = restores.workspace.path / "recovering"
    if not place.exists():
        restores.workspace.directory(place.name)
    target = place / "RECOVERYXLOG"
    target.unlink(missing_ok=True)
    words = [*restores.command, "wal-get", "--system-identifier", str(restores.cluster.system_identifier), *options]
    return restores.workspace.run([*words, name, str(target)], check=False, cwd=place).returncode, target


def current(cluster: Cluster) -> str:
    return str(cluster.value("SELECT pg_walfile_name(pg_current_wal_lsn())"))


def test_every_commit_survives_its_host(workspace: Workspace, runtime: Path, pg_major: Installation) -> None:
    cluster = workspace.cluster(installation=pg_major)
    lab = RestoreLab(workspace, runtime, cluster)
    writer = LiveWriter(cluster).start()
    with Stream(lab) as stream:
        writer.wait_rows(50)
        lab.backup()
        for _unused in range(3):
            writer.wait_rows(writer.count + 100)
            cluster.switch_wal()
        writer.wait_rows(writer.count + 100)
        with writer.paused():
            stream.wait_stored()
            golden = golden_dump(cluster)
            last = current(cluster)
            cluster.kill()
            rows = writer.expect_all()
        writer.stop(check=False)
    assert not (lab.locations["local"] / names.wal(int(cluster.system_identifier), last)).exists()
    lab.restore("copy")
    prove_restore(workspace, lab.place("copy"), golden=golden, rows=rows)


def test_without_what_was_streamed_the_last_segment_is_lost(restores: RestoreLab) -> None:
    """Else the other tests would prove nothing."""
    insert(restores.cluster, 1)
    restores.archive_everything()
    insert(restores.cluster, 2)
    restores.cluster.kill()
    assert count(restores, "copy") == 1


def test_the_server_dies_before_the_interval_is_over(restores: RestoreLab) -> None:
    """What has come is stored when the server has gone."""
    with Stream(restores, "--interval", "60") as stream:
        wait_until(
            lambda: restores.cluster.value("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == 1
        )
        insert(restores.cluster, 1)
        wait_until(
            lambda: restores.cluster.value("SELECT sent_lsn = pg_current_wal_flush_lsn() FROM pg_stat_replication"),
            "all sent",
        )
        restores.cluster.stop("immediate")
        wait_until(lambda: bool(parts(restores)), "the rest is stored")
        assert "streaming is interrupted" in stream.log.read_text()
    assert count(restores, "copy") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_streams_are_not_mixed_and_the_longest_counts(restores: RestoreLab, number: signal.Signals) -> None:
    with Stream(restores) as stream:
        insert(restores.cluster, 1)
        stream.wait_stored()
        stream.end(number)
    (older,) = {part.stream for part in parts(restores)}
    # A crash of the server: what follows may be other bytes than those that were under way.
    restores.cluster.kill()
    restores.cluster.start()
    with Stream(restores) as stream:
        insert(restores.cluster, 2)
        stream.wait_stored()
    assert len({part.stream for part in parts(restores)}) == 2
    restores.cluster.kill()
    assert count(restores, "all") == 2
    for part, path in parts(restores).items():
        if part.stream != older and part.begin == 0:
            path.unlink()
    assert count(restores, "first") == 1


def test_a_finished_segment_that_was_never_archived(restores: RestoreLab) -> None:
    """The location is there for the stream, but archive_command fails: parts of several segments make up for it."""
    restores.cluster.configure(archive_command="false")
    with Stream(restores) as stream:
        stream.wait_stored()
        for number in range(3):
            insert(restores.cluster, number)
            restores.cluster.switch_wal()
        insert(restores.cluster, 3)
        stream.wait_stored()
    restores.cluster.kill()
    assert count(restores, "copy") == 4


def test_what_is_archived_counts(restores: RestoreLab) -> None:
    """And prune takes away what was streamed of it, not what is needed."""
    with Stream(restores) as stream:
        insert(restores.cluster, 1)
        stream.wait_stored()
        archived = current(restores.cluster)
        restores.archive_everything()
        insert(restores.cluster, 2)
        stream.wait_stored()
        unfinished = current(restores.cluster)
    assert {part.segment for part in parts(restores)} >= {archived, unfinished}
    code, target = fetch(restores, archived)
    assert code == 0
    assert target.read_bytes() == (restores.cluster.data_dir / "pg_wal" / archived).read_bytes()
    restores.settings["retention"] = {"full": {"keep_last": 1}, "minimum": 1}
    restores.write_config()
    planned = json.loads(restores.run("--json", "prune", "--dry-run").stdout)["locations"]["local"]
    assert planned["marked"] >= len({part.segment for part in parts(restores)} - {unfinished})
    restores.run("prune", "--grace", "0", check=True)
    assert {part.segment for part in parts(restores)} == {unfinished}
    restores.cluster.kill()
    assert count(restores, "copy") == 2


def test_a_server_that_kept_its_wal_keeps_it(restores: RestoreLab) -> None:
    """Recovery asks the archive first: what was streamed must not replace more than itself."""
    with Stream(restores) as stream:
        insert(restores.cluster, 1)
        stream.wait_stored()
        segment = current(restores.cluster)
    code, target = fetch(restores, segment)
    assert code == 0
    streamed = target.read_bytes()
    insert(restores.cluster, 2)
    restores.cluster.stop("immediate")
    place = target.parent
    kept = place / segment
    kept.write_bytes((restores.cluster.data_dir / "pg_wal" / segment).read_bytes())
    assert fetch(restores, segment)[0] == 1
    # The same, or less, or another segment in a file that was made in advance.
    kept.write_bytes(streamed)
    assert fetch(restores, segment)[0] == 1
    half = len(streamed.rstrip(b"\0")) // 2
    kept.write_bytes(streamed[:half].ljust(len(streamed), b"\0"))
    assert fetch(restores, segment)[0] == 0
    kept.write_bytes(streamed[:8] + bytes(8) + streamed[16:])
    assert fetch(restores, segment)[0] == 0


def test_a_restore_in_place_loses_nothing_of_either(restores: RestoreLab) -> None:
    """pg_wal of the crashed server has more than was streamed; that of a server that lost its disk has nothing."""
    with Stream(restores) as stream:
        insert(restores.cluster, 1)
        stream.wait_stored()
    insert(restores.cluster, 2)
    restores.cluster.stop("immediate")
    assert count(restores, "blank") == 1
    place = restores.cluster.data_dir
    (place / "global" / "pg_filenode.map").unlink()
    restores.restore(place, "--delta")
    restores.cluster.start()
    wait_until(lambda: not restores.cluster.value("SELECT pg_is_in_recovery()"), "the end of recovery")
    assert restores.cluster.value("SELECT count(*) FROM numbers") == 2


def test_nobody_gets_it_who_must_not(restores: RestoreLab) -> None:
    with Stream(restores) as stream:
        insert(restores.cluster, 1)
        stream.wait_stored()
        segment = current(restores.cluster)
    code, target = fetch(restores, segment)
    assert (code, target.stat().st_size) == (0, 16 << 20)
    assert fetch(restores, segment, "--archived-only")[0] == 1
    assert fetch(restores, segment.replace("00000001", "00000002", 1))[0] == 1
    (target.parent / "standby.signal").touch()
    assert fetch(restores, segment)[0] == 1


@pytest.mark.parametrize("harm", ["flipped", "swapped", "cut"])
def test_damage_is_not_the_end_of_the_wal(restores: RestoreLab, harm: str) -> None:
    with Stream(restores) as stream:
        for number in range(3):
            insert(restores.cluster, number)
            stream.wait_stored()
        segment = current(restores.cluster)
    found = sorted(parts(restores).items())
    assert len(found) >= 3
    path = found[1][1]
    data = path.read_bytes()
    path.unlink()
    if harm == "flipped":
        path.write_bytes(data[:-60] + bytes([data[-60] ^ 1]) + data[-59:])
    elif harm == "swapped":
        path.write_bytes(found[0][1].read_bytes())
    else:
        path.write_bytes(data[:-100])
    code, target = fetch(restores, segment)
    assert code == 200
    assert not target.exists()
    assert fetch(restores, segment, "--archived-only")[0] == 1


def test_a_promoted_server_is_followed(restores: RestoreLab) -> None:
    """Its timeline's history may not be archived yet: then the stream brings it, too."""
    cluster = restores.cluster
    insert(cluster, 1)
    restores.archive_everything()
    cluster.stop()
    (cluster.data_dir / "recovery.signal").touch()
    restores.workspace.account.own(cluster.data_dir / "recovery.signal")
    cluster.configure(archive_command="false", restore_command="false")
    cluster.start()
    wait_until(lambda: not cluster.value("SELECT pg_is_in_recovery()"), "the promotion")
    with Stream(restores) as stream:
        insert(cluster, 2)
        stream.wait_stored()
    cluster.kill()
    assert count(restores, "copy") == 2
    history = restores.locations["local"] / names.wal(int(cluster.system_identifier), "00000002.history")
    assert history.exists()


def test_a_goal_in_what_was_streamed(restores: RestoreLab) -> None:
    with Stream(restores) as stream:
        insert(restores.cluster, 1)
        restores.cluster.execute("SELECT pg_create_restore_point('here')")
        lsn = str(restores.cluster.value("SELECT pg_current_wal_lsn()"))
        insert(restores.cluster, 2)
        stream.wait_stored()
    restores.cluster.kill()
    assert count(restores, "name", "--to-name", "here") == 1
    assert count(restores, "lsn", "--to-lsn", lsn) == 1


def test_a_location_that_does_not_answer(workspace: Workspace, runtime: Path, cluster: Cluster) -> None:
    """An optional one holds up nothing; a required one interrupts, and what is missed comes with the next stream."""
    lab = RestoreLab(workspace, runtime, cluster, locations={"near": True, "far": False})
    cluster.execute("CREATE TABLE numbers (n int PRIMARY KEY)")
    lab.backup()
    with Stream(lab) as stream:
        insert(cluster, 1)
        stream.wait_stored()
        wait_until(lambda: parts(lab, "far").keys() == parts(lab, "near").keys(), "the optional one has it, too")
        with lab.stores["far"].away():
            insert(cluster, 2)
            stream.wait_stored()
        with lab.stores["near"].away():
            insert(cluster, 3)
            wait_until(lambda: "streaming is interrupted" in stream.log.read_text(), "it is told")
        insert(cluster, 4)
        stream.wait_stored()
    cluster.kill()
    assert count(lab, "copy") == 4


def test_a_slot(restores: RestoreLab) -> None:
    """Made when it is not there; what it keeps moves on with what is stored. Without one, nobody waits for us."""
    cluster = restores.cluster
    with Stream(restores) as stream:
        stream.wait_stored()
        assert cluster.value("SELECT flush_lsn IS NULL FROM pg_stat_replication")
    for number in range(2):
        with Stream(restores, "--slot", "cryobackup") as stream:
            insert(cluster, number)
            stream.wait_stored()
            wait_until(
                lambda: bool(
                    cluster.value(
                        "SELECT bool_and(active AND restart_lsn = pg_current_wal_flush_lsn()) FROM pg_replication_slots"
                    )
                ),
                "the slot moves on",
            )
    cluster.execute("SELECT pg_drop_replication_slot('cryobackup')")


def test_mistakes(restores: RestoreLab, workspace: Workspace, cluster: Cluster) -> None:
    def said(*options: str) -> str:
        result = restores.run("wal-stream", "main", *options)
        assert result.returncode == 2
        return result.stderr

    assert "Slot" in said("--slot", "Slot")
    assert "0.1" in said("--interval", "0")
    other = workspace.cluster("other")
    restores.set(connection=other.conninfo)
    with Stream(restores) as stream:
        wait_until(lambda: "system identifier" in stream.log.read_text(), "it is told")
        restores.set(connection=cluster.conninfo)
        stream.wait_stored(cluster)
        second = restores.run("wal-stream", "main")
        assert second.returncode == 1
        assert "running already" in second.stderr
    assert parts(restores)
