# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Manifests and leases that authenticate and say what cannot be: everything else goes on, and nothing is deleted.

Who owns a database host has the catalog key. In a locked bucket nobody takes away what he has put there.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cryobackup.config import Config
from cryobackup.crypto.keys import KeyRing
from cryobackup.errors import DamageError, LocationError
from cryobackup.events import Silent
from cryobackup.prune import prune
from cryobackup.report.backups import details
from cryobackup.report.status import status
from cryobackup.repository import container, model, names
from cryobackup.repository import extents as xt
from cryobackup.repository.catalog import Catalog
from cryobackup.repository.lease import encode_lease, new_lease, read_leases
from cryobackup.repository.manifest import Manifest
from cryobackup.repository.session import BackupSession
from cryobackup.retention import Policy, Rule
from cryobackup.storage.base import put
from cryobackup.verify.ladder import verify
from cryobackup.verify.subjects import Which

from .small_repository import BLOCK, START, SmallRepository, two_backups

LATER = START + dt.timedelta(days=1)


def with_postgres(**changes: Any) -> Callable[[model.BackupHeader], model.BackupHeader]:
    return lambda header: dataclasses.replace(header, postgres=dataclasses.replace(header.postgres, **changes))


def with_header(**changes: Any) -> Callable[[model.BackupHeader], model.BackupHeader]:
    return lambda header: dataclasses.replace(header, **changes)


ABSURD = {
    "no time": with_header(started_at="yesterday"),
    "no time at the end": with_header(finished_at=""),
    "no time zone": with_header(started_at="2026-03-01T12:00:00"),
    "before all time": with_header(finished_at="0001-01-01T00:00:00+14:00"),
    "after all time": with_header(finished_at="9999-12-31T23:59:59-14:00"),
    "no kind": with_header(kind="x"),
    "no backup whose packs": with_header(foreign=[model.ForeignPackRow("../../etc", 0, 1, b"", 1)]),
    "a negative pack": with_header(packs=[model.PackRow(-1, 1, b"", 1)]),
    "no system": with_postgres(system_identifier="../x"),
    "a digit that is none": with_postgres(system_identifier="²"),
    "a system of many digits": with_postgres(system_identifier="7" * 5000),
    "no LSN": with_postgres(start_lsn="x"),
    "backwards": with_postgres(start_lsn="1/0", stop_lsn="0/FF"),
    "all WAL there can be": with_postgres(start_lsn="0/0", stop_lsn="FFFFFFFF/FFFFFFFF"),
    "segments of nothing": with_postgres(wal_segment_size=0),
    "pages of nothing": with_postgres(block_size=0),
    "files of nothing": with_postgres(segment_blocks=0),
    "no timeline": with_postgres(timeline=0),
}


def false_manifest(
    keys: KeyRing, header: model.BackupHeader, damage: Callable[[bytes], bytes], entries: Sequence[model.Entry]
) -> bytes:
    """``damage``: what is done with its header before it is encrypted."""
    encoder = container.ObjectEncoder(keys, container.MANIFEST, names.manifest(header.source, header.backup_id))
    encoded = encoder.start + encoder.frame(container.MANIFEST_HEADER, damage(msgspec.msgpack.encode(header)))
    if entries:
        encoded += encoder.frame(container.MANIFEST_ENTRIES, msgspec.msgpack.encode(entries))
    return encoded + encoder.finish()


def add_false(
    made: SmallRepository,
    change: Callable[[model.BackupHeader], Any],
    damage: Callable[[bytes], bytes] = bytes,
    entries: Sequence[model.Entry] = (),
) -> str:
    repository = made.open()
    (location,) = repository.locations
    newest = Catalog.load(repository).backups[-1].header
    at = LATER.isoformat()
    false = dataclasses.replace(
        newest, backup_id=names.new_id(LATER, os.urandom(4)), started_at=at, finished_at=at, packs=[], foreign=[]
    )
    header = change(false)
    put(location, names.manifest("main", header.backup_id), false_manifest(repository.keys, header, damage, entries))
    return str(header.backup_id)


