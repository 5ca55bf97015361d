# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A whole object on its way: read once, proven to be what was written, then written."""

from __future__ import annotations

import threading
import typing as t

from ..crypto import suite
from ..errors import DamageError, KeyFileError, ObjectMissing, RepositoryError
from ..repository import container, names
from ..repository.model import Note
from ..state import Spool

if t.TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ..crypto.keys import KeyRing
    from ..storage.base import Buffer, Location

CHUNK_BYTES: t.Final = 8 << 20
_IN_MEMORY_BYTES: t.Final = 24 << 20
"""A WAL segment of the usual size; what is larger waits in a file."""


class Whole(container.Source, t.Protocol):
    """All bytes of an object, at hand."""

    def add(self, data: bytes) -> None: ...

    def chunks(self) -> Iterator[Buffer]: ...

    def close(self) -> None: ...


class _InMemory:
    def __init__(self) -> None:
        self._data = bytearray()

    @property
    def size(self) -> int:
        return len(self._data)

    def add(self, data: bytes) -> None:
        self._data += data

    def read(self, offset: int, length: int) -> bytes:
        return bytes(memoryview(self._data)[offset : offset + length])

    def chunks(self) -> Iterator[Buffer]:
        yield self._data

    def close(self) -> None:
        self._data = bytearray()


class _InFile:
    """In a file without a name in the state directory."""

    def __init__(self, directory: Path) -> None:
        self._spool = Spool(directory)
        self._lock = threading.Lock()
        self._size = 0

    @property
    def size(self) -> int:
        return self._size

    def add(self, data: bytes) -> None:
        self._spool.write(data)
        self._size += len(data)

    def read(self, offset: int, length: int) -> bytes:
        with self._lock:
            self._spool.seek(offset)
            return self._spool.read(length)

    def chunks(self) -> Iterator[Buffer]:
        for offset in range(0, self.size, CHUNK_BYTES):
            yield self.read(offset, CHUNK_BYTES)

    def close(self) -> None:
        self._spool.__exit__()


def fetch(location: Location, name: str, spool: Path, took: Callable[[int], None]) -> Whole:
    """Read an object. Memory: at most 24 MiB. ``took`` hears of every piece, and may wait or raise.

    Raises ObjectMissing, DamageError when it changes its length, LocationError; ConfigError or StateError.
    """
    info = location.stat(name)
    if info is None:
        raise ObjectMissing(f"location {location.name!r} has no object {name!r}")
    whole: Whole = _InFile(spool) if info.size > _IN_MEMORY_BYTES else _InMemory()
    try:
        for offset, length in pieces(info.size):
            data = location.read(name, offset, length)
            took(len(data))
            whole.add(data)
        if whole.size != info.size:
            raise DamageError(f"object {name} is damaged: it has {whole.size} bytes instead of {info.size}")
    except BaseException:
        whole.close()
        raise
    return whole


def pieces(size: int) -> Iterator[tuple[int, int]]:
    """Offset and length of the requests for an object; the last asks for a byte more: a longer object shows."""
    for offset in range(0, max(size, 1), CHUNK_BYTES):
        left = size - offset
        yield offset, CHUNK_BYTES if left > CHUNK_BYTES else left + 1


# What an object must prove. Each raises DamageError, or what else says that it cannot be read.


def prove_manifest(keys: KeyRing, name: str, whole: container.Source) -> None:
    """Every frame, and that none is missing: with that, every byte. Needs the catalog key only."""
    decoder = container.ObjectDecoder(keys, container.MANIFEST, name, whole)
    for number, row in enumerate(decoder.table()):
        decoder.frame(row, number, container.MANIFEST_HEADER if number == 0 else container.MANIFEST_ENTRIES)


def prove_note(keys: KeyRing, name: str, whole: container.Source) -> None:
    container.decode_record(keys, container.NOTE, name, whole.read(0, whole.size), Note)


def prove_wal(keys: KeyRing, name: str, whole: container.Source) -> tuple[bytes, int]:
    """Header and end; with the identity at hand, everything. Gives digest and size of the WAL file, as announced."""
    decoder = container.ObjectDecoder(keys, container.WAL, name, whole)
    decoder.check_end()
    header = decoder.header
    if header.digest is None or header.size is None:
        raise DamageError(f"object {name} is damaged: its header lacks size or digest of the WAL file")
    if _can_read(keys, header.epoch):
        _prove_content(keys, decoder, header.digest, header.size)
    return header.digest, header.size


def _can_read(keys: KeyRing, epoch: int) -> bool:
    try:
        keys.identity(epoch)
    except KeyFileError:
        return False
    return True


def _prove_content(keys: KeyRing, decoder: container.ObjectDecoder, announced: bytes, announced_size: int) -> None:
    from blake3 import blake3

    digest, size = blake3(key=keys.digest_key), 0
    for number, row in enumerate(decoder.table()):
        chunk = decoder.frame(row, number, container.DATA)
        digest.update(chunk)
        size += len(chunk)
    if size != announced_size or not suite.equal(digest.digest(), announced):
        raise DamageError(f"object {decoder.name} is damaged: its content is not what its header announces")


def prove_public_key(keys: KeyRing, where: str, whole: container.Source) -> None:
    """That ``keys/<epoch>.pub`` is of this repository, as far as the keys at hand tell."""
    keys.check_published(whole.read(0, whole.size).decode("ascii", "replace"), where)


def proof_of(keys: KeyRing, name: str) -> Callable[[container.Source], object]:
    """What the object of that name must prove, by its kind."""
    if name.startswith("manifests/"):
        return lambda whole: prove_manifest(keys, name, whole)
    if name.startswith("notes/"):
        return lambda whole: prove_note(keys, name, whole)
    if name.startswith("wal/"):
        return lambda whole: prove_wal(keys, name, whole)
    if name.startswith("keys/"):
        return lambda whole: prove_public_key(keys, name, whole)
    raise RepositoryError(f"internal: {names.REPOSITORY_JSON} and {name} are not replicated")
