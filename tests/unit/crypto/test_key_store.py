# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Key files that change: lines are added, nothing is lost; the identity under a passphrase."""

from __future__ import annotations

import os

import pytest

from cryobackup.crypto import passphrase, protection
from cryobackup.crypto.key_store import add_keys, changing, writer_keys
from cryobackup.crypto.keys import KeyRing, new_keys, write_keys
from cryobackup.crypto.recovery_kit import kit_keys, read_kit, write_kit
from cryobackup.errors import BusyError, KeyFileError

REPOSITORY = "0123456789abcdef" * 2
FIRST = new_keys(REPOSITORY)
SECOND = new_keys(REPOSITORY, 2)
PASSPHRASE = "correct horse battery staple"


@pytest.fixture
def directory(tmp_path):
    write_keys(tmp_path / "keys", FIRST)
    return tmp_path / "keys"


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    monkeypatch.setattr(passphrase, "USUAL", passphrase.Cost(15, 1))
    monkeypatch.setattr(passphrase.lock, "__kwdefaults__", {"cost": passphrase.Cost(15, 1)})


def texts(directory):
    return {path.name: path.read_text() for path in sorted(directory.iterdir())}


def test_a_new_epoch_is_added_behind_what_is_there(directory):
    with (directory / "catalog.key").open() as file:
        before = file.read()
    (directory / "catalog.key").chmod(0o600)
    (directory / "catalog.key").write_text(before + "# a note of the keeper's")
    changed = add_keys(directory, SECOND)
    assert [path.name for path in changed] == ["data.identity", "catalog.key", "data.pub"]
    assert (directory / "catalog.key").read_text() == f"{before}# a note of the keeper's\n{SECOND[0].line()}\n"
    modes = {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()}
    assert modes == {"catalog.key": 0o400, "data.identity": 0o400, "data.pub": 0o444}
    ring = KeyRing.load(directory, need_identity=True)
    assert (ring.epoch, ring.epochs("identity")) == (2, {1, 2})
    assert add_keys(directory, [*FIRST, *SECOND]) == []


def test_half_an_epoch_is_not_used(directory):
    """Who reads the files while they change must never write with keys that are not all there."""
    for role in ("identity", "catalog"):
        add_keys(directory, [key for key in SECOND if key.role == role])
        assert KeyRing.load(directory).epoch == 1
    add_keys(directory, [key for key in SECOND if key.role == "public"])
    assert KeyRing.load(directory).epoch == 2


@pytest.mark.parametrize("keys", [new_keys(REPOSITORY), new_keys("f" * 32, 2), [FIRST[0], new_keys(REPOSITORY)[1]]])
def test_nothing_is_overwritten_or_mixed(directory, keys):
    before = texts(directory)
    with pytest.raises(KeyFileError) as caught:
        add_keys(directory, keys)
    assert caught.value.id == "key-conflict"
    assert texts(directory) == before


def test_a_pair_that_is_none_is_refused(directory):
    before = texts(directory)
    mixed = [
        *(key for key in SECOND if key.role != "public"),
        *(k for k in new_keys(REPOSITORY, 2) if k.role == "public"),
    ]
    with pytest.raises(KeyFileError, match="no pair"):
        add_keys(directory, mixed)
    assert texts(directory) == before


def test_one_at_a_time(directory):
    with changing(directory), pytest.raises(BusyError):
        add_keys(directory, SECOND)
    assert KeyRing.load(directory).epoch == 1


def test_what_a_killed_process_left_goes(directory):
    left = directory / ".data.identity.12345"
    left.write_text(SECOND[2].line())
    add_keys(directory, SECOND)
    assert not left.exists()


def test_a_directory_that_cannot_be_written_stays_as_it_is(directory, monkeypatch):
    before = texts(directory)

    def refuse(*_unused):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(KeyFileError, match="Read-only"):
        add_keys(directory, SECOND)
    assert texts(directory) == before


def test_keys_for_a_writer():
    both = KeyRing([*FIRST, *SECOND], "both")
    assert {(key.role, key.epoch) for key in writer_keys(both)} == {
        ("catalog", 1),
        ("public", 1),
        ("catalog", 2),
        ("public", 2),
    }
    late = writer_keys(both, 2)
    assert {(key.role, key.epoch) for key in late} == {("catalog", 2), ("public", 2), ("digest", 1)}
    ring = KeyRing(late, "late")
    assert ring.digest_key == both.digest_key
    assert FIRST[0].material not in {key.material for key in late}
    for wrong in (0, 3):
        with pytest.raises(KeyFileError) as caught:
            writer_keys(both, wrong)
        assert caught.value.id == "no-epoch-key"


