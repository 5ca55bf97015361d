# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every way in which objects can be lost or be other than they were, and what verify says to it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cryobackup.crypto.keys import FILES, new_keys, write_keys
from cryobackup.errors import CryoError, KeyFileError, RepositoryError
from cryobackup.events import Silent
from cryobackup.postgres.wal import segment_name_at
from cryobackup.repository import names
from cryobackup.repository.catalog import Catalog
from cryobackup.repository.model import DAMAGED_PAGES, Damage
from cryobackup.repository.packs import PackReader, PackSet
from cryobackup.storage.posix import PosixLocation
from cryobackup.verify.ladder import verify
from cryobackup.verify.result import VerifyReport
from cryobackup.verify.subjects import Which
from tests.lab import Workspace
from tests.lab.stores import StoredPath, away, replace

from .small_repository import (
    BLOCK,
    SEGMENT_SIZE,
    SYSTEM,
    SmallRepository,
    relation_page,
    sample,
    two_backups,
    wal_segment,
)

ALL = Which(all=True)
LEVELS = ("presence", "content")


@pytest.fixture
def small(workspace: Workspace) -> SmallRepository:
    return two_backups(workspace.directory("small"), stores=workspace.stores)


def look(
    small: SmallRepository, level: str = "content", which: Which = ALL, *, locations: list[str] | None = None
) -> VerifyReport:
    report = verify(small.config, which=which, level=level, reporter=Silent(), locations=locations)
    json.dumps(report.as_dict())
    return report


def of_kind(small: SmallRepository, kind: str, location: str = "here") -> list[StoredPath]:
    """Objects, oldest first."""
    return sorted(path for path in (small.paths[location] / kind).rglob("*") if path.is_file())


def truncate(path: StoredPath) -> None:
    replace(path, path.read_bytes()[:-2])


def empty(path: StoredPath) -> None:
    replace(path, b"")


def append(path: StoredPath) -> None:
    replace(path, path.read_bytes() + b"\0")


def remove(path: StoredPath) -> None:
    path.unlink()


def overwrite(path: StoredPath) -> None:
    replace(path, os.urandom(path.stat().st_size))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("harm", [truncate, empty, append, remove, overwrite])
@pytest.mark.parametrize("kind", ["packs", "wal", "manifests"])
def test_harm_to_an_object(small: SmallRepository, kind: str, harm: Callable[[StoredPath], None], level: str) -> None:
    path = of_kind(small, kind)[0]
    name = str(path.relative_to(small.paths["here"]))
    harm(path)
    if kind == "manifests" and harm is remove:
        # Whether retention deleted it or a thief, nobody can tell; what it listed and nobody else does is left over.
        report = look(small, level)
        assert [backup.backup_id for backup in report.backups] == sorted(small.content)[1:]
        assert report.exit_code == 0
        return
    report = look(small, level)
    if kind == "packs" and harm is overwrite and level == "presence":
        assert report.exit_code == 0, "presence does not look inside of packs"
        return
    assert report.result == "damaged"
    assert report.exit_code == 4
    assert {finding.object for finding in report.findings} == {name}
    full, incremental = report.backups
    assert full.result == "damaged"
    # The incremental refers to the pack of the full backup; manifest and WAL it has of its own.
    assert incremental.result == ("damaged" if kind == "packs" else "ok")


@pytest.mark.every_location
def test_which_files_are_lost(small: SmallRepository) -> None:
    """One frame is damaged: the files in it are named, for each backup those that it has."""
    path = of_kind(small, "packs")[0]
    content = bytearray(path.read_bytes())
    content[-400] ^= 1  # far behind the header, before the table
    replace(path, bytes(content))
    findings = {finding.backup: finding for finding in look(small).findings}
    full, incremental = sorted(small.content)
    assert findings[full].kind == "damaged"
    assert set(findings[full].files) <= set(map(os.fsdecode, sample()))
    assert len(findings[full].files) == 1
    assert findings[full].files_total == 1
    changed = {"base/5/16385", "base/5/notes"}
    if set(findings[full].files) & changed:
        # It is there under this name, but not in that pack any more.
        assert findings[incremental].files == ()
    else:
        assert findings[incremental].files == findings[full].files


@pytest.mark.every_location
def test_packs_that_were_swapped(small: SmallRepository) -> None:
    one, other = of_kind(small, "packs")
    first, second = one.read_bytes(), other.read_bytes()
    replace(one, second)
    replace(other, first)
    report = look(small)
    assert {finding.object for finding in report.findings} == {
        str(path.relative_to(small.paths["here"])) for path in (one, other)
    }
    assert [backup.result for backup in report.backups] == ["damaged", "damaged"]


