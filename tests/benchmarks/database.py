# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cluster that is measured, and what changes in it."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.lab import Cluster, Installation, Workspace, sample_data, wait_until

from .measure import files_below, tree_bytes

TABLES = {"orders": 0.4, "samples": 0.25, "shipments": 0.15, "readings": 0.1, "customers": 0.07, "notes": 0.03}
"""Share of the whole."""
HEAP_SHARE = 0.73
"""The rest are indexes, and the 24 MB of a new cluster's catalogs."""
EXTRA_INDEXES = {"orders": "(status, amount)", "samples": "(note)"}
PAGE = 8192
FIRST_WITH_SUMMARIES = 17
SETTLE_SECONDS = 2.5
SETTINGS: Mapping[str, str | bool] = {
    "shared_buffers": "256MB",
    "max_wal_size": "8GB",
    "maintenance_work_mem": "256MB",
    # Only what the benchmark itself changes shall be changed.
    "autovacuum": False,
    "checkpoint_timeout": "1h",
}


def build(workspace: Workspace, installation: Installation, gigabytes: float) -> Cluster:
    """A cluster of about this size (10^9 bytes), checksums on, with realistic rows in several tables."""
    summaries = {"summarize_wal": True} if installation.major >= FIRST_WITH_SUMMARIES else {}
    cluster = workspace.cluster(installation=installation, settings={**SETTINGS, **summaries})
    megabytes = gigabytes * 1e9 / 2**20 * HEAP_SHARE

    def fill(table: str) -> None:
        sample_data(cluster, megabytes * TABLES[table], table=table, seed=len(table))
        if table in EXTRA_INDEXES:
            cluster.execute(f"CREATE INDEX ON {table} {EXTRA_INDEXES[table]}")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            list(pool.map(fill, TABLES))
        except BaseException:
            # Interrupted: the pool would wait for statements that take minutes.
            cluster.kill()
            raise
    cluster.checkpoint()
    return cluster


def settle() -> None:
    """Wait until the files' times are old enough to prove that nothing has changed since, as between real backups."""
    time.sleep(SETTLE_SECONDS)


def database_bytes(cluster: Cluster) -> int:
    """Size of everything that a backup holds, near enough: the data directory without its WAL."""
    return tree_bytes(cluster.data_dir, without="pg_wal")


def touch_pages(cluster: Cluster, fraction: float, number: int) -> int:
    """Change pages that are spread evenly over all tables, by deleting one row in each; returns how many.

    ``fraction`` is of all pages of the cluster. Another ``number`` means other pages.
    """
    wanted = database_bytes(cluster) / PAGE * fraction
    pages = {table: cluster.value(f"SELECT pg_relation_size('{table}') / {PAGE}") for table in TABLES}
    stride = max(2, int(sum(pages.values()) / wanted))
    touched = 0
    for table, count in pages.items():
        tids = (
            f"SELECT format('(%s,1)', page)::tid FROM generate_series({number} % {stride}, {count} - 1, {stride}) page"
        )
        statement = f"WITH gone AS (DELETE FROM {table} WHERE ctid = ANY(ARRAY({tids})) RETURNING 1)"
        touched += cluster.value(f"{statement} SELECT count(*) FROM gone")
    cluster.checkpoint()
    return touched


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


def archive_with(cluster: Cluster, command: str) -> None:
    """Let this command archive, and wait until it has archived everything there is."""
    cluster.configure(archive_command=command)
    if command:
        wait_until(lambda: not ready_segments(cluster), "an empty queue of WAL segments", timeout=300)


def ready_segments(cluster: Cluster) -> list[Path]:
    """The segments that wait to be archived, oldest first."""
    wal = cluster.data_dir / "pg_wal"
    names = sorted(path.stem for path in (wal / "archive_status").glob("*.ready"))
    return [wal / name for name in names if len(name) == 24]


def write_segments(cluster: Cluster, count: int) -> list[Path]:
    """Fill this many WAL segments with the insertion of rows while nothing archives them."""
    archive_with(cluster, "")
    while len(ready_segments(cluster)) < count:
        cluster.execute("CREATE TABLE filler AS SELECT * FROM orders LIMIT 50000")
        cluster.execute("DROP TABLE filler")
    return ready_segments(cluster)[:count]