def pruning(made: SmallRepository) -> Config:
    rules = {kind: Rule(keep_last=1) for kind in ("full", "incremental")}
    return dataclasses.replace(made.config, retention=Policy(rules, minimum=0, max_delete_share=1.0))


def nothing_else_is_hindered(made: SmallRepository, false: str) -> None:
    (location,) = made.open().locations
    before = {info.key for info in location.list("")}
    repository = made.open()
    catalog = Catalog.load(repository)
    assert len(catalog.backups) == 2
    assert [broken.name for broken in catalog.broken] == [names.manifest("main", false)]
    for record in catalog.backups:
        assert made.restored(repository, record) == made.content[record.id]
        assert details(record, repository)["backup_id"] == record.id
    status(made.config, repository, catalog, LATER)
    report = verify(made.config, which=Which(all=True), reporter=Silent(), clock=lambda: LATER, record=False)
    assert {each.backup_id: each.result for each in report.backups if each.backup_id != false} == {
        record.id: "ok" for record in catalog.backups
    }
    pruned = prune(pruning(made), now=LATER, dry_run=False, yes=True, reporter=Silent(), grace=dt.timedelta())
    assert pruned.errors["here"].id == "prune-blocked"
    assert {info.key for info in location.list("")} == before


@pytest.mark.parametrize("what", ABSURD)
def test_a_manifest_that_cannot_be_true_hinders_nothing_but_deletion(tmp_path: Path, what: str) -> None:
    made = two_backups(tmp_path)
    nothing_else_is_hindered(made, add_false(made, ABSURD[what]))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\xa4host\xa4host", b"\xa4host\xa4\xff\xfe\xfd\xfc"),
        (b"detection\x80", b"detection\x81\xa1x" + b"\x91" * 10**5),
    ],
    ids=["no text", "a hundred thousand deep"],
)
def test_a_header_that_is_no_data_hinders_nothing_but_deletion(tmp_path: Path, old: bytes, new: bytes) -> None:
    made = two_backups(tmp_path)

    def damage(plain: bytes) -> bytes:
        assert plain.count(old) == 1
        return plain.replace(old, new)

    nothing_else_is_hindered(made, add_false(made, lambda header: header, damage))


def test_who_reads_one_is_told_what_is_absurd(tmp_path: Path) -> None:
    made = two_backups(tmp_path)
    false = add_false(made, ABSURD["no time"])
    repository = made.open()
    with pytest.raises(DamageError, match="says what cannot be true: started_at is not a time: 'yesterday'"):
        Manifest(repository.keys, repository.locations[0], "main", false)


