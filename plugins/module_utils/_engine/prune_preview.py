# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a prune would take away, for those who wonder how much room it makes. Deletes nothing."""

from __future__ import annotations

import typing as t

from . import retention
from .errors import LocationError, RepositoryError
from .prune import candidate
from .repository import names
from .repository.lease import read_leases
from .repository.model import pack_names

if t.TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Iterable

    from .repository.catalog import Catalog
    from .repository.model import Lease
    from .repository.repository import Repository
    from .storage.base import Location


def plan_now(repository: Repository, catalog: Catalog, policy: retention.Policy, now: dt.datetime) -> retention.Plan:
    """The plan that a prune would make. ``catalog`` must have all backups."""
    required = {location.name for location in repository.locations if location.required}
    return retention.plan((candidate(backup, required) for backup in catalog.backups), policy, now)


def stays(repository: Repository, location: Location, catalog: Catalog, plan: retention.Plan) -> Callable[[str], bool]:
    """Whether a prune of that location that is carried out to its end would leave the object of some name.

    Where a manifest or a lease cannot be read everything stays. Raises LocationError.
    """
    try:
        leases = [lease for _info, lease in read_leases(repository.keys, location)]
    except LocationError:
        raise
    except RepositoryError:
        return lambda _key: True
    return what_stays(catalog, plan, leases)


def what_stays(catalog: Catalog, plan: retention.Plan, leases: Iterable[Lease]) -> Callable[[str], bool]:
    """``leases``: of the backups that are being made, and of others that need something to stay."""
    if catalog.broken:
        return lambda _key: True
    kept = set(plan.after)
    present = {backup.id for backup in catalog.backups}
    packs = {name for backup in catalog.backups if backup.id in kept for name in pack_names(backup.header)}
    held, held_wal = set[str](), set[str]()
    for lease in leases:
        held |= {lease.backup_id, *lease.packs}
        held_wal |= set(lease.wal)

    def judge(key: str) -> bool:
        area, *parts = key.split("/")
        if area == "packs":
            pack = names.parse_pack(key)
            return pack is None or key in packs or pack.backup_id in held
        if f"{area}/" in ("wal/", names.STREAMED):
            if len(parts) < 3 or not parts[0].isdigit() or parts[0] in held_wal:
                return True
            return plan.wal_needed(int(parts[0]), parts[2])
        if area in ("manifests", "notes"):
            return len(parts) < 2 or parts[1] in kept or parts[1] not in present
        return True

    return judge
