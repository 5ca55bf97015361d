# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups from a standby, and from a server that was one: what they hold is proven by restoring."""

from __future__ import annotations

import copy
import dataclasses
import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cryobackup.postgres.lsn import parse_lsn
from tests.integration.restore.lab import RestoreLab, wait_promoted
from tests.lab import Cluster, LiveWriter, Workspace, golden_dump, prove_restore, sample_data

from .test_incremental import exact
from .test_interrupted import start, wait_for_copying
from .test_wal_summaries import programs


@dataclasses.dataclass
class Pair:
    """Two hosts with one repository: a primary that archives, and its standby. Each has its own configuration."""

    at_primary: RestoreLab
    lab: RestoreLab
    """At the standby."""

    @property
    def primary(self) -> Cluster:
        return self.at_primary.cluster

    @property
    def standby(self) -> Cluster:
        return self.lab.cluster

    def follow(self) -> None:
        """The standby has replayed all there is on return."""
        lsn = self.primary.lsn()
        deadline = time.monotonic() + 60
        while not self.standby.value("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", lsn):
            assert time.monotonic() < deadline, self.standby.log_tail()
            time.sleep(0.05)

    def settle(self) -> None:
        """What the standby has is on its disk, and old enough to prove something."""
        self.primary.checkpoint()
        self.follow()
        self.standby.checkpoint()
        time.sleep(2.1)

    def promote(self) -> None:
        self.standby.execute("SELECT pg_promote()")
        wait_promoted(self.standby)


@pytest.fixture(params=["15", "17", "18"], ids=lambda major: f"pg{major}")
def pair(request: pytest.FixtureRequest, workspace: Workspace, runtime: Path) -> Iterator[Pair]:
    installation = programs(request.param)
    settings: dict[str, Any] = {"autovacuum": False, "wal_keep_size": "512MB"}
    if int(request.param) >= 17:
        settings["summarize_wal"] = True
    primary = workspace.cluster(installation=installation, settings=settings)
    at_primary = RestoreLab(workspace, runtime, primary)
    sample_data(primary, 8)
    directory = workspace.path / "standby"
    primary.run("pg_basebackup", "-D", directory, "-c", "fast")
    (directory / "standby.signal").touch()
    workspace.account.own(directory / "standby.signal")
    standby = workspace.adopt(directory, settings={"archive_mode": True, "primary_conninfo": primary.conninfo})
    lab = copy_of(at_primary, standby)
    standby.configure(archive_command=lab.archive_command)
    standby.start()
    lab.set(data_directory=str(standby.data_dir), connection=standby.conninfo)
    yield Pair(at_primary, lab)
    standby.stop()


def copy_of(lab: RestoreLab, cluster: Cluster) -> RestoreLab:
    """The same repository and keys, on another host."""
    made = copy.copy(lab)
    made.cluster = cluster
    made.config_path = lab.directory / "standby.yml"
    made.settings = {**copy.deepcopy(lab.settings), "state_directory": str(lab.directory / "standby-state")}
    return made


def proven(pair: Pair, writer: LiveWriter, *options: str) -> None:
    """The newest backup, recovered to the end of the archive."""
    pair.at_primary.archive_everything()
    target = pair.lab.place(f"copy-{len(options)}-{time.monotonic_ns()}")
    pair.lab.restore(target, *options)
    prove_restore(pair.lab.workspace, target, golden=golden_dump(pair.primary), rows=writer.expect_all())


def test_full_and_incrementals_under_load(pair: Pair) -> None:
    lab = pair.lab
    with LiveWriter(pair.primary) as writer:
        writer.wait_rows(100)
        full = lab.backup()
        writer.wait_rows(writer.count + 200)
        incremental = lab.backup("incremental")
        writer.wait_rows(writer.count + 100)
    assert (full["type"], incremental["type"]) == ("full", "incremental")
    assert incremental["parent"] == full["backup_id"]
    # It begins where it can have nothing of the parent that is newer.
    assert parse_lsn(incremental["start_lsn"]) >= parse_lsn(full["stop_lsn"])
    info = lab.manifest(full["backup_id"]).header.postgres
    assert info is not None
    assert info.from_standby
    proven(pair, writer)
    # As soon as it is consistent, all that was in it must be sound.
    target = lab.place("immediate")
    lab.restore(target, "--immediate", "--backup", incremental["backup_id"])
    prove_restore(lab.workspace, target)
    assert lab.run("verify", "--all", "--level", "content").returncode == 0


def test_an_incremental_takes_over_what_the_primary_gave(pair: Pair) -> None:
    """And the other way round: both are the same cluster."""
    with LiveWriter(pair.primary) as writer:
        writer.wait_rows(100)
        first = pair.at_primary.backup()
        writer.wait_rows(writer.count + 200)
        second = pair.lab.backup("incremental")
        writer.wait_rows(writer.count + 200)
        third = pair.at_primary.backup("incremental")
        writer.wait_rows(writer.count + 100)
    assert [second["parent"], third["parent"]] == [first["backup_id"], second["backup_id"]]
    assert second["bytes_stored"] < first["bytes_stored"] / 2
    proven(pair, writer, "--backup", second["backup_id"])
    proven(pair, writer)


def test_exact_where_nothing_happens(pair: Pair) -> None:
    pair.settle()
    pair.lab.backup()
    pair.primary.execute("UPDATE orders SET amount = amount + 1 WHERE id % 500 = 0")
    pair.settle()
    detection = exact(pair.lab, pair.lab.backup("incremental"))
    assert detection["method"] == ("page-lsn" if pair.standby.major < 17 else "wal-summary")
    assert detection["files_unchanged"] > 900


