# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The WAL archive with a living PostgreSQL at both ends: archive_command and restore_command."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cryobackup.postgres.archive_commands import archive_command, restore_command
from cryobackup.postgres.archive_index import (
    Gap,
    WalIndex,
    histories,
    missing_segments,
    reachable,
    read_history,
    system_identifiers,
)
from cryobackup.postgres.archive_wait import WalNotArchived, wait_for_wal
from cryobackup.postgres.lsn import parse_lsn
from cryobackup.postgres.timeline import TimelineHistory
from cryobackup.postgres.wal import WalKind, history_segment_names
from cryobackup.repository.repository import Repository
from tests.lab import Cluster, Installation, LiveWriter, Workspace, wait_until
from tests.lab.stores import remove_all, replace

from .lab import WalLab

SEGMENT_SIZE = 1 << 20


@pytest.fixture
def primary(workspace: Workspace) -> Cluster:
    return workspace.cluster(wal_segment_mb=1, settings={"hot_standby": True})


@pytest.fixture
def archive(workspace: Workspace, runtime: Path, primary: Cluster) -> WalLab:
    """Two required locations that the running cluster archives to."""
    made = WalLab(workspace, runtime, {"main": primary.data_dir}, locations={"near": True, "far": True})
    primary.enable_archiving(archive_command([str(runtime)], made.config_path))
    return made


def base_backup(primary: Cluster, target: Path) -> Path:
    """A copy of the cluster without any WAL: that has to come from the archive."""
    primary.run("pg_basebackup", "-D", target, "-X", "none", "-c", "fast", "--no-sync")
    return target


def recover(archive: WalLab, target: Path, system_identifier: str, **settings: str) -> None:
    """Let the next start of a copy recover from the archive."""
    command = restore_command([str(archive.runtime)], archive.config_path, int(system_identifier))
    lines = {"restore_command": command, **settings}
    with (target / "postgresql.auto.conf").open("a") as file:
        file.writelines(f"{name} = '{value.replace(chr(39), chr(39) * 2)}'\n" for name, value in lines.items())
    (target / "recovery.signal").touch()
    archive.workspace.account.own(target, recursive=True)


def open_repository(archive: WalLab) -> Repository:
    return Repository.open(archive.config().repository, need_identity=True)


def test_a_server_recovers_from_the_archive_to_the_last_row(
    workspace: Workspace, primary: Cluster, archive: WalLab
) -> None:
    with LiveWriter(primary) as writer:
        writer.wait_rows(50)
        target = base_backup(primary, workspace.path / "copy")
        writer.wait_rows(writer.count + 300)
        for _unused in range(3):
            primary.switch_wal()
            writer.wait_rows(writer.count + 50)
        writer.stop()
    primary.wait_archived(primary.switch_wal())
    primary.stop()
    recover(archive, target, primary.system_identifier)
    copy = workspace.adopt(target)
    copy.start()
    wait_until(lambda: not copy.value("SELECT pg_is_in_recovery()"))
    with copy.session() as session:
        writer.expect_all().check(session)


def test_every_major_archives_and_recovers(workspace: Workspace, runtime: Path, pg_major: Installation) -> None:
    primary = workspace.cluster(installation=pg_major)
    archive = WalLab(workspace, runtime, {"main": primary.data_dir})
    archive.connect("main", primary)
    primary.enable_archiving(archive.archive_command)
    target = base_backup(primary, workspace.path / "copy")
    primary.execute("CREATE TABLE rows AS SELECT generate_series(1, 1000) n")
    code, result = archive.json("check")
    assert code == 0, result
    primary.stop()
    recover(archive, target, primary.system_identifier)
    copy = workspace.adopt(target, installation=pg_major)
    copy.start()
    wait_until(lambda: not copy.value("SELECT pg_is_in_recovery()"))
    assert copy.value("SELECT count(*) FROM rows") == 1000