def test_an_old_object_of_the_same_name_and_size(small: SmallRepository) -> None:
    """Of the same repository, authentic, and not what the manifest lists: the digest of the stored bytes tells."""
    path = of_kind(small, "packs")[0]
    before = path.read_bytes()
    repository = small.open()
    record = Catalog.load(repository).backups[0]
    plain = [PackReader(repository.locations, repository.keys, names.pack(record.id, 0)).frame(n) for n in range(6)]
    path.unlink()
    packs = PackSet(repository.fanout(), repository.keys, record.id, level=3)
    sink = packs.sink()
    for frame in plain:
        sink.store(frame)
    sink.close()
    again = path.read_bytes()
    assert again != before
    assert len(again) == len(before)
    report = look(small)
    assert {finding.what for finding in report.findings} == {"its bytes are not those that the manifest lists"}
    assert report.exit_code == 4


def test_wal_under_another_name(small: SmallRepository) -> None:
    one, other = of_kind(small, "wal")
    replace(one, other.read_bytes())
    for level in LEVELS:
        report = look(small, level)
        assert [finding.object for finding in report.findings] == [str(one.relative_to(small.paths["here"]))]


def test_wal_of_another_cluster_or_position(tmp_path: Path) -> None:
    """Authentic, under the right name; but what it holds is not that segment."""
    small = SmallRepository(tmp_path)
    lsn = 2 * SEGMENT_SIZE + 40
    small.push_wal(lsn, wal_segment(3 * SEGMENT_SIZE))
    small.backup(sample(), start_lsn=lsn)
    assert look(small, "presence").exit_code == 0
    (finding,) = look(small).findings
    assert "holds the WAL from 0/300000 on" in finding.what
    assert finding.severity == "damage"


def test_missing_wal_behind_a_backup(small: SmallRepository) -> None:
    """No backup needs it, but no recovery gets past it."""
    for number in (4, 6):
        small.push_wal(number * SEGMENT_SIZE)
    report = look(small, "presence")
    assert report.exit_code == 0
    missing = names.wal(SYSTEM, segment_name_at(1, 5 * SEGMENT_SIZE, SEGMENT_SIZE))
    assert [(found.kind, found.severity, found.object) for found in report.findings] == [
        ("wal-gap", "notice", missing)
    ] * 2


def test_damaged_wal_behind_a_backup(small: SmallRepository) -> None:
    name = small.push_wal(4 * SEGMENT_SIZE)
    overwrite(small.paths["here"] / name)
    assert look(small, which=Which()).exit_code == 0, "no backup needs it"
    report = look(small)
    assert report.exit_code == 4
    assert [backup.result for backup in report.backups] == ["ok", "ok"]
    (finding,) = report.findings
    assert finding.object == name
    assert "no recovery gets past it" in finding.what


@pytest.mark.every_location
def test_objects_that_nobody_needs(small: SmallRepository) -> None:
    here = small.paths["here"]
    of_kind(small, "manifests")[1].unlink()
    orphan = of_kind(small, "packs")[1]
    replace(here / "stray.txt", b"?")
    report = look(small)
    assert report.exit_code == 0
    assert {(found.kind, found.object) for found in report.findings} == {
        ("orphan", str(orphan.relative_to(here))),
        ("unknown", "stray.txt"),
    }


def test_a_damaged_note(small: SmallRepository) -> None:
    look(small)
    path = of_kind(small, "notes")[0]
    overwrite(path)
    report = look(small, "presence")
    assert report.exit_code == 4
    assert [found.object for found in report.findings] == [str(path.relative_to(small.paths["here"]))]


@pytest.mark.every_location
def test_results_are_recorded(small: SmallRepository) -> None:
    look(small, "presence")
    assert all(backup.verified is None for backup in Catalog.load(small.open()).backups)
    look(small)
    for backup in Catalog.load(small.open()).backups:
        assert backup.verified is not None
        data = backup.verified.data
        assert (data["level"], data["result"], data["locations"]) == ("content", "ok", {"here": "ok"})
    overwrite(of_kind(small, "packs")[1])
    look(small)
    results = [backup.verified.data["result"] for backup in Catalog.load(small.open()).backups if backup.verified]
    assert results == ["ok", "damaged"]


@pytest.mark.only_on("posix", "sftp")
def test_a_result_that_cannot_be_recorded(small: SmallRepository) -> None:
    replace(small.paths["here"] / "notes", b"")
    reporter = Silent()
    report = verify(small.config, reporter=reporter)
    assert report.exit_code == 0
    assert "could not be recorded" in reporter.warnings[0]


def test_without_identity(small: SmallRepository) -> None:
    (small.config.repository.keys / FILES["identity"]).unlink()
    assert look(small, "presence").exit_code == 0
    with pytest.raises(KeyFileError) as caught:
        look(small)
    assert caught.value.id == "no-identity"


