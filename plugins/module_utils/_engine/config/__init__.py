# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration: one YAML file, checked once, then plain values.

``load_config`` reports everything that is wrong with a file in one error, so that nobody has to
mend it line by line. What comes out needs no further checking: paths are absolute, names are valid
and unique, sizes are bytes, durations are seconds.
"""

from __future__ import annotations

import dataclasses
import os
import typing as t
from pathlib import Path

from ..errors import ConfigError
from .locations import LocationConfig

if t.TYPE_CHECKING:
    from datetime import datetime

    from ..retention_policy import Policy
    from ._section import Problem

DEFAULT_PATH: t.Final = Path("/etc/cryobackup/config.yml")
DEFAULT_STATE_DIRECTORY: t.Final = Path("/var/lib/cryobackup/state")
DEFAULT_COMPRESSION_LEVEL: t.Final = 3
DEFAULT_ARCHIVE_TIMEOUT_SECONDS: t.Final = 300.0
ENVIRONMENT_VARIABLE: t.Final = "CRYOBACKUP_CONFIG"
MAX_WORKERS: t.Final = 64
_DEFAULT_WORKERS_AT_MOST: t.Final = 8


@dataclasses.dataclass(frozen=True, slots=True)
class RepositoryConfig:
    locations: t.Mapping[str, LocationConfig]
    """By name, in the order in which readers ask them: by priority, then as in the file."""
    keys: Path
    """The directory of the key files."""
    compression_level: int = DEFAULT_COMPRESSION_LEVEL
    """zstd, 1 to 19."""

    def as_of(self, moment: datetime) -> RepositoryConfig:
        """To look at the repository as it was: only in locations that may keep versions, and only to read.

        Raises ConfigError, id ``no-versions``, when there is none.
        """
        past = {
            name: dataclasses.replace(location, s3=dataclasses.replace(location.s3, as_of=moment))
            for name, location in self.locations.items()
            if location.s3 is not None
        }
        if not past:
            raise ConfigError(
                "no location keeps versions, so nobody can see the repository as it was",
                hint="Only buckets (type s3) with versioning do. Leave out --as-of to read what is there now.",
                id="no-versions",
            )
        return dataclasses.replace(self, locations=past)

    def as_written(self) -> RepositoryConfig:
        """For who must not be misled: in buckets with Object Lock the first version of every object counts.

        Not every store can be told to refuse a second one, and the credentials of a stolen host can write it.
        """
        locations = {
            name: dataclasses.replace(location, s3=dataclasses.replace(location.s3, first_versions=True))
            if location.s3 is not None and location.s3.object_lock is not None and location.s3.as_of is None
            else location
            for name, location in self.locations.items()
        }
        return dataclasses.replace(self, locations=locations)

    @property
    def moment(self) -> datetime | None:
        """The time as of which it is looked at; None: now."""
        return next((each.s3.as_of for each in self.locations.values() if each.s3 is not None), None)


@dataclasses.dataclass(frozen=True, slots=True)
class Assertion:
    """A question whose answer proves that the data in a restored cluster makes sense."""

    database: str
    query: str
    expect: str | None = None
    """The first column of the first row, as PostgreSQL prints it. None: any but false, null or no row."""


@dataclasses.dataclass(frozen=True, slots=True)
class VerifyConfig:
    assertions: tuple[Assertion, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class ClusterConfig:
    """One PostgreSQL instance to back up."""

    name: str
    data_directory: Path
    connection: str
    """A libpq connection string, without any secret in it."""
    workers: int
    """Threads that read, compress and encrypt."""
    bandwidth_limit: int | None = None
    """Bytes a second that are read from the data directory at most; None: no limit."""
    bin_directory: Path | None = None
    """PostgreSQL's programs; None: found by the server's version."""
    primary: str | None = None
    """How to connect to the primary, where this is a standby; as ``connection``."""
    archive_timeout: float = DEFAULT_ARCHIVE_TIMEOUT_SECONDS
    """Seconds a backup waits for the WAL it needs to be in the archive."""
    verify: VerifyConfig = dataclasses.field(default_factory=VerifyConfig)


@dataclasses.dataclass(frozen=True, slots=True)
class FileSetConfig:
    """A named set of paths."""

    name: str
    paths: tuple[Path, ...]
    exclude: tuple[str, ...] = ()
    history: str | None = None
    """``git``: every change is kept as a commit too."""


@dataclasses.dataclass(frozen=True, slots=True)
class NotificationsConfig:
    urls_file: Path | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class MetricsConfig:
    textfile: Path | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Config:
    path: Path
    """The file it came from."""
    repository: RepositoryConfig
    retention: Policy
    clusters: t.Mapping[str, ClusterConfig] = dataclasses.field(default_factory=dict)
    file_sets: t.Mapping[str, FileSetConfig] = dataclasses.field(default_factory=dict)
    notifications: NotificationsConfig = dataclasses.field(default_factory=NotificationsConfig)
    metrics: MetricsConfig = dataclasses.field(default_factory=MetricsConfig)
    state_directory: Path = DEFAULT_STATE_DIRECTORY

    def cluster(self, name: str) -> ClusterConfig:
        """The cluster of that name. Raises ConfigError, id ``unknown-cluster``, naming those there are."""
        found = self.clusters.get(name)
        if found is None:
            raise ConfigError(
                f"there is no cluster {name!r} in {self.path}",
                hint=_known_names("clusters", self.clusters),
                id="unknown-cluster",
            )
        return found

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of all clusters and file sets, in the order of the file."""
        return (*self.clusters, *self.file_sets)


def default_config_path() -> Path:
    """Where the configuration is when nobody says: ``$CRYOBACKUP_CONFIG``, or else the path in /etc."""
    return Path(os.environ.get(ENVIRONMENT_VARIABLE) or DEFAULT_PATH)


def default_workers() -> int:
    """The processors this process may use, 8 at most."""
    return min(len(os.sched_getaffinity(0)), _DEFAULT_WORKERS_AT_MOST)


class InvalidConfig(ConfigError):
    """The configuration was read, and there are problems with it: all of them in ``problems``."""

    id = "config-invalid"

    def __init__(self, path: Path, problems: t.Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        if len(problems) == 1:
            message = f"{path}, {problems[0]}"
        else:
            message = "\n  ".join([f"{path} has {len(problems)} problems:", *map(str, problems)])
        super().__init__(message, hint="Nothing was done. `cryobackup config check` looks again.")


def load_config(path: Path | None = None) -> Config:
    """Read and check a configuration; the default one when ``path`` is None.

    Raises ConfigError when it cannot be read at all, InvalidConfig with every problem that it has,
    each with its line and its place. Touches nothing but the file: whether directories exist is
    found out by those who use them.
    """
    from ._schema import read_config
    from ._yaml import LocatedDict, read_yaml

    path = path or default_config_path()
    root = read_yaml(path)
    if not isinstance(root, LocatedDict):
        raise ConfigError(
            f"{path} is {'empty' if root is None else 'not a mapping of keys and values'}",
            hint="It needs at least `repository`, with `locations` and `keys`.",
            id="config-invalid",
        )
    config, problems = read_config(path, root)
    if problems:
        raise InvalidConfig(path, problems)
    return config


def _known_names(kind: str, known: t.Iterable[str]) -> str:
    names = ", ".join(known)
    return f"Its {kind} are: {names}." if names else f"It has no {kind} at all."
