# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A repository of format version 1 as it was written in 2026: every later version must read it.

``golden/`` was made once by running this file; it is never made again for version 1.
"""

from __future__ import annotations

import datetime as dt
import pathlib
import shutil
import sys
import tempfile

import pytest

from cryobackup.config import LocationConfig, RepositoryConfig
from cryobackup.crypto import suite
from cryobackup.crypto.keys import new_keys, write_keys
from cryobackup.repository import container, model, names
from cryobackup.repository import extents as xt
from cryobackup.repository.catalog import Catalog, write_note
from cryobackup.repository.manifest import open_manifest
from cryobackup.repository.packs import PackReader
from cryobackup.repository.repository import Repository, init
from cryobackup.repository.session import BackupSession
from cryobackup.storage.base import put

GOLDEN = pathlib.Path(__file__).with_name("golden")
FIRST = {b"base/1/1259": b"first" * 1000, b"global/1262": bytes(8192), b"PG_VERSION": b"17\n"}
SECOND = FIRST | {b"base/1/1259": b"second" * 1000}
SEGMENT = "000000010000000000000001"
SYSTEM = 7300000000000000000
NOW = dt.datetime(2026, 11, 23, 1, 2, 3, 4, tzinfo=dt.UTC)


def config(root: pathlib.Path) -> RepositoryConfig:
    return RepositoryConfig({"local": LocationConfig("local", "posix", path=root / "store")}, root / "keys")


@pytest.fixture
def repository(tmp_path):
    shutil.copytree(GOLDEN, tmp_path / "golden")
    for path in (tmp_path / "golden" / "keys").iterdir():
        path.chmod(0o400)
    return Repository.open(config(tmp_path / "golden"), need_identity=True)


def content(repository: Repository, backup_id: str) -> dict[bytes, bytes]:
    manifest = open_manifest(repository.keys, repository.locations, "main", backup_id)
    files = {}
    for entry in manifest.entries():
        data = b""
        for row in xt.unpack(entry.extents):
            if row["pack"] == xt.ZEROS:
                data += bytes(int(row["length"]))
                continue
            name = names.pack(backup_id, int(row["pack"]))
            if row["pack"] >= xt.FOREIGN:
                foreign = manifest.header.foreign[int(row["pack"]) - xt.FOREIGN]
                name = names.pack(foreign.backup_id, foreign.number)
            frame = PackReader(repository.locations, repository.keys, name).frame(int(row["frame"]))
            data += frame[int(row["frame_offset"]) :][: int(row["length"])]
        files[entry.path] = data
    return files


def test_the_catalog_reads_as_ever(repository):
    catalog = Catalog.load(repository)
    assert not catalog.broken
    first, second = catalog.backups
    assert (first.header.kind, second.header.kind, second.header.parent) == ("full", "incremental", first.id)
    assert first.started == NOW
    assert first.pinned
    assert not second.pinned
    assert second.header.label == "zweites Backup"


def test_the_backups_read_as_ever(repository):
    first, second = Catalog.load(repository).backups
    assert content(repository, first.id) == FIRST
    assert content(repository, second.id) == SECOND


def test_the_archived_wal_reads_as_ever(repository):
    name = names.wal(SYSTEM, SEGMENT)
    data = repository.locations[0].read(name)
    decoder = container.ObjectDecoder(repository.keys, container.WAL, name, container.BytesSource(data))
    frames = [decoder.frame(row, number, container.DATA) for number, row in enumerate(decoder.table())]
    assert b"".join(frames) == b"wal" * 1000
    assert decoder.header.size == 3000
    assert decoder.header.digest == suite.keyed_digest(repository.keys.digest_key, b"wal" * 1000)


def make(root: pathlib.Path) -> None:
    write_keys(root / "keys", new_keys("60" * 16))
    init(config(root), NOW)
    repository = Repository.open(config(root))
    for number, (files, label) in enumerate(((FIRST, ""), (SECOND, "zweites Backup"))):
        now = NOW + dt.timedelta(hours=number)
        parents = Catalog.load(repository).backups
        with (
            tempfile.TemporaryDirectory() as spool,
            BackupSession(
                repository, source="main", parent=parents[0] if parents else None, now=now, spool=pathlib.Path(spool)
            ) as session,
        ):
            old = {entry.path: entry for entry in session.parent_manifest().entries()} if parents else {}
            sink = session.packs.sink()
            for path in sorted(files, key=model.sort_key):
                data = files[path]
                if path in old and FIRST[path] == data:
                    extents = session.refer(xt.unpack(old[path].extents))
                elif not any(data):
                    extents = xt.zeros(0, len(data))
                else:
                    place = sink.store(data)
                    digest = suite.keyed_digest(repository.keys.digest_key, data)[:16]
                    extents = xt.build([(0, len(data), *place, 0, digest)])
                session.add(model.Entry(path, model.FILE, 0o600, 0, 0, len(data)), extents)
            sink.close()
            kind, parent = ("incremental", parents[0].id) if parents else ("full", None)
            stamp = now.isoformat()
            session.commit(
                model.BackupHeader(
                    session.backup_id,
                    "main",
                    kind,
                    parent,
                    "ok",
                    label,
                    stamp,
                    stamp,
                    "host",
                    "0.1.0",
                    None,
                    {},
                    model.Totals(files=len(files)),
                )
            )
    (first, _second) = Catalog.load(repository).backups
    pin = model.Note(first.id, "main", model.PIN, NOW.isoformat(), {"reason": "golden"})
    write_note(repository, pin, names.new_id(NOW, b"note"))
    wal = b"wal" * 1000
    name = names.wal(SYSTEM, SEGMENT)
    digest = suite.keyed_digest(repository.keys.digest_key, wal)
    encoder = container.ObjectEncoder(repository.keys, container.WAL, name, digest=digest, size=len(wal))
    frames = encoder.frame(container.DATA, wal[:1000]) + encoder.frame(container.DATA, wal[1000:])
    put(repository.locations[0], name, encoder.start + frames + encoder.finish())


if __name__ == "__main__":
    make(pathlib.Path(sys.argv[1]))
