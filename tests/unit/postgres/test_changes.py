# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an incremental may take over from its parent: every guard by itself."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any

import pytest

from cryobackup.postgres.changed_blocks import ChangedBlocks, row_dtype
from cryobackup.postgres.changes import (
    RACY_NANOSECONDS,
    ClusterState,
    Guards,
    Identity,
    Method,
    Plan,
    Summaries,
    Witness,
    guards,
    is_racy,
    is_same_version_file,
    names_visibility_maps,
    parent_problem,
    plan_file,
)
from cryobackup.postgres.lsn import parse_lsn
from cryobackup.postgres.relfile import relation_file
from cryobackup.postgres.timeline import TimelineHistory, TimelineSwitch
from cryobackup.repository import model
from cryobackup.repository.model import BackupHeader, Entry, PostgresInfo, Totals

PATH = "base/5/16384"
SEEN = Identity(size=81920, mtime_ns=10**18, ctime_ns=10**18 + 5, device=2049, inode=77)
TRUSTED = Guards(since_lsn=0x4000028)
WITNESS = Witness("boot", "2026-11-01 10:00:00+00", wal_log_hints=False)
NOW = dt.datetime(2026, 11, 2, 12, tzinfo=dt.UTC)


def entry(path: str = PATH, flags: int = 0, type: int = model.FILE, **changes: Any) -> Entry:
    return Entry(path.encode(), type, 0o600, 1, 1, *SEEN._replace(**changes), flags)


def method(
    found: Identity = SEEN,
    parent: Entry | None = None,
    *,
    path: str = PATH,
    trust: Guards = TRUSTED,
    same_directory: bool = True,
) -> Method:
    return plan(found, parent or entry(path), path=path, trust=trust, same_directory=same_directory).method


def plan(
    found: Identity,
    parent: Entry | None,
    *,
    path: str = PATH,
    trust: Guards = TRUSTED,
    same_directory: bool = True,
) -> Plan:
    return plan_file(
        found,
        relation_file(path),
        parent,
        trust,
        same_directory=same_directory,
        block_size=8192,
        segment_blocks=131072,
    )


def test_unchanged() -> None:
    assert method() is Method.UNCHANGED
    assert method(path="pg_xact/0000") is Method.UNCHANGED


@pytest.mark.parametrize("field", Identity._fields)
def test_one_difference_is_a_change(field: str) -> None:
    found = SEEN._replace(**{field: getattr(SEEN, field) + 8192})
    same_file = field not in ("device", "inode")
    assert method(found) is (Method.PAGE_LSN if same_file else Method.CONTENT)
    assert method(found, path="pg_xact/0000") is Method.CONTENT


CHANGED = SEEN._replace(mtime_ns=SEEN.mtime_ns + 1)


@pytest.mark.parametrize(
    ("expected", "arguments"),
    [
        (Method.PAGE_LSN, {}),
        (Method.PAGE_LSN, {"path": "global/1262"}),
        (Method.PAGE_LSN, {"path": "pg_tblspc/16400/PG_15_202209061/5/16384.3"}),
        (Method.CONTENT, {"path": "base/5/16384_vm"}),
        (Method.CONTENT, {"path": "base/5/16384_fsm"}),
        (Method.CONTENT, {"path": "base/5/16384_init"}),
        (Method.CONTENT, {"path": "base/5/pg_filenode.map"}),
        (Method.CONTENT, {"same_directory": False}),
        (Method.CONTENT, {"trust": dataclasses.replace(TRUSTED, no_page_lsn="a reason")}),
    ],
)
def test_changed_files(expected: Method, arguments: dict[str, Any]) -> None:
    assert method(CHANGED, **arguments) is expected


def test_times_that_are_not_trusted() -> None:
    distrust = dataclasses.replace(TRUSTED, no_identity="a reason")
    assert method(trust=distrust) is Method.PAGE_LSN
    assert method(path="pg_xact/0000", trust=distrust) is Method.CONTENT


