# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Packs: immutable objects of data frames.

Each worker thread of a backup has a ``PackSink`` of its own and so an open pack of its own: no
queue between reading and writing, no shared counter but the pack's number, and back-pressure by
itself. Memory is one frame for each worker.
"""

from __future__ import annotations

import itertools
import threading
import typing as t

from ..crypto.keys import KeyRing
from ..errors import DamageError, LocationError, ObjectMissing, RepositoryError
from ..storage.base import Buffer, Location
from ..storage.fanout import Fanout, FanoutWriter
from . import container, names
from .model import PackRow

PACK_TARGET_BYTES = 64 << 20
FRAME_TARGET_BYTES = 1 << 20


class FrameRef(t.NamedTuple):
    pack: int
    frame: int


class PackSet:
    """The packs that one backup writes. Hands out sinks; collects what they wrote."""

    def __init__(self, fanout: Fanout, keys: KeyRing, backup_id: str, *, level: int, first: int = 0) -> None:
        self.fanout = fanout
        self.keys = keys
        self.backup_id = backup_id
        self.level = level
        self._numbers = itertools.count(first)
        self._lock = threading.Lock()
        self._rows: dict[int, PackRow] = {}

    def sink(self) -> PackSink:
        return PackSink(self)

    def next_number(self) -> int:
        with self._lock:
            return next(self._numbers)

    def written(self, row: PackRow) -> None:
        with self._lock:
            self._rows[row.number] = row

    @property
    def rows(self) -> list[PackRow]:
        """The packs that are complete and durable so far, by number."""
        with self._lock:
            return [self._rows[number] for number in sorted(self._rows)]


class PackSink:
    """Stores frames, in packs of about ``PACK_TARGET_BYTES``. For one thread at a time."""

    def __init__(self, packs: PackSet) -> None:
        self._packs = packs
        self._open: _OpenPack | None = None

    def store(self, data: Buffer) -> FrameRef:
        """Compress, encrypt and write one frame to every healthy location.

        Durable only after ``close``. ``data`` may be reused by the caller on return.
        """
        if self._open is None:
            self._open = _OpenPack(self._packs)
        reference = self._open.store(data)
        if self._open.size >= PACK_TARGET_BYTES:
            self.close()
        return reference

    def upcoming(self) -> FrameRef:
        """Where the next frame that is stored will lie: known while its bytes are still gathered."""
        if self._open is None:
            self._open = _OpenPack(self._packs)
        return self._open.upcoming()

    def close(self) -> None:
        """Finish the open pack. All frames stored so far are durable on return."""
        if self._open is not None:
            finished, self._open = self._open, None
            finished.finish()

    def abort(self) -> None:
        if self._open is not None:
            self._open.abort()
            self._open = None


class _OpenPack:
    def __init__(self, packs: PackSet) -> None:
        from blake3 import blake3

        self._packs = packs
        self._number = packs.next_number()
        name = names.pack(packs.backup_id, self._number)
        self._encoder = container.ObjectEncoder(packs.keys, container.PACK, name, level=packs.level)
        self._writer: FanoutWriter = packs.fanout.create(name)
        self._digest = blake3()
        self._plain = 0
        self.size = 0
        self._write(self._encoder.start)

    def _write(self, data: bytes) -> None:
        self._digest.update(data)
        self._writer.write(data)
        self.size += len(data)

    def upcoming(self) -> FrameRef:
        return FrameRef(self._number, self._encoder.frames)

    def store(self, data: Buffer) -> FrameRef:
        reference = self.upcoming()
        self._write(self._encoder.frame(container.DATA, data))
        self._plain += len(data)
        return reference

    def finish(self) -> None:
        try:
            self._write(self._encoder.finish())
            self._writer.commit()
        finally:
            self._writer.abort()
        self._packs.written(PackRow(self._number, self.size, self._digest.digest(), self._plain))

    def abort(self) -> None:
        self._writer.abort()


class ObjectSource:
    """Bytes of one object in one location, for a decoder."""

    def __init__(self, location: Location, key: str) -> None:
        self._location = location
        self._key = key
        self._size: int | None = None

    def read(self, offset: int, length: int) -> bytes:
        return self._location.read(self._key, offset, length)

    @property
    def size(self) -> int:
        if self._size is None:
            info = self._location.stat(self._key)
            if info is None:
                raise ObjectMissing(f"location {self._location.name!r} has no object {self._key!r}")
            self._size = info.size
        return self._size


T = t.TypeVar("T")


def first_good(locations: t.Sequence[Location], what: str, action: t.Callable[[Location], T]) -> T:
    """The result of ``action`` with the first location where it works.

    Raises the first error when it works nowhere: damage before absence, absence before outage. What looks like
    another version, epoch or repository may be damage to the byte that says so: another location is asked then, too.
    """
    errors: list[RepositoryError] = []
    for location in locations:
        try:
            return action(location)
        except RepositoryError as error:
            errors.append(error)
    if not errors:
        raise RepositoryError(f"no location holds {what}")
    raise min(errors, key=lambda error: isinstance(error, ObjectMissing) + 2 * isinstance(error, LocationError))


class FrameReader:
    """Frames of one object, each from the first location that has it undamaged. Thread-safe."""

    def __init__(
        self, locations: t.Sequence[Location], keys: KeyRing, name: str, *, kind: int, frame_kind: int
    ) -> None:
        self.name = name
        self._locations = list(locations)
        self._keys = keys
        self._kind = kind
        self._frame_kind = frame_kind
        self._opened: dict[str, tuple[container.ObjectDecoder, list[container.FrameInfo]]] = {}
        self._lock = threading.Lock()

    def frame(self, number: int) -> bytes:
        """Raises DamageError, ObjectMissing or LocationError when no location gives it."""
        return first_good(self._locations, self.name, lambda location: self._frame(location, number))

    def _frame(self, location: Location, number: int) -> bytes:
        decoder, table = self._open(location)
        if number >= len(table):
            raise DamageError(f"object {self.name} has no frame {number}, which a manifest refers to")
        return decoder.frame(table[number], number, self._frame_kind)

    def _open(self, location: Location) -> tuple[container.ObjectDecoder, list[container.FrameInfo]]:
        with self._lock:
            opened = self._opened.get(location.name)
        if opened is None:
            decoder = container.ObjectDecoder(self._keys, self._kind, self.name, ObjectSource(location, self.name))
            opened = decoder, decoder.table()
            with self._lock:
                self._opened[location.name] = opened
        return opened

    @property
    def frames(self) -> int:
        return first_good(self._locations, self.name, lambda location: len(self._open(location)[1]))


class PackReader(FrameReader):
    """Frames of one pack."""

    def __init__(self, locations: t.Sequence[Location], keys: KeyRing, name: str) -> None:
        super().__init__(locations, keys, name, kind=container.PACK, frame_kind=container.DATA)
