# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Recipients: whom the secrets of epochs are wrapped for (docs/repository-format.md, section 5)."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import typing as t

from ..errors import KeyFileError
from . import suite
from .keys import ROLES, fingerprint_of, read_file, sync_directory, write_new
from .lines import from_base64, make_line, read_line, to_base64

NAME: t.Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
MAX_BYTES: t.Final = 64 << 10


def check_name(name: str) -> str:
    """Raises KeyFileError, id ``recipient-name``."""
    if NAME.fullmatch(name) is None:
        raise KeyFileError(
            f"{name!r} cannot be the name of a recipient",
            hint="Use a-z, 0-9, _ and -, beginning with a letter or a digit. Everybody who sees the storage sees it.",
            id="recipient-name",
        )
    return name


@dataclasses.dataclass(frozen=True, slots=True)
class Recipient:
    """A name and the public key to wrap for."""

    name: str
    public: bytes

    def line(self) -> str:
        return make_line("recipient", self.name, to_base64(self.public))

    def fingerprint(self) -> str:
        """What two people compare over the telephone."""
        return fingerprint_of(self.line())

    @classmethod
    def parse(cls, line: str, where: str) -> t.Self:
        """Raises KeyFileError naming ``where``."""
        name, encoded = read_line(line, "recipient", 2, where)
        public = from_base64(encoded, where)
        if len(public) != ROLES["public"] or not suite.is_public_key(public):
            raise KeyFileError(f"{where}: this is no public key of a recipient")
        return cls(check_name(name), public)


@dataclasses.dataclass(frozen=True, slots=True)
class Opener:
    """A name and the private key that opens what was wrapped for it."""

    name: str
    private: bytes = dataclasses.field(repr=False)

    def line(self) -> str:
        return make_line("opener", self.name, to_base64(self.private))

    @property
    def recipient(self) -> Recipient:
        return Recipient(self.name, suite.public_of(self.private))

    @classmethod
    def parse(cls, line: str, where: str) -> t.Self:
        """Raises KeyFileError naming ``where``; the line is never repeated."""
        name, encoded = read_line(line, "opener", 2, where)
        private = from_base64(encoded, where)
        if len(private) != ROLES["identity"]:
            raise KeyFileError(f"{where}: this is no key of a recipient")
        return cls(check_name(name), private)

    @classmethod
    def generate(cls, name: str) -> t.Self:
        private, _public = suite.generate_identity()
        return cls(check_name(name), private)


def write_opener(opener: Opener, secret: pathlib.Path, public: pathlib.Path) -> None:
    """Two new files, durable on return. Raises KeyFileError, with nothing written, when one of them exists."""
    recipient = opener.recipient
    texts = (
        (secret, f"# CryoProtect Backup: recipient key of {opener.name}. Secret.\n{opener.line()}\n", 0o400),
        (public, f"# CryoProtect Backup: public key of recipient {opener.name}.\n{recipient.line()}\n", 0o444),
    )
    if secret == public:
        raise KeyFileError(f"the secret file cannot be {secret}", hint="Name one that does not end with .pub.")
    for path in (secret, public):
        if path.exists():
            raise KeyFileError(
                f"{path} exists already",
                hint="Nothing was overwritten. Choose another file, or move it away.",
                id="output-exists",
            )
    for path, text, mode in texts:
        try:
            write_new(path, text, mode)
            sync_directory(path.parent)
        except OSError as error:
            raise KeyFileError(f"cannot write {path}: {error.strerror}", hint="Name another file.") from error


def read_recipient(path: pathlib.Path) -> Recipient:
    """The public key in a file. Raises KeyFileError."""
    return Recipient.parse(_only_line(path, secret=False, role="recipient"), str(path))


def read_opener(path: pathlib.Path) -> Opener:
    """The private key in a file. Raises KeyFileError, id ``key-file-mode`` when others may read it."""
    return Opener.parse(_only_line(path, secret=True, role="opener"), str(path))


def _only_line(path: pathlib.Path, *, secret: bool, role: str) -> str:
    text = read_file(path, secret=False)
    if text is None:
        raise KeyFileError(f"there is no file {path}", hint="Check the path.")
    lines = [line for line in text[:MAX_BYTES].splitlines() if line.startswith("cryo-")]
    if len(lines) != 1 or not lines[0].startswith(f"cryo-{role}-1 "):
        other = "the public one, which ends with .pub" if role == "recipient" else "the secret one"
        raise KeyFileError(
            f"{path} is not a file of a recipient with one line cryo-{role}-1",
            hint=f"`cryobackup key recipient new NAME` makes two files; this is to be {other}.",
        )
    read_file(path, secret=secret)  # only now: a public file named by mistake is no secret that others can read
    return lines[0]