def replace_key(small: SmallRepository, tmp_path: Path, *roles: str) -> None:
    """Keys of the same repository id and epoch, and yet others."""
    other = tmp_path / "other"
    write_keys(other, new_keys(small.open().id))
    for role in roles:
        target = small.config.repository.keys / FILES[role]
        target.unlink()
        shutil.copy(other / FILES[role], target)


@pytest.mark.parametrize("roles", [("identity", "public"), ("catalog",), ("identity",)])
def test_wrong_keys(small: SmallRepository, tmp_path: Path, roles: tuple[str, ...]) -> None:
    """They are told from damage, before anything is called damaged."""
    replace_key(small, tmp_path, *roles)
    for level in LEVELS:
        with pytest.raises(KeyFileError):
            look(small, level)


def test_a_wrong_identity_where_there_is_no_public_key(small: SmallRepository, tmp_path: Path) -> None:
    replace_key(small, tmp_path, "identity")
    (small.config.repository.keys / FILES["public"]).unlink()
    with pytest.raises(KeyFileError) as caught:
        look(small)
    assert caught.value.id == "wrong-key"
    assert "data.identity" in caught.value.message


def test_another_repository(small: SmallRepository, tmp_path: Path) -> None:
    directory = tmp_path / "second"
    directory.mkdir()
    other = two_backups(directory)
    mixed = dataclasses.replace(
        small.config,
        repository=dataclasses.replace(small.config.repository, locations=other.config.repository.locations),
    )
    with pytest.raises(CryoError) as caught:
        verify(mixed, reporter=Silent())
    assert caught.value.id == "foreign-repository"


@pytest.mark.parametrize("harm", [truncate, empty, remove])
@pytest.mark.parametrize("name", ["repository.json", "keys/1.pub"])
def test_what_describes_the_repository(small: SmallRepository, name: str, harm: Callable[[StoredPath], None]) -> None:
    harm(small.paths["here"] / name)
    report = look(small, "presence")
    assert report.exit_code == 4
    assert {finding.object for finding in report.findings} == {name}
    assert [backup.result for backup in report.backups] == ["ok", "ok"]


# Several locations


@pytest.fixture
def double(workspace: Workspace) -> SmallRepository:
    return two_backups(workspace.directory("double"), ("one", "two"), workspace.stores)


@pytest.mark.every_location
def test_damage_in_one_of_two_locations(double: SmallRepository) -> None:
    path = of_kind(double, "packs", "two")[0]
    overwrite(path)
    report = look(double)
    assert report.exit_code == 4
    assert {finding.location for finding in report.findings} == {"two"}
    assert [backup.locations for backup in report.backups] == [{"one": "ok", "two": "damaged"}] * 2
    assert look(double, locations=["one"]).exit_code == 0
    assert report.locations["one"].status == "ok"
    assert report.locations["two"].status == "damaged"


@pytest.mark.every_location
def test_a_location_that_is_down(double: SmallRepository) -> None:
    with away(double.paths["two"]):
        for level in LEVELS:
            report = look(double, level)
            assert report.result == "incomplete"
            assert report.exit_code == 3
            assert report.locations["two"].status == "lost"
            assert report.backups[0].locations == {"one": "ok", "two": "lost"}
        recorded = Catalog.load(double.open()).backups[0].verified
        assert recorded is not None
        assert recorded.data["locations"] == {"one": "ok"}
        with away(double.paths["one"]), pytest.raises(RepositoryError) as caught:
            look(double)
    assert caught.value.id.startswith("location")


