# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From a location and what one recipient has, back to all keys: for a machine that has nothing else."""

from __future__ import annotations

import dataclasses
import re
import typing as t

from ..crypto.keys import Key, KeyRing, fingerprint_of
from ..crypto.wraps import Opened, open_with_passphrase, open_wrap
from ..errors import KeyFileError, LocationError, RepositoryError, reason_of
from ..storage.open import open_location
from .epochs import check_published
from .repository import describe
from .wraps import StoredWrap, read_wraps

if t.TYPE_CHECKING:
    from ..config import RepositoryConfig
    from ..crypto.recipients import Opener
    from ..storage.base import Location

ANCHOR_DIGITS: t.Final = 32
_FINGERPRINT = re.compile(r"[0-9a-f]{16,64}")
_TRIES: t.Final = 20


@dataclasses.dataclass(slots=True)
class Recovered:
    keys: list[Key]
    wrap: str
    """The name of the wrap they were in."""
    fingerprint: str
    """What tells this repository from another one put in its place."""
    anchored: bool
    """Whether it was compared with something that the recipient knew."""
    warnings: list[str]


def recover(
    config: RepositoryConfig,
    name: str,
    *,
    opener: Opener | None = None,
    passphrase: str = "",
    fingerprint: str | None = None,
) -> Recovered:
    """The keys that are wrapped for a recipient, from the locations. Writes nothing.

    One of ``opener`` and ``passphrase``. ``fingerprint``: what was noted when the recipient was added, 16 hex digits
    or more, dashes or not. Raises KeyFileError (``unknown-recipient``, ``wrong-passphrase``,
    ``wrong-recipient-key``, ``no-passphrase``, ``wrap-damaged``, ``wrong-key``), RepositoryError when locations hold
    different repositories, LocationError when none answers.
    """
    expected = _expected(fingerprint)
    repository, locations, lost = _open(config)
    stored = read_wraps(locations, name, lost=lost)
    if not stored:
        raise KeyFileError(
            f"there is no recipient {name!r} in {', '.join(location.name for location in locations)}",
            hint="Names of recipients are those below wraps/ in a location. Otherwise there is the recovery kit: "
            "`cryobackup key import`.",
            id="unknown-recipient",
        )
    warnings = [f"location {where} was not looked at: {reason_of(error, where)}" for where, error in lost.items()]
    found, opened = _first_that_opens(stored, repository, opener, passphrase, warnings)
    published: set[int] = set()
    ring = KeyRing(opened.keys, found.name)
    for location in locations:
        published |= check_published(location, ring).keys()
    mark = fingerprint_of(opened.anchor.line(), ANCHOR_DIGITS)
    if expected is not None and not fingerprint_of(opened.anchor.line(), 64).replace("-", "").startswith(expected):
        raise KeyFileError(
            f"this is another repository than the one with the fingerprint {fingerprint}: it has {mark}",
            hint="Compare it with what was noted when the recipient was added. Somebody may have put a repository of "
            "his own in the place of yours. Nothing was changed.",
            id="wrong-key",
        )
    newer = sorted(epoch for epoch in published if epoch > max(ring.epochs("catalog")))
    if newer:
        warnings.append(
            f"epoch {newer[-1]} is published, and {name} does not have it: what was written under it cannot be read"
        )
    return Recovered(opened.keys, found.name, mark, opened.anchored or expected is not None, warnings)


def _expected(fingerprint: str | None) -> str | None:
    if fingerprint is None:
        return None
    digits = fingerprint.strip().lower().replace("-", "")
    if _FINGERPRINT.fullmatch(digits) is None:
        raise KeyFileError(
            "a fingerprint has 16 hex digits or more, in groups of four",
            hint="`cryobackup key recipient add` told it.",
        )
    return digits


def _open(config: RepositoryConfig) -> tuple[str, list[Location], dict[str, LocationError]]:
    locations: dict[str, list[Location]] = {}
    lost: dict[str, LocationError] = {}
    for location_config in config.locations.values():
        location = open_location(location_config)
        try:
            locations.setdefault(str(describe(location).get("id")), []).append(location)
        except LocationError as error:
            lost[location.name] = error
    if not locations:
        raise next(iter(lost.values()))
    if len(locations) > 1:
        places = "; ".join(f"{', '.join(each.name for each in of)}: {key}" for key, of in locations.items())
        raise RepositoryError(
            f"the locations hold different repositories ({places})",
            hint="Name the locations of one repository in the configuration. Nothing was changed.",
            id="foreign-repository",
        )
    repository = next(iter(locations))
    return repository, locations[repository], lost


def _first_that_opens(
    stored: list[StoredWrap], repository: str, opener: Opener | None, passphrase: str, warnings: list[str]
) -> tuple[StoredWrap, Opened]:
    """The newest wrap that opens. Raises the error of the newest when none does."""
    first: KeyFileError | None = None
    refused: set[str] = set()
    for each in stored[:_TRIES]:
        try:
            if each.wrap is None:
                raise each.error or KeyFileError(f"{each.name} cannot be read", id="wrap-damaged")
            if each.wrap.repository != repository:
                raise KeyFileError(f"{each.name} is of repository {each.wrap.repository}", id="wrap-damaged")
            if each.wrap.locked in refused:  # a second guess with the same passphrase is the same
                continue
            where = f"location {each.locations[0]!r}"
            if opener is not None:
                return each, open_wrap(each.wrap, opener, where)
            return each, open_with_passphrase(each.wrap, passphrase, where)
        except KeyFileError as error:
            if error.id == "wrong-passphrase" and each.wrap is not None and each.wrap.locked is not None:
                refused.add(each.wrap.locked)
            first = first or error
            warnings.append(error.message)
    raise first or KeyFileError(f"{stored[0].name} cannot be read", id="wrap-damaged")
