# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``pin`` and ``unpin``: a pinned backup outlives every rule, and nothing else does because of it."""

from __future__ import annotations

import pytest

from .conftest import Cli
from .test_capacity import backup, configure

RULES = "retention: {full: {keep_last: 1}, minimum: 1, max_delete_share: 1}"


@pytest.fixture
def site(cli: Cli) -> Cli:
    configure(cli, RULES)
    assert cli("init").code == 0
    return cli


def ids(cli: Cli) -> list[str]:
    return [each["backup_id"] for each in cli("list", "--json").json["backups"]]


def prune(cli: Cli) -> None:
    assert cli("prune", "--grace", "0").code == 0


def test_a_pinned_backup_outlives_the_rules(site: Cli) -> None:
    first, second, third = (backup(site, days) for days in (3, 2, 1))
    result = site("pin", first, "--reason", "before release 4", "--json")
    assert result.code == 0
    assert result.json == {
        "backup_id": first,
        "source": "main",
        "pinned": True,
        "reason": "before release 4",
        "until": None,
        "changed": True,
        "locations": {name: {"ok": True, "error": None} for name in ("one", "two")},
    }
    assert [each["pinned"] for each in site("list", "--json").json["backups"]] == [True, False, False]
    assert "ok (pinned)" in site("list").out
    info = site("info", first, "--json").json
    assert (info["pinned"], info["pin_reason"]) == (True, "before release 4")
    assert "pinned        before release 4" in site("info", first).out
    prune(site)
    assert ids(site) == [first, third]
    assert second not in ids(site)

    assert site("unpin", first, "--json").json["changed"] is True
    info = site("info", first, "--json").json
    assert (info["pinned"], info["pin_reason"]) == (False, None)
    prune(site)
    assert ids(site) == [third]


def test_again_changes_nothing_and_another_reason_replaces_the_first(site: Cli) -> None:
    made = backup(site, 1)
    for reason, changed in (("a", True), ("a", False), ("b", True), ("b", False)):
        assert site("pin", made[:12], "--reason", reason, "--json").json["changed"] is changed
        assert site("info", made, "--json").json["pin_reason"] == reason
    assert "as it was before" in site("pin", made, "--reason", "b").out
    assert [site("unpin", made, "--json").json["changed"] for _time in range(2)] == [True, False]
    kinds = [note["kind"] for note in site("info", made, "--json").json["notes"]]
    assert kinds == ["pin", "pin", "unpin"]


def test_a_pin_that_ends_by_itself(site: Cli) -> None:
    first, _second, third = (backup(site, days) for days in (3, 2, 1))
    until = "2999-01-01T00:00:00+00:00"
    result = site("pin", first, "--reason", "release 4", "--until", "2999-01-01T00:00:00Z", "--json").json
    assert (result["until"], result["changed"]) == (until, True)
    assert site("pin", first, "--reason", "release 4", "--until", until, "--json").json["changed"] is False
    info = site("info", first, "--json").json
    assert (info["pinned"], info["pinned_until"]) == (True, until)
    assert f"pinned        release 4 (until {until})" in site("info", first).out
    prune(site)
    assert ids(site) == [first, third]
    result = site("pin", first, "--reason", "release 4", "--json").json
    assert (result["until"], result["changed"]) == (None, True)


@pytest.mark.parametrize("until", ["2999-01-01T00:00:00", "tomorrow", "2020-01-01T00:00:00Z"])
def test_an_end_that_is_none(site: Cli, until: str) -> None:
    made = backup(site, 1)
    result = site("pin", made, "--reason", "x", "--until", until, "--json")
    assert (result.code, result.error["id"]) == (2, "usage")
    assert site("info", made, "--json").json["pinned"] is False


@pytest.mark.parametrize("reason", ["", "  ", "two\nlines", "x" * 201])
def test_a_reason_that_is_none(site: Cli, reason: str) -> None:
    made = backup(site, 1)
    result = site("pin", made, "--reason", reason, "--json")
    assert result.code == 2
    assert result.error["id"] == "usage"
    assert site("info", made, "--json").json["pinned"] is False


def test_no_such_backup(site: Cli) -> None:
    backup(site, 1)
    assert site("pin", "20200101T000000Z", "--reason", "x", "--json").error["id"] == "no-such-backup"
    assert site("unpin", "20200101T000000Z", "--json").error["id"] == "no-such-backup"
    assert site("pin", "20200101T000000Z", "--json").code == 2


def test_a_location_that_is_not_told(site: Cli) -> None:
    made = backup(site, 1)
    (site.place / "two").rename(site.place / "away")
    result = site("pin", made, "--reason", "x", "--json")
    assert result.code == 3
    assert result.json["locations"]["two"]["ok"] is False
    assert "location two does not know of it" in result.json["warnings"][0]
    (site.place / "away").rename(site.place / "two")
    assert site("info", made, "--json").json["pinned"] is True
