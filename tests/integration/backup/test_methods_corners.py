# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All ways to find out what changed, after what seldom happens to a cluster between two backups.

Each leaves the files as no server alone would. Nothing happens while the backups are taken, so all of them have to
hold the files as they lie on the disk, and what they hold has to restore.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.restore.lab import wait_promoted
from tests.lab import Cluster, Workspace, flip_byte, golden_dump, prove_restore, sample_data, wait_until

from .random_changes import RandomChanges
from .test_wal_summaries import programs
from .ways import Way, WaysLab, all_ways, as_on_disk, ways_of

pytestmark = pytest.mark.only_on("posix")

SETTINGS: dict[str, Any] = {
    "autovacuum": False,
    "bgwriter_lru_maxpages": 0,
    "summarize_wal": True,
    "wal_keep_size": "512MB",
}
SEGMENT_BYTES = 1 << 30


@pytest.fixture
def cluster(workspace: Workspace) -> Cluster:
    return workspace.cluster(installation=programs("17"), settings=SETTINGS)


@pytest.fixture
def ways(workspace: Workspace, runtime: Path, cluster: Cluster) -> WaysLab:
    made = WaysLab(workspace, runtime, cluster)
    sample_data(cluster, 4)
    return made


def trusting(cluster: Cluster) -> list[Way]:
    """All ways but that by content, which trusts nothing that could be wrong."""
    return [way for way in ways_of(cluster) if way.name != "content"]


def begin(lab: WaysLab) -> str:
    """The parent of all."""
    lab.settle()
    return str(lab.backup("full")["backup_id"])


def all_without_summaries(lab: WaysLab, parent: str) -> dict[str, str]:
    """Summaries are asked for, and do not tell everything; then all other ways."""
    backup = lab.backup("incremental")
    assert backup["parent"] == parent
    detection = backup["change_detection"]
    assert detection["method"] == "page-lsn", detection
    assert "there is no WAL summary" in detection["wal_summary_not_used"]
    as_on_disk(lab, backup["backup_id"])
    lab.hide(backup["backup_id"])
    return all_ways(lab, parent, [way for way in trusting(lab.cluster) if not way.summaries])


def restores(lab: WaysLab, backup_id: str, *options: str) -> None:
    """To the latest state."""
    golden = golden_dump(lab.cluster)
    lab.archive_everything()
    lab.show(backup_id)
    target = lab.place("restored")
    lab.restore(target, "--backup", backup_id, *options)
    prove_restore(lab.workspace, target, golden=golden)


def touch(cluster: Cluster, number: int) -> None:
    cluster.execute("UPDATE orders SET amount = amount + 1 WHERE id %% 100 = %s", number)


def test_several_timelines(ways: WaysLab) -> None:
    """Promoted again and again since the parent, with changes on each timeline, the first half lost in a crash."""
    changes = RandomChanges(ways.cluster, 1)
    ways.cluster.execute("CREATE TABLE ledger (id int)")
    parent = begin(ways)
    for number in range(3):
        touch(ways.cluster, number)
        changes.new_timeline()
    touch(ways.cluster, 3)
    taken = all_ways(ways, parent, trusting(ways.cluster))
    restores(ways, taken["summaries alone"])


def test_minimal_wal_for_a_while(ways: WaysLab) -> None:
    """PostgreSQL's own test 007. Nobody wrote down what happened then, and much of it is in no WAL at all."""
    cluster = ways.cluster
    cluster.execute("CREATE TABLE rows AS SELECT n FROM generate_series(1, 20000) n")
    parent = begin(ways)
    minimal: dict[str, Any] = {"wal_level": "minimal", "archive_mode": False, "max_wal_senders": 0}
    cluster.configure(**minimal, summarize_wal=False)
    cluster.restart()
    touch(cluster, 1)
    # Each makes a file whose contents are not logged.
    cluster.execute("BEGIN; TRUNCATE rows; INSERT INTO rows SELECT n FROM generate_series(1, 90000) n; COMMIT")
    cluster.execute("CREATE TABLE more AS TABLE orders")
    cluster.execute("CREATE INDEX ON orders (amount)")
    cluster.execute("VACUUM FULL orders")
    cluster.execute("CREATE DATABASE copy TEMPLATE template0 STRATEGY file_copy")
    cluster.configure(wal_level="replica", archive_mode=True, max_wal_senders=10, summarize_wal=True)
    cluster.restart()
    touch(cluster, 2)
    taken = all_without_summaries(ways, parent)
    restores(ways, taken["LSNs of all pages"])


