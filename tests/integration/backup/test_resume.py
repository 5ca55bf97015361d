# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A full backup that was killed half-way: the next one uses what it had finished, and is as good as any."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from cryobackup.crypto.keys import KeyRing
from cryobackup.repository.draft import Draft
from tests.integration.restore.lab import RestoreLab
from tests.lab import Cluster, LiveWriter, Workspace, golden_dump, prove_restore
from tests.lab.stores import StoredPath

from .test_interrupted import start

TABLES = 4
TABLE_BYTES = 36 << 20
"""Of what does not compress, so that packs are full soon."""


@pytest.fixture
def backups(workspace: Workspace, runtime: Path, cluster: Cluster) -> RestoreLab:
    backups = RestoreLab(workspace, runtime, cluster, workers=1, bandwidth_limit=20 << 20)
    cluster.execute(
        "CREATE TABLE noise0 AS SELECT n, string_agg(sha256((n * 40 + m)::text::bytea), '') AS noise"
        f" FROM generate_series(1, {TABLE_BYTES // 1400}) n, generate_series(1, 40) m GROUP BY n"
    )
    for number in range(1, TABLES):
        cluster.execute(f"CREATE TABLE noise{number} AS TABLE noise0")
    backups.settle()
    return backups


def packs(backups: RestoreLab) -> set[str]:
    return {"/".join(path.parts[-2:]) for path in (backups.locations["local"] / "packs").glob("*/*")}


def drafts(backups: RestoreLab) -> list[Path]:
    return sorted((backups.directory / "state/interrupted/main").glob("*"))


def kill_half_way(backups: RestoreLab, *meanwhile: str) -> str:
    """Start a full backup, do something right after its start, and kill it once a table is noted; returns its id."""
    earlier = set(drafts(backups))
    process = start(backups)
    while not set(drafts(backups)) - earlier:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    for statement in meanwhile:
        backups.cluster.execute(statement)
    while not (new := set(drafts(backups)) - earlier) or noted_bytes(backups, new.copy().pop()) < TABLE_BYTES:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return new.pop().stem


def read_draft(backups: RestoreLab, draft: Path) -> Draft:
    """Without a look into the repository, which may take longer than there is time."""
    return Draft(draft, KeyRing.load(backups.config().repository.keys).digest_key)


def noted_bytes(backups: RestoreLab, draft: Path) -> int:
    try:
        return read_draft(backups, draft).bytes
    except ValueError:
        return 0


def resumed(backups: RestoreLab, backup: dict[str, Any]) -> str:
    """The backup that a full one went on from."""
    assert (backup["type"], backup["status"], backup["parent"]) == ("full", "ok", None)
    return str(backup["change_detection"]["resumed"])


def test_killed_and_resumed(backups: RestoreLab) -> None:
    cluster = backups.cluster
    with LiveWriter(cluster) as writer:
        writer.wait_rows(50)
        interrupted = kill_half_way(backups)
        there = packs(backups)
        assert backups.manifests() == []
        cluster.execute("UPDATE noise2 SET n = -n WHERE n % 200 = 0")
        cluster.execute("DROP TABLE noise3")
        writer.wait_rows(writer.count + 100)
        backup = backups.backup()
        writer.wait_rows(writer.count + 50)
    assert resumed(backups, backup) == interrupted
    assert there <= packs(backups)
    header = backups.manifest(backup["backup_id"]).header
    assert {row.backup_id for row in header.foreign} == {interrupted}
    # What had been finished and did not change is not read again; all that it takes in the repository counts.
    assert backup["bytes_read"] < backup["bytes_source"] - TABLE_BYTES
    assert backup["change_detection"]["bytes_referenced"] > TABLE_BYTES
    assert backup["bytes_stored"] > 2.5 * TABLE_BYTES
    assert drafts(backups) == []
    # It needs nobody: what nobody needs goes, and it is whole.
    backups.backup("incremental")
    backups.run("prune", "--grace", "0", check=True)
    backups.run("prune", "--grace", "0", check=True)
    assert backups.run("verify", "--all", "--level", "content").returncode == 0
    backups.archive_everything()
    for number, options in enumerate([("--backup", backup["backup_id"]), ()]):
        target = backups.place(f"copy{number}")
        backups.restore(target, *options)
        prove_restore(backups.workspace, target, golden=golden_dump(cluster), rows=writer.expect_all())


def test_killed_twice(backups: RestoreLab) -> None:
    """A second run that dies early does not cost what the first one left."""
    first = kill_half_way(backups)
    process = start(backups)
    while len(drafts(backups)) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    backup = backups.backup()
    assert resumed(backups, backup) == first
    target = backups.place("copy")
    backups.restore(target)
    prove_restore(backups.workspace, target, golden=golden_dump(backups.cluster))


def test_what_is_left_when_the_wal_does_not_arrive(backups: RestoreLab) -> None:
    """All was copied, and is not copied again."""
    backups.set(bandwidth_limit=None, archive_timeout=2)
    backups.cluster.configure(archive_command="/bin/false")
    assert backups.refused()["id"] == "wal-not-archived"
    backups.cluster.configure(archive_command=backups.archive_command)
    backups.set(archive_timeout=60)
    time.sleep(2.1)
    backup = backups.backup()
    assert resumed(backups, backup)
    assert backup["bytes_read"] < 0.2 * backup["bytes_source"]
    target = backups.place("copy")
    backups.restore(target)
    prove_restore(backups.workspace, target, golden=golden_dump(backups.cluster))


@pytest.mark.parametrize("loss", ["pruned", "marked", "gone"])
def test_what_it_needs_is_deleted(backups: RestoreLab, loss: str) -> None:
    kill_half_way(backups)
    there = packs(backups)
    if loss == "gone":
        pack: StoredPath = backups.locations["local"] / "packs" / min(there)
        pack.unlink()
    else:
        backups.run("prune", "--grace", "1h" if loss == "marked" else "0", check=True)
        if loss == "pruned":
            backups.run("prune", "--grace", "0", check=True)
            assert packs(backups).isdisjoint(there)
    backups.set(bandwidth_limit=None)
    backup = backups.backup()
    assert (backup["type"], backup["status"]) == ("full", "ok")
    assert "resumed" not in backup["change_detection"]
    assert backups.manifest(backup["backup_id"]).header.foreign == []
    assert drafts(backups) == []
    assert backups.run("verify", "--all", "--level", "content").returncode == 0


def test_not_what_was_undone(backups: RestoreLab) -> None:
    """A recovery to before what the interrupted backup saw: pages of a future that never came must not come back."""
    first = backups.backup()
    # The point lies behind the start of the interrupted backup: it alone would do as a parent.
    kill_half_way(
        backups,
        "SELECT pg_create_restore_point('before')",
        "UPDATE noise0 SET n = -n WHERE n = (SELECT max(n) FROM noise0)",
        "CHECKPOINT",
    )
    backups.archive_everything()
    backups.cluster.stop()
    backups.restore(backups.cluster.data_dir, "--delta", "--to-name", "before", "--backup", first["backup_id"])
    backups.cluster.start()
    while backups.cluster.value("SELECT pg_is_in_recovery()"):
        time.sleep(0.1)
    backup = backups.backup()
    assert "resumed" not in backup["change_detection"]
    target = backups.place("copy")
    backups.restore(target, "--backup", backup["backup_id"])
    prove_restore(backups.workspace, target, golden=golden_dump(backups.cluster))
