# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a keeper of the keys does with recipients. All of it needs the identity."""

from __future__ import annotations

import dataclasses
import datetime as dt
import typing as t

from ..crypto.keys import KeyRing, fingerprint_of
from ..crypto.passphrase import check_new_passphrase
from ..crypto.recipients import Opener, Recipient
from ..crypto.wraps import lock_opener
from ..errors import CryoError, KeyFileError, LocationError
from .epochs import behind
from .recovery import ANCHOR_DIGITS
from .repository import Repository
from .wraps import CURRENT, FALSE, OLDER, Standing, StoredWrap, add_wrap, read_wraps, remove_wraps, standings

if t.TYPE_CHECKING:
    from ..config import RepositoryConfig


@dataclasses.dataclass(frozen=True, slots=True)
class Added:
    """A recipient who has the keys."""

    recipient: Recipient
    epochs: tuple[int, ...]
    wrap: str
    """The name of the object."""
    repository_fingerprint: str
    """What the recipient notes, to know the repository again."""
    changed: bool
    errors: dict[str, CryoError]
    """Locations that do not have the wrap."""


@dataclasses.dataclass(slots=True)
class _Keeper:
    repository: Repository
    stored: list[StoredWrap]
    known: dict[str, Standing]

    @property
    def keys(self) -> KeyRing:
        return self.repository.keys

    @classmethod
    def open(cls, config: RepositoryConfig) -> t.Self:
        repository = Repository.open(config, need_identity=True)
        newer = behind(repository)
        if newer is not None:
            raise newer
        repository.keys.identity(repository.keys.epoch)
        stored = read_wraps(repository.locations, lost=repository.lost)
        repository.locations = [place for place in repository.locations if place.name not in repository.lost]
        if not repository.locations:
            raise next(iter(repository.lost.values()))
        known = standings(stored, repository.keys, repository.keys.epoch)
        return cls(repository, stored, {standing.name: standing for standing in known})

    def epochs_from(self, first: int) -> tuple[int, ...]:
        at_hand = self.keys.epochs("identity") & self.keys.epochs("catalog")
        chosen = tuple(sorted(epoch for epoch in at_hand if epoch >= first))
        if first < 1 or not chosen:
            raise KeyFileError(
                f"there is no epoch {first}",
                hint=f"The keys here are of epoch {', '.join(map(str, sorted(at_hand)))}.",
                id="no-epoch-key",
            )
        return chosen

    def fingerprint(self, epochs: tuple[int, ...]) -> str:
        return fingerprint_of(self.keys.key("identity", epochs[0]).line(), ANCHOR_DIGITS)

    def wrap(self, recipient: Recipient, epochs: tuple[int, ...], now: dt.datetime, locked: str | None) -> Added:
        change = add_wrap(self.repository, self.keys, recipient, epochs, now, locked=locked)
        return Added(recipient, epochs, change.name, self.fingerprint(epochs), changed=True, errors=change.errors)

    def must_be_new(self, name: str) -> None:
        standing = self.known.get(name)
        if standing is not None and standing.state != FALSE:
            raise KeyFileError(
                f"there is a recipient {name!r} already, with another key",
                hint="Remove it first (`cryobackup key recipient remove`), give it another passphrase "
                "(`cryobackup key recipient passphrase`), or choose another name. Nothing was changed.",
                id="recipient-exists",
            )

    def must_exist(self, name: str) -> Standing:
        standing = self.known.get(name)
        if standing is None:
            raise KeyFileError(
                f"there is no recipient {name!r}",
                hint="`cryobackup key recipient list` shows them. Nothing was changed.",
                id="unknown-recipient",
            )
        return standing