def test_wal_was_thrown_away(ways: WaysLab) -> None:
    """pg_resetwal after a crash: pages are as they happened to be on the disk, and WAL goes on somewhere later."""
    cluster = ways.cluster
    parent = begin(ways)
    touch(cluster, 1)
    cluster.checkpoint()
    touch(cluster, 2)
    cluster.kill()
    (cluster.data_dir / "postmaster.pid").unlink()
    cluster.run("pg_resetwal", "--force", "-D", cluster.data_dir)
    cluster.start()
    touch(cluster, 3)
    all_without_summaries(ways, parent)


def test_a_database_made_anew_as_a_copy(ways: WaysLab) -> None:
    """With the number of the one before, so that its files have the same names, and pages older than the parent.

    PostgreSQL's own test 006. Alone of the three in its place, the second is copied by WAL.
    """
    cluster = ways.cluster
    for name in ("first", "second"):
        cluster.create_database(name)
        cluster.execute("CREATE TABLE rows AS SELECT n FROM generate_series(1, 20000) n", dbname=name)
    cluster.execute("UPDATE rows SET n = -n", dbname="second")
    copied = "CREATE DATABASE copy OID 77777 TEMPLATE {} STRATEGY {}"
    cluster.execute(copied.format("first", "file_copy"))
    parent = begin(ways)
    cluster.drop_database("copy")
    cluster.execute(copied.format("second", "wal_log"))
    parent = all_ways(ways, parent, [way for way in trusting(cluster) if way.times])["all there is"]
    ways.show(parent)
    cluster.drop_database("copy")
    cluster.execute(copied.format("first", "file_copy"))
    taken = all_ways(ways, parent, trusting(cluster))
    restores(ways, taken["summaries alone"])


def test_a_tablespace_that_moved(ways: WaysLab) -> None:
    """To another directory, and to another name. Another one is gone, with what was in it."""
    cluster = ways.cluster
    old = cluster.create_tablespace("there")
    cluster.create_tablespace("gone")
    for number, name in enumerate(("there", "gone")):
        cluster.execute(f"CREATE TABLE rows_{number} TABLESPACE {name} AS SELECT n FROM generate_series(1, 20000) n")
    parent = begin(ways)
    oid = cluster.value("SELECT oid FROM pg_tablespace WHERE spcname = 'there'")
    cluster.execute("DROP TABLE rows_1")
    cluster.drop_tablespace("gone")
    cluster.stop()
    new = old.with_name("elsewhere")
    shutil.copytree(old, new)  # other inodes, other times
    ways.workspace.account.own(new, recursive=True)
    new.chmod(0o700)
    shutil.rmtree(old)
    link = cluster.data_dir / f"pg_tblspc/{oid}"
    link.unlink()
    link.symlink_to(new)
    cluster.start()
    cluster.execute("ALTER TABLESPACE there RENAME TO elsewhere")
    cluster.execute("UPDATE rows_0 SET n = -n WHERE n % 1000 = 0")
    taken = all_ways(ways, parent, trusting(cluster))
    restores(ways, taken["all there is"], "--tablespace", f"{new}={ways.place('restored-elsewhere')}")


def test_cut_back_across_segments_and_grown_again(ways: WaysLab) -> None:
    """A relation of more than a segment file, which is nearly all holes: VACUUM leaves a part of the first file."""
    cluster = ways.cluster
    cluster.execute("CREATE TABLE wide AS SELECT n FROM generate_series(1, 5000) n")
    cluster.execute("CREATE TABLE narrow AS SELECT n FROM generate_series(1, 50000) n")
    path = cluster.relation_path("wide")
    following = path.with_name(f"{path.name}.1")
    cluster.stop()
    os.truncate(path, SEGMENT_BYTES)
    following.touch(mode=0o600)
    os.truncate(following, 64 * 8192)
    ways.workspace.account.own(following)
    cluster.start()
    # Into the last page that there is.
    cluster.execute("INSERT INTO wide SELECT n FROM generate_series(10001, 10050) n")
    parent = begin(ways)
    assert backed_up_bytes(ways, parent, following) == 64 * 8192
    cluster.execute("DELETE FROM wide WHERE n > 3000")
    cluster.execute("VACUUM wide")
    assert (path.stat().st_size < 1 << 20, following.stat().st_size) == (True, 0)
    chosen = [way for way in trusting(cluster) if way.times]
    all_ways(ways, parent, chosen)
    ways.show(parent)
    cluster.execute("COPY wide FROM PROGRAM 'seq 1 20000'")
    # Cut to nothing, then made longer by more than it needs: zeros that WAL does not know, where the parent has rows.
    cluster.execute("DELETE FROM narrow")
    cluster.execute("VACUUM narrow")
    for count in (1000, 3000):
        cluster.execute(f"COPY narrow FROM PROGRAM 'seq 1 {count}'")
    cluster.checkpoint()
    assert cluster.relation_path("narrow").read_bytes().endswith(bytes(8192))
    taken = all_ways(ways, parent, trusting(cluster))
    restores(ways, taken["all there is"])


