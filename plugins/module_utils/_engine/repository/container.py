# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The container that all objects have: section 6 of docs/repository-format.md."""

from __future__ import annotations

import dataclasses
import struct
import threading
import typing as t

from ..crypto import suite
from ..crypto.keys import KeyRing
from ..errors import DamageError, KeyFileError, RepositoryError, UnknownEpoch
from ..storage.base import Buffer
from .decoding import decode

MAGIC = b"\x89CRYOBK\n"
END_MAGIC = b"CRYOEND\n"
VERSION = 1

PACK, WAL, MANIFEST, LEASE, MARK, NOTE = 1, 2, 3, 4, 5, 6
DATA_OBJECTS = (PACK, WAL)

DATA, TABLE, MANIFEST_HEADER, MANIFEST_ENTRIES, RECORD = 1, 2, 16, 17, 18
STORED, ZSTD = 0, 1

_PREFIX = struct.Struct(">8sHBBI")
_FRAME = struct.Struct(">IIBBHI")
_ROW = struct.Struct(">QII")
_TRAILER = struct.Struct(">QII8s8s")
HEADER_TAG_BYTES = 32
FRAME_HEADER_BYTES = _FRAME.size
TRAILER_BYTES = _TRAILER.size
MAX_FRAME_BYTES = 16 << 20
_MAX_HEADER_BYTES = 64 << 10


@dataclasses.dataclass(slots=True)
class Header:
    repo: bytes
    name: str
    epoch: int
    sealed: bytes | None = None
    commit: bytes | None = None
    salt: bytes | None = None
    digest: bytes | None = None
    size: int | None = None


def _encode_header(header: Header) -> bytes:
    import msgspec

    fields = dataclasses.asdict(header)
    return msgspec.msgpack.encode({key: value for key, value in fields.items() if value is not None})


class FrameInfo(t.NamedTuple):
    """Where a frame is: offset of its header, bytes behind the header, bytes of plaintext."""

    offset: int
    stored: int
    plain: int

    @property
    def end(self) -> int:
        """Where the next one begins."""
        return self.offset + _FRAME.size + self.stored


_local = threading.local()


def _compressor(level: int) -> t.Any:
    import zstandard

    if getattr(_local, "level", None) != level:
        _local.level = level
        _local.compressor = zstandard.ZstdCompressor(level=level, write_content_size=True, write_checksum=False)
    return _local.compressor


def _decompress(data: bytes, size: int) -> bytes:
    import zstandard

    decompressor = getattr(_local, "decompressor", None)
    if decompressor is None:
        decompressor = _local.decompressor = zstandard.ZstdDecompressor(max_window_size=128 << 20)
    return t.cast(bytes, decompressor.decompress(data, max_output_size=size, allow_extra_data=False))


class ObjectEncoder:
    """Turns frames into the bytes of one object. Not thread-safe; keeps only the frame table.

    ``start`` is written first, then what ``frame`` returns, at last what ``finish`` returns.
    """

    def __init__(
        self,
        keys: KeyRing,
        kind: int,
        name: str,
        *,
        level: int = 3,
        digest: bytes | None = None,
        size: int | None = None,
    ) -> None:
        epoch = keys.epoch
        header = Header(repo=keys.repository, name=name, epoch=epoch, digest=digest, size=size)
        catalog, raw_name = keys.catalog(epoch), name.encode()
        if kind in DATA_OBJECTS:
            data_key = suite.random_key()
            header.sealed = suite.seal(data_key, keys.public(epoch), keys.repository, raw_name)
            header.commit = suite.commitment(data_key, catalog, keys.repository, raw_name)
            key = suite.data_object_key(data_key, catalog, keys.repository, raw_name)
        else:
            header.salt = suite.random_key()
            key = suite.catalog_object_key(catalog, header.salt, keys.repository, raw_name)
        packed = _encode_header(header)
        prefix = _PREFIX.pack(MAGIC, VERSION, suite.SUITE, kind, len(packed)) + packed
        self._tag = suite.keyed_digest(keys.header_key(epoch), prefix)
        self._cipher = suite.FrameCipher(key)
        self._level = level
        self._rows: list[FrameInfo] = []
        self.start = prefix + self._tag
        self.offset = len(self.start)

    @property
    def frames(self) -> int:
        return len(self._rows)

    def frame(self, kind: int, data: Buffer) -> bytes:
        """The next frame, compressed where that saves anything, encrypted."""
        number = len(self._rows)
        encoded = self.seal_frame(kind, number, data)
        self.place(len(encoded), len(data))
        return encoded

    def seal_frame(self, kind: int, number: int, data: Buffer) -> bytes:
        """A frame with a number of the caller's choice, each number once. Thread-safe."""
        if len(data) > MAX_FRAME_BYTES:
            raise RepositoryError(f"a frame of {len(data)} bytes is larger than the format allows")
        codec, body = ZSTD, _compressor(self._level).compress(data)
        if len(body) >= len(data):
            codec, body = STORED, data
        head = _FRAME.pack(len(body) + suite.TAG_BYTES, len(data), kind, codec, 0, number)
        return head + self._cipher.encrypt(kind, number, body, self._tag + head)

    def place(self, encoded: int, plain: int) -> None:
        """Note that a frame of so many bytes goes next into the object, in the order of numbers."""
        self._rows.append(FrameInfo(self.offset, encoded - _FRAME.size, plain))
        self.offset += encoded

    def finish(self) -> bytes:
        """Frame table and trailer. The last thing to be written."""
        table = b"".join(_ROW.pack(*row) for row in self._rows)
        if len(table) > MAX_FRAME_BYTES:
            raise RepositoryError(f"an object of {len(self._rows)} frames is larger than the format allows")
        encoded = self.seal_frame(TABLE, len(self._rows), table)
        return encoded + _TRAILER.pack(self.offset, len(encoded) - _FRAME.size, len(self._rows), bytes(8), END_MAGIC)


