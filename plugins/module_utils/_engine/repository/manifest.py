# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing and reading manifests, entry by entry: memory does not grow with the number of files."""

from __future__ import annotations

import struct
import typing as t

from ..crypto.keys import KeyRing
from ..errors import DamageError, RepositoryError
from ..storage.base import Location
from ..storage.breaker import Breaker
from ..storage.fanout import Fanout
from . import container, names
from .decoding import decode
from .model import BackupHeader, Entry
from .packs import FrameReader, first_good
from .plausible import absurdity

_FRAME_BYTES = 1 << 20
_COPY_BYTES = 1 << 20
_MAX_FILE_BYTES = (1 << 63) - 1
_ARRAY = struct.Struct(">BI")  # MessagePack: array 32


class SpoolFile(t.Protocol):
    """Where entries wait for the header. Its errors are not the repository's."""

    def write(self, data: bytes, /) -> int: ...

    def seek(self, offset: int, /) -> int: ...

    def read(self, size: int, /) -> bytes: ...


class ManifestWriter:
    """Collects entries, encrypted, in the file ``spool``; ``write`` makes the object of them.

    The header, known last, is frame 0 of the object: the frames of the entries are numbered from 1
    and placed behind it.
    """

    def __init__(self, keys: KeyRing, source: str, backup_id: str, *, level: int, spool: SpoolFile) -> None:
        self.name = names.manifest(source, backup_id)
        self._encoder = container.ObjectEncoder(keys, container.MANIFEST, self.name, level=level)
        self._spool = spool
        self._frames: list[tuple[int, int]] = []  # bytes encoded, bytes of plaintext
        self._pending = bytearray()
        self._pending_entries = 0
        import msgspec

        self._pack = msgspec.msgpack.Encoder()
        self.entries = 0

    def add(self, entry: Entry) -> None:
        encoded = self._pack.encode(entry)
        if self._pending and len(self._pending) + len(encoded) > _FRAME_BYTES:
            self._flush()
        self._pending += encoded
        self._pending_entries += 1
        self.entries += 1

    def _flush(self) -> None:
        if not self._pending:
            return
        plain = _ARRAY.pack(0xDD, self._pending_entries) + self._pending
        frame = self._encoder.seal_frame(container.MANIFEST_ENTRIES, len(self._frames) + 1, plain)
        self._spool.write(frame)
        self._frames.append((len(frame), len(plain)))
        self._pending.clear()
        self._pending_entries = 0

    def write(self, fanout: Fanout, header: BackupHeader) -> int:
        """Create the manifest in every healthy location: the commit. Once only. Returns its bytes."""
        import msgspec

        self._flush()
        writer = fanout.create(self.name)
        try:
            writer.write(self._encoder.start)
            writer.write(self._encoder.frame(container.MANIFEST_HEADER, msgspec.msgpack.encode(header)))
            self._spool.seek(0)
            while part := self._spool.read(_COPY_BYTES):
                writer.write(part)
            for encoded, plain in self._frames:
                self._encoder.place(encoded, plain)
            end = self._encoder.finish()
            writer.write(end)
            writer.commit()
        finally:
            writer.abort()
        return self._encoder.offset + len(end)


class Manifest:
    """One manifest, read from one location. Construction reads the header only.

    ``others``: locations that are asked for entries which this one does not give; ``breaker`` remembers when it fails.
    """

    def __init__(
        self,
        keys: KeyRing,
        location: Location,
        source: str,
        backup_id: str,
        *,
        others: t.Sequence[Location] = (),
        breaker: Breaker | None = None,
    ) -> None:
        import msgspec

        self.name = names.manifest(source, backup_id)
        self.location = location
        self._frames = FrameReader(
            (location, *others),
            keys,
            self.name,
            kind=container.MANIFEST,
            frame_kind=container.MANIFEST_ENTRIES,
            breaker=breaker,
        )
        decoder = self._frames.decoder(location)
        self.epoch = decoder.header.epoch
        """Of the keys that authenticate it."""
        try:
            self.header = decode(decoder.first_frame(container.MANIFEST_HEADER), BackupHeader)
        except msgspec.DecodeError as error:
            raise DamageError(f"object {self.name}: its header is not readable: {error}") from error
        if (self.header.source, self.header.backup_id) != (source, backup_id):
            raise DamageError(f"object {self.name} describes {self.header.source}/{self.header.backup_id}")
        absurd = absurdity(self.header)
        if absurd is not None:
            raise DamageError(
                f"object {self.name} says what cannot be true: {absurd}",
                hint="Who has the catalog key wrote that: a newer version, or somebody who stole the key. Use that "
                "version, or delete this object.",
            )

    def entries(self) -> t.Iterator[Entry]:
        """All entries in their order. Raises DamageError, also at the end when some are missing."""
        import msgspec

        count = 0
        for _unused, frame in self._frames.read(range(1, self._frames.count)):
            if not isinstance(frame, bytes):
                raise frame
            try:
                entries = decode(frame, list[Entry])
            except msgspec.DecodeError as error:
                raise DamageError(f"object {self.name}: its entries are not readable: {error}") from error
            for entry in entries:
                _check_path(entry.path, self.name)
                if not 0 <= entry.size <= _MAX_FILE_BYTES:
                    raise DamageError(f"object {self.name} has a file of {entry.size} bytes")
                yield entry
            count += len(entries)
        if count != self.header.totals.entries:
            raise DamageError(f"object {self.name} has {count} entries, not {self.header.totals.entries}")


def open_manifest(
    keys: KeyRing,
    locations: t.Sequence[Location],
    source: str,
    backup_id: str,
    *,
    breaker: Breaker | None = None,
) -> Manifest:
    """From the first location that has it undamaged, entry by entry."""

    def read(location: Location) -> Manifest:
        others = [other for other in locations if other is not location]
        return Manifest(keys, location, source, backup_id, others=others, breaker=breaker)

    return first_good(locations, names.manifest(source, backup_id), read, breaker)


def _check_path(path: bytes, name: str) -> None:
    """Manifests are authenticated; a path that leads out of the target is refused all the same."""
    if not path or any(part in (b"", b".", b"..") for part in path.split(b"/")) or b"\0" in path:
        raise RepositoryError(f"object {name} has an entry with the impossible path {path!r}")
