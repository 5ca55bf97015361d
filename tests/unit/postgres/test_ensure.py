# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How old a backup may be, in words."""

from __future__ import annotations

import datetime as dt

import pytest

from cryobackup.errors import ConfigError
from cryobackup.postgres.ensure import parse_age


@pytest.mark.parametrize(
    ("text", "age"),
    [
        ("90min", dt.timedelta(minutes=90)),
        ("24h", dt.timedelta(hours=24)),
        (" 7d ", dt.timedelta(days=7)),
        ("2w", dt.timedelta(days=14)),
    ],
)
def test_ages(text: str, age: dt.timedelta) -> None:
    assert parse_age(text) == age


# In the retention rules m is a month: nobody who means minutes may get a backup every two and a half years.
@pytest.mark.parametrize("text", ["30m", "1y", "24", "0h", "", "-1h", "h", "1.5h", "1h30min", "9999999h", "٣h"])
def test_refuses_what_might_be_meant_otherwise(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_age(text)
    assert caught.value.id == "usage"
    assert "24h" in caught.value.hint
