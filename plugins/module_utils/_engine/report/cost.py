# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a location costs, roughly, by the prices of its configuration. Pure.

Counted are what lies there, the requests that the present rhythm of backups and WAL makes, and one full restore.
Not counted: verification, replication, what is deleted before a provider's minimum time, versions that were deleted
and are kept, taxes.
"""

from __future__ import annotations

import dataclasses
import math
import typing as t

from ..storage.s3.parts import PART_BYTES

if t.TYPE_CHECKING:
    from collections.abc import Iterable

    from ..config.locations import Prices

GIGABYTE: t.Final = 10**9
DAYS_OF_MONTH: t.Final = 30
_READ_BYTES: t.Final = 8 << 20
"""Neighbouring frames are read in one request of about that size at most."""
_AROUND_A_BACKUP: t.Final = 12
"""Writing or listing requests besides packs: lease, manifest, notes, and looks at what there is; as many that read."""


@dataclasses.dataclass(frozen=True, slots=True)
class Traffic:
    """Requests that write or list, requests that read, and bytes that leave the provider."""

    puts: float = 0.0
    gets: float = 0.0
    egress: float = 0.0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.puts + other.puts, self.gets + other.gets, self.egress + other.egress)

    def times(self, factor: float) -> Traffic:
        return Traffic(self.puts * factor, self.gets * factor, self.egress * factor)


@dataclasses.dataclass(frozen=True, slots=True)
class Costs:
    """In ``currency``. ``month`` is storage and requests together."""

    currency: str
    storage_month: float
    requests_month: float
    restore: float

    @property
    def month(self) -> float:
        return self.storage_month + self.requests_month


def of_backup(packs: float, stored: int) -> Traffic:
    """One backup of so many packs. A pack that is longer than a part goes up in parts, between two requests."""
    if packs <= 0:
        return Traffic(_AROUND_A_BACKUP, _AROUND_A_BACKUP)
    parts = math.ceil(stored / packs / PART_BYTES)
    return Traffic(packs * (parts + 2 if parts > 1 else 1) + _AROUND_A_BACKUP, packs + _AROUND_A_BACKUP)


def of_wal(files: float, epochs: int = 1) -> Traffic:
    """So many archived WAL files, each by a ``wal-push`` of its own; the archiver makes less than half as many.

    The file is looked for and goes up, in two requests, once it is known that this is the repository, and which
    ``epochs`` of keys it has: its description, a list, and one for each epoch.
    """
    return Traffic(2 * files, (2 + epochs) * files)


def of_restore(packs: Iterable[int], wal_files: float, wal_bytes: float) -> Traffic:
    """A restore of everything: ``packs`` are the sizes of those it reads."""
    sizes = list(packs)
    gets = sum(2 + math.ceil(size / _READ_BYTES) for size in sizes)
    return Traffic(_AROUND_A_BACKUP, gets + 2 * wal_files + _AROUND_A_BACKUP, sum(sizes) + wal_bytes)


def estimate(prices: Prices, used: int, daily: Traffic, restore: Traffic) -> Costs | None:
    """``used``: bytes that lie there; ``daily``: what a day brings. None where nothing has a price."""
    if not (prices.storage_gb_month or prices.put_1000 or prices.get_1000 or prices.egress_gb):
        return None
    return Costs(
        prices.currency,
        storage_month=used / GIGABYTE * prices.storage_gb_month,
        requests_month=_price(prices, dataclasses.replace(daily, egress=0).times(DAYS_OF_MONTH)),
        restore=_price(prices, restore),
    )


def _price(prices: Prices, traffic: Traffic) -> float:
    requests = traffic.puts * prices.put_1000 + traffic.gets * prices.get_1000
    return requests / 1000 + traffic.egress / GIGABYTE * prices.egress_gb
