# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A restore over a directory that is there already: only what differs is fetched, and nothing else is touched."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.lab import LiveWriter, golden_dump, prove_restore, sample_data

from .lab import RestoreLab, Story, content, wait_promoted
from .test_restore_goals import QUICK, side

# Time and random names are in them.
VOLATILE = ("postgresql.auto.conf",)


def volatile(name: str) -> bool:
    return name in VOLATILE


def test_a_diverged_copy_becomes_the_backup_again(story: Story) -> None:
    target, fresh = story.lab.place("diverged"), story.lab.place("fresh")
    story.lab.restore(fresh, *side(story, fresh))
    story.lab.restore(target, *side(story, target))
    copy = story.lab.workspace.adopt(target, name="diverging")
    copy.start()
    wait_promoted(copy)
    sample_data(copy, 2, table="strange")
    copy.execute("DROP TABLE aside")
    copy.execute("DELETE FROM orders WHERE id % 50 = 0")
    copy.drop_database("other")
    copy.create_database("new")
    copy.checkpoint()
    copy.kill()
    (target / "base/strange-file").write_text("left over")
    (target / "base/strange-directory").mkdir()
    (target / "base/strange-directory/deep").write_text("left over")
    (target / "PG_VERSION").write_text("14\n")
    story.lab.workspace.account.own(target, recursive=True)

    result = story.lab.restore(target, *side(story, target), "--delta")
    assert result["bytes_compared"] > result["bytes_restored"] * 0.7
    assert result["bytes_fetched"] < result["bytes_restored"] * 0.9
    assert 0 < result["bytes_written"] < result["bytes_restored"] * 0.5
    links = {name: entry[3] for name, entry in content(target).items() if entry[3]}
    assert list(links.values()) == [f"{target}-side"]
    same = {name: entry for name, entry in content(target, volatile).items() if name not in (*links, "tablespace_map")}
    other = content(fresh, volatile)
    assert same == {name: other[name] for name in other if name not in (*links, "tablespace_map")}
    assert content(Path(f"{target}-side")) == content(Path(f"{fresh}-side"))
    prove_restore(story.lab.workspace, target, golden=story.golden, rows=story.writer.expect_all())


def test_nothing_is_written_when_nothing_differs(story: Story) -> None:
    target = story.lab.place("same")
    story.lab.restore(target, *side(story, target))
    (target / "recovery.signal").unlink()
    before = {path: path.stat().st_mtime_ns for path in (target / "base").rglob("*") if path.is_file()}
    result = story.lab.restore(target, *side(story, target), "--delta")
    # The settings, the control file and the map of the tablespaces were changed by the restore itself.
    assert result["bytes_written"] < 10_000
    assert {path: path.stat().st_mtime_ns for path in before} == before
    prove_restore(story.lab.workspace, target, rows=story.writer.expect_all(), **QUICK)


def test_delta_into_an_empty_directory_is_a_plain_restore(story: Story) -> None:
    target = story.lab.place("missing")
    result = story.lab.restore(target, *side(story, target), "--delta")
    assert result["bytes_compared"] == 0
    prove_restore(story.lab.workspace, target, rows=story.writer.expect_all(), **QUICK)


def test_links_in_the_target_lead_nowhere(story: Story) -> None:
    """Somebody prepared the target: a file, a directory and the root of a database lead outside."""
    target = story.lab.place("prepared")
    story.lab.restore(target, *side(story, target))
    outside = story.lab.workspace.directory("outside")
    (outside / "file").write_text("precious")
    (outside / "directory").mkdir()
    (outside / "directory/PG_VERSION").write_text("precious")
    databases = sorted(path for path in (target / "base").iterdir() if path.is_dir())
    (databases[0] / "PG_VERSION").unlink()
    (databases[0] / "PG_VERSION").symlink_to(outside / "file")
    (target / "postgresql.conf").unlink()
    os.link(outside / "file", target / "postgresql.conf")
    moved = databases[1]
    moved.rename(target / "base/aside")
    moved.symlink_to(outside / "directory")
    (target / "base/link").symlink_to(outside)
    (target / "pg_wal").rename(outside / "wal")
    (target / "pg_wal").symlink_to(outside / "wal")
    (outside / "wal/000000010000000000000099").write_text("precious")
    story.lab.workspace.account.own(outside, recursive=True)
    before = content(outside)
    result = story.lab.restore(target, *side(story, target), "--delta")
    assert content(outside) == before
    assert any("pg_wal was a symbolic link" in warning for warning in result["warnings"])
    assert [path for path in target.rglob("*") if path.is_symlink()] == list((target / "pg_tblspc").iterdir())
    prove_restore(story.lab.workspace, target, golden=story.golden, rows=story.writer.expect_all(), **QUICK)


