# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a restore may write. More of it, with real clusters, is among the integration tests of restores."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryobackup.errors import RestoreError, TargetError
from cryobackup.postgres.target import (
    MARKER,
    OLD_CONTROL,
    Marker,
    Need,
    Protected,
    TargetKind,
    check_space,
    check_tablespace,
    check_target,
    tablespace_map,
)

from .control_file import control_file

SYSTEM = 7100000000000000001
ELSEWHERE = Marker("main", "20260301T000000Z-00000001", SYSTEM, "2026-03-01T00:00:00+00:00", ("/srv/space",))


def cluster(path: Path, system_identifier: int = SYSTEM) -> Path:
    (path / "global").mkdir(parents=True)
    (path / "PG_VERSION").write_text("15\n")
    (path / "global/pg_control").write_bytes(control_file(system_identifier))
    return path


def refused(target: Path, *, delta: bool = True, protected: tuple[Protected, ...] = ()) -> str:
    with pytest.raises(RestoreError) as caught:
        check_target(target, delta=delta, system_identifier=SYSTEM, protected=protected)
    assert "Nothing was changed" in caught.value.hint
    return caught.value.id


def kind(target: Path, *, delta: bool = True) -> TargetKind:
    return check_target(target, delta=delta, system_identifier=SYSTEM).kind


def test_missing_empty_and_the_same_cluster(tmp_path: Path) -> None:
    assert kind(tmp_path / "missing", delta=False) is TargetKind.MISSING
    (tmp_path / "empty/lost+found").mkdir(parents=True)
    assert kind(tmp_path / "empty", delta=False) is TargetKind.EMPTY
    data = cluster(tmp_path / "data")
    assert kind(data) is TargetKind.CLUSTER
    assert refused(data, delta=False) == "target-not-empty"
    other = cluster(tmp_path / "other", SYSTEM + 1)
    assert refused(other) == "target-foreign-cluster"


def test_an_interrupted_restore(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    # Killed before a word was in it.
    (data / MARKER).touch()
    assert kind(data) is TargetKind.INTERRUPTED
    assert refused(data, delta=False) == "target-not-empty"
    # Half a marker among other things proves nothing.
    (data / "something").touch()
    assert refused(data) == "target-not-empty"
    (data / MARKER).write_bytes(ELSEWHERE.encode())
    state = check_target(data, delta=True, system_identifier=SYSTEM)
    assert (state.kind, state.marker) == (TargetKind.INTERRUPTED, ELSEWHERE)
    with pytest.raises(RestoreError):
        check_target(data, delta=True, system_identifier=SYSTEM + 1)


def test_a_control_file_that_was_moved_away_still_tells(tmp_path: Path) -> None:
    data = cluster(tmp_path / "data")
    (data / "global/pg_control").rename(data / OLD_CONTROL)
    assert kind(data) is TargetKind.CLUSTER


def test_a_marker_that_is_a_link_is_none(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / "elsewhere").write_bytes(ELSEWHERE.encode())
    (data / MARKER).symlink_to(tmp_path / "elsewhere")
    assert refused(data) == "target-not-empty"


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"null", b'{"source": 1}', b"\xff\xfe", ELSEWHERE.encode()[:-9]]
)
def test_markers_that_make_no_sense(content: bytes) -> None:
    assert Marker.decode(content) is None


@given(
    st.builds(
        Marker,
        st.text(),
        st.text(),
        st.integers(0, 2**64 - 1),
        st.text(),
        st.lists(st.text()).map(tuple),
    )
)
def test_markers_are_read_as_they_were_written(marker: Marker) -> None:
    assert Marker.decode(marker.encode()) == marker


def test_protected_places(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    (tmp_path / "alias").symlink_to(repository)
    places = (Protected(repository, "the repository"),)
    for target in (repository, repository / "new", tmp_path, tmp_path / "alias/new"):
        assert refused(target, protected=places) == "target-is-repository"
    # Also when it is configured by way of a link, or a part of its name is equal.
    assert refused(repository / "x", protected=(Protected(tmp_path / "alias", "it"),)) == "target-is-repository"
    assert kind(tmp_path / "repository2") is TargetKind.MISSING
    allowed = (Protected(repository, "the data directory", itself_allowed=True),)
    assert check_target(repository, delta=False, system_identifier=1, protected=allowed).kind is TargetKind.EMPTY
    assert refused(repository / "x", protected=allowed) == "target-is-repository"


def test_a_link_on_the_way_is_resolved_and_one_at_the_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    state = check_target(tmp_path / "link/data", delta=False, system_identifier=1)
    assert state.path == tmp_path.resolve() / "real/data"
    assert refused(tmp_path / "link") == "target-symlink"
    assert refused(tmp_path / "link/") == "target-symlink"


def test_tablespaces(tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "x").touch()
    assert check_tablespace(tmp_path / "new", known=(), protected=()) == tmp_path.resolve() / "new"
    assert check_tablespace(full, known={full.resolve()}, protected=()) == full.resolve()
    with pytest.raises(RestoreError) as caught:
        check_tablespace(full, known=(), protected=())
    assert caught.value.id == "target-not-empty"
    assert f"--tablespace {full}=" in caught.value.hint


ORIGINAL = {16400: "/srv/a", 16401: "/srv/b"}


def test_the_map_of_the_tablespaces() -> None:
    assert tablespace_map(ORIGINAL, {}, None) == {16400: Path("/srv/a"), 16401: Path("/srv/b")}
    wanted = {"/srv//a/": "/new/a/", "16401": "/new/b"}
    assert tablespace_map(ORIGINAL, wanted, None) == {16400: Path("/new/a"), 16401: Path("/new/b")}
    root = Path("/sandbox")
    assert tablespace_map(ORIGINAL, {"16401": "/new/b"}, root) == {16400: root / "16400", 16401: Path("/new/b")}
    for bad in ({"/srv/c": "/x"}, {"/srv/a": "x"}, {"/srv/a": "/srv/b"}, {"/srv/a": "/x\ny"}):
        with pytest.raises(TargetError) as caught:
            tablespace_map(ORIGINAL, bad, None)
        assert caught.value.id == "tablespace-mapping"


def test_room_is_added_up_for_one_file_system(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    free = status.f_bavail * status.f_frsize
    check_space({tmp_path / "a": Need(1000, 1), tmp_path / "b/c": Need(-5, -1)})
    half = int(free * 0.6)
    with pytest.raises(RestoreError) as caught:
        check_space({tmp_path / "a": Need(half, 1), tmp_path / "b": Need(half, 1)})
    assert caught.value.id == "target-space"
