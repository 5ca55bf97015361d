# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which packs of its parent a backup should stop referring to, by storing again what it needs of them. Pure.

Old manifests are never rewritten, so a pack stays as long as one of them lists it. What can be done is done forward:
a backup takes what it needs from the source once more, into packs of its own, and the packs that are mostly dead go
with the last manifest that lists them (docs/decisions/0014).

The *overhead* of a pack is what a restore, and the storage, bear for nothing: its dead bytes, and the price of one more
pack to open. It may be a share of what the backup consists of. While it is more, packs are given up, those first that
give back most for a byte that is stored again. Since the sum is above that share, so is the best pack: every byte that
is stored again takes more than ``OVERHEAD_SHARE`` bytes of overhead away.
"""

from __future__ import annotations

import dataclasses
import typing as t

from . import extents as xt

if t.TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .model import BackupHeader

OVERHEAD_SHARE: t.Final = 0.5
"""Overhead that is borne, as a share of what is needed."""
OVERHEAD_BYTES: t.Final = 32 << 20
"""What is borne in any case: below that nobody would notice, however small the cluster."""
BUDGET_SHARE: t.Final = 0.05
"""What one backup stores again at most, as a share of what a full one would store."""
BUDGET_BYTES: t.Final = 16 << 20
"""What it may store again in any case: a pack of a small cluster is a large part of it, and is of no use by halves."""
ROOM_SHARE: t.Final = 0.25
"""Of what is free: a backup must not run out of room for the sake of tidiness."""
PACK_COST_BYTES: t.Final = 1 << 20
"""One more pack costs a restore about as much as so many bytes: two requests, one key to unseal."""


class PackUse(t.NamedTuple):
    """A pack that a manifest lists. ``field``: its number there, as extents have it; bytes are plaintext."""

    field: int
    plain: int
    live: int

    @property
    def overhead(self) -> int:
        return max(0, self.plain - self.live) + PACK_COST_BYTES


@dataclasses.dataclass(frozen=True, slots=True)
class CompactionPlan:
    """``allowances``: by pack field, how many live bytes of it are to be stored again. Bytes are plaintext."""

    allowances: Mapping[int, int] = dataclasses.field(default_factory=dict)
    overhead: int = 0
    """Of the parent's packs, before."""
    borne: int = 0
    """What of it would be left alone."""
    live: int = 0
    """What the parent consists of."""

    @property
    def bytes(self) -> int:
        return sum(self.allowances.values())


def pack_uses(header: BackupHeader) -> list[PackUse]:
    """The packs in which a backup lies, by its header alone."""
    own = [PackUse(row.number, row.plain, row.live) for row in header.packs]
    return own + [PackUse(xt.FOREIGN + index, row.plain, row.live) for index, row in enumerate(header.foreign)]


def plan_compaction(packs: Iterable[PackUse], *, room: int | None = None) -> CompactionPlan:
    """What a backup whose parent lies in ``packs`` stores again. Deterministic.

    ``room``: bytes that are free in the location with the least room; None where nobody knows. The last pack may
    be taken in part: the next backup goes on with it, which by then has more dead bytes than before.
    """
    # Nothing has to be done about packs that are dead altogether.
    packs = [pack for pack in packs if pack.live > 0]
    live = sum(pack.live for pack in packs)
    overhead = before = sum(pack.overhead for pack in packs)
    borne = max(OVERHEAD_BYTES, int(live * OVERHEAD_SHARE))
    budget = max(BUDGET_BYTES, int(live * BUDGET_SHARE))
    if room is not None:
        budget = max(0, min(budget, int(room * ROOM_SHARE)))
    allowances: dict[int, int] = {}
    for pack in sorted(packs, key=_worst_first):
        if overhead <= borne or budget <= 0:
            break
        taken = allowances[pack.field] = min(pack.live, budget)
        budget -= taken
        overhead -= pack.overhead if taken == pack.live else 0
    return CompactionPlan(allowances, before, borne, live)


def _worst_first(pack: PackUse) -> tuple[float, int]:
    return -pack.overhead / pack.live, pack.field
