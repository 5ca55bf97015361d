# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Packs: immutable objects of data frames.

Each worker thread of a backup has a ``PackSink`` of its own and so an open pack of its own: no
queue between reading and writing, no shared counter but the pack's number, and back-pressure by
itself. Memory is one frame for each worker.
"""

from __future__ import annotations

import concurrent.futures as cf
import itertools
import threading
import typing as t

from ..crypto.keys import KeyRing
from ..errors import DamageError, LocationError, LocationFull, ObjectMissing, RepositoryError
from ..storage.base import Buffer, Location
from ..storage.breaker import Breaker
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
        self._bytes = 0
        self._quotas: list[tuple[Location, int]] = []
        self.on_written: t.Callable[[PackRow], object] = lambda _row: None
        """Told of each pack that is complete and durable, by the thread that wrote it."""

    def limit(self, location: Location, most: int) -> None:
        """Lose that location, as full, once there are packs of more than so many bytes. Call it before the first."""
        self._quotas.append((location, most))

    def sink(self) -> PackSink:
        return PackSink(self)

    def next_number(self) -> int:
        with self._lock:
            return next(self._numbers)

    def written(self, row: PackRow) -> None:
        """Raises LocationFull when that pack was one too many for the last location."""
        with self._lock:
            self._rows[row.number] = row
            self._bytes += row.size
            over = [location for location, most in self._quotas if self._bytes > most]
        for location in over:
            self.fanout.lose(location, _quota_reached(location))
        if over:
            self.fanout.check()
        self.on_written(row)

    @property
    def rows(self) -> list[PackRow]:
        """The packs that are complete and durable so far, by number."""
        with self._lock:
            return [self._rows[number] for number in sorted(self._rows)]


def _quota_reached(location: Location) -> LocationFull:
    return LocationFull(
        f"location {location.name!r}: its quota was reached on the way",
        hint="Earlier backups are untouched; what was written there of this one is removed by a later prune. Let "
        "`cryobackup prune` make room, or raise the `quota`, then run it again.",
    )


class PackSink:
    """Stores frames, in packs of about ``PACK_TARGET_BYTES``. For one thread at a time.

    While the locations finish one pack, the next one is begun already.
    """

    def __init__(self, packs: PackSet) -> None:
        self._packs = packs
        self._open: _OpenPack | None = None
        self._finishing: _OpenPack | None = None

    def store(self, data: Buffer) -> FrameRef:
        """Compress, encrypt and write one frame to every healthy location.

        Durable only after ``close``. ``data`` may be reused by the caller on return.
        """
        if self._open is None:
            self._open = _OpenPack(self._packs)
        reference = self._open.store(data)
        if self._finishing is not None and self._finishing.has_ended:
            self._settle()
        if self._open.size >= PACK_TARGET_BYTES:
            self._finish()
        return reference

    def upcoming(self) -> FrameRef:
        """Where the next frame that is stored will lie: known while its bytes are still gathered."""
        if self._open is None:
            self._open = _OpenPack(self._packs)
        return self._open.upcoming()

    def close(self) -> None:
        """Finish the open pack. All frames stored so far are durable on return."""
        self._finish()
        self._settle()

    def _finish(self) -> None:
        self._settle()
        self._finishing, self._open = self._open, None
        if self._finishing is not None:
            self._finishing.finish()
            if self._finishing.has_ended:
                self._settle()

    def _settle(self) -> None:
        finished, self._finishing = self._finishing, None
        if finished is not None:
            finished.settle()

    def abort(self) -> None:
        for pack in (self._open, self._finishing):
            if pack is not None:
                pack.abort()
        self._open = self._finishing = None


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
        """Begin the commit."""
        self._write(self._encoder.finish())
        self._writer.finish()

    @property
    def has_ended(self) -> bool:
        """Whether ``settle`` need not wait."""
        return self._writer.has_ended

    def settle(self) -> None:
        """Durable on return."""
        try:
            self._writer.wait()
        finally:
            self._writer.abort()
        self._packs.written(PackRow(self._number, self.size, self._digest.digest(), self._plain))

    def abort(self) -> None:
        self._writer.abort()


HEAD_BYTES: t.Final = 64 << 10
"""What is read at the beginning of an object: its header, and all of a small object."""
_TAIL_BYTES: t.Final = 32 << 10
"""What is read at its end: trailer and table of about a thousand frames."""
_WHOLE_BYTES: t.Final = 1 << 20
"""An object that is known to be no larger is read with one request: small incrementals leave many of them."""
JOINED_BYTES: t.Final = 8 << 20
"""Neighbouring frames are read together, up to so many bytes: a request to a store costs money and a round trip."""
_GAP_BYTES: t.Final = 256 << 10
"""What may lie between them and is read for nothing: it takes less time than one more request."""


class ObjectSource:
    """Bytes of one object in one location, for a decoder, with few requests. Thread-safe.

    Its beginning and its end are read in one piece each and kept. ``size``: how long it must be, where that is known:
    then it need not be asked for, and another length is damage.
    """

    def __init__(self, location: Location, key: str, *, size: int | None = None) -> None:
        self._location = location
        self._key = key
        self._expected = size
        self._size: int | None = size
        self._head: bytes | None = None
        self._tail: tuple[int, bytes] | None = None

    def read(self, offset: int, length: int) -> bytes:
        """Raises DamageError when the object has not the length it must have."""
        end = offset + length
        head, tail = self._head, self._tail
        if head is None and end <= max(HEAD_BYTES, self._whole):
            head = self._head = self._read_head()
        if head is not None and (end <= len(head) or self._size == len(head)):
            return head[offset:end]
        if tail is None and self._size is not None and offset >= self._size - _TAIL_BYTES:
            tail = self._tail = self._read_tail(max(0, self._size - _TAIL_BYTES), self._size)
        if tail is not None and offset >= tail[0]:
            return tail[1][offset - tail[0] : end - tail[0]]
        return self._location.read(self._key, offset, length)

    def forget(self) -> None:
        """Keep nothing of what was read: it takes more memory than it is worth, where many objects stay open."""
        self._head = self._tail = None

    @property
    def _whole(self) -> int:
        """The object's size if it is to be read at once, else 0."""
        return self._expected if self._expected is not None and self._expected <= _WHOLE_BYTES else 0

    def _read_head(self) -> bytes:
        # One byte more than there must be: a longer object shows.
        wanted = self._whole + 1 if self._whole else HEAD_BYTES
        head = self._location.read(self._key, 0, wanted)
        if self._expected is not None:
            self._check(len(head) == min(self._expected, wanted))
        elif len(head) < wanted:
            self._size = len(head)
        return head

    def _read_tail(self, start: int, end: int) -> tuple[int, bytes]:
        tail = self._location.read(self._key, start, end - start + 1)
        self._check(len(tail) == end - start)
        return start, tail

    def _check(self, fits: bool) -> None:
        if not fits:
            raise container.damaged(self._key, f"it has not the {self._size} bytes that it must have")

    @property
    def size(self) -> int:
        """Bytes. Of an object whose beginning was read and is all of it, known without a request."""
        if self._size is None:
            info = self._location.stat(self._key)
            if info is None:
                raise ObjectMissing(f"location {self._location.name!r} has no object {self._key!r}")
            self._size = info.size
        return self._size


