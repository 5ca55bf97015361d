# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups that are whole, and of nothing: they do not pass a verification, and nothing else suffers from it.

Who owns a database host can write such manifests. One that counted as verified would push out true backups.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from cryobackup.events import Silent
from cryobackup.repository import extents as xt
from cryobackup.repository import model, names
from cryobackup.repository.catalog import Catalog
from cryobackup.storage.base import put
from cryobackup.verify.ladder import verify
from cryobackup.verify.result import VerifyReport
from cryobackup.verify.subjects import Which
from tests.unit.postgres.control_file import control_file

from .small_repository import SEGMENT_SIZE, SYSTEM, SmallRepository, backup_label, essentials, sample, two_backups
from .test_false_manifests import LATER, add_false, false_manifest

START_LSN = 2 * SEGMENT_SIZE + 40
ESSENTIAL = tuple(essentials(START_LSN))


def look(made: SmallRepository) -> VerifyReport:
    return verify(made.config, which=Which(all=True), reporter=Silent(), clock=lambda: LATER)


def only_that_one_is_damaged(made: SmallRepository, false: str) -> list[str]:
    """What is said of it. It does not count as proven, the others do."""
    report = look(made)
    assert {each.backup_id: each.result for each in report.backups} == {
        each.backup_id: "damaged" if each.backup_id == false else "ok" for each in report.backups
    }
    assert report.exit_code == 4
    for record in Catalog.load(made.open()).backups:
        assert record.failed_verification == (record.id == false)
    assert {(found.kind, found.object) for found in report.findings if found.severity == "damage"} == {
        ("inconsistent", names.manifest("main", false))
    }
    return [found.what for found in report.findings if found.severity == "damage"]


@pytest.mark.parametrize("kind", [model.FULL, model.INCREMENTAL])
def test_a_manifest_without_files_is_no_backup(tmp_path: Path, kind: str) -> None:
    made = two_backups(tmp_path)
    false = add_false(made, lambda header: dataclasses.replace(header, kind=kind, totals=model.Totals()))
    assert only_that_one_is_damaged(made, false) == [
        "it lacks what no server starts without: PG_VERSION, backup_label, global/pg_control"
    ]


def test_it_may_not_even_say_which_cluster_it_is_of(tmp_path: Path) -> None:
    made = two_backups(tmp_path)
    false = add_false(made, lambda header: dataclasses.replace(header, postgres=None, totals=model.Totals()))
    assert "it says that it is of a cluster, and not of which" in only_that_one_is_damaged(made, false)


@pytest.mark.parametrize("path", ESSENTIAL)
def test_a_backup_lacks_what_no_server_starts_without(tmp_path: Path, path: bytes) -> None:
    made = two_backups(tmp_path)
    false = made.backup(sample(), without=[path])
    assert only_that_one_is_damaged(made, false.id) == [f"it lacks what no server starts without: {path.decode()}"]


def control(**says: int) -> bytes:
    return control_file(SYSTEM, **{"wal_segment_size": SEGMENT_SIZE, "checksums": True, **says})


WRONG: dict[str, tuple[bytes, bytes, str]] = {
    "another version": (b"PG_VERSION", b"16\n", r"it says b'16\n', not 15"),
    "no version": (b"PG_VERSION", b"fifteen\n", "not 15"),
    "another cluster": (
        b"global/pg_control",
        control_file(SYSTEM + 1, wal_segment_size=SEGMENT_SIZE, checksums=True),
        f"system identifier {SYSTEM + 1}, not {SYSTEM}",
    ),
    "a torn control file": (b"global/pg_control", control()[:285] + b"?" + control()[286:], "its own CRC"),
    "a control file of nothing": (b"global/pg_control", bytes(8192), "has version 0"),
    "a control file of another version": (b"global/pg_control", control(catalog=202307071), "version 16, not 15"),
    "pages of another size": (b"global/pg_control", control(block_size=4096), "page size 4096, not 8192"),
    "files of another size": (b"global/pg_control", control(segment_blocks=7), "pages in a file 7, not 131072"),
    "WAL of another size": (b"global/pg_control", control(wal_segment_size=1 << 24), "size of WAL segments"),
    "checksums": (b"global/pg_control", control(checksums=False), "page checksums False, not True"),
    "another start": (b"backup_label", backup_label(START_LSN + 8), "start 0/200030, not 0/200028"),
    "another timeline": (b"backup_label", backup_label(START_LSN, timeline=2), "timeline 2, not 1"),
    "no label": (b"backup_label", b"\xff\n" * 100, "START WAL LOCATION is missing"),
}


