# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The posix location: create-only, durable, nothing half written, clear errors."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from cryobackup.errors import LocationError, LocationFull, ObjectConflict, ObjectMissing
from cryobackup.storage.base import put
from cryobackup.storage.posix import PosixLocation


@pytest.fixture
def location(tmp_path):
    place = PosixLocation("local", tmp_path / "store")
    place.prepare()
    return place


def test_an_object_is_there_whole_or_not_at_all(location):
    writer = location.create("packs/a/000000.pack")
    writer.write(b"one")
    assert location.stat("packs/a/000000.pack") is None
    assert list(location.list("")) == []
    writer.write(b"two")
    writer.commit()
    writer.abort()
    assert location.read("packs/a/000000.pack") == b"onetwo"
    assert location.read("packs/a/000000.pack", 2, 2) == b"et"
    assert location.read("packs/a/000000.pack", 4, 100) == b"wo"
    assert location.stat("packs/a/000000.pack").size == 6


def test_an_aborted_object_leaves_nothing(location):
    writer = location.create("a")
    writer.write(b"x")
    writer.abort()
    writer.abort()
    assert list(location.list("")) == []
    assert list((location.path / ".tmp").iterdir()) == []


def test_nothing_is_overwritten(location):
    assert put(location, "a", b"same") is True
    assert put(location, "a", b"same") is False
    with pytest.raises(ObjectConflict, match=r"'local'.*'a'"):
        put(location, "a", b"other")
    assert location.read("a") == b"same"
    assert list((location.path / ".tmp").iterdir()) == []


def test_one_of_many_writers_wins(location):
    barrier = threading.Barrier(8)
    outcomes: list[str] = []

    def write(number: int) -> None:
        barrier.wait()
        try:
            put(location, "manifests/m/x", b"%d" % number)
            outcomes.append("won")
        except ObjectConflict:
            outcomes.append("lost")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["lost"] * 7 + ["won"]


def test_list_is_sorted_by_key_and_shows_only_objects(location):
    keys = ["wal/1/00000001/a", "wal/1/00000001/b", "wal/10/x", "packs/x-1/0", "packs/x/0", "packs/x.y"]
    for key in keys:
        put(location, key, b"")
    (location.path / "packs" / ".hidden").write_bytes(b"")
    assert [info.key for info in location.list("")] == sorted(keys)
    assert [info.key for info in location.list("wal/1/")] == ["wal/1/00000001/a", "wal/1/00000001/b"]
    assert list(location.list("nothing/")) == []


def test_deleting_is_idempotent_and_tidies_up(location):
    put(location, "packs/a/0", b"x")
    location.delete("packs/a/0")
    location.delete("packs/a/0")
    assert not (location.path / "packs").exists()
    put(location, "packs/a/0", b"again")  # although the writer knew the directory
    assert location.read("packs/a/0") == b"again"


def test_missing_object_and_missing_location_are_told_apart(location):
    with pytest.raises(ObjectMissing):
        location.read("nothing")
    assert location.stat("nothing") is None
    location.path.rename(location.path.with_name("unmounted"))
    for ask in (
        lambda: location.read("nothing"),
        lambda: location.stat("nothing"),
        lambda: list(location.list("")),
        lambda: location.create("x"),
        lambda: location.delete("x"),
        location.now,
        location.capacity,
    ):
        with pytest.raises(LocationError, match="not there") as caught:
            ask()
        assert not isinstance(caught.value, ObjectMissing)
        assert caught.value.hint


def test_what_is_not_mounted_is_not_created(location):
    location.path.rename(location.path.with_name("unmounted"))
    with pytest.raises(LocationError):
        put(location, "a", b"x")
    assert not location.path.exists()


@pytest.mark.parametrize("key", ["../x", "a/../x", "/etc/x", "a//b", "", ".tmp/x", "a\\b", "ä", "x" * 300])
def test_names_cannot_leave_the_location(location, key):
    for use in (location.create, location.read, location.stat, location.delete):
        with pytest.raises(LocationError, match="not a name"):
            use(key)


def test_left_overs_of_crashed_writers_are_swept_when_old(location):
    writer = location.create("a")
    writer.write(b"x")
    assert location.sweep(3600) == 0
    (left,) = (location.path / ".tmp").iterdir()
    os.utime(left, (1, 1))
    assert location.sweep(3600) == 1
    writer.abort()


def test_directories_that_a_crash_left_empty_are_swept_when_old(location):
    put(location, "packs/kept/000000.pack", b"x")
    folders = [location.path / name for name in ("packs/left", "wal/1/00000001", "lost+found", "packs/kept")]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    location.sweep(3600)
    assert all(folder.is_dir() for folder in folders)
    for folder in folders:
        os.utime(folder, (1, 1))
    location.sweep(3600)
    assert [folder.name for folder in folders if folder.is_dir()] == ["lost+found", "kept"]
    # Whoever remembers a directory that is gone makes it anew.
    put(location, "packs/left/000000.pack", b"x")
    put(location, "wal/1/00000001/000000010000000000000001", b"x")


def test_every_step_of_a_creation_is_synced_in_its_order(location, monkeypatch):
    """fsync of the file before its name exists, of the directory after, of the parents of what was made."""
    steps = []
    real_fsync, real_link, real_mkdir = os.fsync, os.link, os.mkdir

    def name(descriptor: int) -> str:
        return os.readlink(f"/proc/self/fd/{descriptor}").removeprefix(str(location.path))

    monkeypatch.setattr(os, "fsync", lambda fd: (steps.append(f"fsync {name(fd)}"), real_fsync(fd)))
    monkeypatch.setattr(os, "link", lambda *a, **k: (steps.append("link"), real_link(*a, **k)))
    monkeypatch.setattr(os, "mkdir", lambda p, *a: (steps.append(f"mkdir {p}"), real_mkdir(p, *a)))
    put(location, "packs/one/0", b"x")
    short = [step.replace(str(location.path), "") for step in steps]
    file = next(step for step in short if step.startswith("fsync /.tmp/"))
    assert short.index(file) < short.index("link")
    assert short[short.index("link") :] == ["link", "fsync /packs/one"]
    for made, parent in (("mkdir /packs", "fsync "), ("mkdir /packs/one", "fsync /packs")):
        assert short[short.index(made) + 1] == parent
        assert short.index(made) < short.index("link")


@pytest.mark.parametrize("failing", ["write", "fsync", "link"])
@pytest.mark.parametrize(("code", "error"), [(errno.ENOSPC, LocationFull), (errno.EIO, LocationError)])
def test_a_failing_disk_is_a_location_error_and_leaves_nothing(location, monkeypatch, failing, code, error):
    put(location, "packs/warm", b"")
    monkeypatch.setattr(os, failing, lambda *a, **k: (_unused for _unused in ()).throw(OSError(code, "x")))
    with pytest.raises(error, match="local") as caught:
        put(location, "packs/a", b"x")
    monkeypatch.undo()
    assert isinstance(caught.value, LocationFull) is (error is LocationFull)
    assert "Earlier backups are untouched" in caught.value.hint
    assert location.stat("packs/a") is None
    assert list((location.path / ".tmp").iterdir()) == []


def test_a_lost_answer_of_link_is_success(location, monkeypatch):
    """NFS may link, lose the answer, try again and get EEXIST."""
    real = os.link

    def linked_twice(*args, **keywords):
        real(*args, **keywords)
        raise FileExistsError(errno.EEXIST, "x")

    monkeypatch.setattr(os, "link", linked_twice)
    writer = location.create("a")
    writer.write(b"x")
    writer.commit()
    assert location.read("a") == b"x"
