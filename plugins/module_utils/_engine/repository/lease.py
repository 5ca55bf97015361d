# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Leases and marks: section 9 of docs/repository-format.md."""

from __future__ import annotations

import datetime as dt
import os
import socket
import typing as t

from ..crypto.keys import KeyRing
from ..errors import ObjectMissing
from ..storage.base import Location, ObjectInfo
from . import container, names
from .model import BackupHeader, Lease, Mark, pack_names

LEASE_PERIOD_SECONDS = 7 * 24 * 3600.0


def host_name() -> str:
    return socket.gethostname()


def boot_id() -> str:
    """Names this boot of this kernel and this process namespace: pids mean something only within."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"


def new_lease(source: str, backup_id: str, parent: str | None, now: dt.datetime) -> Lease:
    return Lease(backup_id, source, parent, host_name(), boot_id(), os.getpid(), now.isoformat())


def encode_lease(keys: KeyRing, lease: Lease) -> tuple[str, bytes]:
    name = names.lease(lease.source, lease.backup_id)
    return name, container.encode_record(keys, container.LEASE, name, lease)


def read_leases(keys: KeyRing, location: Location) -> list[tuple[ObjectInfo, Lease]]:
    """All leases of a location. One that vanishes while it is read was given back. Raises DamageError."""
    return _read(keys, location, "leases/", container.LEASE, Lease)


def read_marks(keys: KeyRing, location: Location) -> list[tuple[ObjectInfo, Mark]]:
    return _read(keys, location, "marks/", container.MARK, Mark)


R = t.TypeVar("R", Lease, Mark)


def _read(keys: KeyRing, location: Location, prefix: str, kind: int, record: type[R]) -> list[tuple[ObjectInfo, R]]:
    found = []
    for info in location.list(prefix):
        try:
            data = location.read(info.key)
        except ObjectMissing:
            continue
        found.append((info, container.decode_record(keys, kind, info.key, data, record)))
    return found


def is_dead(lease: Lease, info: ObjectInfo, storage_now: float, period: float = LEASE_PERIOD_SECONDS) -> bool:
    """Whether the holder is surely gone, or silent for longer than the lease period.

    ``storage_now`` is the clock that ``info.modified`` was taken from.
    """
    if lease.host == host_name():
        here = boot_id()
        if lease.boot_id == here:
            return not _runs(lease.pid)
        if lease.boot_id.split("/")[0] != here.split("/")[0]:
            return True  # this host was booted since
    return storage_now - info.modified > period


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def mark_hits(mark: Mark, header: BackupHeader) -> bool:
    """Whether the mark names the backup's manifest or a pack it needs."""
    if names.manifest(header.source, header.backup_id) in mark.manifests:
        return True
    return not pack_names(header).keys().isdisjoint(mark.packs)
