# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the archiver goes by, and looks at anew when it has changed: the configuration, the keys, the locations."""

from __future__ import annotations

import threading
import time
import typing as t

from ..config import load_config
from ..errors import ConfigError
from ..repository.repository import Repository

if t.TYPE_CHECKING:
    from pathlib import Path

    from ..config import ClusterConfig, Config, RepositoryConfig

_OPEN_SECONDS: t.Final = 60.0
"""How long an open repository is used. After that, keys that another host has rotated are noticed."""

_Seen: t.TypeAlias = "tuple[tuple[str, int, int, int], ...]"


def _seen(paths: t.Iterable[Path]) -> _Seen:
    """Tells whether files have changed."""
    found = []
    for path in sorted(paths):
        status = path.stat()
        found.append((str(path), status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(found)


class Settings:
    """The configuration of one cluster, read again when its file is another. Thread-safe."""

    def __init__(self, path: Path, cluster: str) -> None:
        self.path = path
        self._cluster = cluster
        self._lock = threading.Lock()
        self._seen: _Seen = ()
        self._config: Config | None = None

    def now(self) -> tuple[Config, ClusterConfig]:
        """Raises ConfigError: then nothing is archived that a mistake in it could send to a wrong place."""
        with self._lock:
            try:
                seen = _seen([self.path])
            except OSError as error:
                raise ConfigError(f"{self.path} cannot be read: {error.strerror}", hint="Put it back.") from error
            if self._config is None or seen != self._seen:
                self._config, self._seen = load_config(self.path), seen
            return self._config, self._config.cluster(self._cluster)


class Openings:
    """Repositories that stay open from one file to the next. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[tuple[str, ...], tuple[RepositoryConfig, _Seen, float, Repository]] = {}

    def open(self, config: RepositoryConfig) -> Repository:
        """As ``Repository.open``; the same again for a while, unless the settings, the keys or a location failed."""
        names = tuple(config.locations)
        keys = _seen(config.keys.iterdir()) if config.keys.is_dir() else ()
        with self._lock:
            found = self._open.get(names)
        if found is not None and found[:2] == (config, keys) and time.monotonic() - found[2] < _OPEN_SECONDS:
            return found[3]
        repository = Repository.open(config)
        if not repository.lost:
            with self._lock:
                self._open[names] = config, keys, time.monotonic(), repository
        return repository

    def forget(self) -> None:
        """Open all anew."""
        with self._lock:
            self._open.clear()