def test_an_outage_stops_a_recovery_instead_of_ending_it(
    workspace: Workspace, primary: Cluster, archive: WalLab
) -> None:
    """With exit code 1 PostgreSQL would promote here, and every row behind this point were lost."""
    primary.execute("CREATE TABLE rows (n int)")
    target = base_backup(primary, workspace.path / "copy")
    segments = []
    for number in range(4):
        primary.execute("INSERT INTO rows VALUES (%s)", number)
        segments.append(primary.switch_wal())
    primary.wait_archived(segments[-1])
    primary.stop()
    recover(archive, target, primary.system_identifier)
    copy = workspace.adopt(target)
    last = [archive.object(primary.system_identifier, segments[-1], place) for place in ("near", "far")]
    with archive.away(archive.paths["far"]), archive.away(last[0]):
        # The one location does not answer, the other lacks the last segment.
        copy.start(wait=False)
        wait_until(lambda: not copy.running)
    assert (target / "recovery.signal").exists()
    assert copy.control()["Latest checkpoint's TimeLineID"] == "1"
    assert "could not restore file" in copy.log_tail()
    copy.start()
    wait_until(lambda: not copy.value("SELECT pg_is_in_recovery()"))
    assert copy.value("SELECT count(*) FROM rows") == 4


def promoted(workspace: Workspace, archive: WalLab, primary: Cluster) -> None:
    """Let the primary itself go through archive recovery, in place: that is a promotion to the next timeline."""
    command = restore_command([str(archive.runtime)], archive.config_path, int(primary.system_identifier))
    primary.stop()
    primary.configure(restore_command=command)
    (primary.data_dir / "recovery.signal").touch()
    workspace.account.own(primary.data_dir / "recovery.signal")
    primary.start()
    wait_until(lambda: not primary.value("SELECT pg_is_in_recovery()"))


def test_a_promotion_archives_every_kind_of_file(workspace: Workspace, primary: Cluster, archive: WalLab) -> None:
    base_backup(primary, workspace.path / "copy")
    primary.execute("CREATE TABLE rows AS SELECT generate_series(1, 1000) n")
    promoted(workspace, archive, primary)
    primary.execute("INSERT INTO rows VALUES (0)")
    first = primary.switch_wal()
    assert first.startswith("00000002")
    primary.wait_archived(first)

    index = WalIndex.load(open_repository(archive), int(primary.system_identifier))
    assert index.timelines == [1, 2]
    assert [str(file.name) for file in index.of_kind(WalKind.HISTORY)] == ["00000002.history"]
    assert len(index.of_kind(WalKind.BACKUP)) == 1
    partial = [str(file.name) for file in index.of_kind(WalKind.PARTIAL)]
    assert len(partial) == 1
    # The unfinished segment of the old timeline never passes for a whole one.
    whole = partial[0].removesuffix(".partial")
    assert not index.has(whole)
    assert archive.get(whole, archive.directory / "out", cwd=primary.data_dir) == 1
    for name in ("00000002.history", partial[0], first, str(index.of_kind(WalKind.BACKUP)[0].name)):
        assert archive.get(name, archive.directory / "out", cwd=primary.data_dir) == 0
        assert (archive.directory / "out").read_bytes() == (primary.data_dir / "pg_wal" / name).read_bytes()


def test_two_promotions_are_followed_to_the_end(workspace: Workspace, primary: Cluster, archive: WalLab) -> None:
    primary.execute("CREATE TABLE rows (n int)")
    target = base_backup(primary, workspace.path / "copy")
    start = parse_lsn(primary.lsn())
    for number in range(3):
        primary.execute("INSERT INTO rows VALUES (%s)", number)
        primary.wait_archived(primary.switch_wal())
        if number < 2:
            promoted(workspace, archive, primary)
    repository = open_repository(archive)
    index = WalIndex.load(repository, int(primary.system_identifier))
    assert index.timelines == [1, 2, 3]
    known = histories(repository, index)
    assert sorted(known) == [1, 2, 3]
    history = known[3]
    assert [parent.timeline for parent in history.parents] == [1, 2]
    assert missing_segments(index, history, start, None, SEGMENT_SIZE) == []
    reach = reachable(index, history, start, SEGMENT_SIZE)
    assert reach.last_segment is not None
    assert reach.last_segment.startswith("00000003")
    assert parse_lsn(primary.lsn()) >= reach.end_lsn > start
    primary.stop()
    recover(archive, target, primary.system_identifier)
    copy = workspace.adopt(target)
    copy.start()
    wait_until(lambda: not copy.value("SELECT pg_is_in_recovery()"))
    assert copy.value("SELECT count(*) FROM rows") == 3


