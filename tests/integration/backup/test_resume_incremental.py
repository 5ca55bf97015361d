# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An incremental that was killed: the next one goes on from it and from their parent, file by file."""

from __future__ import annotations

import contextlib
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cryobackup.postgres.lsn import parse_lsn
from tests.integration.restore.lab import RestoreLab, wait_promoted
from tests.lab import Cluster, LiveWriter, Workspace, golden_dump, prove_restore
from tests.lab.stores import StoredPath

from .test_interrupted import start
from .test_resume import drafts, noted_bytes, packs, read_draft
from .test_wal_summaries import programs

ROWS = 1500
NOISE = (
    "SELECT n, 0 AS changed, string_agg(sha256((n * 40 + m)::text::bytea), '') AS noise"
    f" FROM generate_series(1, {ROWS}) n, generate_series(1, 40) m GROUP BY n"
)
"""About 2 MB, five rows a page."""
SOME = "UPDATE {} SET changed = changed + 1 WHERE n % 50 = 0"


@pytest.fixture
def backups(workspace: Workspace, runtime: Path, cluster: Cluster) -> RestoreLab:
    """A cluster with a full backup: the parent. Each table has its part in what follows."""
    return with_parent(RestoreLab(workspace, runtime, cluster, workers=1))


def with_parent(backups: RestoreLab) -> RestoreLab:
    backups.cluster.execute(f"CREATE TABLE twice AS {NOISE}")
    for table in ("before", "after", "never", "dropped"):
        backups.cluster.execute(f"CREATE TABLE {table} AS TABLE twice")
    backups.cluster.execute("VACUUM")  # or whatever reads a page first changes it
    backups.settle()
    backups.backup()
    for table in ("before", "twice", "dropped"):
        backups.cluster.execute(SOME.format(table))
    backups.cluster.execute("CREATE TABLE fresh AS TABLE twice")
    backups.settle()
    return backups


@contextlib.contextmanager
def no_archive(backups: RestoreLab) -> Iterator[None]:
    """A backup copies everything meanwhile, and then waits."""
    backups.cluster.configure(archive_command="/bin/false")
    try:
        yield
    finally:
        backups.cluster.configure(archive_command=backups.archive_command)


def kill(backups: RestoreLab, kind: str = "incremental", noted: int = 1, *behind_it: str) -> str:
    """Start a backup and kill it once files of so many bytes are noted; returns its id.

    ``behind_it``: statements that are executed, and reach the disk, when it has read twice as many bytes.
    """
    earlier = set(drafts(backups))
    process = start(backups, kind)

    def running() -> bool:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
        return True

    while not (new := set(drafts(backups)) - earlier):
        running()
    draft, reached = new.pop(), 0
    if behind_it:
        while running() and bytes_read(process.pid) < 2 * noted:
            pass
        process.send_signal(signal.SIGSTOP)
        execute(backups.cluster, *behind_it, "CHECKPOINT")
        reached = parse_lsn(backups.cluster.value("SELECT pg_current_wal_lsn()::text"))
        process.send_signal(signal.SIGCONT)
    while running() and (noted_bytes(backups, draft) < noted or position(backups, draft) < reached):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return draft.stem


def position(backups: RestoreLab, draft: Path) -> int:
    return parse_lsn(read_draft(backups, draft).position)


def bytes_read(pid: int) -> int:
    return int(Path(f"/proc/{pid}/io").read_text().split()[1])


def kill_at_the_end(backups: RestoreLab, kind: str = "incremental") -> str:
    with no_archive(backups):
        return kill(backups, kind)


def execute(cluster: Cluster, *statements: str) -> None:
    for statement in statements:
        cluster.execute(statement)


def size(backups: RestoreLab, *tables: str) -> int:
    return sum(int(backups.cluster.value("SELECT pg_relation_size(%s)", table)) for table in tables)


def change_between(cluster: Cluster) -> None:
    """Of what the interrupted run had, some is changed again, and of what it took from its parent, too."""
    execute(cluster, SOME.format("twice"), SOME.format("after"), "DROP TABLE dropped")
    execute(cluster, "UPDATE twice SET changed = 9 WHERE n % 70 = 0", f"CREATE TABLE newer AS {NOISE}")


def resumed(backups: RestoreLab, backup: dict[str, Any], parent: str) -> str | None:
    """The run that an incremental went on from."""
    assert (backup["type"], backup["status"], backup["parent"]) == ("incremental", "ok", parent)
    found: str | None = backup["change_detection"].get("resumed")
    return found