def test_a_late_writer_takes_its_files_and_later_the_older_key(tmp_path):
    both = KeyRing([*FIRST, *SECOND], "both")
    add_keys(tmp_path / "keys", writer_keys(both, 2))
    ring = KeyRing.load(tmp_path / "keys")
    assert (ring.epoch, ring.digest_key) == (2, both.digest_key)
    add_keys(tmp_path / "keys", writer_keys(both))
    assert KeyRing.load(tmp_path / "keys").epochs("catalog") == {1, 2}


def test_a_false_digest_line_is_noticed(tmp_path):
    foreign = KeyRing(new_keys(REPOSITORY), "foreign").digest_line()
    with pytest.raises(KeyFileError, match="digest line"):
        KeyRing([*FIRST, foreign], "here")


@pytest.mark.parametrize("epochs", [1, 2, 4])
def test_the_kit_with_all_epochs_fits_on_a_sheet(epochs):
    keys = [key for epoch in range(1, epochs + 1) for key in new_keys(REPOSITORY, epoch)]
    text = write_kit(kit_keys(KeyRing(keys, "here")), ["one: /srv/backups"], "2026-01-01T00:00:00+00:00")
    assert len(text.splitlines()) <= 60
    assert {key.line() for key in read_kit(text)} == {key.line() for key in keys}


def test_a_kit_of_later_epochs_brings_the_digest_key():
    both = KeyRing([*FIRST, *SECOND], "both")
    text = write_kit(kit_keys(both, 2), [], "2026-01-01T00:00:00+00:00")
    ring = KeyRing(read_kit(text), "typed")
    assert ring.epochs("identity") == {2}
    assert ring.digest_key == both.digest_key


def test_a_kit_is_never_half(directory):
    add_keys(directory, [key for key in SECOND if key.role != "identity"])
    with pytest.raises(KeyFileError) as caught:
        kit_keys(KeyRing.load(directory, need_identity=True))
    assert caught.value.id == "no-epoch-key"


# The identity under a passphrase


def test_protect_and_unlock(directory):
    before = texts(directory)
    assert protection.protect(directory, PASSPHRASE)
    assert sorted(texts(directory)) == ["catalog.key", "data.identity.locked", "data.pub"]
    assert (directory / "data.identity.locked").stat().st_mode & 0o777 == 0o400
    assert protection.locked_epochs(directory) == [1]
    with pytest.raises(KeyFileError) as caught:
        KeyRing.load(directory, need_identity=True)
    assert caught.value.id == "identity-locked"
    assert not protection.protect(directory, PASSPHRASE), "it is already"
    with pytest.raises(KeyFileError) as caught:
        protection.unlock_identity(directory, "correct horse battery stable")
    assert caught.value.id == "wrong-passphrase"
    assert protection.unlock_identity(directory, PASSPHRASE)
    assert (directory / "data.identity").read_text() == before["data.identity"]
    assert not protection.unlock_identity(directory, PASSPHRASE)


def test_a_new_epoch_goes_under_the_same_passphrase(directory):
    protection.protect(directory, PASSPHRASE)
    protection.unlock_identity(directory, PASSPHRASE)
    add_keys(directory, SECOND)
    with pytest.raises(KeyFileError) as caught:
        protection.protect(directory, "another passphrase altogether")
    assert caught.value.id == "wrong-passphrase"
    assert (directory / "data.identity").exists()
    protection.protect(directory, PASSPHRASE)
    assert protection.locked_epochs(directory) == [1, 2]
    protection.unlock_identity(directory, PASSPHRASE)
    assert KeyRing.load(directory).epochs("identity") == {1, 2}


def test_another_passphrase(directory):
    protection.protect(directory, PASSPHRASE)
    protection.unlock_identity(directory, PASSPHRASE)
    protection.protect(directory, "another passphrase altogether", replace=True)
    with pytest.raises(KeyFileError):
        protection.unlock_identity(directory, PASSPHRASE)
    assert protection.unlock_identity(directory, "another passphrase altogether")


def test_replacing_loses_no_epoch(directory):
    add_keys(directory, SECOND)
    protection.protect(directory, PASSPHRASE)
    (directory / "data.identity").write_text(SECOND[2].line())
    (directory / "data.identity").chmod(0o400)
    with pytest.raises(KeyFileError) as caught:
        protection.protect(directory, "another passphrase altogether", replace=True)
    assert caught.value.id == "key-conflict"
    assert protection.protect(directory, PASSPHRASE), "with the old passphrase they are united"
    assert protection.locked_epochs(directory) == [1, 2]


def test_nothing_to_protect(directory):
    (directory / "data.identity").unlink()
    with pytest.raises(KeyFileError) as caught:
        protection.protect(directory, PASSPHRASE)
    assert caught.value.id == "no-identity"


def test_a_locked_identity_that_others_can_read_is_refused(directory):
    protection.protect(directory, PASSPHRASE)
    (directory / "data.identity.locked").chmod(0o440)
    with pytest.raises(KeyFileError) as caught:
        protection.unlock_identity(directory, PASSPHRASE)
    assert caught.value.id == "key-file-mode"
