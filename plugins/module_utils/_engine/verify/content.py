# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The second rung: every byte of packs and WAL is read, authenticated and compared. Needs the identity."""

from __future__ import annotations

import dataclasses
import threading
import typing as t

from ..errors import CryoError, DamageError, KeyFileError, LocationError, ObjectMissing, RepositoryError
from ..postgres.archive_object import WalReader
from ..postgres.timeline import parse_history
from ..postgres.wal import SEGMENT_HEADER_BYTES, WalKind, check_segment, parse_wal_name
from ..repository import container, names
from ..repository.packs import JOINED_BYTES, ObjectSource
from .frames import BadExtent, BadPage, bad_extents, bad_pages, beyond
from .result import bare

if t.TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ..crypto.keys import KeyRing
    from ..postgres.timeline import TimelineHistory
    from ..storage.base import Location
    from .essentials import Excerpt
    from .needs import Claim, PackNeeds, Rows


@dataclasses.dataclass(slots=True)
class Examined:
    """What was seen of one object in one location."""

    location: str
    name: str
    stored_bytes: int = 0
    """That were read."""
    problem: CryoError | None = None
    """The object as a whole is missing, damaged or unreadable."""
    gone: LocationError | None = None
    """The location does not answer at all."""
    claim: Claim | None = None
    """Of those who need it, if it is a pack."""
    bad_frames: dict[int, str] = dataclasses.field(default_factory=dict)
    bad_extents: list[BadExtent] = dataclasses.field(default_factory=list)
    bad_pages: list[BadPage] = dataclasses.field(default_factory=list)
    pages: int = 0
    excerpts: dict[Excerpt, bytes] = dataclasses.field(default_factory=dict)
    """What was wanted of it."""

    @property
    def sound(self) -> bool:
        return self.problem is None and not (self.bad_frames or self.bad_extents or self.bad_pages)


class Stopping(Exception):
    """Nobody waits for the result any more."""


def examine_pack(location: Location, keys: KeyRing, needs: PackNeeds, stop: threading.Event) -> Examined:
    """Read one pack from its first byte to its last. Memory: a few frames. Raises Stopping."""
    found = Examined(location.name, needs.claim.name, claim=needs.claim)
    return _examined(location, found, lambda: _PackExamination(location, keys, needs, found, stop).run())


def examine_wal(
    location: Location,
    keys: KeyRing,
    system_identifier: int,
    name: str,
    histories: Mapping[int, TimelineHistory],
    stop: threading.Event,
) -> Examined:
    """Read one archived file and see that it is what its name says. Raises Stopping.

    ``histories``: of the timelines that are known, which makes the check of a segment's timeline exact.
    """
    found = Examined(location.name, names.wal(system_identifier, name))
    return _examined(
        location, found, lambda: _examine_wal(location, keys, system_identifier, name, histories, found, stop)
    )


def _examined(location: Location, found: Examined, action: t.Callable[[], None]) -> Examined:
    try:
        action()
    except LocationError as error:
        found.problem = error
        try:
            location.stat(names.REPOSITORY_JSON)
        except LocationError as gone:
            found.gone = gone
    except (RepositoryError, KeyFileError) as error:
        found.problem = error
    return found


R = t.TypeVar("R")


def _known_epoch(open_object: t.Callable[[], R]) -> R:
    """Until the header is authenticated, an epoch without a key is damage like any other; then it is a lack of keys."""
    try:
        return open_object()
    except KeyFileError as error:
        raise DamageError(f"its header is not what was written, or a key is missing: {error.message}") from error