@pytest.mark.parametrize("changes", [{"pid": 1 << 40}, {"pid": 0}, {"wal": ["x"]}, {"wal": ["²"]}])
def test_a_lease_that_cannot_be_true_is_as_good_as_one_that_cannot_be_read(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    made = two_backups(tmp_path)
    repository = made.open()
    (location,) = repository.locations
    lease = new_lease("main", names.new_id(LATER, os.urandom(4)), None, LATER)
    put(location, *encode_lease(repository.keys, dataclasses.replace(lease, **changes)))
    with pytest.raises(DamageError):
        read_leases(repository.keys, location)
    result = prune(pruning(made), now=LATER, dry_run=False, yes=True, reporter=Silent(), grace=dt.timedelta())
    assert result.errors.keys() == {"here"}
    assert not isinstance(result.errors["here"], LocationError)
    full = Catalog.load(repository).backups[0]
    assert made.backup(made.content[full.id], parent=full).header.parent == full.id


@pytest.mark.parametrize("where", ["leases/main", "leases/prune", "marks"])
def test_what_nobody_can_read_stops_no_backup(tmp_path: Path, where: str) -> None:
    """It is full where nobody can tell whether its parent is about to be deleted."""
    made = two_backups(tmp_path)
    repository = made.open()
    put(repository.locations[0], f"{where}/{names.new_id(LATER, os.urandom(4))}", b"nonsense")
    full = Catalog.load(repository).backups[0]
    with BackupSession(repository, source="main", parent=full, now=LATER, spool=tmp_path) as session:
        refused = session.parent_refused
    if where == "leases/main":
        assert refused is None
    else:
        assert refused is not None
        assert "nobody can read: object" in refused


def test_a_huge_lease_is_not_read_into_memory(tmp_path: Path) -> None:
    made = two_backups(tmp_path)
    repository = made.open()
    name = names.lease("main", names.new_id(LATER, os.urandom(4)))
    put(repository.locations[0], name, b"")
    path = tmp_path / "here" / name
    path.chmod(0o600)
    os.truncate(path, 1 << 42)
    with pytest.raises(DamageError, match="too large"):
        read_leases(repository.keys, repository.locations[0])


def extent(length: int = 100, frame: int = 0, at: int = 0, pack: int = xt.FOREIGN, digest: bytes = b"x" * 16) -> bytes:
    return xt.pack(xt.build([(0, length, pack, frame, at, digest)]))


def of(path: bytes, size: int, extents: bytes) -> model.Entry:
    return model.Entry(path, model.FILE, 0o600, 0, 0, size, extents=extents)


SLANDER: dict[str, tuple[dict[str, Any], model.Entry]] = {
    "other bytes": ({}, of(b"x", 100, extent())),
    "a frame that is not there": ({}, of(b"x", 100, extent(frame=0xFFFFFFFF))),
    "bytes behind a frame": ({}, of(b"x", 100, extent(at=0xFFFFFFF0))),
    "a page of another number": ({}, of(b"base/5/9.2", BLOCK, extent(BLOCK, at=0))),
    "pages without checksums": ({"page_checksums": False}, of(b"base/5/16384", BLOCK, extent(BLOCK, at=3))),
    "pages of another size": ({"block_size": 1024}, of(b"base/5/16384", BLOCK, extent(BLOCK))),
    "impossibly many pages": ({}, of(b"base/5/16384.99999999999999", BLOCK, extent(BLOCK))),
    "an impossible file": ({}, of(b"x", (1 << 64) - 1, extent(1 << 30, pack=xt.ZEROS))),
    "segments of another size": ({"wal_segment_size": 1 << 24}, of(b"x", 0, b"")),
}


@pytest.mark.parametrize("lie", ["pages", "digest", "size", "twice"])
@pytest.mark.parametrize("what", SLANDER)
def test_what_a_false_backup_says_of_a_pack_is_held_against_no_other(tmp_path: Path, what: str, lie: str) -> None:
    """The note of a verification would make good backups count for damaged, and retention let them go."""
    made = two_backups(tmp_path)
    good = Catalog.load(made.open()).backups
    (true,) = good[1].header.foreign
    changes, entry = SLANDER[what]
    foreign = {
        "pages": [true],
        "digest": [true._replace(digest=bytes(32))],
        "size": [true._replace(size=true.size - 1)],
        "twice": [true, true],
    }[lie]

    def change(header: model.BackupHeader) -> model.BackupHeader:
        header = with_postgres(**changes)(header)
        # It sorts before the others, so that it is heard first.
        early = names.new_id(START - dt.timedelta(days=1), os.urandom(4))
        return dataclasses.replace(header, backup_id=early, foreign=foreign, totals=model.Totals(entries=1))

    false = add_false(made, change, entries=[entry])
    for level in ("content", "presence"):
        report = verify(made.config, which=Which(all=True), level=level, reporter=Silent(), clock=lambda: LATER)
        results = {each.backup_id: each.result for each in report.backups}
        assert results.pop(false) == "damaged" or level == "presence"
        assert set(results.values()) == {"ok"}
    assert all(not each.failed_verification for each in Catalog.load(made.open()).backups if each.id != false)
