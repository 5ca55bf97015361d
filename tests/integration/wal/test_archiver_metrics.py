# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the archiver tells Prometheus: what waits, for how long, and which location does not answer."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.lab import Cluster, Workspace, wait_until

from .lab import WalLab
from .test_archiver import Service

DOCUMENT = Path(__file__).parents[3] / "docs/wal-archive.md"
FILES = 12
SEGMENT = 1 << 20

Values = dict[tuple[str, str], float]


@pytest.fixture
def primary(workspace: Workspace) -> Cluster:
    cluster = workspace.cluster(wal_segment_mb=1)
    cluster.execute("CREATE TABLE rows (n int)")
    return cluster


@pytest.fixture
def archive(workspace: Workspace, runtime: Path, primary: Cluster) -> WalLab:
    archive = WalLab(workspace, runtime, {"main": primary.data_dir}, locations={"near": True, "far": False})
    directory = workspace.directory("metrics")
    workspace.account.own(directory)
    archive.settings["metrics"] = {"textfile": str(directory / "cryobackup.prom")}
    archive.write_config()
    return archive


@pytest.fixture
def live(archive: WalLab, primary: Cluster) -> Service:
    service = Service(archive)
    primary.enable_archiving(service.archive_command)
    return service


def textfile(archive: WalLab) -> Path:
    return archive.workspace.path / "metrics/cryobackup-archiver-main.prom"


def metrics(archive: WalLab) -> Values:
    """By name, without what all have in common, and location."""
    try:
        text = textfile(archive).read_text()
    except FileNotFoundError:
        return {}
    found = re.findall(r'^cryobackup_wal_(\w+)\{cluster="main",location="(\w+)"\} (\S+)$', text, re.MULTILINE)
    return {(name, location): float(value) for name, location, value in found}


def wait_for(archive: WalLab, condition: Callable[[Values], bool], what: str) -> Values:
    wait_until(lambda: bool(found := metrics(archive)) and condition(found), what, timeout=60)
    return metrics(archive)


def switch(primary: Cluster, files: int) -> str:
    for number in range(files):
        primary.execute("INSERT INTO rows VALUES (%s)", number)
        last = primary.switch_wal()
    return last


def ready(primary: Cluster) -> int:
    return len(list((primary.data_dir / "pg_wal/archive_status").glob("*.ready")))


def test_an_optional_location_is_down_and_comes_back(live: Service, archive: WalLab, primary: Cluster) -> None:
    live.start()
    primary.wait_archived(switch(primary, 1))
    before = wait_for(archive, lambda found: ("last_success_timestamp_seconds", "far") in found, "a file in far")
    for location in ("near", "far"):
        assert (before["waiting_files", location], before["location_up", location]) == (0, 1)
        assert before["oldest_waiting_seconds", location] == before["failures_total", location] == 0
        assert abs(before["last_success_timestamp_seconds", location] - time.time()) < 600
    with archive.away(archive.paths["far"]):
        primary.wait_archived(switch(primary, FILES), timeout=60)
        down = wait_for(archive, lambda found: found["waiting_files", "far"] >= FILES, "the backlog")
        assert down["waiting_bytes", "far"] >= FILES * SEGMENT
        assert (down["location_up", "far"], down["location_up", "near"]) == (0, 1)
        assert down["failures_total", "far"] > 0
        assert down["last_success_timestamp_seconds", "far"] == before["last_success_timestamp_seconds", "far"]
        # Nothing is held up by it.
        wait_for(
            archive, lambda found: found["oldest_waiting_seconds", "far"] > down["oldest_waiting_seconds", "far"], ""
        )
        assert ready(primary) == 0
        assert (
            wait_for(archive, lambda found: found["waiting_files", "near"] == 0, "near")["failures_total", "near"] == 0
        )
        (check,) = archive.workspace.run(["cat", textfile(archive)]).stdout.splitlines()[:1]
        assert check.startswith("# HELP cryobackup_wal_waiting_files ")
    assert textfile(archive).stat().st_mode & 0o777 == 0o644
    text = textfile(archive).read_text()
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")

    def healed() -> bool:
        primary.wait_archived(switch(primary, 1))
        found = metrics(archive)
        return found["waiting_files", "far"] == found["oldest_waiting_seconds", "far"] == 0

    wait_until(healed, "the backlog is gone", timeout=120)
    assert wait_for(archive, lambda found: found["location_up", "far"] == 1, "up")["waiting_bytes", "far"] == 0
    assert live.end() == 0


def test_a_required_location_is_down(live: Service, archive: WalLab, primary: Cluster) -> None:
    """Then PostgreSQL keeps what waits, and the service need not be asked to say so."""
    live.start()
    with archive.away(archive.paths["near"]):
        switch(primary, 3)
        found = wait_for(
            archive,
            lambda found: found["waiting_files", "near"] >= 3 and not found["location_up", "near"],
            "near is down",
        )
        assert found["failures_total", "near"] > 0
        assert found["waiting_bytes", "near"] >= 3 * SEGMENT
        assert ("last_success_timestamp_seconds", "near") not in found
    wait_for(archive, lambda found: found["waiting_files", "near"] == 0 and found["location_up", "near"] == 1, "healed")
    assert live.end() == 0


def test_metrics_that_cannot_be_written_hold_nothing_up(live: Service, archive: WalLab, primary: Cluster) -> None:
    archive.settings["metrics"] = {"textfile": "/nowhere/cryobackup.prom"}
    archive.write_config()
    live.start()
    primary.wait_archived(switch(primary, 2))
    assert live.end() == 0
    assert live.log.read_text().count("metrics cannot be written") == 1


def test_the_rules_of_the_documentation(tmp_path: Path) -> None:
    """They are what Prometheus takes, and of metrics that there are."""
    (block,) = re.findall(r"```yaml\n(groups:.*?)```", DOCUMENT.read_text(), re.DOTALL)
    rules = tmp_path / "rules.yml"
    rules.write_text(block)
    checked = subprocess.run(["promtool", "check", "rules", rules], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    expressions = [rule["expr"] for rule in yaml.safe_load(block)["groups"][0]["rules"]]
    used = set(re.findall(r"cryobackup_wal_\w+", " ".join(expressions)))
    table = set(re.findall(r"^\| `(cryobackup_wal_\w+)`", DOCUMENT.read_text(), re.MULTILINE))
    assert used <= table
    assert len(table) == 6
