# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What changes in the cluster before an incremental backup, and in a restored directory before it is restored again."""

from __future__ import annotations

import random
from pathlib import Path

from tests.lab import Cluster

from .database import PAGE, TABLES, database_bytes
from .measure import files_below
from .operations import Change

ROWS = 20
"""Every page of the tables has at least so many."""


def change_pages(cluster: Cluster, change: Change, number: int) -> int:
    """Change pages by deleting one row in each; returns how many.

    Scattered ones are spread evenly over all tables, clustered ones follow each other in the largest. Another
    ``number`` means other pages, or other rows of them.
    """
    wanted = max(1, int(database_bytes(cluster) / PAGE * change.fraction))
    sizes = {table: int(cluster.value(f"SELECT pg_relation_size('{table}') / {PAGE}")) for table in TABLES}
    row = 1 + number % ROWS
    if change.clustered:
        table = max(sizes, key=lambda name: sizes[name])
        first = number * 9973 % max(1, sizes[table] - wanted)
        return _delete(cluster, table, row, first, min(first + wanted, sizes[table]), 1)
    stride = max(2, sum(sizes.values()) // wanted)
    return sum(_delete(cluster, table, row, number % stride, pages, stride) for table, pages in sizes.items())


def _delete(cluster: Cluster, table: str, row: int, first: int, end: int, stride: int) -> int:
    """Delete this row of every page from ``first`` to before ``end``, in steps of ``stride``."""
    tids = f"SELECT format('(%s,{row})', page)::tid FROM generate_series({first}, {end} - 1, {stride}) page"
    gone = f"WITH gone AS (DELETE FROM {table} WHERE ctid = ANY(ARRAY({tids})) RETURNING 1)"
    return int(cluster.value(f"{gone} SELECT count(*) FROM gone"))


def damage_pages(data_dir: Path, fraction: float, seed: int) -> int:
    """Overwrite pages of a restored directory, spread evenly over its relations; returns how many."""
    noise = random.Random(seed)
    stride = round(1 / fraction)
    skip = stride // 2
    changed = 0
    for path in sorted(files_below(data_dir / "base")):
        blocks = path.stat().st_size // PAGE
        if blocks <= skip:
            skip -= blocks
            continue
        with open(path, "r+b") as file:
            while skip < blocks:
                file.seek(skip * PAGE)
                file.write(noise.randbytes(PAGE))
                changed += 1
                skip += stride
        skip -= blocks
    return changed
