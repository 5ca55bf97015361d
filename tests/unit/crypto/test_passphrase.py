# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Text under a passphrase: it opens with that one, as what it was locked as, and asks for no more than it may."""

from __future__ import annotations

import base64
import unicodedata

import pytest

from cryobackup.crypto.lines import check_of
from cryobackup.crypto.passphrase import Cost, check_new_passphrase, lock, unlock
from cryobackup.errors import KeyFileError

REPOSITORY = "0123456789abcdef" * 2
PASSPHRASE = "correct horse battery staple"
CHEAP = Cost(15, 1)
SECRET = "cryo-identity-1 is what stands here\n"


@pytest.fixture(scope="module")
def line() -> str:
    return lock("identity", REPOSITORY, "1", SECRET, PASSPHRASE, cost=CHEAP)


def opened(line: str, passphrase: str = PASSPHRASE) -> str:
    return unlock(line, "identity", REPOSITORY, "1", passphrase, "here")


def with_check(body: str) -> str:
    return f"{body} {check_of(body)}"


def test_it_opens_with_its_passphrase_only(line: str) -> None:
    assert opened(line) == SECRET
    for wrong in ("correct horse battery stapl", "Correct horse battery staple", "", "x" * 2000):
        with pytest.raises(KeyFileError) as caught:
            opened(line, wrong)
        assert caught.value.id == "wrong-passphrase"
        assert wrong not in caught.value.message or not wrong


def test_nothing_of_the_secret_shows(line: str) -> None:
    assert "what stands here" not in line
    assert b"what stands here" not in base64.b64decode(line.split()[5])


def test_the_same_text_is_never_locked_the_same_way(line: str) -> None:
    again = lock("identity", REPOSITORY, "1", SECRET, PASSPHRASE, cost=CHEAP)
    one, other = (base64.b64decode(each.split()[5]) for each in (line, again))
    assert not {one[at : at + 16] for at in range(len(one) - 16)} & {
        other[at : at + 16] for at in range(len(other) - 16)
    }


def test_letters_that_look_the_same_are_the_same() -> None:
    composed = unicodedata.normalize("NFC", "schöne grüße aus der höhle")
    line = lock("identity", REPOSITORY, "1", SECRET, composed, cost=CHEAP)
    assert opened(line, unicodedata.normalize("NFD", composed)) == SECRET


@pytest.mark.parametrize(
    "what", [("opener", REPOSITORY, "1"), ("identity", "f" * 32, "1"), ("identity", REPOSITORY, "2")]
)
def test_it_opens_as_nothing_else(line: str, what: tuple[str, str, str]) -> None:
    with pytest.raises(KeyFileError, match="locked for something else"):
        unlock(line, *what, PASSPHRASE, "here")
    words = line.split(" ")[:-1]
    words[1:4] = what
    with pytest.raises(KeyFileError) as caught:
        unlock(with_check(" ".join(words)), *what, PASSPHRASE, "here")
    assert caught.value.id == "wrong-passphrase"


@pytest.mark.parametrize(
    "parameters", ["14,8,4", "19,8,4", "30,8,1", "17,8,17", "17,1,4", "17,16,4", "17,8", "x", "17,8,0"]
)
def test_what_asks_for_too_much_or_too_little_is_refused_at_once(line: str, parameters: str) -> None:
    words = line.split(" ")[:-1]
    words[4] = parameters
    with pytest.raises(KeyFileError, match=r"parameters of scrypt"):
        opened(with_check(" ".join(words)))


def test_parameters_are_bound(line: str) -> None:
    words = line.split(" ")[:-1]
    words[4] = "15,8,2"
    with pytest.raises(KeyFileError) as caught:
        opened(with_check(" ".join(words)))
    assert caught.value.id == "wrong-passphrase"


def test_every_flipped_byte_shows(line: str) -> None:
    words = line.split(" ")[:-1]
    data = base64.b64decode(words[5])
    for at in range(0, len(data), 7):
        words[5] = base64.b64encode(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]).decode()
        with pytest.raises(KeyFileError):
            opened(with_check(" ".join(words)))


def test_a_damaged_line_is_not_taken_for_a_wrong_passphrase(line: str) -> None:
    with pytest.raises(KeyFileError, match="check at the end"):
        opened(line[:-1] + ("0" if line[-1] != "0" else "1"))
    with pytest.raises(KeyFileError, match="impossible length"):
        opened(with_check(" ".join([*line.split(" ")[:5], "AAAA"])))


@pytest.mark.parametrize("weak", ["", "hunter2", "fifteen letters", "a" * 40, "abcabcabcabcabcabcabc", "x y" * 500])
def test_weak_passphrases_are_refused(weak: str) -> None:
    with pytest.raises(KeyFileError) as caught:
        check_new_passphrase(weak)
    assert caught.value.id == "passphrase-weak"
    assert not weak or weak not in caught.value.message + caught.value.hint


def test_a_few_words_are_enough() -> None:
    check_new_passphrase(PASSPHRASE)
