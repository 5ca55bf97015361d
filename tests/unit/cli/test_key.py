# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``key``: made once, shown without telling anything, printed, and typed in again with all the errors people make."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from .conftest import Cli


@pytest.fixture
def kit(cli: Cli) -> str:
    """The recovery kit of a new repository, as it comes out of the printer."""
    assert cli("init").code == 0
    result = cli("key", "kit")
    assert (result.code, result.err) == (0, "")
    return result.out


def key_texts(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(directory.iterdir())}


def secrets(cli: Cli) -> list[str]:
    """The key material in the files."""
    lines = [(cli.keys / name).read_text().splitlines()[-1] for name in ("catalog.key", "data.identity")]
    return [line.split()[3] for line in lines]


def test_create(cli: Cli) -> None:
    result = cli("key", "create", "--json")
    assert result.code == 0
    assert result.json["changed"] is True
    assert result.json["has_identity"] is True
    assert result.json["directory"] == str(cli.keys)
    assert {key["role"] for key in result.json["keys"]} == {"catalog", "public", "identity"}
    assert cli("init", "--json").json["repository_id"] == result.json["repository_id"]


def test_create_where_keys_are(cli: Cli) -> None:
    cli("key", "create")
    before = key_texts(cli.keys)
    result = cli("key", "create", "--json")
    assert result.code == 1
    assert "exists already" in result.error["message"]
    assert "never overwritten" in result.error["hint"]
    assert key_texts(cli.keys) == before


def test_create_where_one_key_is(cli: Cli) -> None:
    """Half of a new set beside half of an old one would be worse than an error."""
    cli("key", "create")
    (cli.keys / "catalog.key").unlink()
    before = key_texts(cli.keys)
    assert cli("key", "create").code == 1
    assert key_texts(cli.keys) == before


def test_directory_without_a_configuration(cli: Cli) -> None:
    cli.config.unlink()
    result = cli("key", "create", "--directory", "elsewhere/keys", "--json")
    assert result.code == 0
    assert result.json["directory"] == str(cli.place / "elsewhere" / "keys")
    assert cli("key", "show", "--directory", "elsewhere/keys").code == 0


def test_show_tells_no_secret(cli: Cli, kit: str) -> None:
    for words in (["key", "show"], ["key", "show", "--json"], ["key", "import", "--json"], ["init"]):
        result = cli(*words, stdin=kit)
        assert result.code == 0
        for secret in secrets(cli):
            assert secret not in result.out + result.err
            assert secret[:12] not in result.out + result.err


def test_show_is_the_same_everywhere(cli: Cli, kit: str) -> None:
    """Fingerprints are what people compare over the telephone."""
    cli("key", "import", "--directory", str(cli.place / "other"), stdin=kit)
    here = cli("key", "show", "--json").json
    there = cli("key", "show", "--directory", str(cli.place / "other"), "--json").json
    assert [key["fingerprint"] for key in here["keys"]] == [key["fingerprint"] for key in there["keys"]]
    assert here["repository_id"] == there["repository_id"]
    for key in here["keys"]:
        assert re.fullmatch(r"[0-9a-f]{4}(-[0-9a-f]{4}){3}", key["fingerprint"])


@pytest.mark.parametrize("name", ["catalog.key", "data.identity"])
@pytest.mark.parametrize("mode", [0o440, 0o404, 0o640])
def test_key_file_that_others_can_read(cli: Cli, name: str, mode: int) -> None:
    cli("init")
    (cli.keys / name).chmod(mode)
    for words in (["key", "show"], ["list"], ["init"], ["status"]):
        result = cli("--json", *words)
        assert result.code == 1
        assert result.error["id"] == "key-file-mode"
        assert str(cli.keys / name) in result.error["message"]
        assert f"chmod 0400 {cli.keys / name}" in result.error["hint"]


def test_no_key_directory(cli: Cli) -> None:
    result = cli("--json", "key", "show")
    assert result.code == 1
    assert result.error["id"] == "key-file"
    assert "key import" in result.error["hint"]