def add_recipient(
    config: RepositoryConfig, name: str, recipient: Recipient, now: dt.datetime, *, from_epoch: int = 1
) -> Added:
    """Wrap the keys at hand for somebody with a key file. Idempotent; durable on return.

    A recipient whom a rotation left out gets what he lacks. Raises KeyFileError: ``recipient-name`` when the file is
    of another name, ``recipient-exists``, ``no-identity``, ``no-epoch-key``, ``older-epoch``.
    """
    if recipient.name != name:
        raise KeyFileError(
            f"this is the key of recipient {recipient.name!r}, not of {name!r}",
            hint=f"Add it as {recipient.name}. Nothing was changed.",
            id="recipient-name",
        )
    keeper = _Keeper.open(config)
    epochs = keeper.epochs_from(from_epoch)
    standing = keeper.known.get(name)
    wrap = None if standing is None else standing.wrap
    if standing is None or wrap is None or wrap.recipient != recipient:
        keeper.must_be_new(name)
    elif standing.state == CURRENT and set(epochs) <= set(wrap.epochs):
        mark = keeper.fingerprint(wrap.epochs)
        return Added(recipient, wrap.epochs, wrap.name, mark, changed=False, errors=dict(keeper.repository.lost))
    return keeper.wrap(recipient, epochs, now, None)


def add_recipient_with_passphrase(
    config: RepositoryConfig, name: str, passphrase: str, now: dt.datetime, *, from_epoch: int = 1
) -> Added:
    """Wrap the keys at hand for somebody who has nothing but a passphrase. Durable on return.

    Raises KeyFileError as ``add_recipient``, and ``passphrase-weak``.
    """
    check_new_passphrase(passphrase)
    keeper = _Keeper.open(config)
    keeper.must_be_new(name)
    return _wrap_with_passphrase(keeper, name, keeper.epochs_from(from_epoch), passphrase, now)


def change_passphrase(config: RepositoryConfig, name: str, passphrase: str, now: dt.datetime) -> Added:
    """Another passphrase for a recipient who has one; the old one need not be known. Durable on return.

    The new wrap is there before the old ones go. Raises KeyFileError: ``unknown-recipient``, ``no-passphrase``,
    ``passphrase-weak``.
    """
    check_new_passphrase(passphrase)
    keeper = _Keeper.open(config)
    wrap = keeper.must_exist(name).wrap
    if wrap is None or not wrap.has_passphrase:
        raise KeyFileError(
            f"recipient {name} has a key file, and no passphrase",
            hint="Remove it and add it anew. Nothing was changed.",
            id="no-passphrase",
        )
    if keeper.known[name].state not in (CURRENT, OLDER):
        keeper.must_be_new(name)
    added = _wrap_with_passphrase(keeper, name, wrap.epochs, passphrase, now)
    errors = remove_wraps(keeper.repository, [each for each in keeper.stored if each.recipient == name])
    return dataclasses.replace(added, errors={**added.errors, **errors})


def _wrap_with_passphrase(
    keeper: _Keeper, name: str, epochs: tuple[int, ...], passphrase: str, now: dt.datetime
) -> Added:
    opener = Opener.generate(name)
    locked = lock_opener(keeper.keys, opener, epochs[0], passphrase)
    return keeper.wrap(opener.recipient, epochs, now, locked)


def remove_recipient(config: RepositoryConfig, name: str) -> tuple[list[str], dict[str, CryoError]]:
    """Delete all wraps of a recipient; the names of those that went, and the locations that did not let it happen.

    Only a rotation keeps him out of what is written later. Raises KeyFileError ``unknown-recipient``.
    """
    repository = Repository.open(config)
    stored = read_wraps(repository.locations, name, lost=repository.lost)
    if not stored:
        _Keeper(repository, [], {}).must_exist(name)
    repository.locations = [place for place in repository.locations if place.name not in repository.lost]
    errors = remove_wraps(repository, stored)
    return [each.name for each in stored if not set(each.locations) & errors.keys()], errors


def list_recipients(config: RepositoryConfig) -> tuple[int, list[Standing], dict[str, LocationError]]:
    """The epoch in use, the recipients, and the locations that did not answer. Changes nothing."""
    repository = Repository.open(config)
    stored = read_wraps(repository.locations, lost=repository.lost)
    return repository.keys.epoch, standings(stored, repository.keys, repository.keys.epoch), repository.lost
