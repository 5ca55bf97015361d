# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Estimates of costs are the sum of what is priced, and nothing where nothing is."""

from __future__ import annotations

import pytest

from cryobackup.config.locations import Prices
from cryobackup.report import cost

MiB = 1 << 20
PRICES = Prices(storage_gb_month=0.02, put_1000=0.005, get_1000=0.0004, egress_gb=0.09, currency="EUR")


def test_without_prices_there_is_no_estimate() -> None:
    assert cost.estimate(Prices(currency="EUR"), 10**12, cost.Traffic(1, 1, 1), cost.Traffic(1, 1, 1)) is None


def test_a_month_and_a_restore() -> None:
    daily = cost.Traffic(puts=1000, gets=2000, egress=5)
    found = cost.estimate(PRICES, 500 * 10**9, daily, cost.Traffic(puts=0, gets=10_000, egress=100 * 10**9))
    assert found is not None
    assert found.currency == "EUR"
    assert found.storage_month == pytest.approx(10.0)
    assert found.requests_month == pytest.approx(30 * (0.005 + 2 * 0.0004))
    assert found.month == pytest.approx(found.storage_month + found.requests_month)
    assert found.restore == pytest.approx(10 * 0.0004 + 100 * 0.09)


@pytest.mark.parametrize("prices", [Prices(storage_gb_month=1.0), Prices(egress_gb=1.0), Prices(get_1000=1.0)])
def test_one_price_is_enough(prices: Prices) -> None:
    assert cost.estimate(prices, 10**9, cost.Traffic(), cost.Traffic(gets=1000, egress=10**9)) is not None


@pytest.mark.parametrize(
    ("packs", "stored", "puts"),
    [
        (0, 0, 12),
        (1, 100, 12 + 1),
        (1, 8 * MiB, 12 + 1),
        (1, 8 * MiB + 1, 12 + 2 + 2),
        (10, 640 * MiB, 12 + 10 * (8 + 2)),
    ],
)
def test_requests_of_a_backup(packs: float, stored: int, puts: float) -> None:
    assert cost.of_backup(packs, stored).puts == puts
    assert cost.of_backup(packs, stored).gets == packs + 12


def test_requests_of_wal() -> None:
    """As they are counted in tests/integration/wal/test_wal_requests.py."""
    assert cost.of_wal(10) == cost.Traffic(puts=20, gets=30)
    assert cost.of_wal(10, epochs=3) == cost.Traffic(puts=20, gets=50)


def test_requests_of_a_restore() -> None:
    found = cost.of_restore([64 * MiB, 100], wal_files=10, wal_bytes=5 * MiB)
    assert found.gets == (2 + 8) + (2 + 1) + 20 + 12
    assert found.egress == 69 * MiB + 100
