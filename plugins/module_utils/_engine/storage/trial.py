# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a place keeps what the repository relies on: tried with objects of its own, which are removed again."""

from __future__ import annotations

import os
import threading
import typing as t

from ..errors import LocationError, ObjectConflict
from .base import Buffer, Examined, Location, ObjectWriter
from .caught import Caught

PREFIX = "probe/"
RACERS = 8
ROUNDS = 3
"""A store that lets several writers win does so by chance: one round in three shows nothing (Swift)."""
TOLERATED_ROUNDS = 2
TOLERATED_WINNERS = 2
"""Two winners in a round now and then is a store with a short gap between looking and writing: names are random but for
WAL, and one WAL file has two writers only when two servers archive to one place. More than that is refused."""
_STALE_SECONDS = 3600.0
_BYTES = 1024


def try_location(location: Location, identifier: str) -> list[str]:
    """Create, race, read, list and delete objects below ``probe/``. ``identifier`` is theirs, and never used twice.

    Returns what a person should know. Raises LocationError: id ``location-unfit`` when the place breaks a promise.
    Nothing is left behind, also of a trial that was killed, unless deleting is not allowed.
    """
    warnings = [*location.examine()] if isinstance(location, Examined) else []
    ways = location.ways() if isinstance(location, Examined) else [location.create]
    tries = [
        (f"{PREFIX}{identifier}-{number}-{turn}", way)
        for number, way in enumerate(ways)
        for turn in range(ROUNDS if _is_atomic(location) else 1)
    ]
    keys = [key for key, _unused in tries]
    try:
        shared = sum(_try_way(location, key, way) for key, way in tries)
        if shared > TOLERATED_ROUNDS:
            raise _overwrites(location, f"lets several writers of one name win, in {shared} of {len(tries)} rounds")
        if shared:
            warnings.append(
                f"in {shared} of {len(tries)} rounds it told {TOLERATED_WINNERS} of {RACERS} writers at once that an "
                "object is theirs: never let two hosts write one source there"
            )
        found = [info.key for info in location.list(PREFIX)]
        if not set(keys) <= set(found):
            raise unfit(location, "does not list what was just created")
    finally:
        _remove(location, keys, warnings)
    return warnings


def _try_way(location: Location, key: str, way: t.Callable[[str], ObjectWriter]) -> bool:
    """Whether more than one writer won."""
    contents = winners(key, way) if _is_atomic(location) else [_create_one(key, way)]
    if not 1 <= len(contents) <= TOLERATED_WINNERS:
        raise _not_one(location, contents)
    content = location.read(key)
    if content not in contents:
        raise unfit(location, "does not return what was written to it")
    try:
        _create(key, way, b"another object")
    except ObjectConflict:
        pass
    else:
        raise _overwrites(location, "overwrites objects")
    if location.read(key) != content:
        raise _overwrites(location, "overwrites objects, and says that it does not")
    return len(contents) > 1


def _is_atomic(location: Location) -> bool:
    return location.is_atomic if isinstance(location, Examined) else True


def race(location: Location, key: str, way: t.Callable[[str], ObjectWriter]) -> bytes:
    """Several writers of one name at once: one of them wins, and the others are told. Returns what the winner wrote.

    Raises LocationError: ``location-unfit`` when there was more than one winner, or none.
    """
    found = winners(key, way)
    if len(found) != 1:
        raise _not_one(location, found)
    return found[0]


def winners(key: str, way: t.Callable[[str], ObjectWriter]) -> list[bytes]:
    """What those writers wrote who were told that they won."""
    contents = [os.urandom(_BYTES) for _unused in range(RACERS)]
    won: list[bytes] = []
    errors: list[BaseException] = []
    ready = threading.Barrier(RACERS)

    def run(content: bytes) -> None:
        with Caught() as caught:
            _create(key, way, content, ready.wait)
            won.append(content)
        if caught.error is not None and not isinstance(caught.error, ObjectConflict):
            ready.abort()  # the others must not wait for this one
            errors.append(caught.error)

    threads = [threading.Thread(target=run, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    return won


def _not_one(location: Location, found: list[bytes]) -> LocationError:
    return _overwrites(location, f"tells {len(found)} of {RACERS} writers of one name that the object is theirs")


def _create_one(key: str, way: t.Callable[[str], ObjectWriter]) -> bytes:
    content = os.urandom(_BYTES)
    _create(key, way, content)
    return content


def _create(
    key: str, way: t.Callable[[str], ObjectWriter], content: Buffer, before: t.Callable[[], object] = lambda: None
) -> None:
    writer = way(key)
    try:
        writer.write(content)
        before()
        writer.commit()
    finally:
        writer.abort()


def _overwrites(location: Location, what: str) -> LocationError:
    return unfit(location, what, location.unfit_hint if isinstance(location, Examined) else "")


def unfit(location: Location, what: str, hint: str = "") -> LocationError:
    return LocationError(
        f"location {location.name!r} ({location.describe()}) {what}",
        hint=hint or "It cannot keep backups safe: use other storage. What it holds already should be verified.",
        id="location-unfit",
    )


def _remove(location: Location, keys: t.Iterable[str], warnings: list[str]) -> None:
    """These, and those of earlier trials that were killed. A host may well lack the right to delete."""
    try:
        for key in keys:
            location.delete(key)
            if location.stat(key) is not None:
                raise unfit(location, "does not delete objects")
        stale = location.now() - _STALE_SECONDS
        for info in list(location.list(PREFIX)):
            if info.modified < stale:
                location.delete(info.key)
    except LocationError as error:
        warnings.append(f"objects cannot be deleted, so that prune has to run elsewhere: {error.message}")
