# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What waits to be archived, by location, and how it goes: the archiver's metrics."""

from __future__ import annotations

import contextlib
import threading
import time
import typing as t

from ..errors import CryoError
from ..report import textfile as tf
from .archive_backlog import waiting_markers
from .archive_outages import Outages
from .control import read_control
from .relfile import CONTROL_FILE
from .wal import WalKind, match_wal_name

if t.TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ..config import ClusterConfig, Config
    from ..events import Reporter

_EVERY_SECONDS: t.Final = 10.0
"""How old what is written is at most."""
_NOT_OFTENER_SECONDS: t.Final = 1.0


class Waiting(t.NamedTuple):
    """A file that a location lacks. ``since``: seconds since 1970."""

    name: str
    bytes: int
    since: float


class Tally:
    """What came of every attempt, by location, since this process began. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.changed = threading.Event()
        self._clock = clock
        self._lock = threading.Lock()
        self._stored: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        self._down: set[str] = set()

    def told(self, location: str, error: CryoError | None) -> None:
        """A location has a file now; or it does not, and why."""
        with self._lock:
            if error is None:
                self._stored[location] = self._clock()
                self._down.discard(location)
            else:
                self._failures[location] = self._failures.get(location, 0) + 1
                self._down.add(location)
        self.changed.set()

    def last_stored(self, location: str) -> float | None:
        with self._lock:
            return self._stored.get(location)

    def failures(self, location: str) -> int:
        with self._lock:
            return self._failures.get(location, 0)

    def is_down(self, location: str) -> bool:
        with self._lock:
            return location in self._down


def waiting(config: Config, cluster: ClusterConfig, archived: set[str]) -> dict[str, list[Waiting]]:
    """By location, what it lacks of the cluster's WAL as far as this host knows.

    ``archived``: files that the archiver has archived though PostgreSQL does not know it yet.
    """
    directory = cluster.data_directory / "pg_wal"
    ready = [each for each in _ready(directory) if each.name not in archived]
    found: dict[str, list[Waiting]] = {}
    for name, location in config.repository.locations.items():
        found[name] = list(ready)
        if not location.required:
            known = {each.name for each in ready}
            found[name] += [each for each in _owed(config, cluster, name) if each.name not in known]
    return found


def _ready(directory: Path) -> list[Waiting]:
    found = []
    for mark in (directory / "archive_status").glob("*.ready"):
        with contextlib.suppress(OSError):  # archived and removed meanwhile
            name = mark.name.removesuffix(".ready")
            found.append(Waiting(name, (directory / name).stat().st_size, mark.stat().st_mtime))
    return found


def _owed(config: Config, cluster: ClusterConfig, location: str) -> list[Waiting]:
    """What was archived without an optional location. Its file may be gone by now; what is no segment is tiny."""
    try:
        control = read_control(cluster.data_directory / CONTROL_FILE)
    except (OSError, CryoError):
        return []
    return [
        Waiting(name, control.wal_segment_size if _is_segment(name) else 0, since)
        for name, since in waiting_markers(config.state_directory, location, control.system_identifier)
    ]


def _is_segment(name: str) -> bool:
    found = match_wal_name(name)
    return found is not None and found.kind in (WalKind.SEGMENT, WalKind.PARTIAL)


def families(
    config: Config, cluster: ClusterConfig, waiting: dict[str, list[Waiting]], tally: Tally, now: float
) -> list[tf.Family]:
    outages = Outages(config.state_directory)
    names = list(config.repository.locations)

    def family(name: str, kind: str, text: str, value: Callable[[str], float | None]) -> tf.Family:
        values = [(each, value(each)) for each in names]
        samples = [
            tf.Sample({"cluster": cluster.name, "location": each}, found) for each, found in values if found is not None
        ]
        return tf.Family(f"cryobackup_wal_{name}", kind, text, samples)

    def oldest(location: str) -> float:
        return round(max((now - each.since for each in waiting[location]), default=0.0), 3)

    return [
        family(
            "waiting_files",
            tf.GAUGE,
            "Finished WAL files that the location lacks, as far as this host knows.",
            lambda name: len(waiting[name]),
        ),
        family(
            "waiting_bytes",
            tf.GAUGE,
            "Bytes of the WAL files that the location lacks.",
            lambda name: sum(each.bytes for each in waiting[name]),
        ),
        family(
            "oldest_waiting_seconds",
            tf.GAUGE,
            "For how long the oldest WAL file that the location lacks has been waiting; 0 when it lacks none.",
            lambda name: max(0.0, oldest(name)),
        ),
        family(
            "location_up",
            tf.GAUGE,
            "1 if the location took, or had, the last WAL file that it was asked to take; else 0.",
            lambda name: int(not tally.is_down(name) and outages.known(name) is None),
        ),
        family(
            "last_success_timestamp_seconds",
            tf.GAUGE,
            "When the location last took a WAL file from this archiver, or was seen to have it.",
            tally.last_stored,
        ),
        family(
            "failures_total",
            tf.COUNTER,
            "Attempts to archive a WAL file in the location that failed since the archiver began.",
            tally.failures,
        ),
    ]


class Publisher:
    """Writes the metrics of an archiver from time to time, and soon after something happened, in a thread of its own.

    ``now``: the configuration, read again when it has changed; ``archived``: see ``waiting``. A file that cannot be
    written is told of once, and holds up nothing.
    """

    def __init__(
        self,
        now: Callable[[], tuple[Config, ClusterConfig]],
        archived: Callable[[], set[str]],
        tally: Tally,
        reporter: Reporter,
    ) -> None:
        self._now = now
        self._archived = archived
        self._tally = tally
        self._reporter = reporter
        self._stopping = threading.Event()
        self._told = False
        self._thread = threading.Thread(target=self._main, name="metrics", daemon=True)

    def __enter__(self) -> t.Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        """What is there then says how it ended."""
        self._stopping.set()
        self._tally.changed.set()
        self._thread.join(_EVERY_SECONDS)

    def _main(self) -> None:
        while not self._stopping.is_set():
            self._tally.changed.clear()
            self._write()
            self._stopping.wait(_NOT_OFTENER_SECONDS)
            self._tally.changed.wait(_EVERY_SECONDS - _NOT_OFTENER_SECONDS)
        self._write()

    def _write(self) -> None:
        with contextlib.suppress(CryoError):  # a configuration that is being written
            config, cluster = self._now()
            if config.metrics.textfile is None:
                return
            path = tf.of_writer(config.metrics.textfile, f"archiver-{cluster.name}")
            found = families(config, cluster, waiting(config, cluster, self._archived()), self._tally, time.time())
            try:
                tf.write(path, tf.render(found))
            except OSError as error:
                if not self._told:
                    self._reporter.warn(f"metrics cannot be written to {path}: {error.strerror}")
                self._told = True
                return
            self._told = False
