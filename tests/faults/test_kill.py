# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""SIGKILL at twenty random instants of a backup, of a prune and of a restore: the real command, a real cluster.

Half of the instants are fractions of a run that was measured before, half are counted in what the run does to
the disk: so the storage's steps are hit however fast or slow the machine is.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cryobackup.postgres.target import MARKER
from cryobackup.repository import model
from cryobackup.repository.catalog import Catalog
from tests.integration.restore.lab import RestoreLab, content
from tests.lab import (
    Cluster,
    Killed,
    LiveWriter,
    Workspace,
    golden_dump,
    prove_restore,
    run_and_kill,
    sample_data,
)
from tests.lab.cluster import ServerFailed
from tests.lab.stores import objects_below, replace

KILLS = 20
SEED = 20260714
DAYS = 86400.0


@dataclass(frozen=True)
class Instant:
    """When to kill: so many seconds after the start, or after the condition is met."""

    after: float
    when: Callable[[], bool] | None = None


class KillLab(RestoreLab):
    """A cluster and its repository, and commands that are killed."""

    def __init__(self, workspace: Workspace, runtime: Path, cluster: Cluster) -> None:
        super().__init__(workspace, runtime, cluster)
        self.location = self.locations["local"]
        self.random = random.Random(SEED)
        self.killed = 0

    def kill(self, instant: Instant, *words: str) -> Killed:
        command = self.workspace.account.argv([*self.command, "--json", *words])
        killed = run_and_kill(command, after=instant.after, when=instant.when, cwd=Path("/"))
        if killed.was_killed:
            self.killed += 1
        else:
            # It was faster than the one that was measured; then it must have come to its end.
            assert killed.returncode == 0, killed
        return killed

    def objects(self) -> set[str]:
        """Everything in the location but what has no name yet."""
        return set(objects_below(self.location))

    def verified(self, level: str) -> None:
        """Every backup there is can be restored, as far as this level tells."""
        # Not recorded: the newest verified backup would never be pruned.
        result = self.run("--json", "verify", "--all", "--level", level, "--no-record")
        assert result.returncode == 0, (result.stdout, result.stderr)

    def prune(self) -> dict[str, Any]:
        result = self.run("--json", "prune", "--grace", "0", "--yes")
        assert result.returncode == 0, (result.stdout, result.stderr)
        done: dict[str, Any] = json.loads(result.stdout)
        return done

    def nothing_left_over(self) -> None:
        """Packs are those that manifests list, nobody holds a lease, no deletion is pending."""
        catalog = Catalog.load(self.repository())
        assert catalog.broken == []
        referred = {name for backup in catalog.backups for name in model.pack_names(backup.header)}
        found = self.objects()
        assert {name for name in found if name.startswith("packs/")} == referred
        assert [name for name in found if name.startswith(("leases/", "marks/"))] == []

    def swept_when_old(self) -> None:
        """What killed writers had not given a name yet goes with a prune, once it is surely nobody's."""
        if not isinstance(self.location, Path):
            return  # nobody can make it old there
        for path in [*(self.location / ".tmp").iterdir(), *empty(self.location)]:
            os.utime(path, times=(path.stat().st_atime - 2 * DAYS, path.stat().st_mtime - 2 * DAYS))
        self.prune()
        assert self.stores["local"].left_overs() == []
        assert empty(self.location) == []


def empty(location: Path) -> list[Path]:
    """Directories that somebody made or emptied and did not come to fill or remove."""
    found = [Path(path) for path, folders, files in os.walk(location) if not folders + files]
    return [path for path in found if path.name != ".tmp"]


def files_below(directory: Path) -> Iterator[str]:
    for path, _unused, files in os.walk(directory):
        for name in files:
            yield os.path.relpath(os.path.join(path, name), directory)


def count_below(directory: Path) -> int:
    return sum(1 for _unused in files_below(directory))


@pytest.fixture
def kills(workspace: Workspace, runtime: Path, cluster: Cluster) -> KillLab:
    made = KillLab(workspace, runtime, cluster)
    sample_data(cluster, 16)
    return made


def test_backup(kills: KillLab) -> None:
    with LiveWriter(kills.cluster, interval=0.02) as writer:
        first = kills.backup()
        moment = writer.moment("first")
        usual = {"full": first["seconds"], "incremental": kills.backup("incremental")["seconds"]}
        state = set(files_below(kills.directory / "state"))
        for number in range(KILLS):
            kind = "incremental" if number % 3 else "full"
            before = set(kills.manifests())
            kills.kill(backup_instant(kills, number, usual[kind]), "backup", "main", "--type", kind)
            assert before <= set(kills.manifests())
            kills.verified("content" if number % 5 == 0 else "presence")
            if number % 2:
                made = kills.backup("incremental" if number % 4 == 1 else "full")
                assert made["status"] == "ok"
        writer.wait_rows(writer.count + 1)
    assert kills.killed >= KILLS // 2
    last = kills.backup("incremental")
    golden = golden_dump(kills.cluster)
    kills.archive_everything()
    assert kills.leases() == []
    kills.prune()
    kills.nothing_left_over()
    kills.swept_when_old()
    assert set(files_below(kills.directory / "state")) <= {*state, "locks/prune.lock"}
    kills.verified("content")
    for target, options, rows in (
        ("first", ["--backup", first["backup_id"], "--to-name", "first"], writer.expect(moment)),
        ("last", ["--backup", last["backup_id"]], writer.expect_all()),
    ):
        kills.restore(target, *options)
        prove_restore(kills.workspace, kills.place(target), rows=rows, golden=golden if target == "last" else None)


