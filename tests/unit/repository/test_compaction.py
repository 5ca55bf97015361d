# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The planner of compaction: what holds for every set of packs, and what becomes of a chain that goes by it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryobackup.repository.compaction import (
    BUDGET_BYTES,
    BUDGET_SHARE,
    OVERHEAD_BYTES,
    OVERHEAD_SHARE,
    PACK_COST_BYTES,
    ROOM_SHARE,
    CompactionPlan,
    PackUse,
    plan_compaction,
)

MIB = 1 << 20
untimed = settings(deadline=None, database=None)


@st.composite
def packs(draw: st.DrawFn) -> list[PackUse]:
    sizes = draw(st.lists(st.integers(1, 64 * MIB), max_size=60))
    return [PackUse(number, size, draw(st.integers(0, size))) for number, size in enumerate(sizes)]


@untimed
@given(packs(), st.none() | st.integers(0, 1 << 32))
def test_every_plan(found: list[PackUse], room: int | None) -> None:
    plan = plan_compaction(found, room=room)
    by_field = {pack.field: pack for pack in found if pack.live}
    live = sum(pack.live for pack in found)
    assert plan.live == live
    # Packs that are dead altogether go by themselves.
    assert plan.overhead == sum(pack.plain - pack.live + PACK_COST_BYTES for pack in by_field.values())
    # The budget holds, and no more is taken of a pack than lives in it.
    assert plan.bytes <= max(BUDGET_BYTES, live * BUDGET_SHARE)
    assert room is None or plan.bytes <= room * ROOM_SHARE
    assert all(0 < taken <= by_field[field].live for field, taken in plan.allowances.items())
    # Nothing is done while little is to be gained, and each byte gains more than its share.
    if plan.allowances:
        assert plan.overhead > plan.borne >= OVERHEAD_BYTES
    for field in plan.allowances:
        assert by_field[field].overhead > OVERHEAD_SHARE * by_field[field].live
    # At most one pack is left half-done, and only because the budget is used up.
    partly = [field for field, taken in plan.allowances.items() if taken < by_field[field].live]
    assert len(partly) <= 1
    assert plan == plan_compaction(reversed(found), room=room)


def test_dead_packs_are_no_reason_to_touch_others() -> None:
    dead = [PackUse(number, 64 * MIB, 0) for number in range(10)]
    assert plan_compaction([*dead, PackUse(10, 64 * MIB, 64 * MIB)]).allowances == {}


@untimed
@given(packs())
def test_the_worst_packs_go_first(found: list[PackUse]) -> None:
    plan = plan_compaction(found)
    gains = {pack.field: pack.overhead / pack.live for pack in found if pack.live}
    chosen = [gains[field] for field in plan.allowances]
    left = [gain for field, gain in gains.items() if field not in plan.allowances]
    assert not chosen or not left or min(chosen) >= max(left)


def test_a_plan_ends_where_the_overhead_is_borne() -> None:
    live = [PackUse(number, 64 * MIB, 64 * MIB) for number in range(16)]
    dead = [PackUse(100 + number, 64 * MIB, 2 * MIB) for number in range(20)]
    plan = plan_compaction([*live, *dead])
    left = sum(pack.overhead for pack in [*live, *dead] if pack.field not in plan.allowances)
    assert 0 < len(plan.allowances) < len(dead)
    assert left <= plan.borne < left + dead[0].overhead


def test_many_small_packs_are_joined() -> None:
    small = [PackUse(number, 100_000, 100_000) for number in range(600)]
    plan = plan_compaction([PackUse(1000, 256 * MIB, 256 * MIB), *small])
    assert len(plan.allowances) > 100
    assert 1000 not in plan.allowances


@pytest.mark.parametrize("found", [[], [PackUse(0, 64 * MIB, 0)], [PackUse(0, 0, 0)]])
def test_nothing_to_take(found: list[PackUse]) -> None:
    assert plan_compaction(found).allowances == {}


PAGE = 8192
PAGES_OF_A_PACK = 64 * MIB // PAGE


class Simulation:
    """A cluster of pages, each of which lies in one pack, and backups that change some."""

    def __init__(self, pages: int, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self.where = np.arange(pages) // PAGES_OF_A_PACK
        self.plain = dict(enumerate((np.bincount(self.where) * PAGE).tolist()))
        self.changed = self.again = 0

    def uses(self) -> list[PackUse]:
        live = np.bincount(self.where, minlength=len(self.plain)) * PAGE
        return [PackUse(pack, self.plain[pack], int(live[pack])) for pack in np.flatnonzero(live).tolist()]

    def backup(self, share: float, *, hot: float, compact: bool) -> None:
        """``hot``: all changes fall into so much of the cluster, the rest of it lies still."""
        pages = len(self.where)
        changed = np.unique(self._random.integers(0, int(pages * hot), int(pages * share)))
        plan = plan_compaction(self.uses()) if compact else CompactionPlan()
        chosen = [np.flatnonzero(self.where == pack)[: taken // PAGE] for pack, taken in plan.allowances.items()]
        stored = np.unique(np.concatenate([changed, *chosen]))
        self.changed += len(changed)
        self.again += len(stored) - len(changed)
        for start in range(0, len(stored), PAGES_OF_A_PACK):
            part = stored[start : start + PAGES_OF_A_PACK]
            self.where[part] = len(self.plain)
            self.plain[len(self.plain)] = len(part) * PAGE

    @property
    def amplification(self) -> float:
        return sum(use.plain for use in self.uses()) / (len(self.where) * PAGE)

    @property
    def packs(self) -> int:
        return len(self.uses())


@pytest.mark.parametrize(("share", "steps"), [(0.002, 300), (0.01, 200), (0.05, 80), (0.2, 40)])
@pytest.mark.parametrize("hot", [1.0, 0.2])
@pytest.mark.parametrize("pages", [20_000, 100_000])
def test_a_chain_stays_bounded(share: float, steps: int, hot: float, pages: int) -> None:
    compacted, plain = Simulation(pages, 1), Simulation(pages, 1)
    worst = most = 0.0
    for _unused in range(steps):
        compacted.backup(share, hot=hot, compact=True)
        plain.backup(share, hot=hot, compact=False)
        worst, most = max(worst, compacted.amplification), max(most, compacted.packs)
    # Where a fifth of everything changes each time, the budget comes last; but what is left dies by itself.
    assert worst < (2.5 if share > 0.1 else 2.0)
    assert most * PACK_COST_BYTES < 2 * max(OVERHEAD_BYTES, OVERHEAD_SHARE * pages * PAGE)
    # Its price is in proportion to what changes: each byte stored again takes half a byte of overhead away, and
    # only changes, and the packs they come in, bring any.
    brought = compacted.changed * PAGE + steps * PACK_COST_BYTES
    assert compacted.again * PAGE * OVERHEAD_SHARE < brought + OVERHEAD_BYTES
    if share >= 0.01:
        assert plain.amplification > 1.2 * worst
