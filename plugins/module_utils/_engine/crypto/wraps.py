# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Wraps: the secrets of epochs for one recipient, as text (docs/repository-format.md, section 5)."""

from __future__ import annotations

import dataclasses
import typing as t

from ..errors import KeyFileError
from . import suite
from .keys import Key, KeyRing, line_digest, parse_lines
from .lines import from_base64, make_line, read_line, to_base64
from .passphrase import USUAL, Cost, lock, unlock
from .recipients import Opener, Recipient

MAX_BYTES: t.Final = 256 << 10
_MAX_EPOCHS: t.Final = 1000
_SECRETS: t.Final = ("catalog", "identity")


@dataclasses.dataclass(frozen=True, slots=True)
class Wrap:
    """One wrap as it was read. Nothing in it is proven before ``is_proven`` or ``open_wrap``."""

    name: str
    """Of the object."""
    repository: str
    recipient: Recipient
    epochs: tuple[int, ...]
    sealed: bytes = dataclasses.field(repr=False)
    locked: str | None = dataclasses.field(repr=False)
    proof_epoch: int
    proof: bytes = dataclasses.field(repr=False)
    body: bytes = dataclasses.field(repr=False)
    """All lines before that of the proof."""

    @property
    def has_passphrase(self) -> bool:
        return self.locked is not None


def make_wrap(
    keys: KeyRing, name: str, recipient: Recipient, epochs: t.Iterable[int], locked: str | None = None
) -> bytes:
    """The bytes of a wrap. ``locked``: the opener under a passphrase (``lock_opener``), for who has no key file.

    Raises KeyFileError when catalog key or identity of one of the epochs are not at hand.
    """
    chosen = sorted(set(epochs))
    secrets = [keys.key(role, epoch) for epoch in chosen for role in _SECRETS]
    if 1 not in chosen:
        secrets.append(keys.digest_line())
    plain = "".join(f"{key.line()}\n" for key in secrets).encode()
    sealed = suite.wrap(plain, recipient.public, keys.repository, name.encode())
    lines = [
        recipient.line(),
        make_line("wrap", keys.repository_id, ",".join(map(str, chosen)), to_base64(sealed)),
    ]
    if locked is not None:
        lines.append(locked)
    body = "".join(f"{line}\n" for line in lines).encode()
    proof = _proof(keys, chosen[-1], name, body)
    return body + f"{make_line('proof', keys.repository_id, str(chosen[-1]), to_base64(proof))}\n".encode()


def _proof(keys: KeyRing, epoch: int, name: str, body: bytes) -> bytes:
    return suite.wrap_proof(keys.identity(epoch), keys.catalog(epoch), keys.repository, name.encode() + b"\n" + body)


def lock_opener(keys: KeyRing, opener: Opener, lowest_epoch: int, passphrase: str, *, cost: Cost = USUAL) -> str:
    """The line that a passphrase opens: the opener, and by which identity the repository is known.

    Raises KeyFileError, id ``passphrase-weak``.
    """
    anchor = line_digest(keys.key("identity", lowest_epoch).line())
    line = make_line("anchor", keys.repository_id, str(lowest_epoch), to_base64(anchor))
    return lock("opener", keys.repository_id, opener.name, f"{opener.line()}\n{line}\n", passphrase, cost=cost)


def parse_wrap(data: bytes, name: str, where: str) -> Wrap:
    """Raises KeyFileError, id ``wrap-damaged``, when it is not one, or of another recipient than its name says."""
    try:
        return _parse_wrap(data, name, f"{where}: {name}")
    except KeyFileError as error:
        raise KeyFileError(
            error.message,
            hint="It is damaged, or somebody else put it there. An older one of the same recipient may do.",
            id="wrap-damaged",
        ) from error


def _parse_wrap(data: bytes, name: str, where: str) -> Wrap:
    text = data.decode("ascii", "replace")
    lines = text.split("\n")
    if len(data) > MAX_BYTES or len(lines) not in (4, 5) or lines[-1]:
        raise KeyFileError(f"{where} does not have the lines of a wrap")
    recipient = Recipient.parse(lines[0], where)
    if name.split("/")[1] != recipient.name:
        raise KeyFileError(f"{where} is the wrap of {recipient.name}, under a wrong name")
    repository, epochs, sealed = read_line(lines[1], "wrap", 3, where)
    of_proof, epoch, proof = read_line(lines[-2], "proof", 3, where)
    numbers = _epochs(epochs, where)
    if of_proof != repository or epoch != str(numbers[-1]):
        raise KeyFileError(f"{where}: its proof is of something else")
    return Wrap(
        name,
        repository,
        recipient,
        numbers,
        from_base64(sealed, where),
        lines[2] if len(lines) == 5 else None,
        numbers[-1],
        from_base64(proof, where),
        text[: text.rindex("\n", 0, -1) + 1].encode("ascii", "replace"),
    )


