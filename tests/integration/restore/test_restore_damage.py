# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Damage in the repository is named, and never restored."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from cryobackup.postgres.target import MARKER
from tests.lab import Cluster, Installation, LiveWriter, Workspace, flip_byte, prove_restore, sample_data
from tests.lab.cluster import ServerFailed
from tests.lab.stores import StoredPath, away, replace

from .lab import RestoreLab, Story, content, wait_promoted
from .test_restore_goals import QUICK, side

SEED = 20260302


def packs(lab: RestoreLab, backup_id: str, location: str = "local") -> list[StoredPath]:
    return sorted((lab.locations[location] / "packs" / backup_id).iterdir())


@contextlib.contextmanager
def flipped(path: StoredPath, offset: int) -> Iterator[None]:
    flip_byte(path, offset)
    try:
        yield
    finally:
        flip_byte(path, offset)


def test_a_flipped_byte_is_named_and_never_restored(story: Story) -> None:
    """Sampled over all packs. What is not damaged is restored byte for byte, and the rest is not there."""
    lab = story.lab
    rng = random.Random(SEED)
    good = lab.place("good")
    lab.restore(good, *side(story, good), "--backup", story.full)
    expected = content(good)
    for number in range(10):
        pack = rng.choice(packs(lab, story.full))
        target = lab.place(f"flipped-{number}")
        with flipped(pack, rng.randrange(pack.stat().st_size)):
            code, result, errors = lab.try_restore(target, *side(story, target), "--backup", story.full)
        assert (code, result["error"]["id"]) == (4, "damage"), result
        assert f"packs/{story.full}/{pack.name}" in result["error"]["message"]
        assert "--delta" in result["error"]["hint"]
        assert not (target / "global/pg_control").exists()
        assert (target / MARKER).exists()
        told = [line.removeprefix("warning: ") for line in errors.splitlines()]
        named = {line.split(" lacks bytes: ")[0] for line in told if " lacks bytes: " in line}
        assert named
        for name, entry in content(target).items():
            if str(target / name) not in named and name in expected and name != "tablespace_map" and not entry[3]:
                assert entry[4] == expected[name][4] or name == "postgresql.auto.conf", name
    # The damage gone, the last of them is completed.
    lab.restore(target, *side(story, target), "--backup", story.full, "--delta")
    prove_restore(lab.workspace, target, rows=story.writer.expect_all(), **QUICK)


def test_a_missing_pack_is_found_before_anything_is_written(story: Story) -> None:
    pack = packs(story.lab, story.full)[0]
    with away(pack):
        error = story.lab.refused_restore(
            "never", *side(story, story.lab.place("never")), "--backup", story.full, id="damage", exit_code=4
        )
    assert f"packs/{story.full}/{pack.name} is missing" in error["message"]
    assert "files need it" in error["message"]


def test_a_pack_that_was_cut_off(story: Story) -> None:
    pack = packs(story.lab, story.full)[0]
    whole = pack.read_bytes()
    replace(pack, whole[:-1])
    try:
        error = story.lab.refused_restore("never", "--backup", story.full, id="damage", exit_code=4)
    finally:
        replace(pack, whole)
    assert f"{len(whole) - 1} bytes instead of {len(whole)}" in error["message"]


def test_a_damaged_manifest(story: Story) -> None:
    """The backup is passed over, with a warning; named, it is an error. An older one leads to the goal as well."""
    lab = story.lab
    manifest = lab.locations["local"] / "manifests/main" / story.incremental
    with flipped(manifest, 200):
        lab.refused_restore("never", "--backup", story.incremental, id="damage", exit_code=4)
        target = lab.place("older")
        result = lab.restore(target, *side(story, target))
        assert result["backup_id"] == story.full
        assert any(story.incremental in warning for warning in result["warnings"])
    prove_restore(lab.workspace, target, golden=story.golden, rows=story.writer.expect_all(), **QUICK)


