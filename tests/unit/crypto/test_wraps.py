# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Wraps: only their recipient opens them, and only somebody who has the identity makes them."""

from __future__ import annotations

import pytest

from cryobackup.crypto import suite, wraps
from cryobackup.crypto.keys import Key, KeyRing, new_keys
from cryobackup.crypto.lines import make_line, to_base64
from cryobackup.crypto.passphrase import Cost
from cryobackup.crypto.recipients import Opener, Recipient, read_opener, read_recipient, write_opener
from cryobackup.errors import KeyFileError

REPOSITORY = "0123456789abcdef" * 2
NAME = "wraps/alice/20260101T000000Z-00000000"
PASSPHRASE = "correct horse battery staple"
CHEAP = Cost(15, 1)
KEYS = KeyRing([*new_keys(REPOSITORY), *new_keys(REPOSITORY, 2)], "test")
ALICE = Opener.generate("alice")


def wrapped(keys: KeyRing = KEYS, epochs: tuple[int, ...] = (1, 2), name: str = NAME) -> wraps.Wrap:
    data = wraps.make_wrap(keys, name, ALICE.recipient, epochs)
    return wraps.parse_wrap(data, name, "here")


def lines_of(keys: list[Key]) -> set[str]:
    return {key.line() for key in keys}


def test_the_recipient_gets_all_keys() -> None:
    opened = wraps.open_wrap(wrapped(), ALICE, "here")
    assert lines_of(opened.keys) == lines_of(KEYS.keys)
    assert opened.anchor == KEYS.key("identity", 1)
    assert not opened.anchored


def test_some_epochs_come_with_the_digest_key_of_the_first() -> None:
    opened = wraps.open_wrap(wrapped(epochs=(2,)), ALICE, "here")
    ring = KeyRing(opened.keys, "opened")
    assert ring.epochs("catalog") == ring.epochs("identity") == {2}
    assert ring.digest_key == KEYS.digest_key
    assert KEYS.key("catalog", 1).material not in {key.material for key in opened.keys}
    assert opened.anchor == KEYS.key("identity", 2)


def test_nobody_else_opens_it() -> None:
    wrap = wrapped()
    with pytest.raises(KeyFileError) as caught:
        wraps.open_wrap(wrap, Opener.generate("alice"), "here")
    assert caught.value.id == "wrong-recipient-key"
    assert suite.unwrap(wrap.sealed, Opener.generate("bob").private, KEYS.repository, NAME.encode()) is None
    for secret in (KEYS.catalog(1) * 3, KEYS.identity(1), KEYS.identity(2)):
        assert suite.unwrap(wrap.sealed, secret, KEYS.repository, NAME.encode()) is None


def test_it_is_bound_to_its_place() -> None:
    """Neither another name nor another repository."""
    data = wraps.make_wrap(KEYS, NAME, ALICE.recipient, (1, 2))
    other = NAME.replace("00000000", "00000001")
    with pytest.raises(KeyFileError) as caught:
        wraps.open_wrap(wraps.parse_wrap(data, other, "here"), ALICE, "here")
    assert caught.value.id == "wrap-damaged"
    assert not wraps.is_proven(wraps.parse_wrap(data, other, "here"), KEYS)
    with pytest.raises(KeyFileError, match="under a wrong name"):
        wraps.parse_wrap(data, NAME.replace("alice", "bob"), "here")
    assert not wraps.is_proven(wraps.parse_wrap(data, NAME, "here"), KeyRing(new_keys("f" * 32, 1), "foreign"))


def test_a_writer_cannot_name_himself_as_recipient() -> None:
    """He has catalog keys and public keys, and the storage: not enough for a proof."""
    writer = [key for key in KEYS.keys if key.role != "identity"]
    mallory = Opener.generate("mallory")
    name = NAME.replace("alice", "mallory")
    with pytest.raises(KeyFileError):
        wraps.make_wrap(KeyRing(writer, "writer"), name, mallory.recipient, (2,))
    # With identities of his own making beside the true catalog keys.
    false = [key for key in new_keys(REPOSITORY, 2) if key.role == "identity"]
    forged = KeyRing([key for key in writer if key.role == "catalog"] + false, "forged")
    wrap = wraps.parse_wrap(wraps.make_wrap(forged, name, mallory.recipient, (2,)), name, "here")
    assert wraps.open_wrap(wrap, mallory, "here").keys, "it looks like one"
    assert not wraps.is_proven(wrap, KEYS)


