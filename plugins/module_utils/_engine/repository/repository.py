# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Opening and creating a repository: its id, its keys, its locations."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
import pathlib
import typing as t

from ..crypto import suite
from ..crypto.keys import KeyRing, key_files, new_keys, write_keys
from ..errors import KeyFileError, LocationError, ObjectMissing, RefusedError, RepositoryError
from ..storage.base import Location, put
from ..storage.breaker import Breaker
from ..storage.fanout import Fanout
from ..storage.open import open_location
from ..storage.trial import try_location
from . import names
from .epochs import at_hand, check_published, publish, publish_missing
from .known import remember, remembered
from .wraps import spread

if t.TYPE_CHECKING:
    from ..config import RepositoryConfig

_FORMAT = "cryoprotect-backup"
_VERSION = 1
_DELETION = "mark-wait-look"


class Repository:
    """An open repository: the keys and the locations that answer.

    ``lost`` has the locations that did not, with their errors; work that must not be called
    complete without them says so (promise: a partial result is never success).
    """

    def __init__(
        self,
        keys: KeyRing,
        locations: t.Sequence[Location],
        *,
        lost: t.Mapping[str, LocationError] | None = None,
        level: int = 3,
    ) -> None:
        self.keys = keys
        self.locations = list(locations)
        self.lost: dict[str, LocationError] = dict(lost or {})
        self.level = level
        self._descriptions: dict[str, dict[str, t.Any]] = {}
        self.breaker = Breaker()
        """For all that is read in one run."""

        self.published: dict[str, dict[int, float]] = {}
        """The epochs that each location has published, and since when, as far as ``open`` opened it."""

    @property
    def id(self) -> str:
        return self.keys.repository_id

    @classmethod
    def open(cls, config: RepositoryConfig, *, need_identity: bool = False) -> Repository:
        """Raises KeyFileError, LocationError when no location answers, RepositoryError for a foreign one."""
        keys = KeyRing.load(config.keys, need_identity=need_identity)
        locations: list[Location] = []
        lost: dict[str, LocationError] = {}
        published: dict[str, dict[int, float]] = {}
        descriptions: dict[str, dict[str, t.Any]] = {}
        for location_config in config.locations.values():
            location = open_location(location_config)
            try:
                descriptions[location.name] = must_be_ours(location, keys)
                published[location.name] = check_published(location, keys)
                locations.append(location)
            except LocationError as error:
                lost[location.name] = error
        if not locations:
            raise next(iter(lost.values()))
        repository = cls(keys, locations, lost=lost, level=config.compression_level)
        repository.published = published
        repository._descriptions = descriptions
        return repository

    def fanout(self) -> Fanout:
        """For one run that writes."""
        return Fanout(self.locations)

    def require(self, operation: str) -> None:
        """Raises RepositoryError when a location needs features for this operation that we lack.

        ``operation``: read, write or delete.
        """
        for location in self.locations:
            check_features(location, self._descriptions.get(location.name) or describe(location), operation)


@dataclasses.dataclass(frozen=True, slots=True)
class InitResult:
    repository_id: str
    keys_created: bool
    locations: dict[str, bool]  # name → whether it was created now
    warnings: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # of the trials of new ones


def init(
    config: RepositoryConfig,
    now: dt.datetime,
    *,
    new: t.Collection[str] = (),
    state_directory: pathlib.Path | None = None,
) -> InitResult:
    """Create the keys if there are none, and the repository in every location that lacks it.

    ``new``: names of locations that may begin empty although the repository exists already. Any other that lacks it
    then is more likely not mounted. ``state_directory`` knows what held it before.

    A location that was away while keys were rotated or recipients were added gets what it lacks of that.
    Idempotent; durable on return. Raises KeyFileError or RepositoryError, with nothing changed,
    when a location belongs to another repository or keys of an existing one are missing; RefusedError
    ``location-missing`` when one that is not ``new`` lacks the repository.
    """
    locations = [open_location(location) for location in config.locations.values()]
    have_keys = bool(key_files(config.keys))
    present, errors = _look_for_it(locations)
    if have_keys:
        keys = KeyRing.load(config.keys)
        for location in locations:
            if present[location.name]:
                _check(location, keys)
        holder = next((each for each in locations if present[each.name]), None)
        for location in locations:
            if not present[location.name] and location.name not in new:
                _must_be_meant(location, holder, errors.get(location.name), state_directory)
    for location in locations:
        if not present[location.name]:
            location.prepare()
            present[location.name] = _exists(location)
    if not have_keys:
        taken = [location for location in locations if present[location.name]]
        if taken:
            raise KeyFileError(
                f"{taken[0].describe()} holds a repository already, and {config.keys} has no keys for it",
                hint="Nothing was changed. Copy its keys or run `cryobackup key import` with the recovery kit.",
            )
        write_keys(config.keys, new_keys(os.urandom(16).hex()))
    keys = KeyRing.load(config.keys)
    published = {location.name: _check(location, keys) for location in locations if present[location.name]}
    warnings: dict[str, list[str]] = {}
    for location in locations:
        if not present[location.name]:
            warnings[location.name] = try_location(location, names.new_id(now, os.urandom(4)))
            for epoch in at_hand(keys):
                publish(location, keys, epoch)
            put(location, names.REPOSITORY_JSON, _new_description(keys.repository_id, now))
    repository = Repository(keys, locations)
    repository.published = published
    publish_missing(repository)
    spread(locations)
    if state_directory is not None:
        remember(state_directory, repository)
    created = {name: not there for name, there in present.items()}
    return InitResult(keys.repository_id, not have_keys, created, warnings)


