# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything that a role is for works with the rights that it has, and with no more."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import Installation, LiveWriter, Workspace, golden_dump, prove_restore, sample_data
from tests.lab.ceph import Gateway

from .lab import POLICY, SOURCE, LockedLab


@pytest.fixture(scope="module")
def locked(shared_workspace: Workspace, runtime: Path, pg: Installation, s3: Gateway) -> LockedLab:
    cluster = shared_workspace.cluster(installation=pg)
    sample_data(cluster, 4)
    retention = {
        "full": {"keep_last": 2},
        "incremental": {"keep_last": 2},
        "minimum": 1,
        "trash": 0,
        "max_delete_share": 1,
    }
    return LockedLab(shared_workspace, runtime, cluster, s3, retention=retention)


def test_each_role_does_its_work_with_its_own_rights(locked: LockedLab) -> None:
    with LiveWriter(locked.cluster) as rows:
        rows.wait_rows(50)
        first = locked.backup()
        rows.wait_rows(rows.count + 50)
        second = locked.backup("incremental")
    golden = golden_dump(locked.cluster)
    locked.archive_everything()
    for command in (["check", SOURCE], ["list"], ["status"], ["info", second]):
        code, result, errors = locked.writer.try_run(*command)
        assert code == 0, (command, result, errors)
    assert locked.keys("leases/") == []

    assert locked.verifier.run("verify", "--all", "--level", "content")["result"] == "ok"
    assert locked.verifier.run("verify", first, "--level", "restore")["result"] == "ok"
    assert len(locked.keys("notes/")) == 3
    target = locked.workspace.path / "restored"
    locked.verifier.run("restore", SOURCE, "--target", target)
    prove_restore(locked.workspace, target, golden=golden, rows=rows.expect_all())
    assert locked.keys("leases/") == []

    assert locked.keeper.run("lock", "status")["attention"] == []
    third, *newer = [locked.backup() for _unused in range(3)]
    pruned = locked.keeper.run("prune", "--grace", "0")
    # The first one is the newest verified full backup.
    assert pruned["delete"] == [third]
    assert {*newer, first, second} == set(pruned["keep"])
    assert pruned["errors"] == {}
    done = pruned["locations"]["cloud"]
    assert done["manifests"] == 1
    assert done["packs"] > 0
    assert locked.manifest(third) not in locked.keys("manifests/")
    # All of it is locked, so it is still there, and no error.
    assert done["hidden"]["locked"] == done["manifests"] + done["packs"] + done["wal"]
    assert done["bytes_freed"] == done["hidden"]["bytes_removed"]
    assert done["hidden"]["refused"] is None
    assert any(version.key == locked.full(locked.manifest(third)) for version in locked.bucket.versions())
    assert locked.verifier.run("verify", "--all", "--level", "presence")["result"] == "ok"


def test_a_host_that_may_delete_nothing_at_all_makes_backups(locked: LockedLab) -> None:
    locked.apply_policy(without="WriterGivesBack")
    try:
        made = [locked.backup("incremental") for _unused in range(2)]
        code, result, errors = locked.writer.try_run("check", SOURCE)
        assert code == 0, (result, errors)
        assert "cannot be deleted" in json.dumps(result)
    finally:
        locked.apply_policy()
    left = {key.rpartition("/")[2] for key in locked.keys("leases/")}
    assert set(made) <= left
    assert set(made) <= locked.listed(locked.writer)
    # Their holders are gone: who may delete retires them.
    locked.keeper.run("prune")
    assert locked.keys("leases/") == []


def test_the_policies_name_only_actions_and_conditions_that_there_are() -> None:
    """Those for Amazon say what the tested one for Ceph says, in Amazon's words."""
    folder = POLICY.parent
    rights: dict[str, set[tuple[str, str]]] = {}
    for statement in json.loads(POLICY.read_text())["Statement"]:
        if statement["Effect"] == "Allow":
            for who in statement["Principal"]["AWS"]:
                role = who.rpartition("/")[2].lower()
                rights.setdefault(role, set()).update(granted(statement))
    for role, allowed in rights.items():
        amazon = json.loads((folder / f"aws-{role}.json").read_text())["Statement"]
        theirs = {pair for statement in amazon for pair in granted(statement)}
        # Amazon wants the right to lock from who creates locked objects.
        extra = {pair for pair in theirs - allowed if pair[0] != "s3:PutObjectRetention" or role != "writer"}
        assert extra == set(), role


def test_the_writer_may_lock_for_as_long_as_the_example_of_a_configuration_says() -> None:
    """And not for much longer."""
    (retain,) = re.findall(
        r"object_lock: \{mode: governance, retain: ([0-9]+)d\}",
        POLICY.parents[1].joinpath("object-lock.md").read_text(),
    )
    statements = json.loads((POLICY.parent / "aws-writer.json").read_text())["Statement"]
    (condition,) = [each["Condition"] for each in statements if each["Action"] == "s3:PutObjectRetention"]
    assert condition == {
        "NumericLessThanEquals": {"s3:object-lock-remaining-retention-days": str(int(retain) + 1)},
    }


def granted(statement: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Actions and resources, each with each."""
    actions, where = statement["Action"], statement["Resource"]
    for action in [actions] if isinstance(actions, str) else actions:
        for resource in [where] if isinstance(where, str) else where:
            yield action, "" if "Bucket" in action else resource
