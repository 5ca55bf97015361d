# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows that look and compress like an application's."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from io import StringIO
from typing import TYPE_CHECKING

from psycopg2 import sql

if TYPE_CHECKING:
    from .cluster import Cluster

WORDS = re.findall(
    r"\w+",
    "sample cryo vial storage freezer alpha beta gamma batch protocol glycerol ethylene cooling warming rate "
    "membrane viability cell tissue plasma serum operator checked moved returned pending approved rejected "
    "temperature nitrogen tank shelf rack box position barcode label note sensor alarm calibrated",
)
STATUS = ("new", "frozen", "thawed", "shipped", "discarded")
SEED_ROWS = 4000
AVERAGE_ROW_BYTES = 330

CREATE = """
CREATE TABLE {table} (
    id bigint PRIMARY KEY,
    customer integer NOT NULL,
    status text NOT NULL,
    created_at timestamptz NOT NULL,
    amount numeric(12,2) NOT NULL,
    temperature double precision,
    note text,
    attributes jsonb NOT NULL
)"""


def _rows(seed: int, count: int) -> Iterator[str]:
    source = random.Random(seed)
    for number in range(count):
        note = " ".join(source.choices(WORDS, k=source.randint(3, 30)))
        barcode = f"{source.getrandbits(64):016x}"
        attributes = {"barcode": barcode, "shelf": source.randint(1, 40), "tag": source.choice(WORDS)}
        fields = (
            number,
            source.randint(1, 50_000),
            source.choice(STATUS),
            source.randint(0, 90_000_000),
            f"{source.uniform(1, 9999):.2f}",
            f"{source.gauss(-150, 20):.3f}",
            note,
            json.dumps(attributes),
        )
        yield "\t".join(map(str, fields)) + "\n"


def sample_data(
    cluster: Cluster, megabytes: float, *, dbname: str = "postgres", table: str = "orders", seed: int = 1
) -> int:
    """Fill a new table with about ``megabytes`` MiB (heap; its two indexes come on top); returns the rows.

    4,000 different rows are made here from a fixed vocabulary (English-like notes, random barcodes, skewed
    numbers, jsonb) and multiplied in the server with other keys, customers, times, amounts and barcodes, so
    that zstd at level 3 shrinks the files to about a third, as it does application data. The same arguments
    make the same rows. The table is vacuumed, so that its visibility map is set, and analysed.
    """
    count = max(1, int(megabytes * 1024 * 1024 / AVERAGE_ROW_BYTES))
    name = sql.Identifier(table)
    with cluster.session(dbname) as session, session.cursor() as cursor:
        cursor.execute(
            "CREATE TEMPORARY TABLE seed (id bigint, customer int, status text, seconds int, amount numeric,"
            " temperature float8, note text, attributes jsonb)"
        )
        cursor.copy_expert("COPY seed FROM STDIN", StringIO("".join(_rows(seed, min(count, SEED_ROWS)))))
        cursor.execute(sql.SQL(CREATE).format(table=name))
        cursor.execute(
            sql.SQL(
                "INSERT INTO {table}"
                " SELECT round * %(seeds)s + id, (customer + round * 7919) %% 50000, status,"
                "  timestamptz '2023-01-01 00:00:00+00' + make_interval(secs => (seconds + round * 61)),"
                "  amount + round %% 100, temperature, note || ' ' || md5((round * %(seeds)s + id)::text),"
                "  attributes || jsonb_build_object('barcode', md5((id * 31 + round)::text))"
                " FROM generate_series(0, (%(count)s - 1) / %(seeds)s) AS round, seed"
                " WHERE round * %(seeds)s + id < %(count)s"
            ).format(table=name),
            {"seeds": SEED_ROWS, "count": count},
        )
        cursor.execute(sql.SQL("CREATE INDEX ON {} (customer, created_at)").format(name))
        cursor.execute(sql.SQL("VACUUM (ANALYZE) {}").format(name))
    return count