def test_key_directory_of_somebody_else(cli: Cli) -> None:
    assert cli("init").code == 0
    cli.place.chmod(0o755)
    for parent in cli.place.parents:
        if parent.stat().st_uid == os.geteuid() and parent != Path(parent.anchor):
            parent.chmod(parent.stat().st_mode | 0o011)
    if os.geteuid() == 0:
        options = {"user": "nobody", "group": "nogroup", "extra_groups": []}
    else:
        options = {}
        cli.keys.chmod(0)
    for words in (["key", "show"], ["list"], ["init"]):
        result = cli("--json", *words, **options)
        assert result.code == 1
        assert "Permission denied" in result.error["message"]
    cli.keys.chmod(0o700)


def test_damaged_key_file(cli: Cli) -> None:
    cli("init")
    path = cli.keys / "catalog.key"
    text = path.read_text()
    path.chmod(0o600)
    line = text.splitlines()[-1]
    swapped = line.replace(line.split()[3][:8], line.split()[3][:8][::-1])
    path.write_text(text.replace(line, swapped))
    result = cli("--json", "key", "show")
    assert result.code == 1
    assert f"{path}, line 2" in result.error["message"]
    assert swapped.split()[3] not in result.error["message"]


def test_kit_fits_on_a_sheet(kit: str) -> None:
    lines = kit.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 110
    assert kit.isascii()


def test_kit_brings_the_keys_back(cli: Cli, kit: str) -> None:
    """A blank machine, a sheet of paper and a location: that is all that is left."""
    before = key_texts(cli.keys)
    shutil.rmtree(cli.keys)
    (cli.place / "typed").write_text(kit)
    result = cli("key", "import", "typed", "--json")
    assert result.code == 0
    assert result.json["changed"] is True
    assert key_texts(cli.keys) == before
    for path in cli.keys.iterdir():
        assert path.stat().st_mode & 0o777 == (0o444 if path.name == "data.pub" else 0o400)
    assert cli("list").code == 0


def test_kit_as_people_type_it(cli: Cli, kit: str) -> None:
    """Small letters, more or fewer spaces, none of the prose, rows in another order, Windows line ends."""
    before = key_texts(cli.keys)
    shutil.rmtree(cli.keys)
    rows = [line for line in kit.splitlines() if line.startswith(("CATALOG", "IDENTITY", "repository:"))]
    typed = "\r\n".join(row.lower().replace(" / ", "   /  ") + "  " for row in reversed(rows))
    assert cli("key", "import", stdin=typed).code == 0
    assert key_texts(cli.keys) == before


def row_numbers(kit: str) -> list[int]:
    return [number for number, line in enumerate(kit.splitlines(), 1) if line.startswith(("CATALOG", "IDENTITY"))]


def test_typing_error_names_its_line(cli: Cli, kit: str) -> None:
    shutil.rmtree(cli.keys)
    lines = kit.splitlines()
    for number in row_numbers(kit):
        row = lines[number - 1]
        start = row.index(": ") + 2
        wrong = ("A" if row[start] != "A" else "B") + row[start + 1 :]
        typed = "\n".join([*lines[: number - 1], row[:start] + wrong, *lines[number:]])
        result = cli("key", "import", "--json", stdin=typed)
        assert result.code == 1
        assert f"line {number} of the kit" in result.error["message"]
        assert "typing error" in result.error["message"]
        assert not cli.keys.exists()


@pytest.mark.parametrize("wrong", ["0", "1", "8", "9", "!", "ä"])
def test_character_that_no_row_has(cli: Cli, kit: str, wrong: str) -> None:
    shutil.rmtree(cli.keys)
    number = row_numbers(kit)[2]
    lines = kit.splitlines()
    at = lines[number - 1].index(": ") + 2
    lines[number - 1] = lines[number - 1][:at] + wrong + lines[number - 1][at + 1 :]
    result = cli("key", "import", "--json", stdin="\n".join(lines))
    assert result.code == 1
    assert f"line {number} of the kit" in result.error["message"]
    assert not cli.keys.exists()