T = t.TypeVar("T")


def first_good(
    locations: t.Sequence[Location],
    what: str,
    action: t.Callable[[Location], T],
    breaker: Breaker | None = None,
) -> T:
    """The result of ``action`` with the first location where it works.

    Raises the first error when it works nowhere: damage before absence, absence before outage. What looks like
    another version, epoch or repository may be damage to the byte that says so: another location is asked then, too.
    ``breaker`` remembers which locations fail, from one call to the next.
    """
    errors: list[RepositoryError] = []
    for location in breaker.order(locations) if breaker else locations:
        if breaker is not None and len(locations) > 1:
            breaker.wait(location)
        try:
            return action(location)
        except RepositoryError as error:
            errors.append(error)
            if breaker is not None and isinstance(error, LocationError):
                breaker.failed(location, error)
    if not errors:
        raise RepositoryError(f"no location holds {what}")
    raise min(errors, key=lambda error: isinstance(error, ObjectMissing) + 2 * isinstance(error, LocationError))


class _Opened:
    """An object in one location, authenticated as far as it was read."""

    def __init__(self, source: ObjectSource, decoder: container.ObjectDecoder) -> None:
        self.source = source
        self.decoder = decoder
        self._table: list[container.FrameInfo] | None = None

    @property
    def table(self) -> list[container.FrameInfo]:
        if self._table is None:
            self._table = self.decoder.table()
        return self._table


class _Joined(t.NamedTuple):
    """Frames that were read together, still encrypted."""

    location: Location
    opened: _Opened
    numbers: t.Sequence[int]
    start: int
    """Where ``encoded`` begins in the object."""
    encoded: bytes


Frame: t.TypeAlias = "bytes | DamageError | ObjectMissing"