def test_without_the_primary(pair: Pair) -> None:
    """It waits for WAL that nobody finishes, and says so; an incremental is based on what ended early enough."""
    pair.lab.set(primary="host=/nowhere user=postgres dbname=postgres", archive_timeout=2)
    pair.primary.execute("CREATE TABLE more AS SELECT n FROM generate_series(1, 1000) n")
    pair.settle()
    error = pair.lab.refused(leases=0)
    assert error["id"] == "wal-not-archived"
    assert "primary" in error["hint"]

    # The traffic must not lead to checkpoints by itself.
    pair.primary.configure(max_wal_size="16GB", checkpoint_timeout="1h")
    pair.lab.set(archive_timeout=60)
    stop = threading.Event()

    def traffic() -> None:
        while not stop.wait(0.5):
            pair.at_primary.archive_everything()

    thread = threading.Thread(target=traffic)
    thread.start()
    try:
        pair.settle()
        first = pair.lab.backup()
        again = pair.lab.backup("incremental")
        assert again["type"] == "full"
        assert "restartpoint" in again["change_detection"]["reason"]
        pair.settle()
        last = pair.lab.backup("incremental")
        assert last["parent"] in (first["backup_id"], again["backup_id"])
    finally:
        stop.set()
        thread.join()


def test_promoted_meanwhile(pair: Pair) -> None:
    """PostgreSQL's own rule: such a backup is void. The next one is one of a primary."""
    pair.lab.set(bandwidth_limit="3MB/s")
    process = start(pair.lab)
    wait_for_copying(pair.lab, process)
    # However long the promotion takes, the backup is not over before.
    process.send_signal(signal.SIGSTOP)
    pair.promote()
    process.send_signal(signal.SIGCONT)
    output, errors = process.communicate()
    assert (process.returncode, json.loads(output)["error"]["id"]) == (1, "cluster-promoted"), errors
    assert (pair.lab.manifests(), pair.lab.leases()) == ([], [])
    pair.lab.set(bandwidth_limit=None)
    backup = pair.lab.backup()
    assert backup["timeline"] == 2


def test_incrementals_go_on_across_a_promotion(pair: Pair) -> None:
    lab = pair.lab
    with LiveWriter(pair.primary) as before:
        before.wait_rows(100)
        parent = lab.backup()
        before.wait_rows(before.count + 200)
    pair.follow()
    pair.primary.stop()
    pair.promote()
    with LiveWriter(pair.standby, table="rows_of_second") as after:
        after.wait_rows(200)
        backup = lab.backup("incremental")
        after.wait_rows(after.count + 100)
    assert (backup["type"], backup["parent"]) == ("incremental", parent["backup_id"])
    assert backup["timeline"] == 2
    expected = "page-lsn" if pair.standby.major < 17 else "wal-summary"
    assert backup["change_detection"]["method"] == expected, backup["change_detection"]
    lab.archive_everything()
    target = lab.place("second")
    lab.restore(target)
    golden = golden_dump(pair.standby)
    prove_restore(lab.workspace, target, golden=golden, rows=[before.expect_all(), after.expect_all()])


def test_a_backup_of_a_branch_that_was_left_is_no_parent(pair: Pair) -> None:
    """The old primary went on after the standby was promoted, and was backed up: two primaries."""
    common = pair.lab.backup()
    pair.follow()
    pair.promote()
    pair.primary.execute("UPDATE orders SET amount = 0 WHERE id % 10 = 0")
    pair.primary.checkpoint()
    pair.lab.archive_everything()
    code, left, errors = pair.at_primary.try_backup("incremental")
    assert (code, left["timeline"]) == (0, 1)
    assert "has timeline 2, and this primary is on 1" in errors
    assert "both may take writes" in pair.at_primary.run("check").stdout
    assert "both may take writes" not in pair.lab.run("check").stdout
    pair.standby.execute("UPDATE orders SET amount = 1 WHERE id % 10 = 0")
    backup = pair.lab.backup("incremental")
    assert backup["parent"] == common["backup_id"]
    assert left["backup_id"] in backup["change_detection"]["reason"]
    assert "does not lead" in backup["change_detection"]["reason"]
    pair.lab.archive_everything()
    target = pair.lab.place("second")
    pair.lab.restore(target, "--backup", backup["backup_id"])
    prove_restore(pair.lab.workspace, target, golden=golden_dump(pair.standby))


def test_a_primary_that_is_another_cluster(pair: Pair, workspace: Workspace) -> None:
    other = workspace.cluster("other", installation=pair.primary.installation)
    pair.lab.set(primary=other.conninfo, archive_timeout=2)
    pair.settle()
    code, result, errors = pair.lab.try_backup()
    assert (code, result["error"]["id"]) == (1, "wal-not-archived")
    assert "another cluster" in errors, errors
    checked = pair.lab.run("--json", "check")
    assert checked.returncode == 1
    assert "is of another cluster" in checked.stdout
    pair.lab.set(primary=None)
    assert "makes checkpoints for backups" in pair.lab.run("check").stdout
    pair.lab.set(primary=pair.primary.conninfo)
    assert "makes checkpoints for backups" in pair.lab.run("check").stdout
    assert "summarize_wal is off" not in pair.lab.run("check").stdout
    if pair.standby.major >= 17:
        pair.standby.configure(summarize_wal=False)
        assert "summarize_wal is off" in pair.lab.run("check").stdout