def test_entries_that_prove_nothing() -> None:
    assert method(parent=entry(flags=model.RACY)) is Method.PAGE_LSN
    # Damaged pages are read and stored anew, so that they are reported, or seen to be mended.
    assert method(parent=entry(flags=model.DAMAGED_PAGES)) is Method.STORE
    assert method(parent=entry(flags=model.INCOMPLETE)) is Method.STORE
    assert method(parent=entry(type=model.SYMLINK)) is Method.STORE
    assert plan(SEEN, None).method is Method.STORE


def test_racy() -> None:
    newest = max(SEEN.mtime_ns, SEEN.ctime_ns)
    assert is_racy(SEEN, newest)
    assert is_racy(SEEN, newest + RACY_NANOSECONDS - 1)
    assert not is_racy(SEEN, newest + RACY_NANOSECONDS)
    assert is_racy(SEEN, newest - 10**9), "a file from the future"
    assert is_racy(SEEN._replace(mtime_ns=0), SEEN.ctime_ns + 1)


def test_version_file_tells_directories_apart() -> None:
    assert is_same_version_file(entry("base/5/PG_VERSION"), SEEN)
    assert not is_same_version_file(entry("base/5/PG_VERSION"), CHANGED)
    assert not is_same_version_file(entry("base/5/PG_VERSION", flags=model.RACY), SEEN)
    assert not is_same_version_file(None, SEEN)
    assert not is_same_version_file(entry("base/5/PG_VERSION"), None)


# The parent as a whole


def state(**changes: Any) -> ClusterState:
    usual = ClusterState(
        system_identifier="7000",
        version=170002,
        history=TimelineHistory(1),
        lsn=0x9000000,
        next_oid=24576,
        block_size=8192,
        segment_blocks=131072,
        wal_segment_size=16 << 20,
        page_checksums=True,
        summarize_wal=False,
        now=NOW,
        witness=WITNESS,
    )
    return dataclasses.replace(usual, **changes)


def parent(
    witness: Witness | None = WITNESS, kind: str = model.FULL, status: str = model.OK, **changes: Any
) -> BackupHeader:
    info = PostgresInfo(
        system_identifier="7000",
        version=170001,
        timeline=1,
        start_lsn="0/4000028",
        stop_lsn="0/5000100",
        checkpoint_lsn="0/4000060",
        wal_start="000000010000000000000004",
        wal_stop="000000010000000000000005",
        wal_segment_size=16 << 20,
        block_size=8192,
        segment_blocks=131072,
        page_checksums=True,
        from_standby=False,
        data_directory="/data",
        next_oid=24576,
    )
    return BackupHeader(
        backup_id="20261102T110000Z-00000000",
        source="main",
        kind=kind,
        parent=None,
        status=status,
        label="",
        started_at="2026-11-02T11:00:00+00:00",
        finished_at="2026-11-02T11:05:00+00:00",
        host="host",
        tool_version="1",
        postgres=dataclasses.replace(info, **changes),
        change_detection={"witness": witness.as_dict()} if witness else {},
        totals=Totals(),
    )


def test_a_parent_that_will_do() -> None:
    assert parent_problem(parent(), state()) is None
    assert parent_problem(parent(kind=model.INCREMENTAL, status=model.DAMAGED), state()) is None
    trust = guards(parent(), state())
    assert trust == dataclasses.replace(TRUSTED, no_summaries="summarize_wal is off")
    assert trust.method is Method.PAGE_LSN


@pytest.mark.parametrize(
    ("words", "header"),
    [
        ("not a physical", parent(kind=model.FILES)),
        ("not complete", parent(status=model.PARTIAL)),
        ("another cluster", parent(system_identifier="7001")),
        ("timeline", parent(timeline=2)),
        ("PostgreSQL 16", parent(version=160004)),
        ("sizes", parent(block_size=32768)),
        ("sizes", parent(wal_segment_size=1 << 20)),
        ("set back", parent(stop_lsn="0/9000001")),
        ("timeline 2 does not lead", parent(timeline=2)),
    ],
)
def test_parents_that_will_not_do(words: str, header: BackupHeader) -> None:
    problem = parent_problem(header, state())
    assert problem is not None
    assert words in problem