@pytest.mark.only_on("posix")
def test_a_location_that_goes_down_meanwhile(double: SmallRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    original = PosixLocation.read

    def read(self: PosixLocation, key: str, offset: int = 0, length: int | None = None) -> bytes:
        if self.name == "two" and key.startswith("packs/") and double.paths["two"].exists():
            double.paths["two"].rename(double.directory / "unplugged")
        return original(self, key, offset, length)

    monkeypatch.setattr(PosixLocation, "read", read)
    report = look(double)
    assert report.result == "incomplete"
    assert report.backups[0].locations == {"one": "ok", "two": "lost"}
    assert report.exit_code == 3


@pytest.mark.parametrize(("optional", "exit_code"), [("", 3), ("two", 0)])
def test_a_backup_that_a_location_lacks(tmp_path: Path, optional: str, exit_code: int) -> None:
    small = SmallRepository(tmp_path, ("one", "two"), not_required=optional)
    small.push_wal(2 * SEGMENT_SIZE + 40)
    small.backup(sample())
    of_kind(small, "manifests", "two")[0].unlink()
    report = look(small, which=Which())
    assert report.exit_code == exit_code
    assert report.backups[0].locations == {"one": "ok", "two": "absent"}
    assert [found.kind for found in report.findings] == ["absent"]


def test_unknown_names(double: SmallRepository) -> None:
    for which, locations, wanted in (
        (Which(backup="20990101"), None, "no-such-backup"),
        (Which(backup="2026"), None, "ambiguous-backup"),
        (Which(latest="other"), None, "no-such-backup"),
        (Which(), ["three"], "unknown-location"),
    ):
        with pytest.raises(CryoError) as caught:
            look(double, which=which, locations=locations)
        assert caught.value.id == wanted


# What is chosen


def test_the_newest_of_every_source(small: SmallRepository) -> None:
    other = small.backup({b"a": b"b"}, source="uploads", postgres=False)
    newest = sorted(small.content)[1]
    report = look(small, which=Which())
    assert {backup.backup_id for backup in report.backups} == {newest, other.id}
    assert [b.backup_id for b in look(small, which=Which(latest="main")).backups] == [newest]
    assert [b.backup_id for b in look(small, which=Which(backup=newest[-8:])).backups] == [newest]


def test_a_newer_backup_that_cannot_be_read(small: SmallRepository) -> None:
    """The newest readable one is verified, and the one that ought to be there is not passed over in silence."""
    overwrite(of_kind(small, "manifests")[1])
    full, incremental = sorted(small.content)
    for which in (Which(), Which(latest="main")):
        report = look(small, which=which)
        assert [backup.backup_id for backup in report.backups] == [full]
        assert [found.object for found in report.findings] == [names.manifest("main", incremental)]
        assert report.exit_code == 4
    report = look(small, which=Which(backup=incremental))
    assert report.backups[0].result == "damaged"


@pytest.mark.only_on("posix")
def test_a_backup_that_is_deleted_meanwhile(small: SmallRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    """As prune does it: the manifest first, then its packs."""
    original = PosixLocation.list

    def listing(self: PosixLocation, prefix: str) -> object:
        if prefix.startswith("packs/"):
            for path in [*of_kind(small, "manifests")[1:], *of_kind(small, "packs")[1:]]:
                path.unlink()
        return original(self, prefix)

    monkeypatch.setattr(PosixLocation, "list", listing)
    report = look(small, "presence", Which())
    assert report.exit_code == 0
    assert [found.kind for found in report.findings] == ["deleted"]
    assert report.backups[0].locations == {"here": "absent"}


# Pages


def broken_pages() -> bytes:
    pages = [relation_page(block, 5000, b"row") for block in range(4)]
    pages[1] = pages[1][:-1] + b"X"  # a wrong checksum
    pages[3] = relation_page(2, 5000, b"row")  # another block's
    return b"".join(pages)


def test_pages_that_were_broken_when_they_were_backed_up(tmp_path: Path) -> None:
    small = SmallRepository(tmp_path)
    small.push_wal(2 * SEGMENT_SIZE + 40)
    path = b"base/5/16384.1"
    small.backup({path: broken_pages(), b"base/5/notes": broken_pages()})
    (finding,) = look(small).findings
    assert (finding.kind, finding.severity, finding.files) == ("page", "damage", ("base/5/16384.1",))
    assert finding.blocks == (131072, 131073, 131074, 131075), "block numbers count from the first file of a relation"


def test_pages_that_the_backup_knows_of(tmp_path: Path) -> None:
    small = SmallRepository(tmp_path)
    small.push_wal(2 * SEGMENT_SIZE + 40)
    path = b"base/5/16384"
    damage = [Damage("base/5/16384", [1, 3])]
    small.backup({path: broken_pages()}, flags={path: DAMAGED_PAGES}, damage=damage)
    report = look(small)
    assert report.exit_code == 0
    assert [(found.kind, found.severity, found.blocks) for found in report.findings] == [("page", "notice", (1, 3))]


def test_torn_pages_that_wal_rewrites(tmp_path: Path) -> None:
    """Their LSN is behind the start of the backup: that they are torn is no damage, for this backup."""
    small = SmallRepository(tmp_path)
    start, later = 2 * SEGMENT_SIZE + 40, 3 * SEGMENT_SIZE + 40
    small.push_wal(start)
    small.push_wal(later)
    page = relation_page(0, start + 500, b"row")[:-1] + b"X"
    files = {b"base/5/16384": page, b"base/5/16385": page[:BLOCK]}
    full = small.backup(files, start_lsn=start)
    assert look(small, which=Which()).findings == []
    # A later backup must not take them over: its WAL begins behind them.
    small.backup(files, parent=full, start_lsn=later)
    report = look(small)
    assert [backup.result for backup in report.backups] == ["ok", "damaged"]
    assert {found.files for found in report.findings} == {("base/5/16384",), ("base/5/16385",)}
