# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small repository, made without PostgreSQL: two backups that share packs, with pages and WAL that are made up."""

from __future__ import annotations

import datetime as dt
import struct
from collections.abc import Callable, Container
from pathlib import Path

import numpy as np

from cryobackup.config import Config, RepositoryConfig
from cryobackup.crypto import suite
from cryobackup.postgres import page
from cryobackup.postgres.lsn import format_lsn
from cryobackup.postgres.wal import segment_name_at
from cryobackup.repository import container, model, names
from cryobackup.repository import extents as xt
from cryobackup.repository.catalog import BackupRecord, Catalog
from cryobackup.repository.manifest import open_manifest
from cryobackup.repository.packs import PackReader
from cryobackup.repository.repository import Repository, init
from cryobackup.repository.session import BackupSession
from cryobackup.retention_policy import Policy
from cryobackup.storage.base import put
from tests.lab.stores import DirectoryStore, StoredPath, Stores, store_config
from tests.unit.postgres.control_file import control_file

SYSTEM = 7000000000000000001
SEGMENT_SIZE = 1 << 20
BLOCK = 8192
START = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


def relation_page(block: int, lsn: int, fill: bytes) -> bytes:
    """A page as PostgreSQL writes it, with its checksum."""
    body = bytearray(BLOCK)
    struct.pack_into("<IIHHHHHHI", body, 0, lsn >> 32, lsn & 0xFFFFFFFF, 0, 0, 28, BLOCK - 64, BLOCK, BLOCK | 4, 0)
    body[BLOCK - 64 :] = (fill * 64)[:64]
    checksum = int(page.page_checksums(bytes(body), block)[0])
    struct.pack_into("<H", body, 8, checksum)
    return bytes(body)


def wal_segment(lsn: int) -> bytes:
    """A segment that begins as PostgreSQL's do."""
    head = struct.pack("<HHIQI4xQII", 0xD110, 0x0006, 1, lsn, 0, SYSTEM, SEGMENT_SIZE, BLOCK)
    return head + bytes(SEGMENT_SIZE - len(head))


def backup_label(lsn: int, timeline: int = 1) -> bytes:
    """As PostgreSQL gives it out."""
    start, segment = format_lsn(lsn), segment_name_at(timeline, lsn, SEGMENT_SIZE)
    return (
        f"START WAL LOCATION: {start} (file {segment})\nCHECKPOINT LOCATION: {start}\nBACKUP METHOD: streamed\n"
        f"BACKUP FROM: primary\nSTART TIME: 2026-03-01 12:00:00 UTC\nLABEL: x\nSTART TIMELINE: {timeline}\n"
    ).encode()


def essentials(start_lsn: int) -> dict[bytes, bytes]:
    """What every backup of a cluster has, and a verification asks for."""
    return {
        b"PG_VERSION": b"15\n",
        b"backup_label": backup_label(start_lsn),
        b"global/pg_control": control_file(SYSTEM, wal_segment_size=SEGMENT_SIZE, checksums=True),
    }