def test_damaged_entries_of_a_manifest(story: Story) -> None:
    manifest = story.lab.locations["local"] / "manifests/main" / story.incremental
    with flipped(manifest, manifest.stat().st_size // 2):
        error = story.lab.refused_restore("never", id="damage", exit_code=4)
    assert story.incremental in error["message"]


# WAL


def test_a_missing_segment_of_the_backup_itself(story: Story) -> None:
    lab = story.lab
    info = lab.manifest(story.full).header.postgres
    assert info is not None
    segment = lab.locations["local"] / f"wal/{info.system_identifier}/00000001/{info.wal_stop}"
    with away(segment):
        error = lab.refused_restore("never", "--backup", story.full, id="wal-missing")
    assert info.wal_stop in error["message"]


def test_a_gap_behind_the_backup(story: Story) -> None:
    """To the latest state: as far as it goes, but never called a success. To a point behind it: refused."""
    lab = story.lab
    info = lab.manifest(story.incremental).header.postgres
    assert info is not None
    folder = lab.locations["local"] / f"wal/{info.system_identifier}/00000001"
    names = sorted(each.name for each in folder.iterdir())
    segments = [name for name in names if len(name) == 24 and name > info.wal_stop]
    assert segments
    lab.archive_everything()
    with away(folder / segments[0]):
        target = lab.place("gap")
        result = lab.restore(target, *side(story, target), exit_code=3)
        assert result["status"] == "partial"
        assert any(segments[0] in warning for warning in result["warnings"])
        error = lab.refused_restore("never", "--to-lsn", story.lab.cluster.lsn(), id="wal-missing")
        assert segments[0] in error["message"]
        last = lab.cluster.value("SELECT %s::pg_lsn + 0", info.stop_lsn)
        rows = story.writer.expect_lsn(str(last))
        extra = frozenset(row.id for row in story.writer.rows) - rows.must
        prove_restore(lab.workspace, target, rows=dataclasses.replace(rows, may=extra), **QUICK)


# Two locations


@pytest.fixture(scope="module")
def twofold(
    lab: object, shared_workspace: Workspace, runtime: Path, pg: Installation
) -> tuple[RestoreLab, LiveWriter, str]:
    cluster: Cluster = shared_workspace.cluster("twofold", installation=pg)
    with contextlib.suppress(FileNotFoundError):  # the other tests', if they ran
        (shared_workspace.path / "cryobackup").rename(shared_workspace.path / "cryobackup-one")
    made = RestoreLab(shared_workspace, runtime, cluster, locations={"near": True, "far": False})
    sample_data(cluster, 4)
    with LiveWriter(cluster) as writer:
        writer.wait_rows(100)
        backup = made.backup()["backup_id"]
        writer.wait_rows(200)
    made.archive_everything()
    return made, writer, backup


@pytest.mark.every_location
def test_what_one_location_lost_comes_from_the_other(twofold: tuple[RestoreLab, LiveWriter, str]) -> None:
    lab, writer, backup = twofold
    near, far = packs(lab, backup, "near"), packs(lab, backup, "far")
    target = lab.place("healed")
    with flipped(near[0], 5000), flipped(near[0], near[0].stat().st_size // 2), away(far[-1]):
        lab.restore(target)
    prove_restore(lab.workspace, target, rows=writer.expect_all(), **QUICK)


def recover(cluster: Cluster) -> None:
    cluster.start()
    wait_promoted(cluster)


@pytest.mark.every_location
def test_a_location_that_is_gone(twofold: tuple[RestoreLab, LiveWriter, str]) -> None:
    """Recovery must not take the end of what is left for the end of all, unless it is told to."""
    lab, writer, _unused = twofold
    target = lab.place("one-left")
    with away(lab.locations["near"]):
        result = lab.restore(target)
        assert any("--without near" in warning for warning in result["warnings"])
        stopped = lab.workspace.adopt(target)
        with pytest.raises((ServerFailed, psycopg2.OperationalError)):
            recover(stopped)
        assert "location 'near'" in stopped.log_tail()
        stopped.close()
        result = lab.restore(target, "--delta", "--without", "near")
        assert result["warnings"] == []
        prove_restore(lab.workspace, target, rows=writer.expect_all(), **QUICK)
