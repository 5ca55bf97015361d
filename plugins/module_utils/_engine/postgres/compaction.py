# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an incremental stores again although it did not change, so that packs of its parent can go.

Hosts cannot read old packs, so the bytes come from the data files once more. That is always right: every byte of a
file as it is between start and stop of a backup is, WAL does the rest. What is chosen is treated like a changed block
from there on, with one exception: a page that turns out broken is not taken, since the parent has it sound.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ..repository import extents as xt
from .changes import Method, Plan

if t.TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..repository.compaction import CompactionPlan
    from ..repository.session import BackupSession
    from .changed_blocks import Blocks
    from .changes import Identity
    from .relfile import RelationFile


class Compactor:
    """Goes through the files of a backup with what is planned for their packs. For one thread.

    ``small_bytes``: files without pages that are larger are left alone, as all of them would have to be read.
    """

    def __init__(self, plan: CompactionPlan, *, block_size: int, small_bytes: int) -> None:
        self.plan = plan
        self._left = dict(plan.allowances)
        self._block_size = block_size
        self._small_bytes = small_bytes
        self.bytes = 0
        """Chosen so far: what is stored although it did not change, at most."""

    def extend(self, plan: Plan, found: Identity, relation: RelationFile | None) -> Plan:
        """The same plan for a file, with what is to be stored again besides.

        What is chosen counts against the allowances of its packs, which may be exceeded by one extent each.
        """
        if not self._left or plan.parent is None or not self._is_possible(plan, found, relation):
            return plan
        extents = xt.unpack(plan.parent.extents)
        chosen = self._choose(extents)
        if chosen is None:
            return plan
        if plan.method is Method.CONTENT or relation is None:
            import numpy as np

            # What is not compared counts as changed.
            return dataclasses.replace(plan, method=Method.CONTENT, comparable=extents[np.logical_not(chosen)])
        again = blocks_of(extents[chosen], self._block_size, found.size // self._block_size)
        if plan.method is Method.PAGE_LSN:
            return dataclasses.replace(plan, again=again)
        return with_blocks(plan, again)

    def _is_possible(self, plan: Plan, found: Identity, relation: RelationFile | None) -> bool:
        if plan.method is Method.UNCHANGED:
            return found.size % self._block_size == 0 if relation is not None else found.size <= self._small_bytes
        return plan.method is not Method.STORE

    def _choose(self, extents: xt.Extents) -> npt.NDArray[np.bool_] | None:
        """Which extents are to be stored again; None for none of them."""
        import numpy as np

        fields = [field for field in xt.pack_fields(extents) if field in self._left]
        if not fields:
            return None
        # All packs at once: at the end of a long chain a file may lie in hundreds of them.
        rows = np.flatnonzero(np.isin(extents["pack"], np.array(fields, extents["pack"].dtype)))
        rows = rows[np.argsort(extents["pack"][rows], kind="stable")]
        lengths = extents["length"][rows].astype(np.int64)
        starts = np.searchsorted(extents["pack"][rows].astype(np.int64), fields)
        counts = np.diff([*starts, len(rows)])
        before = np.cumsum(lengths) - lengths
        before -= np.repeat(before[starts], counts)
        taken = before < np.repeat([self._left[field] for field in fields], counts)
        for field, used in zip(fields, np.add.reduceat(lengths * taken, starts).tolist(), strict=True):
            self.bytes += used
            self._left[field] -= used
            if self._left[field] <= 0:
                del self._left[field]
        chosen = np.zeros(len(extents), np.bool_)
        chosen[rows[taken]] = True
        return chosen


def with_blocks(plan: Plan, again: Blocks) -> Plan:
    """A plan by blocks with more of them. ``again``: those alone that were not to be read before."""
    import numpy as np

    if plan.blocks is None:
        return dataclasses.replace(plan, blocks=again, again=again)
    return dataclasses.replace(
        plan, blocks=np.union1d(plan.blocks, again), again=np.setdiff1d(again, plan.blocks, assume_unique=True)
    )


def blocks_of(extents: xt.Extents, size: int, blocks: int) -> Blocks:
    """The numbers, ascending, of blocks of ``size`` bytes that the extents lie in, below ``blocks``. Pure."""
    import numpy as np

    first = extents["offset"].astype(np.int64) // size
    stop = -(-(extents["offset"].astype(np.int64) + extents["length"].astype(np.int64)) // size)
    stop = np.maximum(first, np.minimum(stop, blocks))
    counts = stop - first
    within = np.arange(int(counts.sum()), dtype=np.int64) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.unique(np.repeat(first, counts) + within)


def compaction_done(compactor: Compactor | None, session: BackupSession, kept: int) -> dict[str, t.Any] | None:
    """What was done, for the manifest and for people; None when nothing was to be done.

    ``kept``: how many pages stay where they are because the source has them broken.
    """
    if compactor is None or not compactor.plan.allowances:
        return None
    plan = compactor.plan
    fields = [*plan.allowances]
    left = [field for field in fields if not session.refers_to(field)]
    return {
        "bytes": compactor.bytes,
        "packs": len(fields),
        "packs_left": len(left),
        "pages_kept": kept,
        "bytes_live": plan.live,
        "bytes_overhead": plan.overhead,
        "bytes_overhead_borne": plan.borne,
    }