def test_a_link_above_the_control_file_is_refused(story: Story) -> None:
    target = story.lab.place("global-link")
    story.lab.restore(target, *side(story, target))
    outside = story.lab.place("global-outside")
    (target / "global").rename(outside)
    (target / "global").symlink_to(outside)
    before = content(outside)
    code, result, _unused = story.lab.try_restore(target, *side(story, target), "--delta")
    assert code == 1
    assert "global" in result["error"]["message"]
    assert content(outside) == before


def test_a_lost_control_file_does_not_keep_one_from_restoring(story: Story) -> None:
    """The WAL still tells whose directory it is."""
    target = story.lab.place("no-control")
    story.lab.restore(target, *side(story, target))
    copy = story.lab.workspace.adopt(target, name="no-control-1")
    copy.start()
    wait_promoted(copy)
    copy.stop()
    (target / "global/pg_control").write_bytes(b"\0" * 8192)
    story.lab.restore(target, *side(story, target), "--delta")
    prove_restore(story.lab.workspace, target, rows=story.writer.expect_all(), **QUICK)


# In place: the cluster's own directory


def test_wal_that_was_never_archived_is_not_lost(restores: RestoreLab) -> None:
    """The cluster crashes with committed rows in WAL that only its own pg_wal has, and its data is damaged."""
    lab = restores
    with LiveWriter(lab.cluster) as writer:
        writer.wait_rows(100)
        lab.backup()
        writer.wait_rows(writer.count + 100)
        lab.archive_everything()
        writer.wait_rows(writer.count + 200)
    last = writer.rows[-1].id
    golden = golden_dump(lab.cluster)
    damaged = lab.cluster.relation_path("lab_rows")
    lab.cluster.kill()
    damaged.unlink()

    result = lab.restore(lab.cluster.data_dir, "--delta")
    assert result["kept_wal"]
    assert result["archiving"] == "preserved"
    prove_restore(lab.workspace, lab.cluster.data_dir, golden=golden, rows=writer.expect_all())
    assert last == len(writer.rows)


def test_the_wrong_moment_can_be_corrected(restores: RestoreLab) -> None:
    """Rows that only pg_wal has, behind the goal of a restore in place: they are not gone with the old timeline."""
    lab = restores
    cluster = lab.cluster
    with LiveWriter(cluster) as writer:
        writer.wait_rows(100)
        lab.backup()
        writer.wait_rows(writer.count + 100)
        with writer.paused("too early"):
            pass
        writer.wait_rows(writer.count + 50)
        lab.archive_everything()
        writer.wait_rows(writer.count + 200)
    golden = golden_dump(cluster)
    cluster.kill()

    first = lab.restore(cluster.data_dir, "--delta", "--to-name", "too early")
    assert first["saved_wal"]["files"]
    saved = cluster.data_dir / first["saved_wal"]["directory"]
    assert sorted(path.name for path in saved.iterdir()) == sorted(first["saved_wal"]["files"])
    assert any(str(saved) in warning for warning in first["warnings"])
    cluster.start()
    wait_promoted(cluster)
    cluster.execute("CREATE TABLE of_the_new_timeline AS SELECT 1 AS a")
    cluster.execute("CHECKPOINT")
    lab.archive_everything()
    backup = lab.backup()
    cluster.execute("INSERT INTO of_the_new_timeline VALUES (2)")
    cluster.kill()
    # A second restore in place uses what the first put aside, and puts aside what is of the new timeline.
    second = lab.restore(cluster.data_dir, "--delta", "--timeline", "1")
    assert second["backup_id"] != backup["backup_id"]
    assert set(first["saved_wal"]["files"]) <= set(second["kept_wal"])
    assert all(name.startswith("00000002") for name in second["saved_wal"]["files"])
    assert second["saved_wal"]["files"]
    prove_restore(lab.workspace, cluster.data_dir, golden=golden, rows=writer.expect_all())
    for result in (first, second):
        kept = cluster.data_dir / result["saved_wal"]["directory"]
        assert sorted(path.name for path in kept.iterdir()) == sorted(result["saved_wal"]["files"])