def encode_record(keys: KeyRing, kind: int, name: str, record: object) -> bytes:
    """A whole small object with one record in it, a dataclass: lease, mark, note."""
    import msgspec

    encoder = ObjectEncoder(keys, kind, name)
    return encoder.start + encoder.frame(RECORD, msgspec.msgpack.encode(record)) + encoder.finish()


R = t.TypeVar("R")


def decode_record(keys: KeyRing, kind: int, name: str, data: bytes, record: type[R]) -> R:
    """Raises DamageError."""
    import msgspec

    decoder = ObjectDecoder(keys, kind, name, BytesSource(data))
    plain = decoder.frame(decoder.table()[0], 0, RECORD)
    try:
        return decode(plain, record)
    except msgspec.DecodeError as error:
        raise damaged(name, f"its record is not readable: {error}") from error


class Source(t.Protocol):
    """Where a decoder gets the bytes of its object from."""

    def read(self, offset: int, length: int) -> bytes: ...

    @property
    def size(self) -> int: ...


@dataclasses.dataclass(frozen=True, slots=True)
class BytesSource:
    data: bytes

    def read(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]

    @property
    def size(self) -> int:
        return len(self.data)


def damaged(name: str, what: str) -> DamageError:
    """The error of an object that is not what was written."""
    return DamageError(
        f"object {name} is damaged: {what}",
        hint="`cryobackup verify` names the backups and files that need it; everything else still restores.",
    )


_HEAD_READ_BYTES = 4096


