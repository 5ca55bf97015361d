# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Text under a passphrase: the line ``locked`` of docs/repository-format.md, section 5.

Whoever has such a line can guess passphrases offline, so that guessing is made dear (scrypt, 128 MiB and about a
second each) and short passphrases are refused. What a line asks of its reader is limited, too: it may come from a
place that somebody else writes to.
"""

from __future__ import annotations

import dataclasses
import os
import re
import typing as t
import unicodedata

from ..errors import KeyFileError
from . import suite
from .lines import from_base64, make_line, read_line, to_base64

MIN_CHARACTERS: t.Final = 16
_MIN_DISTINCT: t.Final = 6
_MAX_CHARACTERS: t.Final = 1024
_SALT_BYTES: t.Final = 32
_MAX_BOX_BYTES: t.Final = 64 << 10
_BLOCK: t.Final = 8
_PARAMETERS = re.compile(r"([1-9][0-9]?),([1-9][0-9]?),([1-9][0-9]?)")


@dataclasses.dataclass(frozen=True, slots=True)
class Cost:
    """What one guess costs: ``2 ** (log_n + 10)`` bytes of memory, ``parallel`` times the work."""

    log_n: int = 17
    parallel: int = 4

    def words(self) -> str:
        return f"{self.log_n},{_BLOCK},{self.parallel}"


USUAL: t.Final = Cost()
_LOG_N: t.Final = range(15, 19)
_PARALLEL: t.Final = range(1, 17)


def check_new_passphrase(passphrase: str) -> None:
    """Raises KeyFileError, id ``passphrase-weak``, for one that guessing would find."""
    length = len(unicodedata.normalize("NFC", passphrase))
    if length < MIN_CHARACTERS or len(set(passphrase)) < _MIN_DISTINCT:
        raise KeyFileError(
            f"the passphrase is too easy to guess: it takes {MIN_CHARACTERS} characters or more, "
            f"{_MIN_DISTINCT} different ones among them",
            hint="Whoever reads the storage can try passphrases for years. Take six words or more that dice chose, or "
            "the output of `openssl rand -base64 18`.",
            id="passphrase-weak",
        )
    if length > _MAX_CHARACTERS:
        raise KeyFileError(
            f"the passphrase has more than {_MAX_CHARACTERS} characters",
            hint="Is this the right file?",
            id="passphrase-weak",
        )


def lock(what: str, repository: str, name: str, text: str, passphrase: str, *, cost: Cost = USUAL) -> str:
    """The line that holds ``text``, openable with the passphrase only. Takes a second and 128 MiB.

    ``what``, ``repository`` and ``name`` are bound: the line opens as nothing else. Raises KeyFileError,
    id ``passphrase-weak``.
    """
    check_new_passphrase(passphrase)
    salt = os.urandom(_SALT_BYTES)
    key, commitment = suite.passphrase_key(_encoded(passphrase), salt, cost.log_n, _BLOCK, cost.parallel)
    body = _associated(what, repository, name, cost.words())
    box = suite.lock(key, text.encode(), body.encode())
    return make_line("locked", what, repository, name, cost.words(), to_base64(salt + commitment + box))


def unlock(line: str, what: str, repository: str, name: str, passphrase: str, where: str) -> str:
    """The text of a locked line.

    Raises KeyFileError: id ``wrong-passphrase``; ``key-file`` when it is no such line, or not of this repository and
    name, or asks for more memory or work than is reasonable.
    """
    words = read_line(line, "locked", 5, where)
    if words[:3] != [what, repository, name]:
        raise KeyFileError(f"{where}: this line is locked for something else")
    match = _PARAMETERS.fullmatch(words[3])
    log_n, block, parallel = (int(part) for part in match.groups()) if match else (0, 0, 0)
    if log_n not in _LOG_N or block != _BLOCK or parallel not in _PARALLEL:
        raise KeyFileError(
            f"{where}: its parameters of scrypt are outside of what is accepted",
            hint="It was written by another program, or somebody changed it.",
        )
    data = from_base64(words[4], where)
    salt, commitment, box = data[:_SALT_BYTES], data[_SALT_BYTES : 2 * _SALT_BYTES], data[2 * _SALT_BYTES :]
    if len(box) < suite.TAG_BYTES or len(box) > _MAX_BOX_BYTES:
        raise KeyFileError(f"{where}: it has an impossible length")
    key, expected = suite.passphrase_key(_encoded(passphrase), salt, log_n, block, parallel)
    plain = None
    if suite.equal(commitment, expected):
        plain = suite.unlock(key, box, _associated(what, repository, name, words[3]).encode())
    if plain is None:
        raise KeyFileError(
            f"{where}: the passphrase is another one",
            hint="Nothing was changed. Capital letters, the keyboard's layout, a blank at the end?",
            id="wrong-passphrase",
        )
    return plain.decode("utf-8", "replace")


def _associated(what: str, repository: str, name: str, parameters: str) -> str:
    """All of the line before the box, the space before it included."""
    return f"cryo-locked-1 {what} {repository} {name} {parameters} "


def _encoded(passphrase: str) -> bytes:
    return unicodedata.normalize("NFC", passphrase).encode("utf-8", "surrogateescape")
