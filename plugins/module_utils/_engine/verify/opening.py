# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Opening a repository to look for damage: what keeps others from opening a location is a finding here.

``repository.json`` and ``keys/`` are the objects that nothing authenticates. They can mislead nobody, since every
other object proves by itself that it belongs to these keys; but damage to them must show.
"""

from __future__ import annotations

import dataclasses
import json
import typing as t

from ..crypto import suite
from ..crypto.keys import KeyRing
from ..errors import ConfigError, KeyFileError, LocationError, RepositoryError
from ..repository import names
from ..repository.repository import Repository
from ..storage.open import open_location
from .result import DAMAGE, Finding

if t.TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..config import RepositoryConfig
    from ..config.locations import LocationConfig
    from ..errors import CryoError
    from ..storage.base import Location

_TEXT: t.Final = ("format", "id", "created", "deletion")
_OPERATIONS: t.Final = ("read", "write", "delete")
_MEANT: t.Final = ("foreign-repository", "wrong-key", "format-version", "format-feature")
"""What a healthy location of somebody else, or of a newer version, looks like: never taken for damage."""


@dataclasses.dataclass(slots=True)
class Opened:
    repository: Repository
    required: frozenset[str]
    """Names of the locations that must have every backup."""
    findings: list[Finding]


def open_repository(config: RepositoryConfig, only: Iterable[str] | None, *, need_identity: bool) -> Opened:
    """Open the locations (those named in ``only``), also those whose own description is damaged.

    Raises ConfigError for an unknown location, KeyFileError, RepositoryError for a location of another repository or
    version, LocationError when none answers.
    """
    chosen = _chosen(config.locations, only)
    keys = KeyRing.load(config.keys, need_identity=need_identity)
    repository = Repository(keys, [], level=config.compression_level)
    findings: list[Finding] = []
    for name, location_config in chosen.items():
        location = open_location(location_config)
        try:
            try:
                one = Repository.open(dataclasses.replace(config, locations={name: location_config}))
                one.require("read")
            except (RepositoryError, KeyFileError) as error:
                _must_be_ours(location, keys, error)
            findings += _describe_problems(location, keys)
        except LocationError as error:
            repository.lost[name] = error
        else:
            repository.locations.append(location)
    if not repository.locations:
        raise next(iter(repository.lost.values()))
    required = frozenset(name for name, location in chosen.items() if location.required)
    return Opened(repository, required, findings)


def _chosen(locations: Mapping[str, LocationConfig], only: Iterable[str] | None) -> dict[str, LocationConfig]:
    if only is None:
        return dict(locations)
    wanted = set(only)
    unknown = sorted(wanted - locations.keys())
    if unknown:
        raise ConfigError(
            f"there is no location {unknown[0]!r} in the configuration",
            hint=f"Its locations are: {', '.join(locations)}.",
            id="unknown-location",
        )
    return {name: location for name, location in locations.items() if name in wanted}


def _must_be_ours(location: Location, keys: KeyRing, error: CryoError) -> None:
    """Raises ``error`` again unless it can only come from damage."""
    missing = error.id == "not-initialised" and _has_manifests(location)
    if isinstance(error, LocationError) and not missing:
        raise error
    if error.id in _MEANT and not (error.id == "foreign-repository" and _has_our_keys(location, keys)):
        raise error
    if not missing and not _has_our_keys(location, keys) and _identifier(location) != keys.repository_id:
        raise error


def _has_manifests(location: Location) -> bool:
    return next(iter(location.list("manifests/")), None) is not None


def _has_our_keys(location: Location, keys: KeyRing) -> bool:
    return any(_is_as_published(location, info.key, keys) for info in location.list("keys/"))


def _is_as_published(location: Location, key: str, keys: KeyRing) -> bool:
    expected = _published(key, keys)
    return expected is not None and location.read(key) == expected


def _published(key: str, keys: KeyRing) -> bytes | None:
    """What ``keys/<epoch>.pub`` must hold, if the keys at hand can tell."""
    number = key.removeprefix("keys/").removesuffix(".pub")
    if not number.isascii() or not number.isdigit() or len(number) > 9 or key != f"keys/{int(number)}.pub":
        return None
    try:
        return keys.published(int(number)).encode()
    except KeyFileError:
        return None


def _identifier(location: Location) -> str | None:
    try:
        found = json.loads(location.read(names.REPOSITORY_JSON)).get("id")
    except (ValueError, AttributeError, RepositoryError):
        return None
    return found if isinstance(found, str) else None


def _describe_problems(location: Location, keys: KeyRing) -> list[Finding]:
    findings = []
    problem = _description_problem(location, keys)
    if problem is not None:
        findings.append(Finding("repository", DAMAGE, location.name, names.REPOSITORY_JSON, problem))
    epochs = {f"keys/{epoch}.pub" for role, epoch in ((key.role, key.epoch) for key in keys.keys) if role == "public"}
    there = [info.key for info in location.list("keys/")]
    missing = sorted(epochs - set(there))
    findings += [Finding("missing", DAMAGE, location.name, name, "it is missing") for name in missing]
    for name in there:
        if _published(name, keys) is not None and not _is_as_published(location, name, keys):
            what = "it is not what was written: the keys at hand are another text"
            findings.append(Finding("damaged", DAMAGE, location.name, name, what))
    return findings


def _description_problem(location: Location, keys: KeyRing) -> str | None:
    """What is wrong with ``repository.json``. All of it is looked at but the time in it, which nothing reads."""
    try:
        found = json.loads(location.read(names.REPOSITORY_JSON))
    except ValueError:
        return "it is not readable"
    except RepositoryError as error:
        if isinstance(error, LocationError):
            raise
        return "it is missing"
    if not isinstance(found, dict):
        return "it is not readable"
    features = found.get("features")
    sound = (
        all(isinstance(found.get(key), str) for key in _TEXT)
        and found["format"] == "cryoprotect-backup"
        and found["deletion"] == "mark-wait-look"
        and isinstance(features, dict)
        and all(isinstance(features.get(operation), list) for operation in _OPERATIONS)
    )
    if not sound or found.get("suite") != suite.SUITE or found.get("version") != 1:
        return "it does not say what it must"
    if found["id"] != keys.repository_id:
        return f"it says repository {found['id']}, the keys there belong to {keys.repository_id}"
    return None
