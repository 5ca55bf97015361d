# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Retention: what users write, and what docs/retention.md tells them."""

from __future__ import annotations

import dataclasses
import datetime as dt
import re
import typing as t
from pathlib import Path

import pytest

from cryobackup.config import load_config
from cryobackup.errors import ConfigError
from cryobackup.retention_policy import Policy, Rule, format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12h", dt.timedelta(hours=12)),
        ("30d", dt.timedelta(days=30)),
        ("2w", dt.timedelta(days=14)),
        ("6m", dt.timedelta(days=180)),
        ("1y", dt.timedelta(days=365)),
        ("1y6m2w3d4h", dt.timedelta(days=365 + 180 + 14 + 3, hours=4)),
        ("999999999d", dt.timedelta(days=999999999)),
    ],
)
def test_durations(text: str, expected: dt.timedelta) -> None:
    assert parse_duration(text) == expected
    assert parse_duration(format_duration(expected)) == expected


@pytest.mark.parametrize(
    "nonsense",
    [
        *("", "30", "d", "-1d", "0d", "1.5d", "30 d", " 30d", "30d\n", "30D", "1d1y", "1d1d", "5min", "٣d"),
        *("9999999999y", "999999999y", "999999999d24h", "1e3d", 30, None, True, ["30d"], b"30d"),
    ],
)
def test_nonsense_is_no_duration(nonsense: object) -> None:
    with pytest.raises(ConfigError, match="is not a duration"):
        parse_duration(nonsense)


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"rules": {"ful": Rule(keep_last=1)}}, "'ful'"),
        ({"rules": {"full": Rule()}}, "retention.full: the rule keeps nothing"),
        ({"rules": {"full": Rule(keep_last=-1)}}, "retention.full.keep_last"),
        ({"rules": {"full": Rule(keep_daily=True)}}, "retention.full.keep_daily"),
        ({"rules": {"full": Rule(keep_daily=t.cast("int", "7"))}}, "retention.full.keep_daily"),
        ({"rules": {"full": Rule(keep_within=dt.timedelta())}}, "retention.full.keep_within"),
        ({"minimum": -1}, "retention.minimum"),
        ({"minimum": 1.5}, "retention.minimum"),
        ({"max_delete_share": 50}, "retention.max_delete_share"),
        ({"max_delete_share": float("nan")}, "retention.max_delete_share"),
        ({"max_delete_share": "0.5"}, "retention.max_delete_share"),
        ({"max_delete_share": True}, "retention.max_delete_share"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(settings: dict[str, t.Any], where: str) -> None:
    with pytest.raises(ConfigError, match=where) as caught:
        Policy(**({"rules": {}} | settings))
    assert caught.value.hint
    assert caught.value.exit_code == 2


DOCUMENT = (Path(__file__).parents[2] / "docs" / "retention.md").read_text(encoding="utf-8")
CONFIGURATION = """
repository:
  locations: {local: {type: posix, path: /srv/repository}}
  keys: /etc/cryobackup/keys
clusters:
  main: {data_directory: /srv/main, connection: dbname=postgres}
"""


@pytest.mark.parametrize("example", re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL))
def test_the_examples_of_the_documentation_are_configurations(example: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.write_text(CONFIGURATION + example, encoding="utf-8")
    assert load_config(path).retention.rules


def test_the_documentation_has_every_setting_and_its_default() -> None:
    for each in dataclasses.fields(Rule):
        assert f"`{each.name}: " in DOCUMENT
    for name, default in (("minimum", 2), ("max_delete_share", 0.5), ("timezone", "UTC"), ("grace", "24h")):
        assert f"| `{name}` | {default} |" in DOCUMENT
    policy = Policy(rules={})
    assert (policy.minimum, policy.max_delete_share, policy.timezone) == (2, 0.5, dt.UTC)
    assert policy.grace == dt.timedelta(hours=24)
