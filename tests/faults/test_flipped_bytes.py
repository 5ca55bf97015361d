# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every byte of a repository flipped in turn: the damaged object is named, and wrong data is never restored."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryobackup.errors import CryoError
from cryobackup.events import Silent
from cryobackup.postgres.archive_get import deliver
from cryobackup.repository.catalog import Catalog
from cryobackup.repository.repository import Repository
from cryobackup.verify.ladder import verify
from cryobackup.verify.result import DAMAGE
from cryobackup.verify.subjects import Which

from .small_repository import SEGMENT_SIZE, SYSTEM, SmallRepository, sample

MASKS = (0xFF, 0x01, 0x20)
"""All bits; the lowest one, which makes an 8 of a 9; the one between upper and lower case."""
LARGE_BYTES = 1024
"""Of objects larger than this, the first and the last part are flipped byte by byte, the rest is sampled."""
STEP = 13


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallRepository:
    made = SmallRepository(tmp_path_factory.mktemp("flips"))
    made.push_wal(2 * SEGMENT_SIZE + 40)
    made.backup(sample())
    return made


def objects(small: SmallRepository) -> list[str]:
    root = small.paths["here"]
    found = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
    return sorted(str(path) for path in found if path.parts[0] != ".tmp")


def positions(size: int) -> list[int]:
    if size <= LARGE_BYTES:
        return list(range(size))
    edge = LARGE_BYTES // 2
    return [*range(edge), *range(edge, size - edge, STEP), *range(size - edge, size)]


@contextlib.contextmanager
def flipped(path: Path, position: int, mask: int) -> Iterator[bytes]:
    """The file with one byte changed; what it holds then."""
    mode = path.stat().st_mode
    path.chmod(0o600)
    with path.open("r+b", buffering=0) as file:
        whole = file.read()
        changed = bytearray(whole)
        changed[position] ^= mask
        os.pwrite(file.fileno(), changed[position : position + 1], position)
        try:
            yield bytes(changed)
        finally:
            os.pwrite(file.fileno(), whole[position : position + 1], position)
    path.chmod(mode)


def named(small: SmallRepository) -> set[str]:
    """The objects that verify calls damaged, or the text of its error."""
    try:
        report = verify(small.config, which=Which(all=True), reporter=Silent(), record=False, workers=1)
    except CryoError as error:
        return {f"error: {error.message}"}
    damaged = {finding.object for finding in report.findings if finding.severity == DAMAGE}
    assert bool(damaged) == (report.exit_code == 4)
    return damaged


def restored(small: SmallRepository) -> dict[bytes, bytes] | None:
    """What a restore gives; None when it fails, which is right."""
    try:
        repository = small.open()
        (record,) = Catalog.load(repository).backups
        return small.restored(repository, record)
    except (CryoError, ValueError):
        return None


def content(small: SmallRepository) -> dict[bytes, bytes]:
    (only,) = small.content.values()
    return only


def test_nothing_is_found_in_a_sound_repository(small: SmallRepository) -> None:
    assert named(small) == set()
    assert restored(small) == content(small)


def object_of_kind(small: SmallRepository, kind: str) -> str:
    (name,) = [name for name in objects(small) if name.startswith(kind)]
    return name


@pytest.mark.parametrize("kind", ["manifests/", "packs/"])
def test_every_byte_of_a_backup(small: SmallRepository, kind: str) -> None:
    name = object_of_kind(small, kind)
    path = small.paths["here"] / name
    for position in positions(path.stat().st_size):
        with flipped(path, position, MASKS[position % len(MASKS)]):
            assert named(small) == {name}, position
            assert restored(small) in (None, content(small)), position


def test_every_byte_of_a_wal_segment(small: SmallRepository, tmp_path: Path) -> None:
    name = object_of_kind(small, "wal/")
    path = small.paths["here"] / name
    destination = tmp_path / "RECOVERYXLOG"
    for position in positions(path.stat().st_size):
        with flipped(path, position, MASKS[position % len(MASKS)]):
            assert named(small) == {name}, position
            with pytest.raises(CryoError):
                deliver(small.open(), SYSTEM, path.name, destination)
            assert not destination.exists()


@pytest.mark.parametrize("mask", MASKS)
def test_every_byte_of_the_description(small: SmallRepository, mask: int) -> None:
    """Nothing authenticates it. A change is reported, or is one of the time of creation, which nothing reads."""
    path = small.paths["here"] / "repository.json"
    before = json.loads(path.read_bytes())
    for position in range(path.stat().st_size):
        with flipped(path, position, mask) as changed:
            found = named(small)
            if found == {"repository.json"} or any("here" in text for text in found):
                continue
            assert found == set()
            assert {**json.loads(changed), "created": ""} == {**before, "created": ""}


def test_every_byte_of_the_published_keys(small: SmallRepository) -> None:
    path = small.paths["here"] / "keys/1.pub"
    for position in positions(path.stat().st_size):
        with flipped(path, position, MASKS[position % len(MASKS)]):
            assert named(small) == {"keys/1.pub"}, position


def test_another_location_makes_up_for_it(tmp_path: Path) -> None:
    """Damage in one location is named, with it, and everything is still restored from the other one."""
    small = SmallRepository(tmp_path, ("one", "two"))
    small.push_wal(2 * SEGMENT_SIZE + 40)
    record = small.backup(sample())
    for kind in ("manifests/", "packs/", "wal/"):
        path = next(path for path in (small.paths["one"] / kind).rglob("*") if path.is_file())
        for position in [*range(12), *range(16, path.stat().st_size, 97)]:
            with flipped(path, position, 0xFF):
                report = verify(small.config, reporter=Silent(), record=False, workers=1)
                assert {(found.location, found.object) for found in report.findings} == {
                    ("one", str(path.relative_to(small.paths["one"])))
                }
                assert report.backups[0].locations == {"one": "damaged", "two": "ok"}
                repository = Repository.open(small.config.repository, need_identity=True)
                assert small.restored(repository, Catalog.load(repository).find(record.id)) == content(small), position
