# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What parts of the configuration, each of them sound, must not contradict."""

from __future__ import annotations

import typing as t
from pathlib import Path, PurePosixPath

from . import Config
from ._section import NOWHERE, Section
from .locations import LocationConfig

Place: t.TypeAlias = tuple[str, ...]


def check_together(config: Config, top: Section) -> None:
    for name in config.file_sets:
        if name in config.clusters:
            top.problem_at(("file_sets", name), "is the name of a cluster already: names of sources are unique")
    _check_directories(config, top)
    _check_remote_places(config, top)
    _check_secrets(config, top)


def _check_directories(config: Config, top: Section) -> None:
    """No two things in one directory, and nothing where a loss of one takes the other with it."""
    locations = _directories(config)
    clusters: list[tuple[Place, Path]] = [
        (("clusters", name, "data_directory"), cluster.data_directory) for name, cluster in config.clusters.items()
    ]
    keys: tuple[Place, Path] = (("repository", "keys"), config.repository.keys)
    for number, other in enumerate(locations):
        for one in locations[:number]:
            if _overlap(one[1], other[1]):
                top.problem_at(other[0], f"must not share a directory with {'.'.join(one[0])}")
    for number, other in enumerate(clusters):
        for one in clusters[:number]:
            if one[1] == other[1] != NOWHERE:
                top.problem_at(other[0], f"is the same directory as {'.'.join(one[0])}")
    for location in locations:
        if _within(keys[1], location[1]):
            top.problem_at(keys[0], "must not be in a location: whoever gets the one would have the other too")
        for cluster in clusters:
            if _overlap(location[1], cluster[1]):
                top.problem_at(location[0], f"must not share a directory with {'.'.join(cluster[0])}")


def _directories(config: Config) -> list[tuple[Place, Path]]:
    """Those of locations on this host."""
    return [
        (_place(name, "path"), location.path)
        for name, location in config.repository.locations.items()
        if location.path is not None
    ]


def _check_remote_places(config: Config, top: Section) -> None:
    """Two locations in one place are one copy, and each would take the other's objects for its own."""
    known: list[tuple[str, tuple[str, ...], PurePosixPath]] = []
    for name, location in config.repository.locations.items():
        where = _remote(location)
        if where is None:
            continue
        for other, (service, path) in [(each[0], each[1:]) for each in known]:
            if service == where[0] and (path.is_relative_to(where[1]) or where[1].is_relative_to(path)):
                key = "path" if location.sftp is not None else "prefix" if where[1].parts else "bucket"
                what = "directory" if location.sftp is not None else "bucket and prefix"
                text = f"must not be in the same {what} as repository.locations.{other}, nor in a part of it"
                top.problem_at(_place(name, key), text)
                break
        known.append((name, *where))


def _remote(location: LocationConfig) -> tuple[tuple[str, ...], PurePosixPath] | None:
    """The service, and the place in it. A name of a bucket is unique among all of one service."""
    if location.s3 is not None and location.s3.bucket:
        endpoint = (location.s3.endpoint_url or "").rstrip("/").lower()
        return (endpoint, location.s3.bucket), PurePosixPath(location.s3.prefix)
    if location.sftp is not None and location.sftp.host and location.sftp.path:
        sftp = location.sftp
        path = PurePosixPath(sftp.path)
        # What is relative begins where the server puts its user.
        home = "" if path.is_absolute() else sftp.user
        return (sftp.host.lower(), str(sftp.port), home), path
    return None


def _check_secrets(config: Config, top: Section) -> None:
    """Whoever gets the repository must not find the key to its other copies in it."""
    locations = _directories(config)
    for name, location in config.repository.locations.items():
        for key, path in _secret_files(location):
            if any(_within(path, directory) for _unused, directory in locations):
                top.problem_at(
                    _place(name, key), "must not be in a location: whoever gets the one would have the other too"
                )


def _secret_files(location: LocationConfig) -> list[tuple[str, Path]]:
    found = []
    if location.s3 is not None:
        found += [
            ("credentials_file", location.s3.credentials_file),
            ("web_identity_token_file", location.s3.web_identity_token_file),
        ]
    if location.sftp is not None:
        found.append(("key_file", location.sftp.key_file))
    return [(key, path) for key, path in found if path is not None]


def _place(location: str, key: str) -> Place:
    return ("repository", "locations", location, key)


def _within(inner: Path, outer: Path) -> bool:
    return NOWHERE not in (inner, outer) and inner.is_relative_to(outer)


def _overlap(one: Path, other: Path) -> bool:
    return _within(one, other) or _within(other, one)