def test_a_parent_from_before_a_promotion() -> None:
    """It will do if it had ended before the timelines parted."""
    switch = TimelineSwitch(1, parse_lsn("0/5000100"), "")
    now = state(history=TimelineHistory(3, (switch, TimelineSwitch(2, parse_lsn("0/6000000"), ""))))
    assert parent_problem(parent(), now) is None
    assert "timeline 1 does not lead" in str(parent_problem(parent(stop_lsn="0/5000101"), now))
    assert "timeline 2 does not lead" in str(parent_problem(parent(timeline=2, stop_lsn="0/6000001"), now))
    assert parent_problem(parent(timeline=2, start_lsn="0/5000200", stop_lsn="0/6000000"), now) is None
    assert "timeline 1 does not lead" in str(parent_problem(parent(), state(history=TimelineHistory(3))))


def test_a_parent_of_a_standby_ends_before_its_restartpoint() -> None:
    """What is consistent at the end of an earlier checkpoint may have no newer pages from a parent."""
    assert "restartpoint" in str(parent_problem(parent(), state(standby=True, lsn=parse_lsn("0/50000ff"))))
    assert parent_problem(parent(), state(standby=True, lsn=parse_lsn("0/5000100"))) is None


@pytest.mark.parametrize(
    ("words", "header", "now"),
    [
        ("started anew", parent(Witness("other boot", WITNESS.postmaster_started_at, False)), state()),
        ("started anew", parent(None), state()),
        ("clock", parent(), state(now=dt.datetime(2026, 11, 2, 11, 4, tzinfo=dt.UTC))),
    ],
)
def test_when_times_are_not_trusted(words: str, header: BackupHeader, now: ClusterState) -> None:
    reason = guards(header, now).no_identity
    assert reason is not None
    assert words in reason


HINTS = dataclasses.replace(WITNESS, wal_log_hints=True)
RESTARTED = dataclasses.replace(HINTS, postmaster_started_at="2026-11-02 11:30:00+00")


@pytest.mark.parametrize(
    ("words", "header", "now"),
    [
        ("turned on or off", parent(page_checksums=False), state()),
        ("hint bits", parent(page_checksums=False), state(page_checksums=False)),
        ("hint bits", parent(page_checksums=False), state(page_checksums=False, witness=HINTS)),
        ("hint bits", parent(HINTS, page_checksums=False), state(page_checksums=False)),
        ("may have been off", parent(HINTS, page_checksums=False), state(page_checksums=False, witness=RESTARTED)),
        ("host was started", parent(Witness("other", "", True)), state()),
        ("went back", parent(next_oid=24576 + 8193), state()),
    ],
)
def test_when_page_lsns_are_not_trusted(words: str, header: BackupHeader, now: ClusterState) -> None:
    trust = guards(header, now)
    assert trust.no_page_lsn is not None
    assert words in trust.no_page_lsn
    assert trust.method is Method.CONTENT


def test_hint_bits_in_wal_are_as_good_as_checksums() -> None:
    trust = guards(parent(HINTS, page_checksums=False), state(page_checksums=False, witness=HINTS))
    assert trust.no_page_lsn is None


def test_a_restart_alone_is_no_harm() -> None:
    trust = guards(parent(), state(witness=dataclasses.replace(WITNESS, postmaster_started_at="later")))
    assert trust.no_identity is trust.no_page_lsn is None


def test_a_shutdown_gives_back_reserved_object_identifiers() -> None:
    assert guards(parent(next_oid=24576 + 8192), state(next_oid=24576)).no_page_lsn is None


# WAL summaries


@pytest.mark.parametrize(
    ("words", "header", "now"),
    [
        ("they came with 17", parent(version=160001), state(version=160002, summarize_wal=True)),
        ("is off", parent(), state()),
        ("turned on or off", parent(page_checksums=False), state(summarize_wal=True)),
        (None, parent(), state(summarize_wal=True)),
        # What a crash of the host left is what WAL says; times are not asked.
        (None, parent(None), state(summarize_wal=True)),
    ],
)
def test_when_summaries_can_be_used(words: str | None, header: BackupHeader, now: ClusterState) -> None:
    reason = guards(header, now).no_summaries
    assert (reason is None) == (words is None)
    assert (words or "") in (reason or "")


