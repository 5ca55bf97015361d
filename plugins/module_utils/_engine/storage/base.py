# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the engine asks of a place that holds a repository.

The contract is small on purpose: every promise of the repository rests on it, and every kind of
place has to keep it.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ..errors import LocationError, ObjectConflict

Buffer: t.TypeAlias = bytes | bytearray | memoryview


@dataclasses.dataclass(frozen=True, slots=True)
class ObjectInfo:
    key: str
    size: int  # bytes
    modified: float  # seconds since 1970 by the clock of the storage


@dataclasses.dataclass(frozen=True, slots=True)
class Capacity:
    """Bytes; None where the storage does not say."""

    free: int | None
    total: int | None


class ObjectWriter(t.Protocol):
    """One object in the making. Used by one thread at a time."""

    def write(self, data: Buffer) -> None:
        """Append. Raises LocationError (LocationFull when there is no space)."""

    def commit(self) -> None:
        """Give the object its name. On return it is complete and durable.

        Raises ObjectConflict, with nothing changed, when the name exists already.
        """

    def abort(self) -> None:
        """Forget what was written. Idempotent; does nothing after a commit."""


class Location(t.Protocol):
    """A place. All methods may be called from several threads at once.

    Every method raises LocationError when the place cannot do it now; none of them ever leaves an
    object half written under its name.
    """

    @property
    def name(self) -> str: ...

    @property
    def required(self) -> bool:
        """WAL counts as archived only when every required location has it."""

    def describe(self) -> str:
        """Where it is, for people. No secrets."""

    def prepare(self) -> None:
        """Make what must be there before the first object, such as the directory. Idempotent, durable on return.

        Nothing that costs or that others administer is made: the bucket of an object store must be there.
        """

    def create(self, key: str) -> ObjectWriter:
        """Begin an object. Nothing exists until its writer's ``commit``."""

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes of an object, at most ``length`` (to the end if None). Raises ObjectMissing."""

    def stat(self, key: str) -> ObjectInfo | None:
        """None when there is surely no such object; LocationError when that is not known."""

    def confirm(self, key: str) -> None:
        """Make sure that an object which is there survives a loss of power.

        A writer that was killed right before it could do so itself leaves an object that everybody
        sees and that may yet vanish: who builds on an object of another writer confirms it first.
        Raises ObjectMissing.
        """

    def list(self, prefix: str) -> t.Iterator[ObjectInfo]:
        """All objects whose key begins with ``prefix``, sorted by key.

        ``prefix`` is empty or ends with "/". Consistent: an object whose creation was finished
        before the call began is listed, unless it was deleted.
        """

    def delete(self, key: str) -> None:
        """Delete an object. Idempotent. Durable on return."""

    def now(self) -> float:
        """The storage's clock, seconds since 1970: the one that ``ObjectInfo.modified`` uses."""

    def capacity(self) -> Capacity: ...

    def sweep(self, older_than: float) -> int:
        """Remove left-overs of crashed writers that are older than so many seconds; how many."""

    def requests(self) -> dict[str, int]:
        """Requests made so far, by kind (``put``, ``get``, …). Empty where requests cost nothing."""


@t.runtime_checkable
class Examined(t.Protocol):
    """What a kind of location has that needs more than the common trial (see ``trial``)."""

    @property
    def is_atomic(self) -> bool:
        """Of several writers of one name at once, one wins. False: the configuration has chosen the weaker way."""

    @property
    def unfit_hint(self) -> str:
        """What to do about a place that does not refuse to overwrite."""

    def ways(self) -> t.Sequence[t.Callable[[str], ObjectWriter]]:
        """All the ways in which the place creates objects: each has to be create-only."""

    def examine(self) -> t.Sequence[str]:
        """What its owner should know of the place. Raises LocationError when it lacks what the configuration wants."""


def put(location: Location, key: str, data: Buffer) -> bool:
    """Create a small object. True if it was created, False if an equal one was there already.

    Durable on return. Raises ObjectConflict when the name holds other bytes.
    """
    writer = location.create(key)
    try:
        writer.write(data)
        writer.commit()
    except ObjectConflict:
        if location.read(key) == bytes(data):
            location.confirm(key)
            return False
        raise
    finally:
        writer.abort()
    return True


def check_key(key: str) -> str:
    """The key itself, if it is one that every kind of location can hold.

    Raises LocationError on anything that could leave the repository (``..``) or hide (``.tmp``).
    """
    for part in key.split("/"):
        if not part or part.startswith(".") or len(part) > 200 or not part.isascii() or "\\" in part:
            raise LocationError(
                f"{key!r} is not a name for an object",
                hint="This is a defect of the program: please report it.",
            )
    return key
