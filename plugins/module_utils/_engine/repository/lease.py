# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Leases and marks: section 9 of docs/repository-format.md."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import socket
import typing as t

from ..crypto.keys import KeyRing
from ..errors import LocationError, ObjectMissing
from ..storage.base import Location, ObjectInfo, put
from . import container, names
from .model import BACKING_UP, PRUNING, BackupHeader, Lease, Mark, pack_names
from .plausible import absurdity_of_lease

LEASE_PERIOD_SECONDS = 7 * 24 * 3600.0
_MAX_BYTES = container.MAX_FRAME_BYTES + (1 << 20)  # a record is one frame
PRUNE_SOURCE = "prune"  # stands where others have the source; prunes have none


def host_name() -> str:
    return socket.gethostname()


def boot_id() -> str:
    """Names this boot of this kernel and this process namespace: pids mean something only within."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"


def new_lease(
    source: str,
    backup_id: str,
    parent: str | None,
    now: dt.datetime,
    *,
    purpose: str = BACKING_UP,
    packs: t.Iterable[str] = (),
    wal: t.Iterable[str] = (),
) -> Lease:
    return Lease(
        backup_id, source, parent, host_name(), boot_id(), os.getpid(), now.isoformat(), purpose, [*packs], [*wal]
    )


def encode_lease(keys: KeyRing, lease: Lease) -> tuple[str, bytes]:
    name = names.lease(lease.source, lease.backup_id)
    return name, container.encode_record(keys, container.LEASE, name, lease)


def read_leases(keys: KeyRing, location: Location) -> list[tuple[ObjectInfo, Lease]]:
    """All leases of a location. One that vanishes while it is read was given back. Raises DamageError."""
    return _read(location, "leases/", lambda info: read_lease(keys, location, info))


def read_marks(keys: KeyRing, location: Location) -> list[tuple[ObjectInfo, Mark]]:
    """Raises DamageError."""
    return _read(location, "marks/", lambda info: _record(keys, location, info, container.MARK, Mark))


def read_lease(keys: KeyRing, location: Location, info: ObjectInfo) -> Lease:
    """Raises DamageError, also for one that authenticates and says what cannot be true, and ObjectMissing."""
    lease = _record(keys, location, info, container.LEASE, Lease)
    absurd = absurdity_of_lease(lease)
    if absurd is not None:
        raise container.damaged(info.key, absurd)
    return lease


R = t.TypeVar("R")


def _record(keys: KeyRing, location: Location, info: ObjectInfo, kind: int, record: type[R]) -> R:
    if info.size > _MAX_BYTES:  # every writer may put here what he likes, and it is read into memory
        raise container.damaged(info.key, "it is too large")
    return container.decode_record(keys, kind, info.key, location.read(info.key), record)


def _read(location: Location, prefix: str, read: t.Callable[[ObjectInfo], R]) -> list[tuple[ObjectInfo, R]]:
    found = []
    for info in location.list(prefix):
        with contextlib.suppress(ObjectMissing):
            found.append((info, read(info)))
    return found


def is_dead(lease: Lease, info: ObjectInfo, storage_now: float, period: float = LEASE_PERIOD_SECONDS) -> bool:
    """Whether the holder is surely gone, or silent for longer than the lease period.

    ``storage_now`` is the clock that ``info.modified`` was taken from.
    """
    known = _runs_here(lease)
    return storage_now - info.modified > period if known is None else not known


def _runs_here(lease: Lease) -> bool | None:
    """None when this host cannot tell."""
    if lease.host != host_name():
        return None
    here = boot_id()
    if lease.boot_id == here:
        return _runs(lease.pid)
    # Another boot of this host is over; another process namespace of this boot is not to be seen from here.
    return False if lease.boot_id.split("/")[0] != here.split("/")[0] else None


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextlib.contextmanager
def lease_held(keys: KeyRing, location: Location, lease: Lease) -> t.Iterator[str]:
    """Hold a lease in one location; gives its name. Raises LocationError when it cannot be created."""
    name, encoded = encode_lease(keys, lease)
    put(location, name, encoded)
    try:
        yield name
    finally:
        with contextlib.suppress(LocationError):  # retired later
            location.delete(name)


@contextlib.contextmanager
def pruning(keys: KeyRing, location: Location) -> t.Iterator[str]:
    """Announce that objects are being deleted: backups and replications wait until it is over (section 9).

    Gives the name of the announcement.
    """
    now = dt.datetime.fromtimestamp(location.now(), dt.UTC)
    lease = new_lease(PRUNE_SOURCE, names.new_id(now, os.urandom(4)), None, now, purpose=PRUNING)
    with lease_held(keys, location, lease) as name:
        yield name


def prunes_under_way(keys: KeyRing, location: Location) -> list[Lease]:
    """Announcements of prunes that may be deleting in the location right now.

    One of another host counts as long as it is there: clocks must not decide here.
    Raises UnknownEpoch when one cannot be read with the keys here; leases of other kinds are not read.
    """
    return [
        lease
        for _info, lease in _read(location, f"leases/{PRUNE_SOURCE}/", lambda info: read_lease(keys, location, info))
        if lease.purpose == PRUNING and _runs_here(lease) is not False
    ]


def mark_hits(mark: Mark, header: BackupHeader) -> bool:
    """Whether the mark names the backup's manifest or a pack it needs."""
    if names.manifest(header.source, header.backup_id) in mark.manifests:
        return True
    return not pack_names(header).keys().isdisjoint(mark.packs)
