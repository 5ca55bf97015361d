# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One WAL file in the archive: what its object says without the identity, and its content with it.

An object of the archive is complete as soon as it has its name, so that there is nothing to repair here: it is
equal to what was pushed, or it was damaged where it lies.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ..crypto import suite
from ..errors import DamageError, ObjectMissing
from ..repository import container, names
from ..repository.packs import ObjectSource

if t.TYPE_CHECKING:
    from ..crypto.keys import KeyRing
    from ..storage.base import Location

_READ_AT_ONCE_BYTES: t.Final = 32 << 20
"""Objects up to this size are read with one request; larger ones frame by frame, to bound memory."""


@dataclasses.dataclass(frozen=True, slots=True)
class StoredWal:
    """What the authenticated header of an archived file says about its content."""

    key: str
    size: int
    """Bytes of the WAL file itself."""
    digest: bytes
    """BLAKE3 of the WAL file, keyed with the digest key: 32 bytes."""
    stored_bytes: int


def look_at_wal(keys: KeyRing, location: Location, system_identifier: int, name: str) -> StoredWal | None:
    """What is archived under ``name`` in one location; None when there is surely nothing.

    Needs the catalog key only. The header is authenticated and the end of the object is where it should be; its
    frames are not looked at. Raises DamageError for an object that is not whole, LocationError when the location
    does not answer. One request when it is not there, three when it is.
    """
    key = names.wal(system_identifier, name)
    source = ObjectSource(location, key)
    try:
        decoder = container.ObjectDecoder(keys, container.WAL, key, source)
        decoder.check_end()
    except ObjectMissing:
        return None
    return _stored(decoder, source.size)


def _stored(decoder: container.ObjectDecoder, stored_bytes: int) -> StoredWal:
    header = decoder.header
    if header.digest is None or header.size is None:
        raise DamageError(f"object {decoder.name} is damaged: its header lacks size or digest of the WAL file")
    return StoredWal(decoder.name, header.size, header.digest, stored_bytes)


class WalReader:
    """The content of one object with WAL in one location. Needs the identity for ``chunks``.

    Construction reads and authenticates the header. Raises ObjectMissing, DamageError, LocationError.
    """

    @classmethod
    def archived(cls, keys: KeyRing, location: Location, system_identifier: int, name: str) -> t.Self:
        """That of an archived file."""
        return cls(keys, location, names.wal(system_identifier, name))

    def __init__(self, keys: KeyRing, location: Location, key: str) -> None:
        self._keys = keys
        data = location.read(key, 0, _READ_AT_ONCE_BYTES + 1)
        whole = len(data) <= _READ_AT_ONCE_BYTES
        source: container.Source = container.BytesSource(data) if whole else ObjectSource(location, key)
        self._decoder = container.ObjectDecoder(keys, container.WAL, key, source)
        self.stored = _stored(self._decoder, source.size)

    def chunks(self) -> t.Iterator[bytes]:
        """The file's bytes in order, each chunk authenticated, at most 16 MiB.

        Only after the last chunk it is known that the file is whole: DamageError may come at any point, so who
        writes them somewhere gives the file its name after the end of the iteration.
        """
        from blake3 import blake3

        digest = blake3(key=self._keys.digest_key)
        size = 0
        for number, row in enumerate(self._decoder.table()):
            chunk = self._decoder.frame(row, number, container.DATA)
            digest.update(chunk)
            size += len(chunk)
            yield chunk
        if size != self.stored.size or not suite.equal(digest.digest(), self.stored.digest):
            raise DamageError(
                f"object {self.stored.key} is damaged: its content is not what its header announces",
                hint="Another location may have it undamaged; everything else still restores.",
            )