def _epochs(text: str, where: str) -> tuple[int, ...]:
    words = text.split(",")
    if len(words) > _MAX_EPOCHS or not all(word.isascii() and word.isdigit() and len(word) <= 9 for word in words):
        raise KeyFileError(f"{where}: its list of epochs makes no sense")
    numbers = tuple(int(word) for word in words)
    if numbers[0] < 1 or list(numbers) != sorted(set(numbers)) or text != ",".join(map(str, numbers)):
        raise KeyFileError(f"{where}: its list of epochs makes no sense")
    return numbers


def is_proven(wrap: Wrap, keys: KeyRing) -> bool:
    """Whether somebody made it who had the identity. The identity of its highest epoch must be at hand."""
    return wrap.repository == keys.repository_id and suite.equal(
        _proof(keys, wrap.proof_epoch, wrap.name, wrap.body), wrap.proof
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Opened:
    """What a wrap held."""

    keys: list[Key]
    """Public keys included: they follow from the identities."""
    anchor: Key
    """The identity of the lowest epoch: what tells this repository from any other."""
    anchored: bool
    """Whether the recipient himself knew it: by his passphrase."""


def open_with_passphrase(wrap: Wrap, passphrase: str, where: str) -> Opened:
    """Raises KeyFileError: ``wrong-passphrase``, ``wrap-damaged``, ``no-passphrase`` when there is none."""
    if wrap.locked is None:
        raise KeyFileError(
            f"recipient {wrap.recipient.name} has a key file, and no passphrase",
            hint="Name the file: --key FILE.",
            id="no-passphrase",
        )
    text = unlock(wrap.locked, "opener", wrap.repository, wrap.recipient.name, passphrase, f"{where}: {wrap.name}")
    lines = text.splitlines()
    opener = Opener.parse(lines[0], where)
    repository, epoch, anchor = read_line(lines[1], "anchor", 3, where)
    opened = open_wrap(wrap, opener, where)
    known = (opened.anchor.repository, str(opened.anchor.epoch), line_digest(opened.anchor.line()))
    if known != (repository, epoch, from_base64(anchor, where)):
        raise _false(wrap, where, "its keys are not those of the repository that the passphrase was made for")
    return dataclasses.replace(opened, anchored=True)


def open_wrap(wrap: Wrap, opener: Opener, where: str) -> Opened:
    """The keys in a wrap, after all has been checked that can be checked without the repository.

    Raises KeyFileError: ``wrong-recipient-key`` when the key is of somebody else, ``wrap-damaged``.
    """
    if opener.recipient != wrap.recipient:
        raise KeyFileError(
            f"{where}: {wrap.name} was made for another key of {wrap.recipient.name}",
            hint=f"Its fingerprint is {wrap.recipient.fingerprint()}, that of the key at hand "
            f"{opener.recipient.fingerprint()}.",
            id="wrong-recipient-key",
        )
    plain = suite.unwrap(wrap.sealed, opener.private, bytes.fromhex(wrap.repository), wrap.name.encode())
    if plain is None:
        raise _false(wrap, where, "it does not open")
    keys = parse_lines(plain.decode("ascii", "replace"), f"{where}: {wrap.name}")
    wanted = {(role, epoch) for epoch in wrap.epochs for role in _SECRETS}
    if 1 not in wrap.epochs:
        wanted.add(("digest", 1))
    if {(key.role, key.epoch) for key in keys} != wanted or len(keys) != len(wanted):
        raise _false(wrap, where, "it holds other keys than it says")
    if {key.repository for key in keys} != {wrap.repository}:
        raise _false(wrap, where, "it holds keys of another repository")
    ring = KeyRing(keys, wrap.name)
    if not is_proven(wrap, ring):
        raise _false(wrap, where, "its proof does not fit")
    public = [
        Key("public", key.repository, key.epoch, suite.public_of(key.material))
        for key in keys
        if key.role == "identity"
    ]
    return Opened([*keys, *public], ring.key("identity", wrap.epochs[0]), anchored=False)


def _false(wrap: Wrap, where: str, why: str) -> KeyFileError:
    return KeyFileError(
        f"{where}: {wrap.name} is not what a keeper of the keys has made: {why}",
        hint="It was damaged, or somebody put it there who has no right to. Nothing was changed.",
        id="wrap-damaged",
    )