class SmallRepository:
    """``content``: for each backup, what each of its files holds. ``stores`` makes its locations; else directories."""

    def __init__(
        self,
        directory: Path,
        locations: tuple[str, ...] = ("here",),
        *,
        not_required: str = "",
        stores: Stores | None = None,
    ) -> None:
        self.directory = directory
        made = {
            name: stores.make(directory / name) if stores is not None else DirectoryStore(directory / name)
            for name in locations
        }
        self.paths: dict[str, StoredPath] = {name: store.root for name, store in made.items()}
        self.config = Config(
            path=directory / "config.yml",
            repository=RepositoryConfig(
                {
                    name: store_config(store, directory, name, required=name != not_required)
                    for name, store in made.items()
                },
                directory / "keys",
            ),
            retention=Policy({}),
            state_directory=directory / "state",
        )
        self.content: dict[str, dict[bytes, bytes]] = {}
        self._clock = START
        init(self.config.repository, START)

    def now(self) -> dt.datetime:
        self._clock += dt.timedelta(minutes=1)
        return self._clock

    def open(self) -> Repository:
        return Repository.open(self.config.repository, need_identity=True)

    def push_wal(self, lsn: int, data: bytes | None = None) -> str:
        name = segment_name_at(1, lsn, SEGMENT_SIZE)
        data = wal_segment(lsn // SEGMENT_SIZE * SEGMENT_SIZE) if data is None else data
        repository = self.open()
        key = names.wal(SYSTEM, name)
        digest = suite.keyed_digest(repository.keys.digest_key, data)
        encoder = container.ObjectEncoder(repository.keys, container.WAL, key, digest=digest, size=len(data))
        encoded = encoder.start + encoder.frame(container.DATA, data) + encoder.finish()
        for location in repository.locations:
            put(location, key, encoded)
        return key

    def backup(
        self,
        files: dict[bytes, bytes],
        *,
        parent: BackupRecord | None = None,
        start_lsn: int = 2 * SEGMENT_SIZE + 40,
        source: str = "main",
        postgres: bool = True,
        flags: dict[bytes, int] | None = None,
        damage: list[model.Damage] | None = None,
        frame_bytes: int = 64 << 10,
        without: Container[bytes] = (),
        change: Callable[[model.BackupHeader], None] | None = None,
    ) -> BackupRecord:
        """Files equal to the parent's are referred to, others stored; each run of ``frame_bytes`` is a frame.

        What a cluster cannot be without (``essentials``) is added to what ``files`` do not have of it, except what is
        in ``without``. ``change``: what is done with the header in the end.
        """
        if postgres:
            files = {path: data for path, data in {**essentials(start_lsn), **files}.items() if path not in without}
        repository = self.open()
        known = self.content[parent.id] if parent is not None else {}
        with BackupSession(repository, source=source, parent=parent, now=self.now(), spool=self.directory) as session:
            old = {}
            if parent is not None:
                old = {entry.path: xt.unpack(entry.extents) for entry in session.parent_manifest().entries()}
            sink = session.packs.sink()
            stored = {}
            for path, data in files.items():
                if known.get(path) == data:
                    stored[path] = session.refer(old[path])
                    continue
                rows = []
                for at in range(0, len(data), frame_bytes):
                    part = data[at : at + frame_bytes]
                    where = sink.store(part)
                    digest = suite.keyed_digest(repository.keys.digest_key, part)[:16]
                    rows.append((at, len(part), where.pack, where.frame, 0, digest))
                stored[path] = xt.build(rows) if rows else xt.empty()
            sink.close()
            for path, extents in stored.items():
                flag = (flags or {}).get(path, 0)
                session.add(model.Entry(path, model.FILE, 0o600, 0, 0, len(files[path]), flags=flag), extents)
            header = self._header(session, start_lsn, postgres=postgres)
            header.damage = damage or []
            header.totals.files = len(files)
            header.totals.bytes_source = sum(map(len, files.values()))
            if change is not None:
                change(header)
            session.commit(header)
            backup_id = session.backup_id
        self.content[backup_id] = dict(files)
        return Catalog.load(self.open()).find(backup_id)

    def _header(self, session: BackupSession, start_lsn: int, *, postgres: bool) -> model.BackupHeader:
        parent = session.parent.id if session.parent else None
        kind = (model.INCREMENTAL if parent else model.FULL) if postgres else model.FILES
        info = None
        if postgres:
            stop_lsn = start_lsn + 1000
            segment = segment_name_at(1, start_lsn, SEGMENT_SIZE)
            info = model.PostgresInfo(
                system_identifier=str(SYSTEM),
                version=150000,
                timeline=1,
                start_lsn=format_lsn(start_lsn),
                stop_lsn=format_lsn(stop_lsn),
                checkpoint_lsn=format_lsn(start_lsn),
                wal_start=segment,
                wal_stop=segment,
                wal_segment_size=SEGMENT_SIZE,
                block_size=BLOCK,
                segment_blocks=131072,
                page_checksums=True,
                from_standby=False,
                data_directory="/nowhere",
                next_oid=20000,
            )
        at = self.now().isoformat()
        return model.BackupHeader(
            session.backup_id, session.source, kind, parent, model.OK, "", at, at, "host", "0", info, {}, model.Totals()
        )

    def restored(self, repository: Repository, record: BackupRecord) -> dict[bytes, bytes]:
        """The files of a backup as its manifest and packs give them. Raises what the engine raises."""
        locations = [place for place in repository.locations if place.name in record.locations]
        manifest = open_manifest(repository.keys, locations, record.source, record.id)
        files = {}
        for entry in manifest.entries():
            parts = []
            for row in xt.unpack(entry.extents):
                field = int(row["pack"])
                if field >= xt.FOREIGN:
                    of = manifest.header.foreign[field - xt.FOREIGN]
                    name = names.pack(of.backup_id, of.number)
                else:
                    name = names.pack(record.id, field)
                frame = PackReader(locations, repository.keys, name).frame(int(row["frame"]))
                parts.append(frame[int(row["frame_offset"]) :][: int(row["length"])])
            files[entry.path] = b"".join(parts)
        return files


def sample() -> dict[bytes, bytes]:
    random = np.random.default_rng(1)
    noise = random.integers(0, 256, 400, dtype=np.uint8).tobytes()
    pages = b"".join(relation_page(block, 5000 + block, b"row") for block in range(3))
    return {
        b"PG_VERSION": b"15\n",
        b"base/5/16384": pages,
        b"base/5/16385": b"".join(relation_page(block, 7000, b"abc") for block in range(2)),
        b"base/5/notes": noise,
        b"empty": b"",
    }


def two_backups(
    directory: Path, locations: tuple[str, ...] = ("here",), stores: Stores | None = None
) -> SmallRepository:
    """A full backup and an incremental on it, with the WAL of both."""
    made = SmallRepository(directory, locations, stores=stores)
    files = sample()
    first, second = 2 * SEGMENT_SIZE + 40, 3 * SEGMENT_SIZE + 40
    made.push_wal(first)
    made.push_wal(second)
    full = made.backup(files, start_lsn=first)
    changed = files | {b"base/5/16385": relation_page(0, first + 100, b"new"), b"base/5/notes": b"short"}
    made.backup(changed, parent=full, start_lsn=second)
    return made
