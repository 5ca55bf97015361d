# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Manifests: streamed, ordered, complete; bounded memory; no path leads out of the target."""

from __future__ import annotations

import dataclasses
import tempfile

import pytest

from cryobackup.crypto.keys import KeyRing, new_keys
from cryobackup.errors import CryoError, DamageError, ObjectMissing, RepositoryError
from cryobackup.repository import model, names
from cryobackup.repository.manifest import Manifest, ManifestWriter, open_manifest
from cryobackup.storage.fanout import Fanout
from cryobackup.storage.posix import PosixLocation

KEYS = KeyRing(new_keys("ab" * 16), "test")
BACKUP = "20260101T000000Z-00000001"


@pytest.fixture
def places(tmp_path):
    found = [PosixLocation(name, tmp_path / name) for name in ("one", "two")]
    for place in found:
        place.prepare()
    return found


def header(entries: int) -> model.BackupHeader:
    return model.BackupHeader(
        BACKUP, "main", "full", None, "ok", "", "2026-01-01T00:00:00+00:00", "2026-01-01T00:00:01+00:00",
        "host", "test", None, {}, model.Totals(entries=entries),
    )  # fmt: skip


def write(places: list[PosixLocation], entries: list[model.Entry], said: int | None = None) -> None:
    with tempfile.TemporaryFile() as spool:
        writer = ManifestWriter(KEYS, "main", BACKUP, level=3, spool=spool)
        for entry in entries:
            writer.add(entry)
        writer.write(Fanout(places), header(len(entries) if said is None else said))


def entry(path: bytes, **more: object) -> model.Entry:
    return model.Entry(path, model.FILE, 0o600, 1, 2, **more)


def test_entries_come_back_across_frames(places):
    entries = [entry(b"base/%06d" % number, extents=bytes(400), size=number) for number in range(10_000)]
    write(places, entries)
    manifest = Manifest(KEYS, places[0], "main", BACKUP)
    assert manifest.header == header(10_000)
    assert list(manifest.entries()) == entries


def test_both_locations_have_the_same_bytes(places):
    write(places, [entry(b"a")])
    name = names.manifest("main", BACKUP)
    assert places[0].read(name) == places[1].read(name)


def test_the_number_of_entries_must_be_what_the_header_says(places):
    write(places, [entry(b"a")], said=2)
    with pytest.raises(DamageError, match="1 entries, not 2"):
        list(Manifest(KEYS, places[0], "main", BACKUP).entries())


@pytest.mark.parametrize("path", [b"../x", b"/etc/passwd", b"a/../../x", b"a//b", b"", b".", b"a/./b", b"a\0b"])
def test_a_path_that_leads_out_is_refused(places, path):
    write(places, [entry(path)])
    with pytest.raises(RepositoryError, match="impossible path"):
        list(Manifest(KEYS, places[0], "main", BACKUP).entries())


def test_damage_in_one_location_is_answered_from_the_other(places):
    write(places, [entry(b"a")])
    path = places[0].path / names.manifest("main", BACKUP)
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    assert open_manifest(KEYS, places, "main", BACKUP).header.backup_id == BACKUP
    with pytest.raises(DamageError):
        list(Manifest(KEYS, places[0], "main", BACKUP).entries())


def test_a_manifest_under_another_name_is_refused(places):
    write(places, [entry(b"a")])
    data = places[0].read(names.manifest("main", BACKUP))
    for source, backup_id in (("other", BACKUP), ("main", "20260101T000000Z-00000002")):
        path = places[0].path / names.manifest(source, backup_id)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        with pytest.raises(DamageError, match="wrong name"):
            Manifest(KEYS, places[0], source, backup_id)


def test_a_missing_manifest_is_missing(places):
    with pytest.raises(ObjectMissing):
        open_manifest(KEYS, places, "main", BACKUP)


def test_every_byte_of_a_manifest_matters(places):
    write(places[:1], [entry(b"base/1", extents=bytes(40), size=9), entry(b"base/2")])
    path = places[0].path / names.manifest("main", BACKUP)
    path.chmod(0o600)
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        with pytest.raises(CryoError):
            list(Manifest(KEYS, places[0], "main", BACKUP).entries())


def test_pack_names_are_all_that_a_backup_needs():
    full = dataclasses.replace(
        header(0),
        packs=[model.PackRow(0, 10, b"a", 5, 5)],
        foreign=[model.ForeignPackRow("20250101T000000Z-00000001", 3, 20, b"b", 9, 1)],
    )
    assert model.pack_names(full) == {
        f"packs/{BACKUP}/000000.pack": (10, b"a"),
        "packs/20250101T000000Z-00000001/000003.pack": (20, b"b"),
    }
