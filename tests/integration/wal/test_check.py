# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""check: every step of the way is tried, and what is wrong is named."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.lab import Cluster, Workspace
from tests.lab.stores import replace

from .lab import WalLab

ARCHIVING = "cluster main: archiving"
ROUND_TRIP = "cluster main: archive a segment"


@pytest.fixture(scope="module")
def archiving(shared_workspace: Workspace, runtime: Path) -> WalLab:
    """A running cluster that archives to a required and an optional location."""
    cluster = shared_workspace.cluster(wal_segment_mb=1)
    made = WalLab(shared_workspace, runtime, {"main": cluster.data_dir}, locations={"near": True, "far": False})
    made.connect("main", cluster)
    cluster.enable_archiving(made.archive_command)
    made.cluster = cluster
    return made


@pytest.fixture
def cluster(archiving: WalLab) -> Cluster:
    assert archiving.cluster is not None
    return archiving.cluster


def findings(archive: WalLab, *options: str) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """Exit code, and what was found by name."""
    code, result = archive.json("check", *options)
    assert result["ok"] == (code == 0)
    found: dict[str, list[dict[str, Any]]] = {}
    for finding in result["checks"]:
        found.setdefault(finding["name"], []).append(finding)
    return code, found


def failed(found: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    return {name: each["detail"] for name, every in found.items() for each in every if not each["ok"]}


def files(archive: WalLab) -> set[str]:
    """Everything in the locations but the archive itself."""
    return {
        str(path)
        for root in archive.paths.values()
        for path in root.rglob("*")
        if "wal" not in path.relative_to(root).parts
    }


def test_a_sound_set_up_passes(archiving: WalLab, cluster: Cluster) -> None:
    before = files(archiving)
    code, found = findings(archiving, "main")
    assert (code, failed(found)) == (0, {})
    detail = found[ROUND_TRIP][0]["detail"]
    segment = detail.split()[0]
    assert all(archiving.object(cluster.system_identifier, segment, place).exists() for place in archiving.paths)
    assert "near, far" in detail
    assert "equal to the one in pg_wal; read back in full" in detail
    assert files(archiving) == before


def test_the_list_is_for_people(archiving: WalLab) -> None:
    result = archiving.run("check")
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert lines[0].startswith("ok      configuration")
    steps = [line for line in lines if line.startswith(("ok ", "note "))]
    assert lines[-1] == f"all {len(steps)} checks passed"


def test_the_room_that_a_quota_leaves(archiving: WalLab) -> None:
    """Not that of the disk it lies on, of which it may use no more."""
    far = archiving.settings["repository"]["locations"]["far"]
    left_over = archiving.paths["far"] / "packs/20200101T000000Z-00000000/000000.pack"
    replace(left_over, bytes(1100 << 10))
    try:
        for quota, said in (("1GB", "1.0 GiB leaves 102"), ("1MB", "1.0 MiB leaves 0 B")):
            far["quota"] = quota
            archiving.write_config()
            code, found = findings(archiving)
            assert (code, failed(found)) == (0, {})
            [first, *notes] = [finding["detail"] for finding in found["location far"]]
            assert f", its quota of {said}" in first
            assert ("its quota of 1.0 MiB is nearly used up" in notes) == (quota == "1MB")
    finally:
        left_over.unlink()
        del far["quota"]
        archiving.write_config()


def test_the_repository_alone(archiving: WalLab) -> None:
    """For a host whose configuration names clusters of other hosts."""
    cluster = archiving.settings["clusters"]["main"]
    elsewhere = dict(cluster, data_directory="/nowhere/main", connection="host=/nowhere")
    archiving.settings["clusters"]["main"] = elsewhere
    archiving.write_config()
    try:
        code, found = findings(archiving)
        assert (code, set(failed(found))) == (1, {"cluster main: data directory"})
        code, found = findings(archiving, "--repository")
    finally:
        archiving.settings["clusters"]["main"] = cluster
        archiving.write_config()
    assert (code, set(found)) == (0, {"configuration", "state directory", "keys", "location near", "location far"})


def test_a_state_directory_of_somebody_else(archiving: WalLab, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    archiving.settings["state_directory"] = str(tmp_path / "state")
    archiving.write_config()
    try:
        code, found = findings(archiving, "--repository")
    finally:
        archiving.settings["state_directory"] = str(archiving.state)
        archiving.write_config()
    assert (code, set(failed(found))) == (1, {"state directory"})


def test_without_identity_it_says_so_and_passes(archiving: WalLab) -> None:
    with archiving.away(archiving.keys / "data.identity"):
        code, found = findings(archiving)
    assert code == 0
    assert "this host can only write" in found["keys"][0]["detail"]
    assert "not read back" in found[ROUND_TRIP][0]["detail"]


def test_keys_that_others_can_read(archiving: WalLab) -> None:
    path = archiving.keys / "catalog.key"
    path.chmod(0o440)
    try:
        code, found = findings(archiving)
    finally:
        path.chmod(0o400)
    assert (code, list(failed(found))) == (1, ["keys"])
    assert "can be read by others" in failed(found)["keys"]


def test_a_location_that_is_gone(archiving: WalLab) -> None:
    with archiving.away(archiving.paths["near"]):
        code, found = findings(archiving)
        assert (code, set(failed(found))) == (1, {"location near", ROUND_TRIP})
    with archiving.away(archiving.paths["far"]):
        # An optional one fails the check, too: it is configured and does not work. WAL is archived all the same.
        code, found = findings(archiving)
        assert (code, set(failed(found))) == (1, {"location far"})
        assert any(each["warning"] and "far" in each["detail"] for each in found[ROUND_TRIP])


def test_archive_command_that_fails(archiving: WalLab, cluster: Cluster) -> None:
    cluster.configure(archive_command="false")
    try:
        code, found = findings(archiving, "--timeout", "1")
    finally:
        cluster.configure(archive_command=archiving.archive_command)
    assert (code, set(failed(found))) == (1, {ROUND_TRIP})
    assert "PostgreSQL's archive" in found[ROUND_TRIP][0]["hint"]
    assert found[ARCHIVING][0]["warning"]
    assert "wal-push %p" in found[ARCHIVING][0]["hint"]
    cluster.wait_archived(cluster.switch_wal())


def test_archive_command_that_only_pretends(archiving: WalLab, cluster: Cluster) -> None:
    cluster.configure(archive_command="true")
    try:
        code, found = findings(archiving, "--timeout", "1")
    finally:
        cluster.configure(archive_command=archiving.archive_command)
    assert (code, set(failed(found))) == (1, {ROUND_TRIP})
    assert "reports no failure" in found[ROUND_TRIP][0]["hint"]


def test_no_archiving_at_all(workspace: Workspace, runtime: Path) -> None:
    cluster = workspace.cluster()
    archive = WalLab(workspace, runtime, {"main": cluster.data_dir})
    archive.connect("main", cluster)
    code, found = findings(archive)
    assert (code, failed(found)) == (1, {ARCHIVING: "archive_mode is off"})
    cluster.enable_archiving("")
    assert failed(findings(archive)[1]) == {ARCHIVING: "archive_command is empty"}
    cluster.stop()
    assert list(failed(findings(archive)[1])) == ["cluster main: connection"]


def test_the_connection_leads_to_another_server(archiving: WalLab, workspace: Workspace, cluster: Cluster) -> None:
    other = workspace.cluster("other")
    archiving.connect("main", other)
    try:
        code, found = findings(archiving)
    finally:
        archiving.connect("main", cluster)
    assert (code, list(failed(found))) == (1, ["cluster main: same server"])
    assert str(other.data_dir) in failed(found)["cluster main: same server"]


def test_a_user_with_few_privileges(archiving: WalLab, cluster: Cluster) -> None:
    cluster.execute("CREATE ROLE few LOGIN")
    connection = archiving.settings["clusters"]["main"]["connection"]
    archiving.settings["clusters"]["main"]["connection"] = f"{connection} user=few"
    archiving.write_config()
    try:
        code, found = findings(archiving)
        assert (code, list(failed(found))) == (1, ["cluster main: privileges"])
        hint = found["cluster main: privileges"][0]["hint"]
        for grant in hint.replace("…", "few").split("; "):
            cluster.execute(grant)
        code, found = findings(archiving)
        assert (code, failed(found)) == (0, {})
    finally:
        archiving.connect("main", cluster)


@pytest.mark.only_on("posix")
def test_an_archive_that_keeps_something_else(archiving: WalLab, cluster: Cluster, workspace: Workspace) -> None:
    """Each segment is acknowledged, but a byte of it is another one when it gets there."""
    cluster.wait_archived(cluster.switch_wal())
    staging = workspace.path / "staging"
    shutil.copytree(archiving.paths["near"], staging)
    workspace.account.own(staging, recursive=True)
    settings = copy.deepcopy(archiving.settings)
    settings["repository"]["locations"]["near"]["path"] = str(staging)
    config = workspace.path / "staging.yml"
    config.write_text(json.dumps(settings))
    place = f"wal/{cluster.system_identifier}/00000001"
    script = workspace.path / "archive-and-damage"
    script.write_text(
        f"#!/bin/sh -e\nfile={staging}/{place}/$2\n{archiving.runtime} --config {config} wal-push $1\nchmod 600 $file\n"
        f"printf x | dd of=$file bs=1 seek=1500 conv=notrunc status=none\nmv $file {archiving.paths['near']}/{place}/\n"
    )
    script.chmod(0o755)
    cluster.configure(archive_command=f"{script} %p %f")
    try:
        code, found = findings(archiving, "--timeout", "20")
    finally:
        cluster.configure(archive_command=archiving.archive_command)
    assert (code, set(failed(found))) == (1, {ROUND_TRIP})
    assert "is damaged: frame 0 is not what was written" in failed(found)[ROUND_TRIP]


def test_a_standby_is_checked_at_its_primary(workspace: Workspace, runtime: Path, archiving: WalLab) -> None:
    primary = archiving.cluster
    assert primary is not None
    target = workspace.path / "standby"
    primary.run("pg_basebackup", "-D", target, "-c", "fast", "--no-sync")
    (target / "standby.signal").touch()
    workspace.account.own(target, recursive=True)
    standby = workspace.adopt(target, settings={"archive_mode": True})
    standby.start()
    archive = WalLab(workspace, runtime, {"main": target})
    archive.connect("main", standby)
    code, found = findings(archive)
    assert (code, failed(found)) == (0, {})
    assert "standby" in found[ARCHIVING][0]["detail"]
    assert ROUND_TRIP not in found


def test_only_the_named_cluster(archiving: WalLab) -> None:
    archiving.settings["clusters"]["gone"] = {"data_directory": "/nowhere/at/all", "connection": "host=/nowhere"}
    archiving.write_config()
    try:
        assert findings(archiving, "main")[0] == 0
        code, found = findings(archiving)
        assert (code, list(failed(found))) == (1, ["cluster gone: data directory"])
        assert found[ROUND_TRIP][0]["ok"]
        code, result = archiving.json("check", "nobody")
        assert (code, result["error"]["id"]) == (2, "unknown-cluster")
    finally:
        del archiving.settings["clusters"]["gone"]
        archiving.write_config()
