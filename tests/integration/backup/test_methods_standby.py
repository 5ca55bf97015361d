# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever happened on the primary, an incremental on its standby holds the standby's files, by each way.

Its parent is a backup of the primary, whose files are others. To the kernel both hosts are one here, so that in the
same boot every file is one that somebody put there; in another, as on another host, that means nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.lab import Cluster, Workspace, golden_dump, prove_restore, wait_until

from .random_changes import SETTINGS, SIDE, RandomChanges
from .test_methods_agree import SEEDS, STEPS, told
from .test_standby import copy_of
from .test_wal_summaries import programs
from .ways import WAYS, WaysLab, as_on_disk

pytestmark = pytest.mark.only_on("posix")


def standby_of(primary: Cluster, workspace: Workspace) -> Cluster:
    """Running. The tablespace ``side`` has a directory of its own here as well."""
    directory, side = workspace.path / "standby", workspace.directory("standby-side")
    location = primary.value("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = %s", SIDE)
    primary.run("pg_basebackup", "-D", directory, "-c", "fast", "-T", f"{location}={side}")
    (directory / "standby.signal").touch()
    workspace.account.own(directory / "standby.signal")
    standby = workspace.adopt(directory, settings={"primary_conninfo": primary.conninfo})
    standby.start()
    return standby


@pytest.mark.parametrize("seed", SEEDS)
def test_methods_agree_on_a_standby(workspace: Workspace, runtime: Path, seed: int) -> None:
    settings: dict[str, Any] = {**SETTINGS, "wal_keep_size": "512MB", "summarize_wal": True}
    primary = workspace.cluster(installation=programs("17"), settings=settings)
    at_primary = WaysLab(workspace, runtime, primary)
    changes = RandomChanges(primary, seed)
    with told(seed, changes):
        changes.begin()
        standby = standby_of(primary, workspace)
        lab = copy_of(at_primary, standby)
        assert isinstance(lab, WaysLab)
        lab.set(data_directory=str(standby.data_dir), connection=standby.conninfo)
        parent = at_primary.backup("full")["backup_id"]
        changes.steps(STEPS)
        primary.checkpoint()
        lsn = primary.lsn()
        replayed = "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn"
        wait_until(lambda: bool(standby.value(replayed, lsn)), "the standby")
        standby.checkpoint()
        taken: dict[str, str] = {}
        names: set[str] | None = None
        for way in [way for way in WAYS if not way.same_boot]:
            backup = lab.incremental(way)
            assert backup["parent"] == parent
            taken[way.name] = backup["backup_id"]
            # What the primary knows as hints of pages that did not change since, the standby need not know.
            found = as_on_disk(lab, backup["backup_id"], strict=not way.summaries)
            assert names is None or found == names
            names = found
            lab.hide(backup["backup_id"])
        golden = golden_dump(primary)
        at_primary.archive_everything()
        chosen = taken["summaries alone"]
        lab.show(chosen)
        target = lab.place("restored")
        side = standby.value("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = %s", SIDE)
        lab.restore(target, "--backup", chosen, "--tablespace", f"{side}={lab.place('restored-side')}")
        prove_restore(workspace, target, golden=golden)
        standby.stop()