class ObjectDecoder:
    """Reads one object. Everything it returns was authenticated. Thread-safe after construction.

    Construction reads and authenticates the header, which needs the catalog key alone; frames of
    data objects need the identity as well.
    """

    def __init__(self, keys: KeyRing, kind: int, name: str, source: Source) -> None:
        self.name = name
        self._source = source
        self._keys = keys
        head = source.read(0, _HEAD_READ_BYTES)
        if len(head) < _PREFIX.size:
            raise damaged(name, "it is too short")
        magic, version, used_suite, found, length = _PREFIX.unpack_from(head)
        if magic != MAGIC:
            raise damaged(name, "it does not begin as an object does")
        if version != VERSION or used_suite != suite.SUITE:
            raise RepositoryError(
                f"object {name} has container version {version}, suite {used_suite}",
                hint="It was written by a newer version, or its first bytes are damaged. Use that version.",
                id="format-version",
            )
        if length > _MAX_HEADER_BYTES:
            raise damaged(name, "its header has an impossible length")
        end = _PREFIX.size + length
        if len(head) < end + HEADER_TAG_BYTES:
            head = source.read(0, end + HEADER_TAG_BYTES)
        prefix, self._tag = head[:end], head[end : end + HEADER_TAG_BYTES]
        self.header = self._parse_header(prefix[_PREFIX.size :])
        # Asked before the tag: a header of another repository is a mistake of the user, not damage.
        if self.header.repo != keys.repository:
            raise RepositoryError(
                f"object {name} belongs to repository {self.header.repo.hex()}, the keys to {keys.repository_id}",
                hint="Use the keys of that repository. Nothing was changed.",
                id="foreign-repository",
            )
        if not suite.equal(suite.keyed_digest(self._header_key(), prefix), self._tag):
            raise damaged(name, "its header is not what was written, or the catalog key is another one")
        if self.header.name != name:
            raise damaged(name, f"it is the object {self.header.name} under a wrong name")
        if found != kind:
            raise damaged(name, f"it is an object of type {found}, expected {kind}")
        self._kind = kind
        self._body = end + HEADER_TAG_BYTES
        self._opened: suite.FrameCipher | None = None

    def _parse_header(self, packed: bytes) -> Header:
        import msgspec

        try:
            return decode(packed, Header)
        except msgspec.DecodeError as error:
            raise damaged(self.name, "its header is not readable") from error

    def _header_key(self) -> bytes:
        try:
            return self._keys.header_key(self.header.epoch)
        except KeyFileError as error:
            # Not authenticated yet: one flipped bit must not pass for a lack of keys and stop everything.
            raise UnknownEpoch(
                f"object {self.name} says that it is of epoch {self.header.epoch}, of which there is no key",
                hint=f"Either its header is damaged, or: {error.hint}",
                epoch=self.header.epoch,
            ) from error

    @property
    def _cipher(self) -> suite.FrameCipher:
        if self._opened is None:
            self._opened = suite.FrameCipher(self._object_key())
        return self._opened

    def _object_key(self) -> bytes:
        header, keys, name = self.header, self._keys, self.name.encode()
        catalog = keys.catalog(header.epoch)
        if self._kind not in DATA_OBJECTS:
            if header.salt is None:
                raise damaged(self.name, "its header lacks the salt")
            return suite.catalog_object_key(catalog, header.salt, keys.repository, name)
        if header.sealed is None or header.commit is None:
            raise damaged(self.name, "its header lacks the key")
        data_key = suite.unseal(header.sealed, keys.identity(header.epoch), keys.repository, name)
        if not suite.equal(suite.commitment(data_key, catalog, keys.repository, name), header.commit):
            raise damaged(self.name, "its key is not the one that was committed to")
        return suite.data_object_key(data_key, catalog, keys.repository, name)

    def first_frame(self, kind: int) -> bytes:
        """Frame 0, without reading the table: enough for the header of a manifest."""
        head = self._source.read(self._body, _FRAME.size)
        if len(head) < _FRAME.size:
            raise damaged(self.name, "it ends early")
        stored, plain = _FRAME.unpack(head)[:2]
        return self.frame(FrameInfo(self._body, stored, plain), 0, kind)

    def check_end(self) -> tuple[int, int, int]:
        """Whether the object ends as it should: all that can be said of it without the identity.

        Returns where the frame table is: offset, stored bytes, number of frames before it. Not authenticated.
        """
        size = self._source.size
        trailer = self._source.read(size - _TRAILER.size, _TRAILER.size) if size >= _TRAILER.size else b""
        if len(trailer) != _TRAILER.size:
            raise damaged(self.name, "it is too short")
        offset, stored, frames, zero, magic = _TRAILER.unpack(trailer)
        if magic != END_MAGIC or zero != bytes(8):
            raise damaged(self.name, "it does not end as an object does")
        if offset + _FRAME.size + stored + _TRAILER.size != size:
            raise damaged(self.name, "its length is not what its end says")
        return offset, stored, frames

    def table(self) -> list[FrameInfo]:
        """Where the frames are. Raises DamageError when one is missing or does not follow the other."""
        offset, stored, frames = self.check_end()
        plain = self.frame(FrameInfo(offset, stored, frames * _ROW.size), frames, TABLE)
        rows = [FrameInfo(*row) for row in _ROW.iter_unpack(plain)]
        expected = self._body
        for number, row in enumerate(rows):
            if row.offset != expected:
                raise damaged(self.name, "its frame table does not fit its frames")
            self._check_length(row, number)
            expected += _FRAME.size + row.stored
        if expected != offset or len(rows) != frames:
            raise damaged(self.name, "its frame table does not fit its frames")
        return rows

    def frame(self, row: FrameInfo, number: int, kind: int) -> bytes:
        """The plaintext of one frame."""
        self._check_length(row, number)
        return self.open_frame(self._source.read(row.offset, row.end - row.offset), row, number, kind)

    def _check_length(self, row: FrameInfo, number: int) -> None:
        if row.plain > MAX_FRAME_BYTES or row.stored > MAX_FRAME_BYTES + suite.TAG_BYTES:
            raise damaged(self.name, f"frame {number} has an impossible length")

    def open_frame(self, encoded: Buffer, row: FrameInfo, number: int, kind: int) -> bytes:
        """The plaintext of a frame whose bytes are at hand already."""
        from cryptography.exceptions import InvalidTag

        if len(encoded) != _FRAME.size + row.stored:
            raise damaged(self.name, f"it ends early, in frame {number}")
        view = memoryview(encoded)
        head = bytes(view[: _FRAME.size])
        stored, plain, found_kind, codec, zero, found_number = _FRAME.unpack(head)
        if (stored, plain, found_kind, zero, found_number) != (row.stored, row.plain, kind, 0, number):
            raise damaged(self.name, f"the header of frame {number} is not what was written")
        try:
            body = self._cipher.decrypt(kind, number, view[_FRAME.size :], self._tag + head)
        except InvalidTag as error:
            raise damaged(self.name, f"frame {number} is not what was written") from error
        if codec == ZSTD:
            body = _inflate(self.name, number, body, plain)
        if codec not in (STORED, ZSTD) or len(body) != plain:
            raise damaged(self.name, f"frame {number} does not unpack to what was announced")
        return body


def _inflate(name: str, number: int, body: bytes, plain: int) -> bytes:
    import zstandard

    try:
        return _decompress(body, plain)
    except zstandard.ZstdError as error:
        raise damaged(name, f"frame {number} does not unpack") from error
