# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``wal-push``: one WAL file into every location, once, and never over another one."""

from __future__ import annotations

import dataclasses
import os
import typing as t
from collections import deque

from ..errors import CryoError, KeyFileError, LocationError, ObjectConflict, RepositoryError, SourceError
from ..repository import container, names
from ..storage.fanout import Fanout
from .archive_object import StoredWal, look_at_wal

if t.TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..config import RepositoryConfig
    from ..repository.repository import Repository
    from ..storage.base import Location
    from .archive_source import WalSource

FRAME_BYTES = 2 << 20
_THREADS = 2
"""More would take the processors from the database."""
_ATTEMPTS = 3
"""How often to look again after somebody else created the object between the look and the commit."""


@dataclasses.dataclass(frozen=True, slots=True)
class PushResult:
    """Where a WAL file is now, durably; ``failed`` has optional locations only."""

    name: str
    system_identifier: int
    size: int
    """Bytes of the file."""
    stored: tuple[str, ...]
    """Locations it was written to."""
    already: tuple[str, ...]
    """Locations that had it, equal."""
    failed: dict[str, CryoError]
    """Optional locations that lack it."""


def push(repository: Repository, config: RepositoryConfig, source: WalSource) -> PushResult:
    """Archive a file. On return it is durable in every required location.

    Idempotent: an equal object already there is made durable and counts. Nothing is ever overwritten. Memory is
    a few frames, whatever the size of the file.

    Raises ObjectConflict when a location, required or not, holds another file of this name; then nothing was
    written anywhere. Raises RepositoryError, with the id of the reason, when a required location could not take it
    or holds it damaged; others may have it by then, which the next attempt finds. Raises SourceError when the file
    changes while it is read.
    """
    repository.require("write")
    run = _Push(repository, source)
    run.failed.update(repository.lost)
    todo = list(repository.locations)
    for attempt in range(1, _ATTEMPTS + 1):
        todo = run.without_those_that_have_it(todo)
        try:
            run.write(todo)
            break
        except ObjectConflict:
            if attempt == _ATTEMPTS:
                raise
    run.check(config)
    return PushResult(
        str(source.name),
        source.system_identifier,
        source.size,
        tuple(run.stored),
        tuple(run.already),
        run.failed,
    )


class _Push:
    """The file, and what became of it in each location."""

    def __init__(self, repository: Repository, source: WalSource) -> None:
        self._repository = repository
        self._source = source
        self._key = names.wal(source.system_identifier, str(source.name))
        self._digest = source.digest(repository.keys.digest_key)
        self.stored: list[str] = []
        self.already: list[str] = []
        self.failed: dict[str, CryoError] = {}

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
        return look_at_wal(self._repository.keys, location, self._source.system_identifier, str(self._source.name))

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

    def write(self, locations: t.Sequence[Location]) -> None:
        """Create the object in these locations, losing those that fail. Raises ObjectConflict, SourceError."""
        if not locations:
            return
        fanout = Fanout(locations)
        try:
            self._encode(fanout)
        except LocationError as error:
            lost = fanout.lost
            self.failed.update({location.name: lost.get(location.name, error) for location in locations})
            return
        self.failed.update(fanout.lost)
        self.stored.extend(location.name for location in fanout.healthy)

    def _encode(self, fanout: Fanout) -> None:
        from blake3 import blake3

        source, keys = self._source, self._repository.keys
        encoder = container.ObjectEncoder(
            keys, container.WAL, self._key, level=self._repository.level, digest=self._digest, size=source.size
        )
        digest = blake3(key=keys.digest_key)
        writer = fanout.create(self._key)
        try:
            writer.write(encoder.start)
            for frame in _frames(encoder, self._chunks(digest.update)):
                writer.write(frame)
            writer.write(encoder.finish())
            # The digest in the header was taken in an earlier pass.
            if digest.digest() != self._digest:
                raise SourceError(
                    f"{source.path} changed while it was archived",
                    hint="Nothing was archived under its name. PostgreSQL never changes a finished segment: "
                    "see what else writes to pg_wal.",
                    id="wal-changed",
                )
            writer.commit()
        finally:
            writer.abort()

    def _chunks(self, look: Callable[[bytes], object]) -> Iterator[bytes]:
        for offset in range(0, self._source.size, FRAME_BYTES):
            data = self._source.read(offset, FRAME_BYTES)
            look(data)
            yield data

    def check(self, config: RepositoryConfig) -> None:
        """Raises the error of a location without which the file does not count as archived."""
        have = self.stored + self.already
        needed = [name for name in self.failed if config.locations[name].required]
        if not needed:
            return
        error = self.failed[needed[0]]
        more = f" (and in {len(needed) - 1} more)" if len(needed) > 1 else ""
        where = f" It is in {', '.join(have)} already." if have else ""
        raise RepositoryError(
            f"WAL file {self._source.name} is not archived: {error.message}{more}",
            hint=f"PostgreSQL keeps the file and tries again.{where} {error.hint}".strip(),
            id=error.id,
        )


def _frames(encoder: container.ObjectEncoder, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The chunks as frames, in order, each compressed and encrypted by one of a few threads.

    PostgreSQL archives one file after the other: the time one takes is what limits how fast WAL can be written.
    """
    from concurrent.futures import Future, ThreadPoolExecutor

    threads = min(_THREADS, len(os.sched_getaffinity(0)))
    waiting: deque[tuple[Future[bytes], int]] = deque()

    def next_frame() -> bytes:
        future, plain = waiting.popleft()
        frame = future.result()
        encoder.place(len(frame), plain)
        return frame

    with ThreadPoolExecutor(threads) as pool:
        for number, data in enumerate(chunks):
            waiting.append((pool.submit(encoder.seal_frame, container.DATA, number, data), len(data)))
            if len(waiting) > threads:
                yield next_frame()
        while waiting:
            yield next_frame()
