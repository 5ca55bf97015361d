# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``wal-stream``: the segment that a server is writing, stored every second, so that little is lost with its host.

It adds to the archive and replaces nothing: finished segments go there by ``archive_command``. So a stream always
begins with the segment that the server is in, nothing has to be remembered from one stream to the next, and a stream
that falls behind is begun anew where the server is. See docs/decisions/0017.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import os
import time
import typing as t

from ..crypto import suite
from ..errors import ClusterError, CryoError, SourceError
from ..repository import container, names
from ..repository.names import StreamedPart
from ..storage.fanout import Fanout
from .archive_object import look_at_wal
from .archiver_settings import Openings, Settings
from .control import read_control
from .lsn import format_lsn
from .replication import ReplicationConnection
from .stream_copies import Copies
from .wal import history_name, segment_name

if t.TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ..config import ClusterConfig
    from ..events import Reporter
    from ..repository.repository import Repository
    from ..storage.base import Location
    from .replication import System

MOST_BYTES: t.Final = 4 << 20
"""Of one part. A busy server does not wait for the interval."""
_BEHIND_SEGMENTS: t.Final = 4
_FIRST_PAUSE_SECONDS: t.Final = 1.0
_LONGEST_PAUSE_SECONDS: t.Final = 30.0


class Streamer:
    """Streams the WAL of one cluster until somebody stops it. For one thread.

    Memory: a part as it came and as it is stored, and a few more for each optional location.
    """

    def __init__(
        self, config_path: Path, cluster: str, *, slot: str | None, interval: float, reporter: Reporter
    ) -> None:
        """``slot``: a physical replication slot, made when it is not there. ``interval``: seconds from the first byte
        of a part until it is stored.

        Raises ConfigError.
        """
        self._settings = Settings(config_path, cluster)
        self._settings.now()
        self._slot = slot
        self._interval = interval
        self._reporter = reporter
        self._openings = Openings()

    def run(self) -> t.NoReturn:
        """Stream, and begin anew after whatever ends a stream. What goes wrong is reported, once for each reason."""
        pause, said = 0.0, ""
        while True:
            stored = 0
            try:
                with _Stream(self._settings, self._openings, self._reporter, self._slot, self._interval) as stream:
                    try:
                        said = stream.run() or ""
                    finally:
                        stored = stream.stored
            except CryoError as error:
                self._openings.forget()
                if error.message != said:
                    said = error.message
                    self._reporter.warn(f"streaming is interrupted: {error.message} {error.hint}".strip())
                pause = (
                    _FIRST_PAUSE_SECONDS
                    if stored
                    else min(max(2 * pause, _FIRST_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS)
                )
                time.sleep(pause)


class _Stream:
    """One connection, and what came through it. A context manager."""

    def __init__(
        self, settings: Settings, openings: Openings, reporter: Reporter, slot: str | None, interval: float
    ) -> None:
        self._settings = settings
        self._openings = openings
        self._reporter = reporter
        self._interval = interval
        self._config, cluster = settings.now()
        required = {name: place for name, place in self._config.repository.locations.items() if place.required}
        # As with the archive: where none is required, all are.
        self._places = dataclasses.replace(
            self._config.repository, locations=required or self._config.repository.locations
        )
        self._id = names.new_id(dt.datetime.now(dt.UTC), os.urandom(4))
        self._buffer = bytearray()
        self.stored = 0
        """Parts."""
        self._repository()
        self._connection = ReplicationConnection(cluster.connection, application_name="cryobackup wal-stream")
        try:
            self._system = self._identify(cluster)
            if slot is not None:
                self._connection.make_slot(slot)
            self._bring_history()
            size = self._system.segment_size
            self._begin = self._system.flushed // size * size
            self._connection.start(self._system.timeline, self._begin, slot)
        except BaseException:
            self._connection.__exit__(None, None, None)
            raise
        self._copies = Copies(self._config, self._places, openings, reporter)

    def __enter__(self) -> t.Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.__exit__(None, None, None)
        self._copies.close()

    @property
    def _end(self) -> int:
        """Up to where WAL has come."""
        return self._begin + len(self._buffer)

    def run(self) -> str | None:
        """Store what comes. Returns why another stream is to be begun, where nothing is wrong.

        Raises ClusterError when the server has gone, RepositoryError when a required location does not take it.
        """
        self._reporter.note(f"streaming WAL from {format_lsn(self._begin)} on timeline {self._system.timeline}")
        try:
            return self._receive()
        finally:
            # The server's end must not take with it what it has already sent.
            self._store()

    def _receive(self) -> str | None:
        due = time.monotonic() + self._interval
        while True:
            chunk = self._connection.receive(due - time.monotonic())
            if chunk is not None:
                if chunk.lsn != self._end:
                    raise self._out_of_step(chunk.lsn)
                self._take(chunk.data)
                if chunk.server_end - self._end > _BEHIND_SEGMENTS * self._system.segment_size:
                    self._reporter.note(f"{format_lsn(self._end)} is far behind {format_lsn(chunk.server_end)}")
                    return None
            if time.monotonic() >= due or len(self._buffer) >= MOST_BYTES:
                if self._store():
                    self._connection.confirm(self._begin)
                if self._settings.now()[0] is not self._config:
                    return None
                due = time.monotonic() + self._interval

    def _take(self, data: bytes) -> None:
        """Append; what is in another segment is in another part."""
        left = self._system.segment_size - self._end % self._system.segment_size
        self._buffer += data[:left]
        if len(data) >= left:
            self._store()
            self._buffer += data[left:]

    def _store(self) -> bool:
        """Bring what has come to every required location. Whether that was anything."""
        if not self._buffer:
            return False
        data, self._buffer = bytes(self._buffer), bytearray()
        size = self._system.segment_size
        number, begin = divmod(self._begin, size)
        self._begin += len(data)
        part = StreamedPart(segment_name(self._system.timeline, number, size), self._id, begin, begin + len(data))
        key = names.streamed_part(self._system.identifier, part)
        repository = self._repository()
        encoded = _encode(repository, key, data)
        _put(repository.locations, key, encoded)
        self.stored += 1
        self._copies.offer(key, encoded)
        return True

    def _repository(self) -> Repository:
        repository = self._openings.open(self._places)
        repository.require("write")
        for error in repository.lost.values():
            raise error
        return repository

    def _identify(self, cluster: ClusterConfig) -> System:
        """Raises ClusterError when the server is not that of the data directory, where that is on this host."""
        system = self._connection.identify()
        try:
            expected = read_control(cluster.data_directory / "global" / "pg_control").system_identifier
        except SourceError:
            return system
        if expected != system.identifier:
            raise ClusterError(
                f"`connection` of cluster {cluster.name} leads to a server with system identifier {system.identifier}, "
                f"but that of {cluster.data_directory} is {expected}",
                hint="Name the port or the socket directory of the right one. Nothing was stored.",
                id="cluster-mismatch",
            )
        return system

    def _bring_history(self) -> None:
        """See that the timeline's history is archived: without it no recovery gets to what is streamed."""
        timeline = self._system.timeline
        if timeline == 1:
            return
        name = history_name(timeline)
        repository = self._repository()
        keys, system = repository.keys, self._system.identifier
        lacking = [place for place in repository.locations if look_at_wal(keys, place, system, name) is None]
        if lacking:
            key = names.wal(system, name)
            _put(lacking, key, _encode(repository, key, self._connection.history(timeline)))

    def _out_of_step(self, lsn: int) -> ClusterError:
        return ClusterError(
            f"PostgreSQL sent WAL from {format_lsn(lsn)} on, and that from {format_lsn(self._end)} was due",
            hint="What was streamed before is safe; another stream is begun.",
            id="replication",
        )


def _put(locations: Sequence[Location], key: str, encoded: bytes) -> None:
    """On return it is durable in all of them. Raises LocationError."""
    fanout = Fanout(locations)
    fanout.put(key, encoded)
    for error in fanout.lost.values():
        raise error


def _encode(repository: Repository, key: str, data: bytes) -> bytes:
    keys = repository.keys
    digest = suite.keyed_digest(keys.digest_key, data)
    encoder = container.ObjectEncoder(keys, container.WAL, key, level=repository.level, digest=digest, size=len(data))
    return encoder.start + encoder.frame(container.DATA, data) + encoder.finish()
