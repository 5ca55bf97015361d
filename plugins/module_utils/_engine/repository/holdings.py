# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What lies in one location, counted: how much of which backup, of which WAL archive, of everything else.

From listings alone: no object is read. That is a walk through a directory, or one request for a thousand objects of a
store. Memory grows with the number of backups and of days, not with that of objects.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ..errors import LocationFull
from . import names

if t.TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..storage.base import Location, ObjectInfo

DAY_SECONDS: t.Final = 86400
# Not all at once: at the top of a file system may lie what nobody may read (lost+found).
_AREAS: t.Final = ("packs/", "manifests/", "notes/", "wal/", names.STREAMED, "leases/", "marks/", "keys/", "wraps/")


@dataclasses.dataclass(slots=True)
class Heap:
    """So many objects, with so many bytes."""

    objects: int = 0
    bytes: int = 0

    def add(self, size: int) -> None:
        self.objects += 1
        self.bytes += size


@dataclasses.dataclass(slots=True)
class WalHeap(Heap):
    """The WAL of one system identifier."""

    days: dict[int, Heap] = dataclasses.field(default_factory=dict)
    """By day since 1970, when the storage got it."""
    first: float | None = None
    """When the oldest was stored, seconds since 1970."""

    def add_at(self, size: int, modified: float) -> None:
        self.add(size)
        self.days.setdefault(int(modified // DAY_SECONDS), Heap()).add(size)
        self.first = modified if self.first is None else min(self.first, modified)


@dataclasses.dataclass(slots=True)
class Holdings:
    packs: dict[str, Heap] = dataclasses.field(default_factory=dict)
    """By the backup that wrote them, whether or not it came to a manifest."""
    wal: dict[int, WalHeap] = dataclasses.field(default_factory=dict)
    """By system identifier."""
    manifests: Heap = dataclasses.field(default_factory=Heap)
    other: Heap = dataclasses.field(default_factory=Heap)
    prunable: Heap = dataclasses.field(default_factory=Heap)
    """The part of all this that a prune would take away."""

    def _heaps(self) -> Iterator[Heap]:
        yield from self.packs.values()
        yield from self.wal.values()
        yield self.manifests
        yield self.other

    @property
    def bytes(self) -> int:
        return sum(heap.bytes for heap in self._heaps())

    @property
    def objects(self) -> int:
        return sum(heap.objects for heap in self._heaps())


def count(location: Location, stays: Callable[[str], bool] | None = None) -> Holdings:
    """List everything there. ``stays``: whether a prune would leave the object of that name. Raises LocationError."""
    found = Holdings()
    for area in _AREAS:
        for info in location.list(area):
            _count(found, info)
            if stays is not None and not stays(info.key):
                found.prunable.add(info.size)
    return found


def _count(found: Holdings, info: ObjectInfo) -> None:
    pack = names.parse_pack(info.key)
    parts = info.key.split("/")
    if pack is not None:
        found.packs.setdefault(pack.backup_id, Heap()).add(info.size)
    elif parts[0] == "wal" and len(parts) == 4 and parts[1].isdigit():
        found.wal.setdefault(int(parts[1]), WalHeap()).add_at(info.size, info.modified)
    elif parts[0] == "manifests":
        found.manifests.add(info.size)
    else:
        found.other.add(info.size)


@dataclasses.dataclass(frozen=True, slots=True)
class Room:
    """Bytes, None where nobody knows."""

    used: int | None
    free: int | None
    total: int | None
    quota: int | None

    @property
    def left(self) -> int | None:
        """What may still be written: up to the quota, and up to the end of the disk."""
        limits = [] if self.free is None else [self.free]
        if self.quota is not None and self.used is not None:
            limits.append(max(0, self.quota - self.used))
        return min(limits, default=None)

    @property
    def by_quota(self) -> bool:
        """Whether it is the quota that ends first."""
        left = self.left
        return left is not None and (self.free is None or left < self.free)


def room(location: Location, quota: int | None, used: int | None = None) -> Room:
    """How much room there is. ``used``: what lies there, where it was counted; it is counted now if it matters.

    A location that is full to the last byte may say so when it is asked: then it has no room. Raises LocationError.
    """
    if used is None and quota is not None:
        used = count(location).bytes
    try:
        capacity = location.capacity()
    except LocationFull:
        return Room(used, 0, None, quota)
    return Room(used, capacity.free, capacity.total, quota)