def test_split_brain_is_refused(workspace: Workspace, primary: Cluster, archive: WalLab) -> None:
    """A standby that was promoted while it could not see that the primary had gone on to the same timeline."""
    target = base_backup(primary, workspace.path / "copy")
    primary.wait_archived(primary.switch_wal())
    seen = workspace.directory("seen")
    for segment in (primary.data_dir / "pg_wal").glob("00000001*"):
        workspace.account.own(Path(shutil.copy2(segment, seen)))
    promoted(workspace, archive, primary)
    primary.wait_archived(primary.switch_wal())
    before = {path: path.read_bytes() for path in archive.paths["near"].rglob("00000002*") if path.is_file()}

    recover(archive, target, primary.system_identifier)
    with (target / "postgresql.auto.conf").open("a") as file:
        file.write(f"restore_command = 'cp {seen}/%f %p'\nrecovery_target = 'immediate'\n")
        file.write("recovery_target_action = 'promote'\n")
    archive.settings["clusters"]["copy"] = {"data_directory": str(target), "connection": "host=/nowhere"}
    archive.write_config()
    copy = workspace.adopt(target, settings={"archive_mode": True})
    copy.start()
    wait_until(lambda: not copy.value("SELECT pg_is_in_recovery()"))
    wait_until(lambda: copy.value("SELECT failed_count FROM pg_stat_archiver") > 0)
    assert "holds another file as" in copy.log_tail()
    assert {path: path.read_bytes() for path in before} == before


def test_a_restored_copy_that_archives_is_refused(workspace: Workspace, primary: Cluster, archive: WalLab) -> None:
    """archive_mode was left on, and nobody gave the copy an entry: PostgreSQL keeps trying, nothing is archived."""
    target = base_backup(primary, workspace.path / "copy")
    primary.wait_archived(primary.switch_wal())
    primary.stop()
    before = sorted(str(path) for path in archive.paths["near"].rglob("*"))
    recover(archive, target, primary.system_identifier)
    copy = workspace.adopt(target, settings={"archive_mode": True})
    copy.start()
    wait_until(lambda: not copy.value("SELECT pg_is_in_recovery()"))
    copy.switch_wal()
    wait_until(lambda: copy.value("SELECT failed_count FROM pg_stat_archiver") > 0)
    assert "not in pg_wal of a configured cluster" in copy.log_tail()
    assert copy.value("SELECT archived_count FROM pg_stat_archiver") == 0
    assert sorted(str(path) for path in archive.paths["near"].rglob("*")) == before


def test_a_crash_of_everything_while_archiving_loses_nothing(
    workspace: Workspace, primary: Cluster, archive: WalLab
) -> None:
    begin = parse_lsn(primary.lsn())
    primary.execute("CREATE TABLE rows AS SELECT n, md5(n::text) FROM generate_series(1, 30000) n")
    primary.execute("INSERT INTO rows SELECT n, md5(n::text) FROM generate_series(1, 30000) n")
    primary.kill()
    primary.start()
    last = primary.switch_wal()
    primary.wait_archived(last)
    index = WalIndex.load(open_repository(archive), int(primary.system_identifier))
    assert missing_segments(index, TimelineHistory(1), begin, None, SEGMENT_SIZE) == []
    assert index.missing([last], location="near") == index.missing([last], location="far") == []
    assert index.of_kind(WalKind.SEGMENT)[-1].locations == ("near", "far")


