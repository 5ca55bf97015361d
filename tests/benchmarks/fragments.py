# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How scattered a backup lies: counted from its manifest, and from what a restore of it really reads."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np

from cryobackup.cli import main as cryobackup
from cryobackup.config import load_config
from cryobackup.repository import extents as xt
from cryobackup.repository.manifest import open_manifest
from cryobackup.repository.repository import Repository
from cryobackup.storage.posix import PosixLocation

from .measure import RunFailed


@dataclass(frozen=True)
class Shape:
    """One backup's manifest."""

    manifest_bytes: int
    packs_own: int
    packs_foreign: int
    pack_bytes: int
    """Stored, of all packs that it needs."""
    plain_bytes: int
    """Of those packs."""
    live_bytes: int
    """What it needs of them."""
    extents: int
    frames: int
    """That a restore has to decode."""
    frame_bytes: int
    """Plaintext of these frames, as far as it can be seen from the backup: the end of the last extent in each."""


def shape_of(config: Path, source: str, backup_id: str) -> Shape:
    """Read a manifest from its beginning to its end."""
    repository = Repository.open(load_config(config).repository, need_identity=True)
    manifest = open_manifest(repository.keys, repository.locations, source, backup_id)
    size = repository.locations[0].stat(manifest.name)
    assert size is not None
    header = manifest.header
    extents = 0
    ends: dict[int, int] = {}
    for entry in manifest.entries():
        rows = xt.unpack(entry.extents)
        extents += len(rows)
        rows = rows[rows["pack"] != xt.ZEROS]
        keys = rows["pack"].astype(np.int64) << 32 | rows["frame"].astype(np.int64)
        tops = (rows["frame_offset"].astype(np.int64) + rows["length"]).tolist()
        for key, top in zip(keys.tolist(), tops, strict=True):
            ends[key] = max(ends.get(key, 0), top)
    packs = [*header.packs, *header.foreign]
    return Shape(
        manifest_bytes=size.size,
        packs_own=len(header.packs),
        packs_foreign=len(header.foreign),
        pack_bytes=sum(pack.size for pack in packs),
        plain_bytes=sum(pack.plain for pack in packs),
        live_bytes=sum(pack.live for pack in packs),
        extents=extents,
        frames=len(ends),
        frame_bytes=sum(ends.values()),
    )


@dataclass
class Reads:
    """What was read of packs: requests, where the location is a store."""

    packs: int
    requests: int
    bytes: int


def reads_of(words: Sequence[str]) -> Reads:
    """Run a command of the program in this process and count what it reads of packs. Directories only."""
    seen: set[str] = set()
    found = Reads(0, 0, 0)
    with _reading(seen, found), contextlib.redirect_stdout(io.StringIO()):
        code = cryobackup(list(words))
    if code:
        raise RunFailed(f"exit {code}: {' '.join(words)}")
    found.packs = len(seen)
    return found


@contextlib.contextmanager
def _reading(seen: set[str], found: Reads) -> Iterator[None]:
    read = PosixLocation.read

    def counted(self: PosixLocation, key: str, offset: int = 0, length: int | None = None) -> bytes:
        data = read(self, key, offset, length)
        if key.startswith("packs/"):
            seen.add(key)
            found.requests += 1
            found.bytes += len(data)
        return data

    with mock.patch.object(PosixLocation, "read", counted):
        yield