def test_every_flipped_byte_is_noticed() -> None:
    data = wraps.make_wrap(KEYS, NAME, ALICE.recipient, (1, 2))
    for at in range(0, len(data), 61):
        flipped = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with pytest.raises(KeyFileError):
            wraps.open_wrap(wraps.parse_wrap(flipped, NAME, "here"), ALICE, "here")


def test_a_passphrase_opens_it_and_knows_the_repository() -> None:
    locked = wraps.lock_opener(KEYS, ALICE, 1, PASSPHRASE, cost=CHEAP)
    data = wraps.make_wrap(KEYS, NAME, ALICE.recipient, (1, 2), locked)
    wrap = wraps.parse_wrap(data, NAME, "here")
    opened = wraps.open_with_passphrase(wrap, PASSPHRASE, "here")
    assert lines_of(opened.keys) == lines_of(KEYS.keys)
    assert opened.anchored
    with pytest.raises(KeyFileError) as caught:
        wraps.open_with_passphrase(wrap, "correct horse battery stable", "here")
    assert caught.value.id == "wrong-passphrase"
    with pytest.raises(KeyFileError) as caught:
        wraps.open_with_passphrase(wrapped(), PASSPHRASE, "here")
    assert caught.value.id == "no-passphrase"


def test_a_repository_put_in_the_place_of_the_true_one_is_noticed_by_the_passphrase() -> None:
    """The line under the passphrase is copied from the true wrap; all else is of the attacker's making."""
    locked = wraps.lock_opener(KEYS, ALICE, 1, PASSPHRASE, cost=CHEAP)
    false = KeyRing(new_keys(REPOSITORY), "false")
    wrap = wraps.parse_wrap(wraps.make_wrap(false, NAME, ALICE.recipient, (1,), locked), NAME, "here")
    with pytest.raises(KeyFileError, match="not those of the repository that the passphrase was made for"):
        wraps.open_with_passphrase(wrap, PASSPHRASE, "here")


@pytest.mark.parametrize("epochs", ["", "0", "2,1", "1,1", "01", "1,", "-1", "1;2", ",".join(map(str, range(1, 2000)))])
def test_impossible_lists_of_epochs_are_refused(epochs: str) -> None:
    lines = [
        ALICE.recipient.line(),
        make_line("wrap", REPOSITORY, epochs, to_base64(bytes(2000))),
        make_line("proof", REPOSITORY, epochs.rsplit(",", maxsplit=1)[-1], to_base64(bytes(32))),
    ]
    with pytest.raises(KeyFileError) as caught:
        wraps.parse_wrap("".join(f"{line}\n" for line in lines).encode(), NAME, "here")
    assert caught.value.id == "wrap-damaged"


@pytest.mark.parametrize("data", [b"", b"\n" * 4, b"\xff" * 100, b"cryo-wrap-1\n" * 3, b"x" * (300 << 10)])
def test_what_is_no_wrap_is_refused(data: bytes) -> None:
    with pytest.raises(KeyFileError) as caught:
        wraps.parse_wrap(data, NAME, "here")
    assert caught.value.id == "wrap-damaged"


def test_files_of_a_recipient(tmp_path) -> None:
    secret, public = tmp_path / "alice.key", tmp_path / "alice.pub"
    write_opener(ALICE, secret, public)
    assert (secret.stat().st_mode & 0o777, public.stat().st_mode & 0o777) == (0o400, 0o444)
    assert read_opener(secret) == ALICE
    assert read_recipient(public) == ALICE.recipient
    copy = tmp_path / "copy"
    copy.write_bytes(public.read_bytes())
    copy.chmod(0o400)
    with pytest.raises(KeyFileError, match="is not a file of a recipient"):
        read_opener(copy)
    with pytest.raises(KeyFileError, match="is not a file of a recipient"):
        read_recipient(secret)
    with pytest.raises(KeyFileError) as caught:
        write_opener(ALICE, secret, public)
    assert caught.value.id == "output-exists"
    secret.chmod(0o440)
    with pytest.raises(KeyFileError) as caught:
        read_opener(secret)
    assert caught.value.id == "key-file-mode"


def test_a_public_key_that_nothing_can_be_sealed_to_is_refused() -> None:
    line = make_line("recipient", "alice", to_base64(b"\xff" * 1216))
    with pytest.raises(KeyFileError, match="no public key"):
        Recipient.parse(line, "here")


def test_secrets_do_not_show() -> None:
    assert str(ALICE.private) not in repr(ALICE)
    assert to_base64(ALICE.private)[:20] not in repr(ALICE) + repr(wrapped())
