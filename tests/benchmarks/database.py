# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cluster that is measured, and its WAL."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.lab import Cluster, Installation, Pgbench, Workspace, sample_data, wait_until

from .measure import tree_bytes

TABLES = {"orders": 0.4, "samples": 0.25, "shipments": 0.15, "readings": 0.1, "customers": 0.07, "notes": 0.03}
"""Share of the whole."""
HEAP_SHARE = 0.68
"""The rest are indexes, pgbench's tables, and the 24 MB of a new cluster's catalogs."""
PGBENCH_SCALE_PER_GIGABYTE = 5
"""About 75 MB in 1 GB."""
PGBENCH_CLIENTS = 2
EXTRA_INDEXES = {"orders": "(status, amount)", "samples": "(note)"}
PAGE = 8192
FIRST_WITH_SUMMARIES = 17
SETTLE_SECONDS = 2.5
SEGMENT_BYTES = 16 << 20
IDLE_ARCHIVING = "/bin/true"
"""Where WAL goes that nobody measures."""
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
    pgbench(workspace, cluster, gigabytes).prepare()
    cluster.checkpoint()
    return cluster


def pgbench(workspace: Workspace, cluster: Cluster, gigabytes: float) -> Pgbench:
    """pgbench's load on its own database in a cluster of this size, not yet started."""
    scale = max(1, round(gigabytes * PGBENCH_SCALE_PER_GIGABYTE))
    return Pgbench(workspace, cluster, scale=scale, clients=PGBENCH_CLIENTS, seconds=3600)


def settle(cluster: Cluster) -> None:
    """Write all changes to their files, and wait until the times of those are old enough to prove that nothing has
    changed since, as between real backups.
    """
    cluster.checkpoint()
    time.sleep(SETTLE_SECONDS)


def database_bytes(cluster: Cluster) -> int:
    """Size of everything that a backup holds, near enough: the data directory without its WAL."""
    return tree_bytes(cluster.data_dir, without="pg_wal")


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
        cluster.execute("CREATE TABLE filler AS SELECT * FROM orders LIMIT 50000; DROP TABLE filler")
    return ready_segments(cluster)[:count]


def write_rows(cluster: Cluster) -> None:
    """Some 20 MB of WAL: rows are inserted, indexed, and a tenth of them updated, in pages all over the table."""
    cluster.execute(
        "CREATE TABLE filler AS SELECT * FROM orders LIMIT 50000;"
        "CREATE INDEX ON filler (id);"
        "UPDATE filler SET id = -id WHERE id % 10 = 0;"
        "DROP TABLE filler"
    )