class FrameReader:
    """Frames of one object, each from the first location that has it undamaged. Thread-safe.

    ``size``: of the object, where it is known; ``breaker``: shared by all that reads in one run.
    """

    def __init__(
        self,
        locations: t.Sequence[Location],
        keys: KeyRing,
        name: str,
        *,
        kind: int,
        frame_kind: int,
        size: int | None = None,
        breaker: Breaker | None = None,
    ) -> None:
        self.name = name
        self._locations = list(locations)
        self._keys = keys
        self._kind = kind
        self._frame_kind = frame_kind
        self._size = size
        self._breaker = breaker or Breaker()
        self._opened: dict[str, _Opened] = {}
        self._lock = threading.Lock()

    def frame(self, number: int) -> bytes:
        """Raises DamageError, ObjectMissing or LocationError when no location gives it."""
        return self._first_good(lambda location: self._frame(location, number))

    def read(self, numbers: t.Sequence[int], ahead: cf.Executor | None = None) -> t.Iterator[tuple[int, Frame]]:
        """Frames with these numbers, which ascend: each with its plaintext, or why no location gives it.

        Neighbours are read together; ``ahead`` reads the next ones meanwhile. Memory: 8 MiB, 16 MiB with ``ahead``.
        Raises LocationError when no location answers.
        """
        at = 0
        coming = self._coming(numbers, ahead) if ahead is not None and len(numbers) > 1 else None
        while at < len(numbers):
            try:
                joined = coming.result() if coming is not None else self._join(numbers[at:])
            except (DamageError, ObjectMissing) as error:
                # The object cannot be opened, or ends before the first of them.
                yield from ((number, error) for number in numbers[at:])
                return
            at += len(joined.numbers)
            if at == len(numbers):
                joined.opened.source.forget()
            if ahead is not None:
                coming = self._coming(numbers[at:], ahead)
            yield from self._open_joined(joined)

    def _coming(self, numbers: t.Sequence[int], ahead: cf.Executor) -> cf.Future[_Joined] | None:
        return ahead.submit(self._join, numbers) if numbers else None

    def _join(self, numbers: t.Sequence[int]) -> _Joined:
        return self._first_good(lambda location: self._join_in(location, numbers))

    def _join_in(self, location: Location, numbers: t.Sequence[int]) -> _Joined:
        """As many of the frames as go into one request, from the first on."""
        opened = self._open(location)
        table = opened.table
        self._must_have(table, numbers[0])
        count, start, end = 1, table[numbers[0]].offset, table[numbers[0]].end
        for number in numbers[1:]:
            if (
                number >= len(table)
                or table[number].offset - end > _GAP_BYTES
                or table[number].end - start > JOINED_BYTES
            ):
                break
            count, end = count + 1, table[number].end
        return _Joined(location, opened, numbers[:count], start, opened.source.read(start, end - start))

    def _open_joined(self, joined: _Joined) -> t.Iterator[tuple[int, Frame]]:
        encoded = memoryview(joined.encoded)
        for number in joined.numbers:
            row = joined.opened.table[number]
            part = encoded[row.offset - joined.start : row.end - joined.start]
            try:
                plain = joined.opened.decoder.open_frame(part, row, number, self._frame_kind)
            except DamageError:
                yield number, self._elsewhere(number)
            else:
                self._breaker.used(joined.location, len(part))
                yield number, plain

    def _elsewhere(self, number: int) -> Frame:
        try:
            return self.frame(number)
        except (DamageError, ObjectMissing) as error:
            return error

    def _first_good(self, action: t.Callable[[Location], T]) -> T:
        return first_good(self._locations, self.name, action, self._breaker)

    def _frame(self, location: Location, number: int) -> bytes:
        opened = self._open(location)
        self._must_have(opened.table, number)
        row = opened.table[number]
        plain = opened.decoder.frame(row, number, self._frame_kind)
        self._breaker.used(location, row.end - row.offset)
        return plain

    def _must_have(self, table: t.Sequence[container.FrameInfo], number: int) -> None:
        if number >= len(table):
            raise DamageError(f"object {self.name} has no frame {number}, which a manifest refers to")

    def _open(self, location: Location) -> _Opened:
        with self._lock:
            opened = self._opened.get(location.name)
        if opened is None:
            source = ObjectSource(location, self.name, size=self._size)
            opened = _Opened(source, container.ObjectDecoder(self._keys, self._kind, self.name, source))
            with self._lock:
                self._opened[location.name] = opened
        return opened

    def decoder(self, location: Location) -> container.ObjectDecoder:
        """That of the object in this location."""
        return self._open(location).decoder

    @property
    def count(self) -> int:
        """How many frames there are."""
        return self._first_good(lambda location: len(self._open(location).table))


class PackReader(FrameReader):
    """Frames of one pack."""

    def __init__(
        self,
        locations: t.Sequence[Location],
        keys: KeyRing,
        name: str,
        *,
        size: int | None = None,
        breaker: Breaker | None = None,
    ) -> None:
        super().__init__(
            locations, keys, name, kind=container.PACK, frame_kind=container.DATA, size=size, breaker=breaker
        )