def prove(backups: RestoreLab, backup: dict[str, Any], writer: LiveWriter | None = None) -> None:
    """With a writer that wrote until after the backup, all it wrote has to be there, and WAL to be replayed."""
    backups.archive_everything()
    # As soon as it is consistent, else: replaying more could put right what a backup has wrong.
    first = ("--backup", backup["backup_id"], *(() if writer is not None else ("--immediate",)))
    for number, options in enumerate([first, ()]):
        target = backups.place(f"copy{number}")
        backups.restore(target, *options)
        rows = writer.expect_all() if writer is not None else ()
        prove_restore(backups.workspace, target, golden=golden_dump(backups.cluster), rows=rows)


@pytest.mark.parametrize(("major", "method"), [("15", "page-lsn"), ("17", "wal-summary")])
def test_killed_and_resumed(workspace: Workspace, runtime: Path, major: str, method: str) -> None:
    more = {"summarize_wal": True} if method == "wal-summary" else {}
    cluster = workspace.cluster(installation=programs(major), settings={"autovacuum": False, **more})
    backups = with_parent(RestoreLab(workspace, runtime, cluster, workers=1))
    (full,) = backups.manifests()
    with LiveWriter(cluster) as writer:
        writer.wait_rows(20)
        interrupted = kill_at_the_end(backups)
        there = packs(backups)
        assert backups.manifests() == [full]
        change_between(cluster)
        writer.wait_rows(writer.count + 20)
        backup = backups.backup("incremental")
    assert resumed(backups, backup, full) == interrupted
    assert backup["change_detection"]["method"] == method
    assert there <= packs(backups)
    header = backups.manifest(backup["backup_id"]).header
    assert {row.backup_id for row in header.foreign} == {full, interrupted}
    # What was finished is not stored again, nor read where it did not change; all that was stored for it counts.
    own = sum(row.size for row in header.packs)
    assert own < 1.5 * size(backups, "newer") < backup["bytes_stored"]
    assert backup["bytes_stored"] == own + sum(row.size for row in header.foreign if row.backup_id == interrupted)
    assert drafts(backups) == []
    # It is one like any other: a parent, whole without what nobody needs, and restorable.
    last = backups.backup("incremental")
    assert (last["type"], last["parent"]) == ("incremental", backup["backup_id"])
    assert "resumed" not in last["change_detection"]
    assert last["bytes_stored"] < size(backups, "newer")
    backups.run("prune", "--grace", "0", check=True)
    backups.run("prune", "--grace", "0", check=True)
    assert backups.run("verify", "--all", "--level", "content").returncode == 0
    prove(backups, backup, writer=writer)


def test_killed_in_the_middle_and_again(workspace: Workspace, runtime: Path) -> None:
    """The first run has some of the files, the second has these and more, the parent the rest."""
    cluster = workspace.cluster(settings={"autovacuum": False})
    backups = with_parent(RestoreLab(workspace, runtime, cluster, workers=1))
    (full,) = backups.manifests()
    for number in range(4):
        cluster.execute(f"CREATE TABLE large{number} AS SELECT n, j, noise FROM fresh, generate_series(1, 20) j")
    backups.settle()
    large = size(backups, "large0")
    backups.set(bandwidth_limit=20 << 20)
    with no_archive(backups):  # should this machine be slow, the backup is not over
        first = kill(backups, "incremental", large, "UPDATE large0 SET j = -j WHERE n % 100 = 1", SOME.format("twice"))
        # No statement looks at these pages again: that alone would change them.
        execute(cluster, SOME.format("twice"), "INSERT INTO large0 VALUES (-1, -1, '')")
        second = kill(backups, "incremental", 2 * large)
    execute(cluster, SOME.format("after"), "UPDATE large1 SET j = -j WHERE n = 200")
    backups.set(bandwidth_limit=None)
    backup = backups.backup("incremental")
    assert resumed(backups, backup, full) == second
    header = backups.manifest(backup["backup_id"]).header
    assert {row.backup_id for row in header.foreign} == {full, first, second}
    assert sum(row.size for row in header.packs) < 2.5 * large
    assert backup["bytes_stored"] > 4 * large
    assert drafts(backups) == []
    prove(backups, backup)


