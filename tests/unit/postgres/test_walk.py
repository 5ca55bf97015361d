# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The order in which files are found, and files that go while we look."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryobackup.errors import SourceError
from cryobackup.postgres.walk import Found, Walk
from cryobackup.repository import model

names = st.sampled_from(["base", "base.old", "a", "a-b", "a0", "b", "ä", "PG_VERSION", "Z", "1", "12", "2"])


def walk(root: Path, warnings: list[str] | None = None) -> Walk:
    return Walk(root, major=17, catalog_version=202406281, warn=(warnings if warnings is not None else []).append)


@settings(max_examples=100)
@given(paths=st.lists(st.lists(names, min_size=1, max_size=4), max_size=15))
def test_order_is_that_of_the_manifest(tmp_path_factory: pytest.TempPathFactory, paths: list[list[str]]) -> None:
    root = tmp_path_factory.mktemp("data")
    for parts in paths:
        path = root.joinpath(*parts)
        if not any(parent.is_file() for parent in path.parents) and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    (root / "nömore").touch()
    with open(os.fsencode(root) + b"/not-\xff-utf8", "wb"):
        pass
    found = [item.path for item in walk(root)]
    assert found == sorted(found, key=model.sort_key)
    assert len(found) == len(set(found)) == sum(1 for path in root.rglob("*"))


def test_what_vanishes_was_never_there(tmp_path: Path) -> None:
    for name in ("1/file", "2/file", "3", "4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    seen: list[Found] = []
    for found in walk(tmp_path):
        seen.append(found)
        if found.path == b"1/file":
            (tmp_path / "2/file").unlink()
            (tmp_path / "2").rmdir()
            (tmp_path / "3").unlink()
    assert [item.path for item in seen] == [b"1", b"1/file", b"4"]


def test_directory_that_vanishes_once_it_was_seen(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1/file").touch()
    seen = []
    for found in walk(tmp_path):
        seen.append(found.path)
        if found.path == b"1":
            (tmp_path / "1/file").unlink()
            (tmp_path / "1").rmdir()
    assert seen == [b"1"]


def test_what_is_neither_file_nor_directory(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    warnings: list[str] = []
    assert list(walk(tmp_path, warnings)) == []
    assert len(warnings) == 1
    assert "pipe" in warnings[0]


def test_what_cannot_be_looked_at_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "base").symlink_to(tmp_path / "base")
    with pytest.raises(SourceError) as caught:
        list(walk(tmp_path))
    assert caught.value.id == "source-unreadable"


def test_other_clusters_in_a_shared_tablespace_are_left_out(tmp_path: Path) -> None:
    place, root = tmp_path / "place", tmp_path / "data"
    for name in ("PG_17_202406281/5", "PG_16_202307071/5"):
        (place / name).mkdir(parents=True)
        (place / name / "16384").touch()
    (root / "pg_tblspc").mkdir(parents=True)
    (root / "pg_tblspc/16400").symlink_to(place)
    (root / "pg_tblspc/16401").symlink_to(tmp_path / "nowhere")
    place.chmod(0o750)
    warnings: list[str] = []
    made = walk(root, warnings)
    found = {item.text: item for item in made}
    assert list(found) == [
        "pg_tblspc",
        "pg_tblspc/16400",
        "pg_tblspc/16400/PG_17_202406281",
        "pg_tblspc/16400/PG_17_202406281/5",
        "pg_tblspc/16400/PG_17_202406281/5/16384",
        "pg_tblspc/16401",
    ]
    assert found["pg_tblspc/16400"].mode == 0o750
    assert found["pg_tblspc/16400"].target == os.fsencode(place)
    assert made.tablespaces == {16400: str(place), 16401: str(tmp_path / "nowhere")}
    assert any("nowhere" in warning for warning in warnings)
