# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Optional locations that are down, slow or a black hole hold up neither archiving nor recovery."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryobackup.postgres.archive_backlog import note_missing, read_backlog
from cryobackup.postgres.archive_outages import Outages
from tests.lab import Cluster, LiveWriter, Workspace, flip_byte, wait_until
from tests.lab.stores import replace

from .lab import FinishedWal, WalLab

DELIVERED, MISSING, UNKNOWN = 0, 1, 200


class BlackHole:
    """Takes connections, and never says anything."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    @property
    def connections(self) -> int:
        return len(self._connections)

    def _accept(self) -> None:
        while True:
            try:
                self._connections.append(self._listening.accept()[0])
            except OSError:
                return

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()
        for connection in self._connections:
            connection.close()


@pytest.fixture
def black_hole() -> Iterator[BlackHole]:
    made = BlackHole()
    yield made
    made.close()


@pytest.fixture
def sinking(archive: WalLab, black_hole: BlackHole) -> WalLab:
    """A required location, and an optional bucket that never answers."""
    credentials = archive.directory / "s3.ini"
    credentials.write_text("[default]\naws_access_key_id = x\naws_secret_access_key = y\n")
    credentials.chmod(0o600)
    archive.workspace.account.own(credentials)
    archive.settings["repository"]["locations"]["cloud"] = {
        "type": "s3",
        "bucket": "backups",
        "region": "us-east-1",
        "endpoint_url": black_hole.url,
        "credentials_file": str(credentials),
        "required": False,
    }
    archive.write_config()
    return archive


def test_a_black_hole_is_noted_and_left_alone(sinking: WalLab, finished: FinishedWal, black_hole: BlackHole) -> None:
    first, second = finished.segments[:2]
    code, result = sinking.json("wal-push", f"pg_wal/{first}", cwd=finished.data_dir)
    assert (code, result["stored"]) == (0, ["local"])
    assert result["failed"]["cloud"]["id"] == "location-slow"
    asked = black_hole.connections
    assert asked > 0
    outage = Outages(sinking.state).waiting("cloud")
    assert outage is not None
    assert outage.failures == 1
    code, result = sinking.json("wal-push", f"pg_wal/{second}", cwd=finished.data_dir)
    assert (code, result["stored"]) == (0, ["local"])
    assert result["failed"]["cloud"]["id"] == "location-waiting"
    assert black_hole.connections == asked, "nobody asked it again"
    owed = [f"{finished.system_identifier}/{name}" for name in (first, second)]
    assert read_backlog(sinking.state) == {"cloud": owed}


def test_recovery_goes_on_without_a_black_hole(
    sinking: WalLab, finished: FinishedWal, black_hole: BlackHole, workspace: Workspace
) -> None:
    """The required location has what there is, and knows what there is not."""
    name, following = finished.segments[:2]
    sinking.push(finished.data_dir, name)
    asked = black_hole.connections
    destination = workspace.directory("destination") / "RECOVERYXLOG"
    assert sinking.get(name, destination, cwd=finished.data_dir) == DELIVERED
    wanted = ["wal-get", following, destination, "--required-suffice"]
    code, result = sinking.json(*wanted, cwd=finished.data_dir)
    assert (code, result["found"]) == (MISSING, False)
    assert "cloud" in result["warnings"][0]
    assert black_hole.connections == asked
    # Where the pushes of the past are not known, it is asked, and given up on.
    (sinking.state / "outages" / "cloud.json").unlink()
    wanted = ["wal-get", "00000002.history", destination, "--required-suffice"]
    assert sinking.json(*wanted, cwd=finished.data_dir)[0] == MISSING
    assert black_hole.connections > asked
    assert [file.name for file in destination.parent.iterdir()] == [destination.name]


def test_what_an_optional_location_lacks_comes_with_later_files(twofold: WalLab, finished: FinishedWal) -> None:
    with twofold.away(twofold.paths["far"]):
        for name in finished.segments[:3]:
            assert twofold.push(finished.data_dir, name).returncode == 0
    assert len(read_backlog(twofold.state)["far"]) == 3
    code, result = twofold.json("wal-push", f"pg_wal/{finished.segments[3]}", cwd=finished.data_dir)
    assert (code, result["stored"], result["caught_up"]) == (0, ["near", "far"], {"far": 3})
    assert read_backlog(twofold.state) == {}
    assert Outages(twofold.state).known("far") is None
    for name in finished.segments:
        near, far = (twofold.object(finished.system_identifier, name, place) for place in ("near", "far"))
        assert near.read_bytes() == far.read_bytes()


def test_what_retention_removed_meanwhile_does_not_stop_the_later_files(twofold: WalLab, finished: FinishedWal) -> None:
    """Oldest first, a few at a time: of eight that are nowhere any more the ninth would never have its turn."""
    name, last = finished.segments[:2]
    with twofold.away(twofold.paths["far"]):
        twofold.push(finished.data_dir, name)
    for number in range(8):
        note_missing(twofold.state, "far", int(finished.system_identifier) - 1, f"0000000100000000{number:08X}")
    twofold.workspace.account.own(twofold.state, recursive=True)
    for _unused in range(2):
        twofold.push(finished.data_dir, last)
    assert read_backlog(twofold.state) == {}
    assert twofold.object(finished.system_identifier, name, "far").exists()


def test_with_much_to_archive_only_the_required_locations_count(twofold: WalLab, finished: FinishedWal) -> None:
    status = finished.data_dir / "pg_wal" / "archive_status"
    made = [status / f"0000000100000001000000{number:02X}.ready" for number in range(9)]
    try:
        for path in made:
            path.touch()
        code, result = twofold.json("wal-push", f"pg_wal/{finished.segments[0]}", cwd=finished.data_dir)
    finally:
        for path in made:
            path.unlink(missing_ok=True)
    assert (code, result["stored"], result["failed"]["far"]["id"]) == (0, ["near"], "location-waiting")
    assert Outages(twofold.state).known("far") is None
    assert read_backlog(twofold.state) == {"far": [f"{finished.system_identifier}/{finished.segments[0]}"]}


def test_an_optional_location_gets_what_a_required_one_cannot_take(twofold: WalLab, finished: FinishedWal) -> None:
    name = finished.segments[0]
    with twofold.away(twofold.paths["near"]):
        code, result = twofold.json("wal-push", f"pg_wal/{name}", cwd=finished.data_dir)
        assert code == 1
        assert result["error"]["id"].startswith("location")
    assert twofold.object(finished.system_identifier, name, "far").exists()


@pytest.fixture
def destination(workspace: Workspace) -> Path:
    return workspace.directory("destination") / "RECOVERYXLOG"


def test_an_optional_location_that_is_away_may_have_more_than_the_required_one(
    twofold: WalLab, finished: FinishedWal, destination: Path
) -> None:
    """The required location was down when the host died, and is back: what came last is in the optional one only."""
    first, last, _unused = finished.segments[:3]
    twofold.push(finished.data_dir, first)
    with twofold.away(twofold.paths["near"]):
        assert twofold.json("wal-push", f"pg_wal/{last}", cwd=finished.data_dir)[0] == 1
    with twofold.away(twofold.paths["far"]):
        code, result = twofold.json("wal-get", last, destination, cwd=finished.data_dir)
        assert code == UNKNOWN
        assert result["error"]["id"].startswith("location")
        assert "--without far" in result["error"]["hint"]
        assert twofold.json("wal-get", "00000002.history", destination, cwd=finished.data_dir)[0] == UNKNOWN
        # A standby is not promoted by the end of the archive: it asks again.
        (finished.data_dir / "standby.signal").touch()
        try:
            assert twofold.json("wal-get", last, destination, cwd=finished.data_dir)[0] == MISSING
        finally:
            (finished.data_dir / "standby.signal").unlink()
    assert twofold.json("wal-get", last, destination, cwd=finished.data_dir)[0] == 0


class TestAbsence:
    """Which absence the required locations can vouch for, where that is enough. The optional one never answers."""

    def get(self, twofold: WalLab, finished: FinishedWal, destination: Path, name: str) -> tuple[int, str]:
        """Exit code, and what is said about it."""
        with twofold.away(twofold.paths["far"]):
            words = ["wal-get", name, destination, "--required-suffice"]
            code, result = twofold.json(*words, cwd=finished.data_dir)
        return code, json.dumps(result.get("warnings") or result.get("error"))

    def test_the_end_of_the_archive(self, twofold: WalLab, finished: FinishedWal, destination: Path) -> None:
        for name in finished.segments[:2]:
            twofold.push(finished.data_dir, name)
        code, words = self.get(twofold, finished, destination, finished.segments[2])
        assert code == MISSING
        assert "Location far" in words
        assert self.get(twofold, finished, destination, "00000002.history")[0] == MISSING
        # The same segment on the timeline that a promotion right there would have begun.
        assert self.get(twofold, finished, destination, f"00000002{finished.segments[2][8:]}")[0] == MISSING

    def test_a_gap_is_no_end(self, twofold: WalLab, finished: FinishedWal, destination: Path) -> None:
        """It was optional when the segment was pushed, or lost it: the other one may have it."""
        for name in (finished.segments[0], finished.segments[2]):
            twofold.push(finished.data_dir, name)
        code, words = self.get(twofold, finished, destination, finished.segments[1])
        assert code == UNKNOWN
        assert "later segments" in words

    def test_a_location_that_stopped_being_fed_before_knows_nothing(
        self, twofold: WalLab, finished: FinishedWal, destination: Path
    ) -> None:
        """Recovery has got the segment before from the optional one."""
        twofold.push(finished.data_dir, finished.segments[0])
        code, words = self.get(twofold, finished, destination, finished.segments[2])
        assert code == UNKNOWN
        assert finished.segments[0] in words

    def test_nor_does_one_that_was_never_seeded(
        self, twofold: WalLab, finished: FinishedWal, destination: Path
    ) -> None:
        for name in finished.segments[:2]:
            twofold.push(finished.data_dir, name)
            twofold.object(finished.system_identifier, name, "near").unlink()
        for name in (finished.segments[2], "00000002.history"):
            assert self.get(twofold, finished, destination, name)[0] == UNKNOWN

    def test_nor_one_that_has_a_timeline_without_its_history(
        self, twofold: WalLab, finished: FinishedWal, destination: Path
    ) -> None:
        twofold.push(finished.data_dir, finished.segments[0])
        known = twofold.object(finished.system_identifier, finished.segments[0], "near")
        other = twofold.object(finished.system_identifier, f"00000002{finished.segments[1][8:]}", "near")
        replace(other, known.read_bytes())
        known.unlink()
        assert self.get(twofold, finished, destination, "00000002.history")[0] == UNKNOWN

    def test_damage_in_the_optional_location_is_no_absence(
        self, twofold: WalLab, finished: FinishedWal, destination: Path
    ) -> None:
        for name in finished.segments[:2]:
            twofold.push(finished.data_dir, name)
        twofold.object(finished.system_identifier, finished.segments[1], "near").unlink()
        far = twofold.object(finished.system_identifier, finished.segments[1], "far")
        flip_byte(far, far.stat().st_size // 2, 1)
        code, result = twofold.json("wal-get", finished.segments[1], destination, cwd=finished.data_dir)
        assert (code, result["error"]["id"]) == (UNKNOWN, "damage")

    def test_without_a_required_location_nobody_can_vouch(
        self, twofold: WalLab, finished: FinishedWal, destination: Path
    ) -> None:
        twofold.push(finished.data_dir, finished.segments[0])
        with twofold.away(twofold.paths["far"]):
            words = ["wal-get", finished.segments[1], destination, "--required-suffice", "--without", "near"]
            assert twofold.json(*words, cwd=finished.data_dir)[0] == UNKNOWN


def test_recovery_to_the_end_with_the_optional_location_down(workspace: Workspace, runtime: Path) -> None:
    """With PostgreSQL: it ends, promotes, and no row is missing."""
    primary = workspace.cluster(wal_segment_mb=1)
    archive = WalLab(workspace, runtime, {"main": primary.data_dir}, locations={"near": True, "far": False})
    primary.enable_archiving(archive.archive_command)
    target = workspace.path / "copy"
    with LiveWriter(primary) as writer:
        writer.wait_rows(20)
        primary.run("pg_basebackup", "-D", target, "-X", "none", "-c", "fast", "--no-sync")
        writer.wait_rows(writer.count + 200)
        primary.switch_wal()
        writer.wait_rows(writer.count + 50)
        writer.stop()
    primary.wait_archived(primary.switch_wal())
    primary.stop()
    fetch = archive.archive_command.replace("wal-push %p", "wal-get --required-suffice %f %p")
    with (target / "postgresql.auto.conf").open("a") as file:
        file.write(f"restore_command = '{fetch}'\narchive_mode = off\n")
    (target / "recovery.signal").touch()
    workspace.account.own(target, recursive=True)
    copy = workspace.adopt(target)
    with archive.away(archive.paths["far"]):
        copy.start()
        wait_until(lambda: not copy.value("SELECT pg_is_in_recovery()"))
    with copy.session() as session:
        writer.expect_all().check(session)
    assert "never archived" in copy.log_tail(200)


def promoted_without_archiving(workspace: Workspace) -> tuple[Cluster, str, int]:
    """A cluster on timeline 2 that has never handed over the history of it, a finished segment, the identifier."""
    cluster = workspace.cluster(settings={"wal_keep_size": "1GB"})
    cluster.stop()
    (cluster.data_dir / "recovery.signal").touch()
    with (cluster.data_dir / "postgresql.auto.conf").open("a") as file:
        file.write("restore_command = 'false'\n")
    workspace.account.own(cluster.data_dir, recursive=True)
    cluster.start()
    wait_until(lambda: not cluster.value("SELECT pg_is_in_recovery()"))
    segment = cluster.switch_wal()
    identifier = int(cluster.system_identifier)
    cluster.stop()
    assert segment.startswith("00000002")
    return cluster, segment, identifier


def test_the_history_of_a_timeline_goes_first(workspace: Workspace, runtime: Path) -> None:
    cluster, segment, identifier = promoted_without_archiving(workspace)
    archive = WalLab(workspace, runtime, {"main": cluster.data_dir}, locations={"near": True, "far": False})
    assert archive.push(cluster.data_dir, segment).returncode == 0
    for place in ("near", "far"):
        assert archive.object(identifier, "00000002.history", place).exists()
        assert archive.object(identifier, segment, place).exists()
    # Once: what was done is remembered.
    archive.object(identifier, "00000002.history", "near").unlink()
    assert archive.push(cluster.data_dir, segment).returncode == 0
    assert not archive.object(identifier, "00000002.history", "near").exists()


def test_a_history_that_is_lost_is_told_of(workspace: Workspace, runtime: Path) -> None:
    cluster, segment, _identifier = promoted_without_archiving(workspace)
    (cluster.data_dir / "pg_wal" / "00000002.history").unlink()
    archive = WalLab(workspace, runtime, {"main": cluster.data_dir})
    result = archive.push(cluster.data_dir, segment)
    assert result.returncode == 0
    assert "no recovery follows this timeline" in result.stderr
