# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One WAL file into a few locations, once, and never over another one: what ``archive_run`` does it with."""

from __future__ import annotations

import concurrent.futures as cf
import functools
import os
import threading
import typing as t
from collections import deque

from ..crypto import suite
from ..errors import CryoError, KeyFileError, LocationError, ObjectConflict, RepositoryError
from ..repository import container, names
from ..storage.fanout import Fanout
from .archive_object import StoredWal, look_at_wal

if t.TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..crypto.keys import KeyRing
    from ..storage.base import Buffer, Location
    from .archive_source import WalSource

FRAME_BYTES = 2 << 20
_THREADS = 2
"""More would take the processors from the database."""
_READ_ONCE_BYTES: t.Final = 16 << 20
"""The usual segment. The digest comes first in an object: larger files are read twice, to bound memory."""
_KEPT_BYTES: t.Final = 64 << 20
_ATTEMPTS = 3
"""How often to look again after somebody else created the object between the look and the commit."""


class Push:
    """One file, and what became of it in each location that it was to go to.

    Idempotent: an equal object already there is made durable and counts. Nothing is ever overwritten. Memory is a
    few frames, and the encoded file where that is small enough to be written once more.
    """

    def __init__(self, keys: KeyRing, source: WalSource, *, level: int) -> None:
        self._keys = keys
        self._level = level
        self._source = source
        self._key = names.wal(source.system_identifier, str(source.name))
        self._content = source.read(0, source.size) if source.size <= _READ_ONCE_BYTES else None
        key = keys.digest_key
        self._digest = source.digest(key) if self._content is None else suite.keyed_digest(key, self._content)
        self.encoded: tuple[bytes, ...] | None = None
        """What was written, when it was all written in one go and is not too large to be kept."""
        self.stored: list[str] = []
        self.already: list[str] = []
        self.failed: dict[str, CryoError] = {}

    def run(self, locations: t.Sequence[Location], looked: Callable[[], None] = lambda: None) -> None:
        """Bring the file to these locations. On return it is durable in all that ``failed`` does not name.

        ``looked`` is called when all of them were looked at, before anything is written.

        Raises ObjectConflict when one of them holds another file of this name, with nothing written anywhere,
        SourceError when the file changes while it is read.
        """
        todo = self.without_those_that_have_it(locations)
        looked()
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self.write(todo)
                break
            except ObjectConflict:
                if attempt == _ATTEMPTS:
                    raise
            todo = self.without_those_that_have_it(todo)

    def without_those_that_have_it(self, locations: t.Sequence[Location]) -> list[Location]:
        """The locations that lack the file. Raises ObjectConflict when one has another under its name."""
        lacking = []
        for location in locations:
            try:
                stored = self._look(location)
                if stored is not None:
                    location.confirm(self._key)
            except (RepositoryError, KeyFileError) as error:
                self.failed[location.name] = error
                continue
            if stored is None:
                lacking.append(location)
            else:
                self._compare(location, stored)
                self.already.append(location.name)
        return lacking

    def _look(self, location: Location) -> StoredWal | None:
        return look_at_wal(self._keys, location, self._source.system_identifier, str(self._source.name))

    def _compare(self, location: Location, stored: StoredWal) -> None:
        if (stored.digest, stored.size) == (self._digest, self._source.size):
            return
        raise ObjectConflict(
            f"location {location.name!r} ({location.describe()}) holds another file as {self._key} "
            f"({stored.size} bytes, digest {stored.digest.hex()[:16]}) than {self._source.path.absolute()} "
            f"({self._source.size} bytes, digest {self._digest.hex()[:16]})",
            hint="Nothing was overwritten, and PostgreSQL keeps its file. Two servers write one history: find out "
            "which of them was promoted or restored apart from the other, and stop that one from archiving.",
        )

    def write(self, locations: t.Sequence[Location], encoded: tuple[bytes, ...] | None = None) -> None:
        """Create the object in these locations, losing those that fail. Raises ObjectConflict, SourceError.

        ``encoded``: what another push of the same file has made of it.
        """
        if not locations:
            return
        fanout = Fanout(locations)
        try:
            if encoded is None:
                self.encoded = self._encode(fanout)
            else:
                self._write_parts(fanout, encoded)
        except LocationError as error:
            lost = fanout.lost
            self.failed.update({location.name: lost.get(location.name, error) for location in locations})
            return
        self.failed.update(fanout.lost)
        self.stored.extend(location.name for location in fanout.healthy)

    def _write_parts(self, fanout: Fanout, encoded: tuple[bytes, ...]) -> None:
        writer = fanout.create(self._key)
        try:
            for part in encoded:
                writer.write(part)
            writer.commit()
        finally:
            writer.abort()

    def _encode(self, fanout: Fanout) -> tuple[bytes, ...] | None:
        from blake3 import blake3

        source, keys = self._source, self._keys
        encoder = container.ObjectEncoder(
            keys, container.WAL, self._key, level=self._level, digest=self._digest, size=source.size
        )
        parts: list[bytes] | None = [] if source.size <= _KEPT_BYTES else None
        again = blake3(key=keys.digest_key) if self._content is None else None
        writer = fanout.create(self._key)
        try:
            for part in self._parts(encoder, again.update if again is not None else _nothing):
                writer.write(part)
                if parts is not None:
                    parts.append(part)
            if again is not None and again.digest() != self._digest:
                raise source.changed()
            source.check_unchanged()
            writer.commit()
        finally:
            writer.abort()
        return tuple(parts) if parts is not None else None

    def _parts(self, encoder: container.ObjectEncoder, look: Callable[[Buffer], object]) -> Iterator[bytes]:
        yield encoder.start
        yield from _frames(encoder, self._chunks(look))
        yield encoder.finish()

    def _chunks(self, look: Callable[[Buffer], object]) -> Iterator[Buffer]:
        for at in range(0, self._source.size, FRAME_BYTES):
            content = self._content
            data = self._source.read(at, FRAME_BYTES) if content is None else memoryview(content)[at : at + FRAME_BYTES]
            look(data)
            yield data

    def check(self) -> None:
        """Raises the error of a location that lacks the file."""
        if not self.failed:
            return
        error = next(iter(self.failed.values()))
        have = self.stored + self.already
        more = f" (and in {len(self.failed) - 1} more)" if len(self.failed) > 1 else ""
        where = f" It is in {', '.join(have)} already." if have else ""
        raise RepositoryError(
            f"WAL file {self._source.name} is not archived: {error.message}{more}",
            hint=f"PostgreSQL keeps the file and tries again.{where} {error.hint}".strip(),
            id=error.id,
        )


