# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One object to bring, and what became of it."""

from __future__ import annotations

import dataclasses
import typing as t

from ..errors import LocationError, ObjectMissing, RepositoryError

if t.TYPE_CHECKING:
    from ..storage.base import Location
    from .result import Brought
    from .transfer import Transfer
    from .wanted import WalKey


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """One object to bring, or with ``check`` to look at and to replace if it is damaged."""

    name: str
    size: int
    digest: bytes | None = None
    """Of a pack."""
    check: bool = False
    wal: WalKey | None = None
    believed: bool = False
    """It was there when the location was listed: it is made durable, and brought only if it is not there any more."""


@dataclasses.dataclass(frozen=True, slots=True)
class Done:
    task: Task
    written: int
    problem: RepositoryError | None = None


def do(transfer: Transfer, task: Task) -> Done:
    """Raises LocationError when the destination, or the last source, does not answer."""
    try:
        return Done(task, _do(transfer, task))
    except RepositoryError as error:
        if isinstance(error, LocationError):
            raise
        return Done(task, 0, error)


def _do(transfer: Transfer, task: Task) -> int:
    if task.check:
        is_sound = (
            transfer.whole_is_sound(task.name)
            if task.digest is None
            else transfer.pack_is_sound(task.name, task.size, task.digest)
        )
        if is_sound:
            if task.wal is not None and not transfer.same_wal(task.wal):
                raise _two_histories(transfer.destination, task.name)
            return 0
    elif task.believed and _is_durable(transfer.destination, task.name):
        return 0
    if task.digest is None:
        return transfer.whole(task.name, replace=task.check)
    return transfer.pack(task.name, task.size, task.digest, replace=task.check)


def _is_durable(location: Location, name: str) -> bool:
    """Whether the object is there, and survives a loss of power from now on."""
    try:
        location.confirm(name)
    except ObjectMissing:
        return False
    return True


def _two_histories(location: Location, name: str) -> RepositoryError:
    return RepositoryError(
        f"location {location.name!r} holds another file as {name} than the others",
        hint="Nothing was replaced. Two servers wrote one history: find out which of them was promoted or restored "
        "apart from the other.",
        id="object-conflict",
    )


def count(brought: Brought, transfer: Transfer, done: Done) -> None:
    """Count an object that was written."""
    name = done.task.name
    brought.bytes += done.written
    brought.packs += name.startswith("packs/")
    brought.wal += name.startswith("wal/")
    brought.keys += name.startswith("keys/")
    brought.notes += name.startswith("notes/")
    if done.task.check:
        brought.repaired.append(name)
        transfer.sources.mended(transfer.destination.name, name)