def test_neighbours_swapped(cli: Cli, kit: str) -> None:
    """The commonest error of all."""
    shutil.rmtree(cli.keys)
    number = row_numbers(kit)[4]
    lines = kit.splitlines()
    row = lines[number - 1]
    at = next(
        at for at in range(row.index(": ") + 2, len(row)) if row[at] != row[at + 1] and row[at : at + 2].isalnum()
    )
    lines[number - 1] = row[:at] + row[at + 1] + row[at] + row[at + 2 :]
    result = cli("key", "import", "--json", stdin="\n".join(lines))
    assert f"line {number} of the kit" in result.error["message"]


def test_row_left_out(cli: Cli, kit: str) -> None:
    shutil.rmtree(cli.keys)
    lines = kit.splitlines()
    del lines[row_numbers(kit)[5] - 1]
    result = cli("key", "import", "--json", stdin="\n".join(lines))
    assert result.code == 1
    assert "lacks row 3 of IDENTITY-1" in result.error["message"]
    assert not cli.keys.exists()


@pytest.mark.parametrize("text", ["", "hunter2\n", "repository: 12\n", f"repository: {'0' * 32}\n", "\x00\xff" * 100])
def test_no_kit_at_all(cli: Cli, text: str) -> None:
    result = cli("key", "import", "--json", stdin=text)
    assert result.code == 1
    assert result.error["id"] == "key-file"
    assert "hunter2" not in result.err
    assert not cli.keys.exists()


def test_file_that_is_not_there(cli: Cli) -> None:
    result = cli("key", "import", "nowhere", "--json")
    assert result.code == 1
    assert "cannot read nowhere" in result.error["message"]


def test_import_is_idempotent(cli: Cli, kit: str) -> None:
    before = key_texts(cli.keys)
    result = cli("key", "import", "--json", stdin=kit)
    assert result.code == 0
    assert result.json["changed"] is False
    assert key_texts(cli.keys) == before


def test_import_over_other_keys(cli: Cli, kit: str) -> None:
    shutil.rmtree(cli.keys)
    cli("key", "create")
    before = key_texts(cli.keys)
    result = cli("key", "import", "--json", stdin=kit)
    assert result.code == 1
    assert result.error["id"] == "key-conflict"
    assert key_texts(cli.keys) == before


def test_import_brings_the_identity_to_a_writer(cli: Cli, kit: str) -> None:
    before = key_texts(cli.keys)
    (cli.keys / "data.identity").unlink()
    assert cli("key", "show", "--json").json["has_identity"] is False
    assert cli("key", "import", "--json", stdin=kit).json["changed"] is True
    assert key_texts(cli.keys) == before


def test_import_on_a_host_that_shall_only_write(cli: Cli, kit: str) -> None:
    shutil.rmtree(cli.keys)
    result = cli("key", "import", "--without-identity", "--json", stdin=kit)
    assert result.json["has_identity"] is False
    assert sorted(key_texts(cli.keys)) == ["catalog.key", "data.pub"]
    assert cli("init").code == 0


def test_kit_needs_the_identity(cli: Cli, kit: str) -> None:
    """Half a kit in a safe is a nasty surprise."""
    (cli.keys / "data.identity").unlink()
    result = cli("key", "kit", "--output", "kit", "--json")
    assert result.code == 1
    assert result.error["id"] == "no-identity"
    assert not (cli.place / "kit").exists()


def test_kit_in_a_file(cli: Cli, kit: str) -> None:
    result = cli("key", "kit", "--output", "kit", "--json")
    assert result.code == 0
    assert result.json["output"] == "kit"
    path = cli.place / "kit"
    assert path.stat().st_mode & 0o777 == 0o600
    assert cli("key", "import", "kit", "--directory", "again").code == 0
    assert key_texts(cli.place / "again") == key_texts(cli.keys)
    again = cli("key", "kit", "--output", "kit", "--json")
    assert again.code == 1
    assert again.error["id"] == "output-exists"


def test_kit_never_ends_in_json(cli: Cli, kit: str) -> None:
    result = cli("key", "kit", "--json")
    assert result.code == 2
    assert result.error["id"] == "usage"
    assert "CATALOG-1" not in result.out + result.err
