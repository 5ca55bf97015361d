# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The archiver: a service that archives WAL ahead of PostgreSQL's asking, several files at a time.

PostgreSQL runs ``archive_command`` for one file after the other. What it will ask for next is known: the files with a
``.ready`` in ``archive_status``, whose content is final (``XLogArchiveNotify``). So they are archived before it asks,
and the command finds them done. What is archived, and what is not, is decided where ``wal-push`` decides it: this
only remembers the outcome for as long as the file is the same.
"""

from __future__ import annotations

import collections
import contextlib
import os
import threading
import time
import typing as t
from pathlib import Path

from ..errors import CryoError, SourceError
from ..storage.caught import Caught
from .archive_backlog import note_result
from .archive_history import history_first
from .archive_run import archive
from .archive_source import WalSource, cluster_of
from .archiver_metrics import Tally
from .archiver_settings import Openings, Settings
from .wal import WalKind, parse_wal_name

if t.TYPE_CHECKING:
    from ..config import ClusterConfig, Config
    from ..events import Reporter

_LOOK_SECONDS: t.Final = 1.0
"""How often to look for finished files when nobody asks."""
_FIRST_PAUSE_SECONDS: t.Final = 1.0
_LONGEST_PAUSE_SECONDS: t.Final = 60.0
_ENDING_SECONDS: t.Final = 10.0


class Identity(t.NamedTuple):
    """Tells whether a file is the one that was archived: segments are renamed, and written anew under other names."""

    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> Identity:
        """Raises SourceError."""
        try:
            status = path.stat()
        except OSError as error:
            raise SourceError(
                f"{path} cannot be read: {error.strerror}",
                hint="Nothing was archived under its name; PostgreSQL keeps the file and tries again.",
                id="wal-unreadable",
            ) from error
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class _Task:
    """One file, once, to where the configuration wants it. ``error`` counts when it has ended."""

    def __init__(self, path: Path, identity: Identity, config: Config) -> None:
        self.path = path
        self.identity = identity
        self.config = config
        self.ended = threading.Event()
        self.error: BaseException | None = None

    @property
    def has_failed(self) -> bool:
        return self.ended.is_set() and self.error is not None

    def end(self, error: BaseException | None) -> None:
        self.error = error
        self.ended.set()


class Archiver:
    """Archives WAL of one cluster. Thread-safe. Use as a context manager.

    Memory: of each worker a few frames and one encoded file. ``reporter`` is called by one thread at a time.
    """

    def __init__(self, config_path: Path, cluster: str, *, workers: int, ahead: int, reporter: Reporter) -> None:
        """``workers``: files that are archived at the same time; ``ahead``: files that wait for them at most.

        Raises ConfigError.
        """
        self.settings = Settings(config_path, cluster)
        self.settings.now()
        self._workers = workers
        self._ahead = ahead
        self.reporter = _OneAtATime(reporter)
        self.tally = Tally()
        self._openings = Openings()
        self._changed = threading.Condition()
        self._queue: collections.deque[_Task] = collections.deque()
        self._tasks: dict[str, _Task] = {}
        self._running = 0
        self._stopping = False
        self._pause = 0.0
        self._paused_until = 0.0

    def __enter__(self) -> t.Self:
        for number in range(self._workers):
            threading.Thread(target=self._work, name=f"archive-{number}", daemon=True).start()
        threading.Thread(target=self._watch, name="look-ahead", daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        """Begin nothing more, and wait a little for what is under way. What is not finished then has no name."""
        with self._changed:
            self._stopping = True
            for task in self._queue:
                task.end(_stopping(task.path.name))
            self._queue.clear()
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._running == 0, _ENDING_SECONDS)

    def push(self, path: Path, here: Path) -> None:
        """Archive a file, as ``wal-push`` does that was started in ``here``: durable in every required location then.

        Raises what ``archive`` raises, and ClusterError when the file belongs to another cluster.
        """
        config, cluster = self.settings.now()
        path = here / path
        cluster_of(config, path, cluster.name, here=here)
        while True:
            task = self._wanted(path, config)
            self._look_ahead(config, cluster)
            task.ended.wait()
            if task.error is not None:
                raise task.error
            # Nobody may have put another file in its place since it was archived.
            if Identity.of(path) == task.identity:
                return

    def archived(self) -> set[str]:
        """Files that are archived, of those that PostgreSQL has not asked for yet, or asked for last."""
        with self._changed:
            return {name for name, task in self._tasks.items() if task.ended.is_set() and task.error is None}

    def _wanted(self, path: Path, config: Config) -> _Task:
        """The file's task, with nothing before it but what is under way."""
        identity = Identity.of(path)
        with self._changed:
            if self._stopping:
                raise _stopping(path.name)
            task = self._tasks.get(path.name)
            if task is None or task.identity != identity or task.config is not config or task.has_failed:
                task = self._tasks[path.name] = _Task(path, identity, config)
            elif task in self._queue:
                self._queue.remove(task)
            else:
                return task
            self._queue.appendleft(task)
            self._changed.notify_all()
            return task

    # Looking ahead

    def _watch(self) -> None:
        while not self._stopping:
            with contextlib.suppress(CryoError):  # a configuration that is being written: who asks is told
                self._look_ahead(*self.settings.now())
            time.sleep(_LOOK_SECONDS)

    def _look_ahead(self, config: Config, cluster: ClusterConfig) -> None:
        """Queue what PostgreSQL will ask for next, and forget what it knows to be archived."""
        directory = cluster.data_directory / "pg_wal"
        ready = _ready(directory)
        with self._changed:
            known = {*ready}
            for name in [name for name, task in self._tasks.items() if task.ended.is_set() and name not in known]:
                del self._tasks[name]
            if self._stopping or time.monotonic() < self._paused_until:
                return
            for name in ready[: self._ahead]:
                task = self._tasks.get(name)
                if task is not None and not task.has_failed:
                    continue
                with contextlib.suppress(SourceError):  # archived and removed meanwhile
                    task = self._tasks[name] = _Task(directory / name, Identity.of(directory / name), config)
                    self._queue.append(task)
            self._changed.notify_all()

    # Archiving

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._stopping)
                if self._stopping:
                    return
                task = self._queue.popleft()
                self._running += 1
            with Caught() as caught:
                self._archive(task.path)
            task.end(caught.error)
            with self._changed:
                self._running -= 1
                self._note(caught.error)
                self._changed.notify_all()

    def _archive(self, path: Path) -> None:
        config, cluster = self.settings.now()
        opened = self._openings.open
        with WalSource(path, cluster.data_directory) as source:
            history = history_first(config, source, cluster.data_directory, self.reporter, opened)
            result = archive(config, source, opened, self.tally.told)
        for each in (history, result):
            if each is not None:
                note_result(config, each, self.reporter)

    def _note(self, error: BaseException | None) -> None:
        """After a failure nothing is archived ahead for a while; whoever asks is served all the same."""
        if error is None:
            self._pause = self._paused_until = 0.0
            return
        self._openings.forget()
        self._pause = min(max(2 * self._pause, _FIRST_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS)
        self._paused_until = time.monotonic() + self._pause


def _ready(directory: Path) -> list[str]:
    """Names of finished files that PostgreSQL does not know to be archived, in its order (``pgarch_readyXlog``)."""
    try:
        found = os.listdir(directory / "archive_status")
    except OSError:
        return []
    names = []
    for name in found:
        with contextlib.suppress(SourceError):
            if name.endswith(".ready"):
                names.append(parse_wal_name(name.removesuffix(".ready")))
    return [str(name) for name in sorted(names, key=lambda name: (name.kind is not WalKind.HISTORY, str(name)))]


def _stopping(name: str) -> CryoError:
    return CryoError(
        f"{name} is not archived: the archiver is stopping",
        hint="PostgreSQL keeps the file and tries again.",
        id="stopped",
    )


class _OneAtATime:
    """A reporter for several threads."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._lock = threading.Lock()

    def phase(self, name: str, total_bytes: int | None = None) -> None:
        with self._lock:
            self._reporter.phase(name, total_bytes)

    def advance(self, done_bytes: int) -> None:
        with self._lock:
            self._reporter.advance(done_bytes)

    def note(self, text: str) -> None:
        with self._lock:
            self._reporter.note(text)

    def warn(self, text: str) -> None:
        with self._lock:
            self._reporter.warn(text)
