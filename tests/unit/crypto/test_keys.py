# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Key files, the key ring, the recovery kit."""

from __future__ import annotations

import re

import pytest

from cryobackup.crypto import suite
from cryobackup.crypto.keys import KeyRing, new_keys, parse_line, write_keys
from cryobackup.crypto.recovery_kit import read_kit, write_kit
from cryobackup.errors import DamageError, KeyFileError

REPOSITORY = "0123456789abcdef" * 2


@pytest.fixture
def directory(tmp_path):
    write_keys(tmp_path / "keys", new_keys(REPOSITORY))
    return tmp_path / "keys"


def test_keys_come_back_as_they_were_written(tmp_path):
    keys = new_keys(REPOSITORY)
    write_keys(tmp_path / "k", keys)
    ring = KeyRing.load(tmp_path / "k", need_identity=True)
    assert {key.line() for key in ring.keys} == {key.line() for key in keys}
    assert (ring.repository_id, ring.epoch, ring.has_identity) == (REPOSITORY, 1, True)


def test_secrets_are_not_readable_by_others_and_not_shown(directory):
    modes = {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()}
    assert modes == {"catalog.key": 0o400, "data.identity": 0o400, "data.pub": 0o444}
    ring = KeyRing.load(directory)
    assert not any(key.line().split()[3][:20] in repr(key) for key in ring.keys)


@pytest.mark.parametrize("name", ["catalog.key", "data.identity"])
@pytest.mark.parametrize("mode", [0o440, 0o404, 0o644])
def test_a_secret_that_others_can_read_is_refused(directory, name, mode):
    (directory / name).chmod(mode)
    with pytest.raises(KeyFileError, match=name) as caught:
        KeyRing.load(directory)
    assert caught.value.id == "key-file-mode"


def test_a_write_only_host_has_no_identity(directory):
    (directory / "data.identity").unlink()
    assert not KeyRing.load(directory).has_identity
    with pytest.raises(KeyFileError) as caught:
        KeyRing.load(directory, need_identity=True)
    assert caught.value.id == "no-identity"


def test_keys_are_never_overwritten(directory):
    before = (directory / "catalog.key").read_text()
    with pytest.raises(KeyFileError, match="exists already"):
        write_keys(directory, new_keys(REPOSITORY))
    assert (directory / "catalog.key").read_text() == before


def test_an_identity_of_another_pair_is_refused(directory, tmp_path):
    write_keys(tmp_path / "other", new_keys(REPOSITORY))
    (directory / "data.identity").unlink()
    (tmp_path / "other" / "data.identity").rename(directory / "data.identity")
    with pytest.raises(KeyFileError, match="no pair"):
        KeyRing.load(directory)


def test_keys_of_two_repositories_are_refused(directory, tmp_path):
    write_keys(tmp_path / "other", new_keys("f" * 32))
    (directory / "data.pub").unlink()
    (tmp_path / "other" / "data.pub").rename(directory / "data.pub")
    with pytest.raises(KeyFileError, match="several repositories"):
        KeyRing.load(directory)


def test_a_mistyped_line_is_refused_without_repeating_it():
    line = new_keys(REPOSITORY)[0].line()
    parts = line.split()
    swapped = parts[3][:5] + ("A" if parts[3][5] != "A" else "B") + parts[3][6:]
    for wrong in (line.replace(parts[3], swapped), line[:-1], "", "cryo-catalog-1", line.replace(" 1 ", " 2 ")):
        with pytest.raises(KeyFileError) as caught:
            parse_line(wrong, "kit.txt, line 7")
        assert "kit.txt, line 7" in caught.value.message
        assert parts[3][:12] not in caught.value.message + caught.value.hint


def test_published_lines_recognise_the_wrong_keys(directory, tmp_path):
    ring = KeyRing.load(directory)
    text = ring.published(1)
    ring.check_published(text, "location x")
    write_keys(tmp_path / "same-id", new_keys(REPOSITORY))
    with pytest.raises(KeyFileError) as caught:
        KeyRing.load(tmp_path / "same-id").check_published(text, "location x")
    assert caught.value.id == "wrong-key"
    write_keys(tmp_path / "other-id", new_keys("f" * 32))
    with pytest.raises(KeyFileError) as caught:
        KeyRing.load(tmp_path / "other-id").check_published(text, "location x")
    assert caught.value.id == "foreign-repository"


def test_sealed_keys_open_with_the_identity_in_their_place_only():
    catalog, public, identity = (key.material for key in new_keys(REPOSITORY))
    sealed = suite.seal(catalog, public, b"r" * 16, b"packs/x")
    assert len(sealed) == suite.SEALED_BYTES
    assert suite.unseal(sealed, identity, b"r" * 16, b"packs/x") == catalog
    for repository, name in ((b"s" * 16, b"packs/x"), (b"r" * 16, b"packs/y")):
        with pytest.raises(DamageError):
            suite.unseal(sealed, identity, repository, name)
    with pytest.raises(DamageError):
        suite.unseal(sealed, new_keys(REPOSITORY)[2].material, b"r" * 16, b"packs/x")


def kit() -> tuple[str, list]:
    keys = new_keys(REPOSITORY)
    return write_kit(keys, ["/srv/backups"], "2026-01-01T00:00:00+00:00"), keys


def test_the_kit_brings_all_keys_back():
    text, keys = kit()
    assert {key.line() for key in read_kit(text)} == {key.line() for key in keys}
    typed = "\n".join(line.lower().replace("  ", " ") for line in text.splitlines())
    assert {key.line() for key in read_kit(typed)} == {key.line() for key in keys}


def test_the_kit_fits_on_a_sheet_of_paper():
    text, _keys = kit()
    lines = text.splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 110


def test_every_typing_error_in_the_kit_is_found_in_its_line():
    text, _keys = kit()
    lines = text.splitlines()
    for number, line in enumerate(lines):
        match = re.match(r"(?:CATALOG|IDENTITY)-1 row [0-9]+ of [0-9]+: ", line)
        if match is None:
            continue
        for at in range(match.end(), len(line)):
            if line[at] in " /":
                continue
            wrong = line[:at] + ("B" if line[at] != "B" else "C") + line[at + 1 :]
            with pytest.raises(KeyFileError) as caught:
                read_kit("\n".join([*lines[:number], wrong, *lines[number + 1 :]]))
            assert f"line {number + 1} " in caught.value.message


def test_a_missing_row_of_the_kit_is_named():
    text, _keys = kit()
    lines = [line for line in text.splitlines() if "IDENTITY-1 row 3" not in line]
    with pytest.raises(KeyFileError, match="row 3 of IDENTITY-1"):
        read_kit("\n".join(lines))