@pytest.mark.every_location
def test_gaps_are_found_by_location(primary: Cluster, archive: WalLab) -> None:
    segments = [primary.switch_wal() for _unused in range(6)]
    primary.wait_archived(segments[-1])
    identifier = int(primary.system_identifier)
    repository = open_repository(archive)
    assert system_identifiers(repository) == [identifier]
    index = WalIndex.load(repository, identifier)
    first, *_unused, last = segments
    start = index.files[first].name.start_lsn(SEGMENT_SIZE)
    stop = index.files[last].name.start_lsn(SEGMENT_SIZE) + SEGMENT_SIZE
    assert list(history_segment_names(TimelineHistory(1), start, stop, SEGMENT_SIZE)) == segments

    for lost in (segments[1], segments[3], segments[4]):
        archive.object(identifier, lost, "near").unlink()
    index = WalIndex.load(repository, identifier)
    assert missing_segments(index, TimelineHistory(1), start, stop, SEGMENT_SIZE) == []
    gaps = missing_segments(index, TimelineHistory(1), start, None, SEGMENT_SIZE, location="near")
    assert gaps == [Gap(segments[1], segments[1], 1), Gap(segments[3], segments[4], 2)]
    assert reachable(index, TimelineHistory(1), start, SEGMENT_SIZE, location="near").last_segment == segments[0]
    beyond = missing_segments(index, TimelineHistory(1), start, stop + 2 * SEGMENT_SIZE, SEGMENT_SIZE)
    assert [gap.segments for gap in beyond] == [2]
    with archive.away(archive.paths["far"]):
        index = WalIndex.load(open_repository(archive), identifier)
        assert (index.locations, list(index.lost)) == (("near",), ["far"])
        assert index.missing(segments) == [segments[1], segments[3], segments[4]]


def test_the_history_of_a_timeline_is_read_from_where_it_is_undamaged(
    workspace: Workspace, primary: Cluster, archive: WalLab
) -> None:
    promoted(workspace, archive, primary)
    primary.wait_archived(primary.switch_wal())
    identifier = int(primary.system_identifier)
    path = archive.object(identifier, "00000002.history", "near")
    replace(path, path.read_bytes()[:-1])
    history = read_history(open_repository(archive), identifier, 2)
    assert [parent.timeline for parent in history.parents] == [1]


def test_waiting_for_wal(primary: Cluster, archive: WalLab) -> None:
    repository = open_repository(archive)
    identifier = int(primary.system_identifier)
    segments = [primary.switch_wal() for _unused in range(3)]
    waited = wait_for_wal(repository.locations, identifier, segments, timeout=60, keys=repository.keys)
    assert (waited.missing, waited.failed) == ({}, {})
    nonsense = "0000000100000000000000F0"
    with pytest.raises(WalNotArchived) as raised:
        wait_for_wal(repository.locations, identifier, [*segments, nonsense], timeout=0, explain=lambda: "Because.")
    assert nonsense in raised.value.message
    assert segments[0] not in raised.value.message
    assert raised.value.hint.startswith("Because.")
    with archive.away(archive.paths["far"]), pytest.raises(WalNotArchived) as raised:
        wait_for_wal(repository.locations, identifier, segments, timeout=0)
    assert "location 'far'" in raised.value.message


def test_waiting_does_not_need_optional_locations(workspace: Workspace, runtime: Path, primary: Cluster) -> None:
    archive = WalLab(workspace, runtime, {"main": primary.data_dir}, locations={"near": True, "far": False})
    primary.enable_archiving(archive.archive_command)
    repository = open_repository(archive)
    with archive.away(archive.paths["far"]):
        segment = primary.switch_wal()
        primary.wait_archived(segment)
    waited = wait_for_wal(repository.locations, int(primary.system_identifier), [segment], timeout=0.1)
    assert waited.missing == {"far": (segment,)}
    remove_all(archive.paths["near"])
    with pytest.raises(WalNotArchived):
        wait_for_wal(repository.locations, int(primary.system_identifier), [segment], timeout=0)
