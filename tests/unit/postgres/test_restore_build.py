# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A directory made from a backup is equal to what was backed up, whatever was there before. Without PostgreSQL."""

from __future__ import annotations

import dataclasses
import datetime as dt
import fcntl
import os
import random
import shutil
import stat
import typing as t
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cryobackup.config import LocationConfig, RepositoryConfig
from cryobackup.crypto import suite
from cryobackup.errors import BusyError, DamageError, RestoreError
from cryobackup.postgres import restore_sync, restore_write
from cryobackup.postgres.control import invalidate_checkpoint
from cryobackup.postgres.recovery import Recovery
from cryobackup.postgres.restore import Materialised, materialise
from cryobackup.postgres.restore_prepare import UnrestorableFiles
from cryobackup.postgres.target import MARKER
from cryobackup.repository import extents as xt
from cryobackup.repository import model, names
from cryobackup.repository.catalog import BackupRecord, Catalog
from cryobackup.repository.model import Entry
from cryobackup.repository.repository import Repository, init
from cryobackup.repository.session import BackupSession
from tests.lab import ServerAccount

from .control_file import control_file

SYSTEM = 7100000000000000001
NOW = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
SPACE = 16400
Files = dict[bytes, bytes]


@dataclasses.dataclass
class Store:
    """A repository of one location, and trees kept in it."""

    path: Path
    repository: Repository
    account: ServerAccount
    made: int = 0

    def location(self) -> Path:
        return self.path / "here"

    def keep(self, files: Files, rng: random.Random, *, space: Path | None = None) -> BackupRecord:
        """A backup of these files: in frames of random sizes, some digests unknown, zeros left out."""
        self.made += 1
        when = NOW + dt.timedelta(seconds=self.made)
        with BackupSession(self.repository, source="main", parent=None, now=when, spool=self.path) as session:
            sink = session.packs.sink()
            stored = {path: self._extents(sink, content, rng) for path, content in files.items()}
            sink.close()
            for entry in self._entries(files, space):
                session.add(entry, stored.get(entry.path, xt.empty()))
            session.commit(self._header(session.backup_id, when))
        return Catalog.load(self.repository, "main").find(session.backup_id)

    def _extents(self, sink: t.Any, content: bytes, rng: random.Random) -> xt.Extents:
        rows = []
        at = 0
        while at < len(content):
            length = min(len(content) - at, rng.choice([1, 7, 100, 5000]))
            part = content[at : at + length]
            if not any(part):
                rows.append((at, length, xt.ZEROS, 0, 0, xt.UNKNOWN_DIGEST))
            else:
                before, behind = rng.randbytes(rng.choice([0, 3])), rng.randbytes(rng.choice([0, 5]))
                frame = sink.store(before + part + behind)
                digest = suite.keyed_digest(self.repository.keys.digest_key, part)[:16]
                known = digest if rng.random() < 0.7 else xt.UNKNOWN_DIGEST
                rows.append((at, length, frame.pack, frame.frame, len(before), known))
            at += length
        return xt.build(rows)

    def _entries(self, files: Files, space: Path | None) -> list[Entry]:
        uid, gid = self.account.uid, self.account.gid
        folders = {path.rpartition(b"/")[0] for path in files} | {b"global"}
        folders |= {b"/".join(folder.split(b"/")[:depth]) for folder in folders for depth in range(1, 9)}
        last = [b"backup_label", b"global/pg_control"]
        entries = [Entry(path, model.DIRECTORY, 0o700, uid, gid) for path in folders - {b""}]
        entries += [
            Entry(path, model.FILE, 0o600, uid, gid, len(content))
            for path, content in files.items()
            if path not in last
        ]
        if space is not None:
            link = b"pg_tblspc/%d" % SPACE
            entries = [entry for entry in entries if entry.path != link]
            entries.append(Entry(link, model.SYMLINK, 0o700, uid, gid, target=os.fsencode(space)))
        entries.sort(key=lambda entry: entry.path.split(b"/"))
        return entries + [Entry(path, model.FILE, 0o600, uid, gid, len(files[path])) for path in last]

    def _header(self, backup_id: str, when: dt.datetime) -> model.BackupHeader:
        info = model.PostgresInfo(
            *(str(SYSTEM), 150000, 1, "0/2000000", "0/2000100", "0/2000028"),
            *("000000010000000000000002", "000000010000000000000002", 1 << 24, 8192, 131072),
            *(True, False, "/data", 16384),
        )
        owners = model.Owners({self.account.uid: self.account.name}, {})
        return model.BackupHeader(
            *(backup_id, "main", "full", None, "ok", "", when.isoformat(), when.isoformat(), "host", "0", info, {}),
            *(model.Totals(),),
            owners=owners,
        )

    def restore(self, backup: BackupRecord, target: Path, **options: t.Any) -> Materialised:
        return materialise(self.repository, backup, target, recovery=Recovery("false"), **options)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = tmp_path_factory.mktemp("store")
    config = RepositoryConfig({"here": LocationConfig("here", "posix", path=path / "here")}, path / "keys")
    init(config, NOW)
    return Store(path, Repository.open(config, need_identity=True), ServerAccount.discover())


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few files already make several batches and tasks."""
    monkeypatch.setattr(restore_write, "BATCH_EXTENTS", 40)
    monkeypatch.setattr(restore_write, "BATCH_FILES", 3)
    monkeypatch.setattr(restore_write, "_TASK_BYTES", 300)


NEEDED: Files = {
    b"PG_VERSION": b"15\n",
    b"backup_label": b"START WAL LOCATION: ...\n",
    b"global/pg_control": control_file(SYSTEM),
    b"postgresql.auto.conf": b"work_mem = '7MB'\n",
}
OURS = {b"recovery.signal", b"postgresql.auto.conf", b"global/pg_control"}


def found(root: Path) -> Files:
    """Files below a directory, links not followed."""
    files: Files = {}
    for directory, _folders, file_names in os.walk(os.fsencode(root)):
        for name in file_names:
            path = os.path.join(directory, name)
            relative = os.path.relpath(path, os.fsencode(root))
            if stat.S_ISREG(os.lstat(path).st_mode):
                with open(path, "rb") as file:
                    files[relative] = file.read()
            else:
                files[relative] = b"not a file"
    return files


def equal(root: Path, files: Files) -> None:
    there = found(root)
    assert there.keys() == files.keys() | OURS
    for path, content in files.items():
        if path not in OURS:
            assert there[path] == content, path
    assert there[b"global/pg_control"] == invalidate_checkpoint(files[b"global/pg_control"])
    assert b"restore_command = 'false'" in there[b"postgresql.auto.conf"]


name = st.binary(min_size=1, max_size=3).filter(
    lambda raw: not set(raw) & {0, 47} and raw not in (b".", b"..") and b"\xff" not in raw[:1]
)
content = st.one_of(
    st.binary(max_size=40),
    st.integers(0, 20000).map(bytes),
    st.tuples(st.integers(0, 12000), st.binary(max_size=300), st.integers(0, 9000)).map(
        lambda parts: bytes(parts[0]) + parts[1] + bytes(parts[2])
    ),
    st.integers(0, 30000).map(lambda size: random.Random(size).randbytes(size)),
)


@st.composite
def trees(draw: t.Any) -> Files:
    """Files in directories, no file where another one has its directory."""
    files = dict(NEEDED)
    for folders, last, data in draw(st.lists(st.tuples(st.lists(name, max_size=3), name, content), max_size=14)):
        path = b"base/" + b"/".join([b"d" + folder for folder in folders] + [b"f" + last])
        files[path] = data
    return files


def vandalise(root: Path, rng: random.Random, outside: Path) -> None:
    """Change a restored directory in every way there is."""
    paths = [path for path in root.rglob("*") if path.name not in ("PG_VERSION", "pg_control", "global")]
    for path in rng.sample(paths, min(len(paths), 8)):
        if not os.path.lexists(path):
            continue
        way = rng.choice(["change", "grow", "shrink", "remove", "link", "hard link", "directory", "mode", "zeros"])
        is_file = path.is_file() and not path.is_symlink()
        if is_file and way == "change" and path.stat().st_size:
            with path.open("r+b") as file:
                file.seek(rng.randrange(path.stat().st_size))
                file.write(b"!")
        elif is_file and way == "grow":
            with path.open("ab") as file:
                file.write(rng.randbytes(rng.choice([1, 9000])))
        elif is_file and way == "shrink":
            os.truncate(path, path.stat().st_size // 2)
        elif is_file and way == "zeros":
            path.write_bytes(bytes(path.stat().st_size))
        elif way == "mode":
            path.chmod(0o777)
        elif way in ("remove", "link", "hard link", "directory"):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            if way == "link":
                path.symlink_to(outside)
            elif way == "hard link":
                path.hardlink_to(outside / "precious")
            elif way == "directory":
                (path / "below/deep").mkdir(parents=True)
                (path / "below/file").write_text("surplus")
    (root / "surplus").write_text("surplus")


slow = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@slow
@given(files=trees(), seed=st.integers(0, 2**32))
def test_what_is_restored_is_what_was_kept(
    store: Store, small_batches: None, files: Files, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rng = random.Random(seed)
    place = tmp_path_factory.mktemp("restore")
    backup = store.keep(files, rng)
    target = place / "data"
    done = store.restore(backup, target, durable=False)
    equal(target, files)
    assert (done.files, done.bytes_restored) == (len(files), sum(map(len, files.values())))
    assert done.bytes_compared == 0
    expected = store.account.uid
    assert {path.lstat().st_uid for path in [target, *target.rglob("*")]} == {expected}

    outside = place / "outside"
    outside.mkdir()
    (outside / "precious").write_text("precious")
    for _unused in range(2):
        vandalise(target, rng, outside)
        done = store.restore(backup, target, delta=True, durable=False)
        equal(target, files)
        assert found(outside) == {b"precious": b"precious"}
    modes = {stat.S_IMODE(path.lstat().st_mode) for path in target.rglob("*")}
    assert modes == {0o700, 0o600}
    # Once more: nothing is left to be done but what restores change themselves.
    done = store.restore(backup, target, delta=True, durable=False)
    assert done.bytes_written <= len(files[b"postgresql.auto.conf"])


def test_files_in_a_tablespace(store: Store, tmp_path: Path, small_batches: None) -> None:
    inside = b"pg_tblspc/%d/PG_15_202209061/5/16500" % SPACE
    files = {**NEEDED, inside: b"row" * 5000, b"tablespace_map": b"%d /old/space\n" % SPACE}
    backup = store.keep(files, random.Random(1), space=Path("/old/space"))
    root = tmp_path / "spaces"
    root.mkdir()
    done = store.restore(backup, tmp_path / "data", tablespace_root=root, durable=False)
    assert done.tablespaces == {SPACE: str(root / str(SPACE))}
    assert os.readlink(tmp_path / f"data/pg_tblspc/{SPACE}") == str(root / str(SPACE))
    assert (root / str(SPACE) / "PG_15_202209061/5/16500").read_bytes() == files[inside]
    assert (tmp_path / "data/tablespace_map").read_text() == f"{SPACE} {root}/{SPACE}\n"
    # Over itself: what is in the tablespace besides belongs to another major version, and stays.
    other = root / str(SPACE) / "PG_16_202307071/1"
    other.mkdir(parents=True)
    (root / str(SPACE) / "PG_15_202209061/5/surplus").touch()
    store.restore(backup, tmp_path / "data", tablespace_root=root, delta=True, durable=False)
    assert other.is_dir()
    assert found(root / str(SPACE)) == {inside.partition(b"/")[2].partition(b"/")[2]: files[inside]}


def test_a_manifest_that_lacks_directories(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {**NEEDED, b"base/a/b/c": b"deep"}
    entries = store._entries

    def only_files(files: Files, space: Path | None) -> list[Entry]:
        return [entry for entry in entries(files, space) if entry.type == model.FILE]

    monkeypatch.setattr(store, "_entries", only_files)
    backup = store.keep(files, random.Random(1))
    store.restore(backup, tmp_path / "data", durable=False)
    equal(tmp_path / "data", files)


@pytest.mark.parametrize("lacking", [b"PG_VERSION", b"backup_label"])
def test_what_is_no_backup_of_a_cluster(store: Store, tmp_path: Path, lacking: bytes) -> None:
    files = {path: data for path, data in NEEDED.items() if path != lacking}
    entries = store._entries({**NEEDED}, None)
    entries = [entry for entry in entries if entry.path != lacking]
    with BackupSession(
        store.repository, source="main", parent=None, now=NOW + dt.timedelta(days=1), spool=store.path
    ) as session:
        sink = session.packs.sink()
        stored = {path: store._extents(sink, data, random.Random(1)) for path, data in files.items()}
        sink.close()
        for entry in entries:
            session.add(entry, stored.get(entry.path, xt.empty()))
        session.commit(store._header(session.backup_id, NOW))
    backup = Catalog.load(store.repository, "main").find(session.backup_id)
    with pytest.raises(RestoreError) as caught:
        store.restore(backup, tmp_path / "data")
    assert caught.value.id == "not-a-cluster"
    assert lacking.decode() in caught.value.message
    assert not (tmp_path / "data").exists()


def test_every_damaged_file_is_named_and_the_others_are_whole(store: Store, tmp_path: Path) -> None:
    rng = random.Random(7)
    files = {**NEEDED, **{b"base/%d" % number: rng.randbytes(3000) for number in range(30)}}
    backup = store.keep(files, rng)
    pack = store.location() / names.pack(backup.id, 0)
    data = bytearray(pack.read_bytes())
    pack.chmod(0o600)
    # One frame in the middle: its neighbours are not affected.
    data[len(data) // 2] ^= 1
    pack.write_bytes(bytes(data))
    with pytest.raises(UnrestorableFiles) as caught:
        store.restore(backup, tmp_path / "data", durable=False)
    damaged = {os.fsencode(path) for path in caught.value.files}
    assert 0 < len(damaged) < 10
    there = found(tmp_path / "data")
    assert all(there[path] == content for path, content in files.items() if path not in damaged | OURS)
    assert b"global/pg_control" not in there
    data[len(data) // 2] ^= 1
    pack.write_bytes(bytes(data))
    done = store.restore(backup, tmp_path / "data", delta=True, durable=False)
    assert done.bytes_fetched < sum(map(len, files.values()))
    equal(tmp_path / "data", files)


@pytest.mark.parametrize("kernel", [(4, 18), (6, 1)])
def test_it_is_durable_with_every_kernel(
    store: Store, tmp_path: Path, kernel: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore_sync, "_kernel", lambda: kernel)
    synced: list[int] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    files = {**NEEDED, b"base/1": b"x" * 100}
    store.restore(store.keep(files, random.Random(3)), tmp_path / "data")
    equal(tmp_path / "data", files)
    data = tmp_path / "data"
    always = [data, data / "global", data / "global/pg_control", data / "recovery.signal", tmp_path]
    every = [path for path in data.rglob("*") if not path.is_symlink()]
    wanted = always if kernel >= (5, 8) else always + every
    assert {path.stat().st_ino for path in wanted} <= set(synced)


def test_two_at_once_where_one_is_done_before_the_other_has_its_lock(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slower one leaves alone what the other has made."""
    files = {**NEEDED, b"base/1": b"x" * 100}
    backup = store.keep(files, random.Random(5))
    real = fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        store.restore(backup, tmp_path / "data", delta=True, durable=False)
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(BusyError, match="another restore has just written"):
        store.restore(backup, tmp_path / "data", durable=False)
    equal(tmp_path / "data", files)
    assert not (tmp_path / "data" / MARKER).exists()


def test_entries_out_of_their_order_are_noticed(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would make a restore over something remove what it has just restored."""
    files = {**NEEDED, b"base/1": b"one", b"base/2": b"two", b"dir/3": b"three"}
    entries = store._entries

    def shuffled(files: Files, space: Path | None) -> list[Entry]:
        return sorted(entries(files, space)[:-2], key=lambda entry: entry.path[::-1]) + entries(files, space)[-2:]

    monkeypatch.setattr(store, "_entries", shuffled)
    backup = store.keep(files, random.Random(1))
    with pytest.raises(DamageError, match="not in their order"):
        store.restore(backup, tmp_path / "data", durable=False)
    assert not (tmp_path / "data/global/pg_control").exists()
