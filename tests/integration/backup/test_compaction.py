# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Long chains: what lies in packs that are mostly dead is stored again, and the packs go with the last old manifest.

The oracles: nothing writes while a backup runs, so every file of the backup must be the file on the disk, byte for
byte; and PostgreSQL itself, started on a restore.
"""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from cryobackup.postgres.changes import FIRST_WITH_SUMMARIES
from cryobackup.repository.compaction import (
    BUDGET_BYTES,
    BUDGET_SHARE,
    OVERHEAD_SHARE,
    PACK_COST_BYTES,
    pack_uses,
)
from cryobackup.repository.model import BackupHeader, pack_names
from cryobackup.repository.packs import FRAME_TARGET_BYTES
from tests.integration.restore.lab import RestoreLab
from tests.lab import Workspace, golden_dump, prove_restore, sample_data

from .lab import SOURCE
from .test_incremental import exact
from .test_interrupted import SLOWLY, start, wait_for_copying
from .test_wal_summaries import programs

CHANGED = 0.1
"""Share of the pages of one table that change from one backup to the next."""
MUCH = 0.3
STEPS = 20
SUMMARIZING = "17"
QUIET = "quiet"


@pytest.fixture(params=["15", SUMMARIZING], ids=lambda major: f"pg{major}")
def chain(request: pytest.FixtureRequest, workspace: Workspace, runtime: Path) -> Chain:
    """By page LSN, and by WAL summaries."""
    return chain_of(request.param, workspace, runtime)


def chain_of(major: str, workspace: Workspace, runtime: Path, **options: Any) -> Chain:
    more = {"summarize_wal": True} if int(major) >= FIRST_WITH_SUMMARIES else {}
    cluster = workspace.cluster(installation=programs(major), settings={"autovacuum": False, **more})
    return Chain(RestoreLab(workspace, runtime, cluster, **options))


class Chain:
    """A cluster with a full backup, of which one table changes and another does not."""

    def __init__(self, lab: RestoreLab) -> None:
        self.lab = lab
        self._random = random.Random(1)
        sample_data(lab.cluster, 30)
        sample_data(lab.cluster, 4, table=QUIET)
        self._pages = int(lab.cluster.value("SELECT pg_relation_size('orders') / 8192"))
        lab.settle()
        lab.backup("full")

    def change(self, share: float = CHANGED) -> None:
        """Mark rows in scattered pages and in a run of neighbours; no row moves."""
        chosen = set(self._random.sample(range(self._pages), int(self._pages * share)))
        first = self._random.randrange(self._pages - 100)
        chosen.update(range(first, first + 100))
        tids = ";".join(f"({page},1)" for page in sorted(chosen))
        self.lab.cluster.value(
            "WITH locked AS MATERIALIZED (SELECT 1 FROM orders WHERE ctid = ANY(string_to_array(%s, ';')::tid[])"
            " FOR UPDATE) SELECT count(*) FROM locked",
            tids,
        )
        self.lab.cluster.checkpoint()

    def step(self, share: float = CHANGED) -> dict[str, Any]:
        self.change(share)
        made = self.lab.backup("incremental")
        assert made["type"] == "incremental", made["change_detection"]
        return made

    def header(self, backup: dict[str, Any]) -> BackupHeader:
        return self.lab.manifest(backup["backup_id"]).header

    def until_due(self) -> dict[str, Any]:
        """Take backups until one compacts."""
        for _unused in range(STEPS):
            made = self.step(MUCH)
            if made["compaction"] is not None:
                return made
        raise AssertionError("no backup compacted anything")


def overhead(header: BackupHeader) -> int:
    return sum(pack.overhead for pack in pack_uses(header))


def needed(header: BackupHeader) -> int:
    return sum(pack.live for pack in pack_uses(header))


def test_a_long_chain(chain: Chain, workspace: Workspace) -> None:
    lab = chain.lab
    made = [chain.step() for _unused in range(STEPS)]
    done = [each["compaction"] for each in made if each["compaction"]]
    assert done
    assert sum(each["packs_left"] for each in done) > 5
    last = made[-1]
    exact(lab, last)
    header = chain.header(last)
    budget = max(BUDGET_BYTES, int(BUDGET_SHARE * needed(header))) + len(pack_uses(header)) * FRAME_TARGET_BYTES
    assert all(0 < each["bytes"] <= budget for each in done)
    assert all(each["bytes_overhead"] > each["bytes_overhead_borne"] for each in done)

    # Bounded, and without compaction it would not be: then all that was ever changed would still be referred to.
    stored = sum(pack.plain for each in made for pack in chain.header(each).packs)
    without = stored - sum(each["bytes"] for each in done) + STEPS * PACK_COST_BYTES
    assert overhead(header) < max(32 << 20, 2 * OVERHEAD_SHARE * needed(header))
    assert without > 1.3 * overhead(header)

    assert "\ncompaction    " in lab.run("info", done_by(made)["backup_id"], check=True).stdout
    golden = golden_dump(lab.cluster)
    lab.archive_everything()
    the_rest_goes(chain, made)
    lab.restore("restored", "--backup", last["backup_id"], "--immediate")
    prove_restore(workspace, lab.place("restored"), golden=golden)
    exact(lab, chain.step())


def done_by(made: list[dict[str, Any]]) -> dict[str, Any]:
    """The last backup that compacted something."""
    return next(each for each in reversed(made) if each["compaction"])


def the_rest_goes(chain: Chain, made: list[dict[str, Any]]) -> None:
    """Let a prune take the old backups away: packs that were left behind go with them."""
    lab = chain.lab
    packs = {name for each in made for name in pack_names(chain.header(each))}
    full = lab.manifests()[0]
    kept = {*pack_names(chain.header(made[-1])), *pack_names(lab.manifest(full).header)}
    left_behind = packs - kept
    assert len(left_behind) > 5
    before = json.loads(lab.run("--json", "capacity", check=True).stdout)["sources"][SOURCE]["storage"]
    lab.settings["retention"] = {kind: {"keep_last": 1} for kind in ("full", "incremental")} | {
        "minimum": 1,
        "max_delete_share": 1,
    }
    lab.write_config()
    lab.run("verify", made[-1]["backup_id"], "--level", "content", check=True)
    lab.run("prune", "--grace", "0", check=True)
    assert lab.manifests() == [full, made[-1]["backup_id"]]
    there = {info.key for info in lab.repository().locations[0].list("packs/")}
    assert there == kept
    after = json.loads(lab.run("--json", "capacity", check=True).stdout)["sources"][SOURCE]["storage"]
    assert before["amplification"] > after["amplification"] >= after["newest"]["amplification"]
    assert after["packs"] == len(there)


def test_killed_while_it_compacts(chain: Chain) -> None:
    lab = chain.lab
    before = chain.until_due()
    manifests = lab.manifests()
    chain.change(MUCH)
    lab.set(bandwidth_limit=SLOWLY)
    process = start(lab, "incremental")
    wait_for_copying(lab, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    lab.set(bandwidth_limit=None)
    assert lab.manifests() == manifests
    lab.run("verify", before["backup_id"], "--level", "content", check=True)
    after = lab.backup("incremental")
    assert after["parent"] == before["backup_id"]
    assert after["compaction"] is not None
    exact(lab, after)


def test_a_page_that_broke_meanwhile_stays_as_the_parent_has_it(workspace: Workspace, runtime: Path) -> None:
    """Nothing but compaction looks at it, where summaries tell what changed."""
    # One thread: which packs the quiet table shares, and so whether it is stored again, is no matter of luck then.
    chain = chain_of(SUMMARIZING, workspace, runtime, workers=1)
    lab, cluster = chain.lab, chain.lab.cluster
    path = cluster.relation_path(QUIET)
    sound = path.read_bytes()
    name = str(path.relative_to(cluster.data_dir))
    broken = bytearray(sound)
    broken[8000::8192] = bytes(byte ^ 1 for byte in broken[8000::8192])
    path.write_bytes(broken)
    for _unused in range(STEPS):
        chain.change(MUCH)
        code, made, errors = lab.try_backup("incremental")
        if code:
            break
    assert code == 3, errors
    assert made["status"] == "damaged"
    assert made["compaction"]["pages_kept"] > 0
    [damage] = made["damage"]
    assert damage["path"] == name
    stored = lab.contents(made["backup_id"]).read(lab.entries(made["backup_id"])[name])
    assert stored == sound
