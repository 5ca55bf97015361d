# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copying objects to one location, verbatim, from whichever other location has them undamaged."""

from __future__ import annotations

import threading
import typing as t

from ..errors import (
    DamageError,
    KeyFileError,
    LocationError,
    ObjectConflict,
    ObjectMissing,
    RepositoryError,
)
from ..repository.packs import ObjectSource
from ..storage.breaker import Breaker
from . import objects
from .result import Problem

if t.TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from ..crypto.keys import KeyRing
    from ..postgres.throttle import Throttle
    from ..storage.base import Location, ObjectWriter
    from .wanted import WalKey


class Stopping(Exception):
    """Nobody waits for the result any more."""


class NowhereGood(RepositoryError):
    """An object that no other location has undamaged. It is not copied; the rest is."""

    id = "replicate-no-source"


class _Unusable(Exception):
    """What a location gives of an object is not the object."""

    def __init__(self, error: RepositoryError | KeyFileError) -> None:
        super().__init__(error.message)
        self.error = error


class Sources:
    """The locations that objects are read from, and what was found wrong with them. Thread-safe."""

    def __init__(self, locations: Sequence[Location]) -> None:
        self.locations = list(locations)
        self.breaker = Breaker()
        self.read: dict[str, int] = {}
        self._damaged: dict[tuple[str, str], RepositoryError | KeyFileError] = {}
        self._lock = threading.Lock()

    def others(self, destination: Location) -> list[Location]:
        """In the order in which they are to be asked. One that failed is not asked again.

        Raises the error of the last one when none is left.
        """
        places = [place for place in self.locations if place.name != destination.name]
        failures = self.breaker.failures
        left = [place for place in places if place.name not in failures]
        if places and not left:
            raise failures[places[-1].name]
        return left

    def unusable(self, location: Location, name: str, error: RepositoryError | KeyFileError) -> None:
        if isinstance(error, LocationError):
            self.breaker.failed(location, error)
        elif not isinstance(error, ObjectMissing):
            with self._lock:
                self._damaged.setdefault((location.name, name), error)

    def took(self, location: Location, amount: int) -> None:
        with self._lock:
            self.read[location.name] = self.read.get(location.name, 0) + amount

    def mended(self, location: str, name: str) -> None:
        with self._lock:
            self._damaged.pop((location, name), None)

    @property
    def problems(self) -> list[Problem]:
        """Damage that was met on the way, and is still there."""
        with self._lock:
            damaged = [Problem(where, name, error) for (where, name), error in sorted(self._damaged.items())]
        return damaged + [Problem(name, "", error) for name, error in self.breaker.failures.items()]