@pytest.mark.parametrize("loss", ["pruned", "marked", "gone", "other parent"])
def test_what_it_needs_is_not_there(backups: RestoreLab, loss: str) -> None:
    """Begun anew from the parent."""
    (full,) = backups.manifests()
    before = packs(backups)
    kill_at_the_end(backups)
    there = packs(backups) - before
    parent = full
    if loss == "other parent":
        # Another host with the same cluster takes a backup, a standby, say: it knows nothing of this one's notes.
        aside = backups.directory / "aside"
        shutil.move(backups.directory / "state/interrupted", aside)
        parent = backups.backup("incremental")["backup_id"]
        shutil.copytree(aside, backups.directory / "state/interrupted", dirs_exist_ok=True)
        assert drafts(backups)
    elif loss == "gone":
        pack: StoredPath = backups.locations["local"] / "packs" / min(there)
        pack.unlink()
    else:
        backups.run("prune", "--grace", "1h" if loss == "marked" else "0", check=True)
        if loss == "pruned":
            backups.run("prune", "--grace", "0", check=True)
            assert packs(backups).isdisjoint(there)
    change_between(backups.cluster)
    backup = backups.backup("incremental")
    assert resumed(backups, backup, parent) is None
    assert {row.backup_id for row in backups.manifest(backup["backup_id"]).header.foreign} <= {full, parent}
    assert drafts(backups) == []
    assert backups.run("verify", "--all", "--level", "content").returncode == 0


def test_full_and_incremental_leave_each_other_alone(backups: RestoreLab) -> None:
    """A full backup takes nothing over from an incremental, whose packs need the parent's; nor the other way round."""
    (full,) = backups.manifests()
    kill_at_the_end(backups, "full")
    kill_at_the_end(backups)
    assert sorted(path.suffix for path in drafts(backups)) == [".draft", ".incremental"]
    left, interrupted = sorted(drafts(backups), key=lambda path: path.suffix)
    change_between(backups.cluster)
    backup = backups.backup("incremental")
    assert resumed(backups, backup, full) == interrupted.stem
    assert {row.backup_id for row in backups.manifest(backup["backup_id"]).header.foreign} == {full, interrupted.stem}
    assert drafts(backups) == [left]
    backups.cluster.execute(SOME.format("never"))
    kill_at_the_end(backups)
    last = backups.backup()
    assert (last["type"], last["change_detection"]["resumed"]) == ("full", left.stem)
    assert {row.backup_id for row in backups.manifest(last["backup_id"]).header.foreign} == {left.stem}
    assert drafts(backups) == []
    prove(backups, last)


def test_the_parent_is_lost(backups: RestoreLab) -> None:
    """A full backup is made, of nothing that an incremental had: that may be damaged like what it shares packs with."""
    (full,) = backups.manifests()
    kill_at_the_end(backups)
    manifest: StoredPath = backups.locations["local"] / "manifests/main" / full
    manifest.unlink()
    backup = backups.backup("incremental")
    assert (backup["type"], backup["parent"]) == ("full", None)
    assert "resumed" not in backup["change_detection"]
    assert backups.manifest(backup["backup_id"]).header.foreign == []
    assert drafts(backups) == []


def test_other_keys_meanwhile(backups: RestoreLab) -> None:
    """The interrupted run sealed for one key, this one for the next: a restore needs both, and says so."""
    (full,) = backups.manifests()
    interrupted = kill_at_the_end(backups)
    backups.run("key", "rotate", check=True)
    change_between(backups.cluster)
    backup = backups.backup("incremental")
    assert resumed(backups, backup, full) == interrupted
    header = backups.manifest(backup["backup_id"]).header
    assert header.epochs == {full: 1, interrupted: 1, backup["backup_id"]: 2}
    prove(backups, backup)


def test_not_what_was_undone(backups: RestoreLab) -> None:
    """A recovery to before what the interrupted run saw, but behind its start."""
    cluster = backups.cluster
    (full,) = backups.manifests()
    execute(cluster, "CREATE TABLE slow AS SELECT n, j, noise FROM fresh, generate_series(1, 4) j", "CHECKPOINT")
    backups.set(bandwidth_limit=4 << 20)
    with no_archive(backups):
        process = start(backups, "incremental")
        while not drafts(backups):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        execute(
            cluster, "SELECT pg_create_restore_point('point')", "UPDATE slow SET j = -j WHERE n = 100", "CHECKPOINT"
        )
        while not noted_bytes(backups, drafts(backups)[0]):
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    backups.archive_everything()
    cluster.stop()
    backups.restore(cluster.data_dir, "--delta", "--to-name", "point", "--backup", full)
    cluster.start()
    wait_promoted(cluster)
    backups.set(bandwidth_limit=None)
    backup = backups.backup("incremental")
    assert resumed(backups, backup, full) is None
    prove(backups, backup)
