# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Wraps in the locations: finding, adding, removing them (docs/repository-format.md, section 5)."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import os
import re
import typing as t

from ..crypto.recipients import NAME, Recipient
from ..crypto.wraps import MAX_BYTES, Wrap, is_proven, make_wrap, parse_wrap
from ..errors import CryoError, KeyFileError, LocationError, ObjectConflict, ObjectMissing
from ..storage.base import Location, put
from . import names

if t.TYPE_CHECKING:
    from ..crypto.keys import KeyRing
    from .repository import Repository

_PREFIX: t.Final = "wraps/"
_NAME = re.compile(rf"wraps/({NAME.pattern})/({names.IDENTIFIER.pattern})")

CURRENT, OLDER, FALSE, UNKNOWN = "current", "older", "false", "unknown"


def recipient_of(name: str) -> str | None:
    """None for anything that is not the name of a wrap."""
    match = _NAME.fullmatch(name)
    return match[1] if match else None


@dataclasses.dataclass(slots=True)
class StoredWrap:
    """A wrap, or what should be one: then ``error`` says why it is not."""

    name: str
    recipient: str
    locations: list[str]
    wrap: Wrap | None
    error: KeyFileError | None


def read_wraps(
    locations: t.Iterable[Location], recipient: str | None = None, *, lost: dict[str, LocationError]
) -> list[StoredWrap]:
    """All wraps (of one recipient), the newest first. Locations that fail are added to ``lost``."""
    found: dict[str, StoredWrap] = {}
    for location in locations:
        try:
            for info in list(location.list(f"{_PREFIX}{recipient}/" if recipient else _PREFIX)):
                of = recipient_of(info.key)
                if of is None:
                    continue
                stored = found.setdefault(info.key, StoredWrap(info.key, of, [], None, None))
                stored.locations.append(location.name)
                if stored.wrap is None:
                    _read(location, info.size, stored)
        except LocationError as error:
            lost[location.name] = error
    return sorted(found.values(), key=lambda stored: stored.name.rpartition("/")[2], reverse=True)


def _read(location: Location, size: int, stored: StoredWrap) -> None:
    where = f"location {location.name!r}"
    try:
        if size > MAX_BYTES:
            raise KeyFileError(f"{where}: {stored.name} is too large for a wrap", id="wrap-damaged")
        stored.wrap = parse_wrap(location.read(stored.name), stored.name, where)
        stored.error = None
    except ObjectMissing:
        stored.error = KeyFileError(f"{where}: {stored.name} was removed meanwhile", id="wrap-damaged")
    except KeyFileError as error:
        stored.error = error


@dataclasses.dataclass(frozen=True, slots=True)
class Standing:
    """A recipient as the repository shows him."""

    name: str
    state: str
    """``current``: has the newest epoch. ``older``: has not, whether a rotation left him out or somebody put an old
    wrap back. ``false``: no keeper of the keys has made any of his wraps. ``unknown``: to tell that, the identity is
    missing here."""
    wrap: Wrap | None
    """The newest one that counts."""
    locations: tuple[str, ...]

    def as_dict(self) -> dict[str, t.Any]:
        wrap = self.wrap
        return {
            "name": self.name,
            "state": self.state,
            "fingerprint": None if wrap is None else wrap.recipient.fingerprint(),
            "epochs": [] if wrap is None else list(wrap.epochs),
            "passphrase": None if wrap is None else wrap.has_passphrase,
            "locations": list(self.locations),
        }


def standings(stored: t.Sequence[StoredWrap], keys: KeyRing, epoch: int) -> list[Standing]:
    """The recipients, by name, with the wrap of each that counts. ``epoch``: what counts as the newest one."""
    return [
        _standing(name, [each for each in stored if each.recipient == name], keys, epoch)
        for name in sorted({each.recipient for each in stored})
    ]


def _standing(name: str, stored: list[StoredWrap], keys: KeyRing, epoch: int) -> Standing:
    readable = [(each.wrap, each) for each in stored if each.wrap is not None]
    checkable = _checkable(keys)
    proven = [each for each in readable if each[0].proof_epoch in checkable and is_proven(each[0], keys)]
    if proven:  # the first of equals is the newest
        wrap, best = max(proven, key=lambda each: each[0].proof_epoch)
        return Standing(name, CURRENT if wrap.proof_epoch >= epoch else OLDER, wrap, tuple(best.locations))
    unknown = [each for each in readable if each[0].proof_epoch not in checkable]
    if unknown:
        return Standing(name, UNKNOWN, unknown[0][0], tuple(unknown[0][1].locations))
    return Standing(name, FALSE, None, ())


def _checkable(keys: KeyRing) -> set[int]:
    """Of which epochs a proof can be checked."""
    return keys.epochs("identity") & keys.epochs("catalog")


def problem(stored: StoredWrap, keys: KeyRing) -> str | None:
    """What is wrong with a wrap, as far as the keys at hand tell."""
    if stored.wrap is None:
        return "it cannot be read" if stored.error is None else stored.error.message
    if stored.wrap.proof_epoch in _checkable(keys) and not is_proven(stored.wrap, keys):
        return "it is not what was written, or nobody who had the identity has made it"
    return None


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """What was done with the wraps of a recipient, location by location."""

    name: str
    changed: bool
    errors: dict[str, CryoError]
    """Where it could not be done."""


def add_wrap(
    repository: Repository,
    keys: KeyRing,
    recipient: Recipient,
    epochs: t.Iterable[int],
    now: dt.datetime,
    *,
    locked: str | None = None,
) -> Change:
    """Wrap epochs for a recipient, in every location that answers. Durable on return.

    Raises KeyFileError when secrets are missing, LocationError when no location takes it.
    """
    name = f"{_PREFIX}{recipient.name}/{names.new_id(now, os.urandom(4))}"
    data = make_wrap(keys, name, recipient, epochs, locked)
    errors: dict[str, CryoError] = dict(repository.lost)
    for location in repository.locations:
        try:
            put(location, name, data)
        except LocationError as error:
            errors[location.name] = error
    if all(location.name in errors for location in repository.locations):
        raise errors[repository.locations[0].name]
    return Change(name, changed=True, errors=errors)


def remove_wraps(repository: Repository, stored: t.Iterable[StoredWrap]) -> dict[str, CryoError]:
    """Delete wraps wherever they are. Returns the locations that did not let it happen."""
    errors: dict[str, CryoError] = dict(repository.lost)
    places = {location.name: location for location in repository.locations}
    for each in stored:
        for where in each.locations:
            try:
                places[where].delete(each.name)
            except LocationError as error:
                errors[where] = error
    return errors


def spread(locations: t.Sequence[Location]) -> None:
    """Bring every location the wraps that others have: each is to be complete by itself. As well as can be done."""
    found = read_wraps(locations, lost={})
    by_name = {location.name: location for location in locations}
    for stored in found:
        if stored.wrap is None:
            continue
        for name in by_name.keys() - set(stored.locations):
            with contextlib.suppress(LocationError, ObjectMissing, ObjectConflict):
                put(by_name[name], stored.name, by_name[stored.locations[0]].read(stored.name))
