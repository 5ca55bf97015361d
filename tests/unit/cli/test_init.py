# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``init``: once, twice, in one more location, and where something is there that is not ours."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from .conftest import Cli


def snapshot(directory: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    return {str(path): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def repository_id(location: Path) -> str:
    return str(json.loads((location / "repository.json").read_text())["id"])


def test_first_time(cli: Cli) -> None:
    result = cli("init")
    assert (result.code, result.err) == (0, "")
    assert f"one: created, {cli.place}/one" in result.out
    assert f"keys: created, {cli.keys}" in result.out
    assert "key kit" in result.out
    assert repository_id(cli.place / "one") in result.out
    assert sorted(path.name for path in cli.keys.iterdir()) == ["catalog.key", "data.identity", "data.pub"]
    assert cli.keys.stat().st_mode & 0o777 == 0o700
    for name in ("catalog.key", "data.identity"):
        assert (cli.keys / name).stat().st_mode & 0o077 == 0


def test_second_time_changes_nothing(cli: Cli) -> None:
    first = cli("init", "--json").json
    before = snapshot(cli.place)
    second = cli("init", "--json")
    assert second.code == 0
    assert (first["changed"], second.json["changed"]) == (True, False)
    assert second.json["repository_id"] == first["repository_id"]
    assert second.json["keys_created"] is False
    assert second.json["locations"]["one"] == {"created": False, "where": f"{cli.place}/one"}
    assert snapshot(cli.place) == before
    assert "was there already" in cli("init").out


def test_one_more_location_joins_the_repository(cli: Cli) -> None:
    first = cli("init", "--json").json
    before = snapshot(cli.place / "one") | snapshot(cli.keys)
    cli.write_config("one", "two")
    result = cli("init", "--new", "two", "--json")
    assert result.code == 0
    assert result.json["locations"]["one"]["created"] is False
    assert result.json["locations"]["two"]["created"] is True
    assert repository_id(cli.place / "two") == first["repository_id"]
    assert snapshot(cli.place / "one") | snapshot(cli.keys) == before


def test_one_more_location_without_the_identity(cli: Cli) -> None:
    """Hosts hold the public key only, and must still be able to add a location."""
    cli("init")
    (cli.keys / "data.identity").unlink()
    cli.write_config("one", "two")
    assert cli("init", "--new", "two").code == 0


def test_location_of_another_repository(cli: Cli) -> None:
    cli("init")
    foreign = repository_id(cli.place / "one")
    shutil.rmtree(cli.keys)
    cli.write_config("two")
    cli("init")
    cli.write_config("one", "two", "three")
    before = snapshot(cli.place)
    result = cli("init", "--json")
    assert result.code == 1
    assert result.error["id"] == "foreign-repository"
    assert foreign in result.error["message"]
    assert snapshot(cli.place) == before


def test_repository_whose_keys_are_gone(cli: Cli) -> None:
    """New keys would make a repository that nobody can read: it must not come to that."""
    cli("init")
    shutil.rmtree(cli.keys)
    before = snapshot(cli.place)
    result = cli("init", "--json")
    assert result.code == 1
    assert "has no keys for it" in result.error["message"]
    assert "key import" in result.error["hint"]
    assert snapshot(cli.place) == before


def test_location_is_a_file(cli: Cli) -> None:
    (cli.place / "one").write_text("")
    result = cli("init", "--json")
    assert result.code == 1
    assert str(cli.place / "one") in result.error["message"]
    assert (cli.place / "one").read_text() == ""


def test_keys_cannot_be_written(cli: Cli) -> None:
    cli.keys.write_text("")
    result = cli("init", "--json")
    assert result.code == 1
    assert str(cli.keys) in result.error["message"]
    assert not (cli.place / "one" / "repository.json").exists()


def test_a_location_that_is_not_mounted_is_not_made_anew(cli: Cli) -> None:
    """Its directory is still there, empty: backups would go on there, on the wrong disk."""
    cli.write_config("one", "two")
    cli("init")
    shutil.rmtree(cli.place / "two")
    (cli.place / "two").mkdir()
    before = snapshot(cli.place)
    result = cli("init", "--json")
    assert result.code == 1
    assert result.error["id"] == "location-missing"
    assert "location 'two'" in result.error["message"]
    assert "init --new two" in result.error["hint"]
    assert snapshot(cli.place) == before
    shutil.rmtree(cli.place / "two")
    assert cli("init", "--json").error["id"] == "location-missing"
    assert not (cli.place / "two").exists()
    made = cli("init", "--new", "two")
    assert made.code == 0
    assert "cryobackup replicate" in made.out
    assert repository_id(cli.place / "two") == repository_id(cli.place / "one")


def test_the_only_location_is_not_mounted(cli: Cli) -> None:
    """Nothing but the state directory knows that it held the repository."""
    cli("init")
    shutil.move(cli.place / "one", cli.place / "elsewhere")
    result = cli("init", "--json")
    assert result.code == 1
    assert result.error["id"] == "location-missing"
    assert "held the repository before" in result.error["message"]
    assert not (cli.place / "one").exists()
    shutil.move(cli.place / "elsewhere", cli.place / "one")
    assert cli("init").code == 0


def test_the_first_init_was_interrupted_behind_the_keys(cli: Cli) -> None:
    cli("init")
    shutil.rmtree(cli.place / "one")
    shutil.rmtree(cli.place / "state")
    result = cli("init", "--json")
    assert result.code == 0
    assert result.json["keys_created"] is False
    assert result.json["locations"]["one"]["created"] is True


def test_new_for_a_location_that_holds_the_repository(cli: Cli) -> None:
    cli("init")
    before = snapshot(cli.place)
    assert cli("init", "--new", "one").code == 0
    assert snapshot(cli.place) == before
    result = cli("init", "--new", "other", "--json")
    assert result.code == 2
    assert result.error["id"] == "unknown-location"