def test_minors_whose_summaries_name_visibility_maps() -> None:
    good = (170011, 170012, 180006, 190000, 200001)
    bad = (170000, 170010, 180000, 180005)
    assert [version for version in (*good, *bad) if names_visibility_maps(version)] == list(good)


def summarised(*rows: tuple[int, int, int, int, int, bool], maps: bool = True) -> Guards:
    """Rows: tablespace, database, relfilenode, fork, block, whether it is a limit."""
    import numpy as np

    changed = ChangedBlocks()
    order = [(file, space, database, fork, block, limit) for space, database, file, fork, block, limit in rows]
    changed.add(np.array(order, row_dtype()))
    return dataclasses.replace(TRUSTED, no_identity="distrust", summaries=Summaries(changed, maps))


def blocks_of(trust: Guards, found: Identity = CHANGED, parent: Entry | None = None, path: str = PATH) -> Any:
    """Blocks to be read, or another method."""
    made = plan(found, parent or entry(path), path=path, trust=trust, same_directory=False)
    return made.method if made.blocks is None else made.blocks.tolist()


def test_summaries_choose_blocks() -> None:
    assert summarised().method is Method.WAL_SUMMARY
    assert blocks_of(summarised()) == []
    assert blocks_of(summarised((1663, 5, 16384, 0, 3, False), (1663, 5, 16384, 0, 9, False))) == [3, 9]
    assert blocks_of(summarised((1663, 5, 16385, 0, 3, False), (1663, 6, 16384, 0, 3, False))) == []
    # Of another fork, and of a block that the file does not have any more.
    assert blocks_of(summarised((1663, 5, 16384, 2, 3, False), (1663, 5, 16384, 0, 10, False))) == []
    one = (1664, 0, 1262, 0, 1, False)
    assert blocks_of(summarised(one), path="global/1262") == [1]
    one = (16400, 5, 16384, 0, 3 * 131072 + 4, False)
    assert blocks_of(summarised(one), path="pg_tblspc/16400/PG_17_202406281/5/16384.3") == [4]


def test_summaries_and_files_that_grew_or_shrank() -> None:
    grown = CHANGED._replace(size=12 * 8192)
    assert blocks_of(summarised(), grown) == [10, 11]
    assert blocks_of(summarised((1663, 5, 16384, 0, 4, True)), grown) == [4, 5, 6, 7, 8, 9, 10, 11]
    assert blocks_of(summarised((1663, 5, 16384, 0, 4, True)), CHANGED._replace(size=4 * 8192)) == []
    assert blocks_of(summarised((1663, 5, 16384, 0, 0, True))) is Method.STORE, "made anew"
    assert blocks_of(summarised((1663, 5, 0, 0, 0, True))) is Method.STORE, "its database was made anew"
    # Cut off before the beginning of its second file, which then grew again.
    assert blocks_of(summarised((1663, 5, 16384, 0, 7, True)), path="base/5/16384.1") is Method.STORE
    most = [(1663, 5, 16384, 0, block, False) for block in range(10)]
    assert blocks_of(summarised(*most[:9])) == list(range(9))
    assert blocks_of(summarised(*most)) is Method.STORE


def test_what_summaries_do_not_tell() -> None:
    assert blocks_of(summarised(), path="base/5/16384_vm") == []
    assert blocks_of(summarised(maps=False), path="base/5/16384_vm") is Method.CONTENT
    assert blocks_of(summarised(), path="base/5/16384_fsm") is Method.CONTENT
    assert blocks_of(summarised(), path="base/5/16384_init") is Method.CONTENT
    assert blocks_of(summarised(), path="pg_xact/0000") is Method.CONTENT
    assert blocks_of(summarised(), CHANGED._replace(size=8193)) is Method.CONTENT
    # Not the file that the parent saw, or one that it saw damaged.
    here = dataclasses.replace(summarised(), no_identity=None)
    assert blocks_of(here, CHANGED._replace(inode=78)) is Method.CONTENT
    assert blocks_of(here) == []
    # On another host inodes tell nothing, and the server's word is enough.
    assert blocks_of(summarised(), CHANGED._replace(inode=78)) == []
    assert blocks_of(summarised(), parent=entry(flags=model.DAMAGED_PAGES)) is Method.STORE