def backed_up_bytes(lab: WaysLab, backup_id: str, path: Path) -> int:
    return int(lab.entries(backup_id)[str(path.relative_to(lab.cluster.data_dir))].size)


def test_a_file_put_back(ways: WaysLab) -> None:
    """Somebody puts a copy of an older version in place of a table's file, with its times. WAL knows nothing of it.

    The summaries alone, which are believed when the parent was taken in another boot, cannot tell.
    """
    cluster = ways.cluster
    path = cluster.relation_path("orders")
    cluster.stop()
    copy = path.with_name("copy")
    shutil.copy2(path, copy)
    ways.workspace.account.own(copy)
    cluster.start()
    touch(cluster, 1)
    parent = begin(ways)
    cluster.stop()
    status = path.stat()
    os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
    copy.rename(path)
    cluster.start()
    all_ways(ways, parent, [way for way in trusting(cluster) if way.name != "summaries alone"])


def test_damage_that_the_parent_has(ways: WaysLab) -> None:
    """Every way reports it again, and none goes on with it when it is mended."""
    cluster = ways.cluster
    path = cluster.relation_path("orders")
    cluster.checkpoint()
    flip_byte(path, 8192 * 3 + 5000)
    ways.settle()
    parent = ways.backup("full", exit_code=3)
    expected = [{"path": str(path.relative_to(cluster.data_dir)), "blocks": [3]}]
    assert parent["damage"] == expected
    chosen = [way for way in trusting(cluster) if way.times]

    def each(exit_code: int, damage: list[dict[str, Any]]) -> None:
        for way in chosen:
            backup = ways.incremental(way, exit_code=exit_code)
            assert (backup["parent"], backup["damage"]) == (parent["backup_id"], damage), way
            as_on_disk(ways, backup["backup_id"])
            ways.hide(backup["backup_id"])

    each(3, expected)
    flip_byte(path, 8192 * 3 + 5000)
    each(0, [])


def standby_of(lab: WaysLab) -> Cluster:
    """Running, with a copy of the primary's configuration."""
    directory = lab.workspace.path / "standby"
    lab.cluster.run("pg_basebackup", "-D", directory, "-c", "fast")
    (directory / "standby.signal").touch()
    lab.workspace.account.own(directory / "standby.signal")
    standby = lab.workspace.adopt(directory, settings={"primary_conninfo": lab.cluster.conninfo})
    standby.start()
    return standby


def follows(standby: Cluster, primary: Cluster) -> Callable[[], bool]:
    lsn = primary.lsn()
    return lambda: bool(standby.value("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", lsn))


def test_a_primary_that_was_rewound(ways: WaysLab, workspace: Workspace) -> None:
    """It had written what nobody else has; then its files were made those of another, in place, by pg_rewind.

    Which removes the summaries, its own and those that the other has not.
    """
    old = ways.cluster
    parent = begin(ways)
    touch(old, 1)
    new = standby_of(ways)
    wait_until(follows(new, old), "the standby")
    new.execute("SELECT pg_promote()")
    wait_promoted(new)
    touch(old, 2)
    old.execute("CREATE TABLE left_behind AS TABLE orders")
    touch(new, 3)
    new.execute("CREATE TABLE more AS SELECT n FROM generate_series(1, 20000) n")
    new.checkpoint()
    old.stop()
    settings = (old.data_dir / "postgresql.conf").read_bytes()
    old.run("pg_rewind", "-D", old.data_dir, f"--source-server={new.conninfo}")
    (old.data_dir / "postgresql.conf").write_bytes(settings)
    old.configure(primary_conninfo=new.conninfo)
    (old.data_dir / "standby.signal").touch()
    workspace.account.own(old.data_dir / "standby.signal")
    old.start()
    wait_until(follows(old, new), "the old primary")
    new.stop()
    old.execute("SELECT pg_promote()")
    wait_promoted(old)
    touch(old, 4)
    taken = all_without_summaries(ways, parent)
    restores(ways, taken["LSNs of all pages"])