@pytest.mark.parametrize("what", WRONG)
def test_these_files_are_not_of_the_cluster_that_the_header_describes(tmp_path: Path, what: str) -> None:
    made = two_backups(tmp_path)
    path, content, words = WRONG[what]
    false = made.backup({**sample(), path: content})
    (said,) = only_that_one_is_damaged(made, false.id)
    assert said.startswith(f"{path.decode()} is not that of the cluster it describes: ")
    assert words in said


@pytest.mark.parametrize(
    ("path", "content"),
    [
        (b"PG_VERSION", b""),
        (b"PG_VERSION", b"15\n" * 100),
        (b"global/pg_control", control()[:4096]),
        (b"global/pg_control", control() * 2),
        (b"backup_label", b""),
        (b"backup_label", b"x" * (1 << 16)),
    ],
)
def test_they_have_sizes_that_they_cannot_have(tmp_path: Path, path: bytes, content: bytes) -> None:
    made = two_backups(tmp_path)
    false = made.backup({**sample(), path: content})
    assert only_that_one_is_damaged(made, false.id) == ["no cluster has these files in this number, size or form"]


def entry(path: bytes, kind: int = model.FILE, extents: bytes = b"", size: int = 8192) -> model.Entry:
    return model.Entry(path, kind, 0o600, 0, 0, size, extents=extents)


def zeros(*lengths: int) -> bytes:
    return xt.pack(xt.build([(0, length, xt.ZEROS, 0, 0, bytes(16)) for length in lengths]))


@pytest.mark.parametrize(
    "entries",
    [
        [entry(b"global/pg_control", model.SYMLINK, size=0)],
        [entry(b"global/pg_control", extents=zeros(8192)), entry(b"global/pg_control", extents=zeros(8192))],
        [entry(b"global/pg_control", extents=zeros(1 << 30, 1 << 30))],
        [entry(b"PG_VERSION", extents=zeros(1, 1, *[0] * 20), size=2)],
    ],
    ids=["a link", "twice", "in extents of gigabytes", "in extents of nothing"],
)
def test_they_are_not_what_they_seem(tmp_path: Path, entries: Sequence[model.Entry]) -> None:
    made = two_backups(tmp_path)
    false = add_false(
        made, lambda header: dataclasses.replace(header, totals=model.Totals(entries=len(entries))), entries=entries
    )
    assert "no cluster has these files in this number, size or form" in only_that_one_is_damaged(made, false)


def more_files(header: model.BackupHeader) -> None:
    header.totals.files += 1


def more_bytes(header: model.BackupHeader) -> None:
    header.totals.bytes_source += 1


@pytest.mark.parametrize("change", [more_files, more_bytes])
def test_the_totals_are_those_of_the_entries(tmp_path: Path, change: Callable[[model.BackupHeader], None]) -> None:
    made = two_backups(tmp_path)
    false = made.backup(sample(), change=change)
    (said,) = only_that_one_is_damaged(made, false.id)
    assert "and says that it has" in said


def test_each_location_is_judged_by_its_own_manifest(tmp_path: Path) -> None:
    """The true one is in the first location; the second, which lacked the backup, got a false one of the same name."""
    made = SmallRepository(tmp_path, ("one", "two"))
    made.push_wal(START_LSN)
    true = made.backup(sample())
    repository = made.open()
    name = names.manifest("main", true.id)
    (made.paths["two"] / name).unlink()
    header = dataclasses.replace(true.header, totals=model.Totals(), packs=[])
    put(repository.locations[1], name, false_manifest(repository.keys, header, bytes, ()))
    report = look(made)
    assert report.backups[0].locations == {"one": "ok", "two": "damaged"}
    assert {found.location for found in report.findings if found.severity == "damage"} == {"two"}


def test_what_lies_in_a_damaged_pack_is_read_where_it_is_whole(tmp_path: Path) -> None:
    made = SmallRepository(tmp_path, ("one", "two"))
    made.push_wal(START_LSN)
    false = made.backup({**sample(), b"PG_VERSION": b"16\n"})
    (made.paths["one"] / names.pack(false.id, 0)).unlink()
    found = {(found.location, found.kind) for found in look(made).findings}
    assert {("one", "missing"), ("two", "inconsistent")} <= found