class _PackExamination:
    def __init__(
        self, location: Location, keys: KeyRing, needs: PackNeeds, found: Examined, stop: threading.Event
    ) -> None:
        self._keys = keys
        self._needs = needs
        self._found = found
        self._stop = stop
        self._source = ObjectSource(location, needs.claim.name, size=needs.claim.size)

    def run(self) -> None:
        import numpy as np
        from blake3 import blake3

        claim, rows = self._needs.claim, self._needs.rows
        decoder = _known_epoch(lambda: container.ObjectDecoder(self._keys, container.PACK, claim.name, self._source))
        table = decoder.table()
        end, _unused, _unused = decoder.check_end()
        digest = blake3()
        digest.update(self._read(0, table[0].offset if table else end))
        borders = np.searchsorted(rows["frame"], np.arange(len(table) + 1))
        for first, last in _pieces(table):
            start = table[first].offset
            piece = self._read(start, table[last - 1].end - start)
            digest.update(piece)
            view = memoryview(piece)
            for number in range(first, last):
                encoded = view[table[number].offset - start : table[number].end - start]
                self._frame(decoder, encoded, table[number], number, rows[borders[number] : borders[number + 1]])
        digest.update(self._read(end, claim.size - end))
        self._found.bad_extents += beyond(rows[borders[-1] :])
        if digest.digest() != claim.digest and not self._found.bad_frames:
            raise DamageError("its bytes are not those that the manifest lists")

    def _read(self, offset: int, length: int) -> bytes:
        if self._stop.is_set():
            raise Stopping
        data = self._source.read(offset, length)
        self._found.stored_bytes += len(data)
        return data

    def _frame(
        self,
        decoder: container.ObjectDecoder,
        encoded: memoryview,
        row: container.FrameInfo,
        number: int,
        rows: Rows,
    ) -> None:
        try:
            plain = decoder.open_frame(encoded, row, number, container.DATA)
        except DamageError as error:
            self._found.bad_frames[number] = error.message
            return
        self._found.bad_extents += bad_extents(number, plain, rows, self._keys.digest_key)
        for excerpt in self._needs.excerpts.get(number, ()):
            self._found.excerpts[excerpt] = bytes(plain[excerpt.offset : excerpt.offset + excerpt.length])
        block_size = self._needs.claim.block_size
        if block_size:
            bad, pages = bad_pages(number, plain, rows, block_size, self._needs.start_lsn)
            self._found.bad_pages += bad
            self._found.pages += pages


def _pieces(table: list[container.FrameInfo]) -> Iterator[tuple[int, int]]:
    """Runs of frames to read at once."""
    first = 0
    for number, row in enumerate(table):
        if row.end - table[first].offset > JOINED_BYTES and number > first:
            yield first, number
            first = number
    if table:
        yield first, len(table)


def _examine_wal(
    location: Location,
    keys: KeyRing,
    system_identifier: int,
    name: str,
    histories: Mapping[int, TimelineHistory],
    found: Examined,
    stop: threading.Event,
) -> None:
    parsed = parse_wal_name(name)
    reader = _known_epoch(lambda: WalReader.archived(keys, location, system_identifier, name))
    head = b""
    for chunk in reader.chunks():
        if stop.is_set():
            raise Stopping
        if len(head) < SEGMENT_HEADER_BYTES or parsed.kind is WalKind.HISTORY:
            head += chunk
    found.stored_bytes = reader.stored.stored_bytes
    try:
        if parsed.kind in (WalKind.SEGMENT, WalKind.PARTIAL):
            history = histories.get(parsed.timeline)
            check_segment(head, reader.stored.size, parsed, system_identifier, history=history)
        elif parsed.kind is WalKind.HISTORY:
            parse_history(head.decode("utf-8", "surrogateescape"), parsed.timeline)
    except CryoError as error:
        raise DamageError(f"its content is not what its name says: {error.message}") from error


def describe(found: Examined) -> tuple[str, str]:
    """(kind, what) of an object that is not sound as a whole."""
    if isinstance(found.problem, ObjectMissing):
        return "missing", "it is missing"
    if isinstance(found.problem, (LocationError, KeyFileError)):
        return "unreadable", found.problem.message
    words = found.problem.message if found.problem is not None else next(iter(found.bad_frames.values()), "")
    return "damaged", bare(words, found.name)