def _nothing(_data: Buffer) -> None:
    return None


def _frames(encoder: container.ObjectEncoder, chunks: Iterator[Buffer]) -> Iterator[bytes]:
    """The chunks as frames, in order, each compressed and encrypted by one of a few threads.

    PostgreSQL archives one file after the other: the time one takes is what limits how fast WAL can be written.
    """
    pool = _pool()
    waiting: deque[tuple[cf.Future[bytes], int]] = deque()

    def next_frame() -> bytes:
        future, plain = waiting.popleft()
        frame = future.result()
        encoder.place(len(frame), plain)
        return frame

    for number, data in enumerate(chunks):
        try:
            future = pool.submit(encoder.seal_frame, container.DATA, number, data)
        except BaseException:
            # A signal may have struck while the pool was starting a thread. It does not know that one then, and the
            # interpreter would wait for its end for ever, were it not told here. Signals are the main thread's.
            if threading.current_thread() is threading.main_thread():
                _pool.cache_clear()
                pool.shutdown(wait=False)
            raise
        waiting.append((future, len(data)))
        if len(waiting) > _THREADS:
            yield next_frame()
    while waiting:
        yield next_frame()


@functools.cache
def _pool() -> cf.ThreadPoolExecutor:
    """For all files of the process: compressors belong to a thread, and making one takes longer than a frame."""
    return cf.ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="compress")