def test_a_cluster_with_its_wal_elsewhere_is_brought_back_in_place(restores: RestoreLab) -> None:
    """``initdb --waldir``: pg_wal is a link to another disk, and stays one."""
    lab = restores
    cluster = lab.cluster
    cluster.stop()
    elsewhere = lab.workspace.path / "wal-disk"
    shutil.move(cluster.data_dir / "pg_wal", elsewhere)
    (cluster.data_dir / "pg_wal").symlink_to(elsewhere)
    cluster.start()
    with LiveWriter(cluster) as writer:
        writer.wait_rows(100)
        lab.backup()
        with writer.paused("to here") as moment:
            golden = golden_dump(cluster)
        writer.wait_rows(writer.count + 50)
        lab.archive_everything()
        writer.wait_rows(writer.count + 50)
    cluster.kill()
    result = lab.restore(cluster.data_dir, "--delta", "--to-name", "to here")
    assert (cluster.data_dir / "pg_wal").readlink() == elsewhere
    saved = elsewhere / Path(result["saved_wal"]["directory"]).name
    assert sorted(path.name for path in saved.iterdir()) == sorted(result["saved_wal"]["files"])
    prove_restore(lab.workspace, cluster.data_dir, golden=golden, rows=writer.expect(moment), **QUICK)


def test_a_cluster_is_brought_back_in_place_and_lives_on(restores: RestoreLab) -> None:
    """An accident, a restore in place to just before it, and the life of the cluster after that."""
    lab = restores
    space = lab.cluster.create_tablespace("side")
    lab.cluster.execute("CREATE TABLE aside TABLESPACE side AS SELECT n FROM generate_series(1, 20000) n")
    with LiveWriter(lab.cluster) as writer:
        writer.wait_rows(100)
        lab.backup()
        writer.wait_rows(writer.count + 100)
        with writer.paused("before the accident") as moment:
            golden = golden_dump(lab.cluster)
        writer.wait_rows(writer.count + 20)
    lab.cluster.execute("DROP TABLE aside, lab_rows")
    lab.archive_everything()
    lab.cluster.stop()

    result = lab.restore(lab.cluster.data_dir, "--delta", "--to-name", "before the accident")
    assert result["archiving"] == "preserved"
    assert list(result["tablespaces"].values()) == [str(space)]
    assert any("full backup" in step for step in result["next_steps"])
    lab.cluster.start()
    wait_promoted(lab.cluster)
    golden.compare(golden_dump(lab.cluster))
    with lab.cluster.session() as session:
        writer.expect(moment).check(session)
    # It archives on its new timeline, and its next backup is restored like any other.
    lab.cluster.execute("CREATE TABLE later AS SELECT 1 AS a")
    later = golden_dump(lab.cluster)
    backup = lab.backup()
    assert backup["timeline"] == 2
    lab.archive_everything()
    target = lab.place("beside")
    result = lab.restore(target, "--tablespace", f"{space}={target}-side")
    assert result["backup_id"] == backup["backup_id"]
    prove_restore(lab.workspace, target, golden=later)