def _look_for_it(locations: t.Sequence[Location]) -> tuple[dict[str, bool], dict[str, LocationError]]:
    """Where the repository is. A place that does not answer, like a directory that is not mounted, does not hold it."""
    present, errors = {}, {}
    for location in locations:
        try:
            present[location.name] = _exists(location)
        except LocationError as error:
            present[location.name] = False
            errors[location.name] = error
    return present, errors


def _must_be_meant(
    location: Location, holder: Location | None, error: LocationError | None, state_directory: pathlib.Path | None
) -> None:
    """Raises RefusedError when a location would be made anew that most likely is only not mounted."""
    if state_directory is not None and remembered(state_directory, location.name):
        why = "it held the repository before"
    elif holder is not None:
        why = f"location {holder.name!r} holds it"
    else:
        return  # an init that was interrupted, or keys that were brought here first
    what = f"({location.describe()}) holds no repository" if error is None else f"does not answer ({error.message})"
    raise RefusedError(
        f"location {location.name!r} {what}, and {why}",
        hint="Nothing was changed. Mount what belongs there, or mend the way to it. If it is to begin empty: "
        f"`cryobackup init --new {location.name}`, and then `cryobackup replicate`.",
        id="location-missing",
    )


def _new_description(repository_id: str, now: dt.datetime) -> bytes:
    description = {
        "format": _FORMAT,
        "version": _VERSION,
        "id": repository_id,
        "created": now.isoformat(),
        "suite": suite.SUITE,
        "deletion": _DELETION,
        "features": {"read": [], "write": [], "delete": []},
    }
    return json.dumps(description, indent=1).encode() + b"\n"


def _exists(location: Location) -> bool:
    return location.stat(names.REPOSITORY_JSON) is not None


def describe(location: Location) -> dict[str, t.Any]:
    """What ``repository.json`` says: nothing authenticates it.

    Raises LocationError ``not-initialised`` when there is none, RepositoryError when it is of another format.
    """
    try:
        description = json.loads(location.read(names.REPOSITORY_JSON))
    except ObjectMissing as error:
        raise LocationError(
            f"location {location.name!r} ({location.describe()}) holds no repository",
            hint="Mount what belongs there, or check the path. If the location is new: "
            f"`cryobackup init --new {location.name}`. Nothing was changed.",
            id="not-initialised",
        ) from error
    except ValueError as error:
        raise RepositoryError(
            f"location {location.name!r}: {names.REPOSITORY_JSON} is not readable",
            hint="Write it again as docs/repository-format.md section 4 says; the id is in the key files.",
        ) from error
    if not isinstance(description, dict) or description.get("format") != _FORMAT:
        raise RepositoryError(f"location {location.name!r} ({location.describe()}) is no repository of this program")
    if description.get("version") != _VERSION or description.get("suite") != suite.SUITE:
        raise RepositoryError(
            f"location {location.name!r} has format version {description.get('version')}, "
            f"suite {description.get('suite')}",
            hint="It was written by a newer version: use that one. Nothing was changed.",
            id="format-version",
        )
    return description


def check_features(location: Location, description: dict[str, t.Any], operation: str) -> None:
    """Raises RepositoryError when a location that describes itself so needs features that we lack."""
    unknown = description.get("features", {}).get(operation, [])
    if unknown:
        raise RepositoryError(
            f"location {location.name!r} asks for features to {operation} that this version lacks: "
            + ", ".join(map(str, unknown)),
            hint="Use a newer version for this operation.",
            id="format-feature",
        )
    if operation == "delete" and description.get("deletion") != _DELETION:
        raise RepositoryError(
            f"location {location.name!r} has another protocol of deletion than this version",
            hint="Use the version that the repository was made with to prune.",
            id="format-feature",
        )


def must_be_ours(location: Location, keys: KeyRing) -> dict[str, t.Any]:
    """How the location describes itself. Raises LocationError when it does not answer, RepositoryError when foreign."""
    description = describe(location)
    if description.get("id") != keys.repository_id:
        raise RepositoryError(
            f"location {location.name!r} ({location.describe()}) holds repository {description.get('id')}, "
            f"the keys belong to {keys.repository_id}",
            hint="Use the keys of that repository, or another location. Nothing was changed.",
            id="foreign-repository",
        )
    return description


def _check(location: Location, keys: KeyRing) -> dict[int, float]:
    """The epochs it has published.

    Raises LocationError when it does not answer, RepositoryError or KeyFileError when it is not ours.
    """
    must_be_ours(location, keys)
    return check_published(location, keys)