def backup_instant(kills: KillLab, number: int, seconds: float) -> Instant:
    if number % 2:
        # From the start of the interpreter on, which the backup's own clock does not see.
        return Instant(kills.random.uniform(0.2, 0.2 + seconds))
    # The lease, a pack or two, the manifest; WAL may come at any time.
    before, wanted = kills.objects(), kills.random.randint(1, 4)
    return Instant(kills.random.uniform(0, 0.02), lambda: len(without_wal(kills.objects() - before)) >= wanted)


def without_wal(objects: set[str]) -> set[str]:
    return {name for name in objects if not name.startswith("wal/")}


def test_prune(kills: KillLab) -> None:
    kills.settings["retention"] = {"full": {"keep_last": 1}, "incremental": {"keep_last": 1}, "minimum": 1}
    kills.write_config()
    kills.backup()
    kills.backup("incremental")
    for number in range(KILLS):
        kept = kills.backup("incremental" if number % 4 else "full")["backup_id"]
        litter(kills)
        kills.kill(prune_instant(kills, number), "prune", "--grace", "0", "--yes")
        assert kept in kills.manifests()
        kills.verified("content" if number % 5 == 0 else "presence")
        if number % 2:
            kills.prune()
            kills.nothing_left_over()
            assert len(kills.manifests()) == 2
    assert kills.killed >= KILLS // 2
    golden = golden_dump(kills.cluster)
    kills.archive_everything()
    kills.prune()
    kills.nothing_left_over()
    kills.swept_when_old()
    kills.verified("content")
    for backup_id in kills.manifests():
        kills.restore(backup_id, "--backup", backup_id)
        prove_restore(kills.workspace, kills.place(backup_id), golden=golden)


def litter(kills: KillLab) -> None:
    """Packs as killed backups leave them: a prune has more to do, and takes longer to kill."""
    pack = next(iter(kills.location.glob("packs/*/*.pack"))).read_bytes()
    for number in range(8):
        place = kills.location / f"packs/20200101T000000Z-{kills.random.getrandbits(32):08x}"
        replace(place / f"{number:06}.pack", pack)


def prune_instant(kills: KillLab, number: int) -> Instant:
    if number % 4 == 0:
        return Instant(kills.random.uniform(0.2, 0.6))
    if number % 4 == 1:
        marks = kills.location / "marks"
        return Instant(kills.random.uniform(0, 0.03), lambda: marks.is_dir() and any(marks.iterdir()))
    # The first manifest, packs, WAL; the mark adds one.
    before, gone = len(kills.objects()), kills.random.randint(1, 10)
    return Instant(0, lambda: len(kills.objects()) <= before - gone)


def test_restore(kills: KillLab) -> None:
    kills.backup()
    sample_data(kills.cluster, 2, table="later", seed=2)
    kills.backup("incremental")
    golden = golden_dump(kills.cluster)
    kills.archive_everything()
    reference = kills.place("reference")
    seconds = kills.restore(reference)["seconds"]
    expected = content(reference)
    repository = kills.objects()
    whole = 0
    for number in range(KILLS):
        # Each target is killed twice: when it was empty, and when the interrupted restore went on.
        target = kills.place(f"target-{number // 2}")
        options = ["--delta"] if number % 2 else []
        kills.kill(restore_instant(kills, number, seconds, target, len(expected)), *restore_to(target), *options)
        if (target / "global/pg_control").exists():
            # Behind the last step but the removal of the marker.
            whole += 1
            assert (target / "recovery.signal").exists()
        elif target.exists():
            refuses_to_start(kills, target)
        if number % 2:
            made = kills.restore(target, "--delta")
            assert made["status"] == "ok"
            assert content(target) == expected
            assert not (target / MARKER).exists()
            if number < KILLS - 2:
                shutil.rmtree(target)
    assert kills.killed >= KILLS // 2
    assert whole < KILLS // 2
    # It only read, and announced itself.
    assert kills.objects() - repository == {name for name in kills.objects() if name.startswith("leases/")}
    kills.prune()
    kills.nothing_left_over()
    kills.verified("content")
    prove_restore(kills.workspace, target, golden=golden)


def restore_to(target: Path) -> list[str]:
    return ["restore", "main", "--target", str(target)]


def restore_instant(kills: KillLab, number: int, seconds: float, target: Path, files: int) -> Instant:
    if number % 2:
        return Instant(kills.random.uniform(0.2, 0.2 + seconds))
    wanted = kills.random.randint(1, files)
    return Instant(0, lambda: count_below(target) >= wanted)


def refuses_to_start(kills: KillLab, target: Path) -> None:
    server = kills.workspace.adopt(target, installation=kills.cluster.installation)
    with pytest.raises(ServerFailed):
        server.start(timeout=20)
    server.close()