class Transfer:
    """Brings objects to one location. Thread-safe.

    An object gets its name there only after all of its bytes were proven: packs by the digest in an authenticated
    manifest, all others by themselves. With ``replace`` what bears the name is deleted first, when the good bytes are
    at hand. Every method gives the bytes that were written, and raises LocationError when the location itself does
    not take the object, NowhereGood when no other has it.
    """

    def __init__(
        self,
        keys: KeyRing,
        sources: Sources,
        destination: Location,
        *,
        spool: Path,
        throttle: Throttle,
        stop: threading.Event | None = None,
    ) -> None:
        self.keys = keys
        self.sources = sources
        self.destination = destination
        self.stop = stop or threading.Event()
        self._spool = spool
        self._throttle = throttle

    def pack(self, name: str, size: int, digest: bytes, *, replace: bool = False) -> int:
        return self._from_any(name, lambda source: self._pack_from(source, name, size, digest, replace=replace))

    def whole(self, name: str, *, replace: bool = False) -> int:
        """A manifest, a note, a WAL file or ``keys/…``."""
        return self._from_any(name, lambda source: self._whole_from(source, name, replace=replace))

    def _from_any(self, name: str, action: Callable[[Location], int]) -> int:
        errors = {}
        for source in self.sources.others(self.destination):
            try:
                return action(source)
            except _Unusable as unusable:
                self.sources.unusable(source, name, unusable.error)
                errors[source.name] = unusable.error
        raise nowhere_good(name, errors)

    def _took(self, source: Location) -> Callable[[int], None]:
        def took(amount: int) -> None:
            if self.stop.is_set():
                raise Stopping
            self._throttle.take(amount)
            self.sources.took(source, amount)

        return took

    def _pack_from(self, source: Location, name: str, size: int, digest: bytes, *, replace: bool) -> int:
        from blake3 import blake3

        found, took, count = blake3(), self._took(source), 0
        writer = self.destination.create(name)
        try:
            for offset, length in objects.pieces(size):
                data = _read(source, name, offset, length)
                took(len(data))
                found.update(data)
                writer.write(data)
                count += len(data)
            if count != size or found.digest() != digest:
                raise _Unusable(_not_the_pack(source, name))
            self._commit(writer, name, size, None, replace=replace)
        finally:
            writer.abort()
        return size

    def _whole_from(self, source: Location, name: str, *, replace: bool) -> int:
        try:
            whole = objects.fetch(source, name, self._spool, self._took(source))
        except RepositoryError as error:
            raise _Unusable(error) from error
        try:
            try:
                proven = objects.proof_of(self.keys, name)(whole)
            except (RepositoryError, KeyFileError) as error:
                raise _Unusable(error) from error
            writer = self.destination.create(name)
            try:
                for chunk in whole.chunks():
                    writer.write(chunk)
                self._commit(writer, name, whole.size, proven, replace=replace)
            finally:
                writer.abort()
            return whole.size
        finally:
            whole.close()

    def _commit(self, writer: ObjectWriter, name: str, size: int, proven: object, *, replace: bool) -> None:
        """Give the object its name, unless somebody else was faster with the same."""
        if replace:
            self.destination.delete(name)
        try:
            writer.commit()
        except ObjectConflict:
            # Two uploads of one WAL file differ in their keys; what counts is that they hold the same file.
            if name.startswith("wal/"):
                is_same = objects.prove_wal(self.keys, name, ObjectSource(self.destination, name)) == proven
            else:
                info = self.destination.stat(name)
                is_same = info is not None and info.size == size
            if not is_same:
                raise
            self.destination.confirm(name)

    # What is there already

    def pack_is_sound(self, name: str, size: int, digest: bytes) -> bool:
        """Whether the location has the pack, undamaged; read twice before it is said to be damaged."""
        return any(self._has_pack(name, size, digest) for _unused in range(2))

    def _has_pack(self, name: str, size: int, digest: bytes) -> bool:
        from blake3 import blake3

        found, took, count = blake3(), self._took(self.destination), 0
        try:
            for offset, length in objects.pieces(size):
                data = self.destination.read(name, offset, length)
                took(len(data))
                found.update(data)
                count += len(data)
        except ObjectMissing:
            return False
        return count == size and found.digest() == digest

    def whole_is_sound(self, name: str) -> bool:
        """The same for other objects; as far as the keys at hand can tell."""
        return any(self._has_whole(name) for _unused in range(2))

    def _has_whole(self, name: str) -> bool:
        try:
            whole = objects.fetch(self.destination, name, self._spool, self._took(self.destination))
            try:
                objects.proof_of(self.keys, name)(whole)
            finally:
                whole.close()
        except LocationError:
            raise
        except (RepositoryError, KeyFileError):
            return False
        return True

    def same_wal(self, key: WalKey) -> bool:
        """Whether the file there is the one that the others have: two servers may have written one history.

        True also when no other can be asked. Raises LocationError when the location does not answer.
        """
        from ..postgres.archive_object import look_at_wal

        mine = look_at_wal(self.keys, self.destination, *key)
        for source in self.sources.others(self.destination):
            try:
                other = look_at_wal(self.keys, source, *key)
            except (RepositoryError, KeyFileError):
                continue
            if mine is not None and other is not None:
                return (mine.digest, mine.size) == (other.digest, other.size)
        return True


def _read(source: Location, name: str, offset: int, length: int) -> bytes:
    try:
        return source.read(name, offset, length)
    except RepositoryError as error:
        raise _Unusable(error) from error


def _not_the_pack(source: Location, name: str) -> DamageError:
    return DamageError(
        f"location {source.name!r}: {name} is damaged: its bytes are not those that the manifest lists",
        hint="`cryobackup replicate --repair` replaces it where another location has it undamaged.",
    )


def nowhere_good(name: str, errors: dict[str, RepositoryError | KeyFileError]) -> NowhereGood:
    why = "; ".join(f"{where}: {error.message}" for where, error in errors.items()) or "there is no other location"
    return NowhereGood(
        f"no location that was asked has {name} undamaged ({why})",
        hint="Everything else was copied. `cryobackup verify --all` names the backups and files that need it.",
    )
