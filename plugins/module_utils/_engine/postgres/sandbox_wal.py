# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""WAL for a sandbox: its ``restore_command`` asks this process, through a pair of pipes.

So the server's user needs neither the configuration nor the keys, a segment costs no start of a Python, and what the
WAL would do outside of the sandbox is taken out on the way (``wal_tablespaces``).
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import threading
import typing as t

from ..errors import CryoError, LocationError, RestoreError
from .archive_get import deliver
from .wal import WalKind, match_wal_name, parse_wal_name, segment_name
from .wal_tablespaces import Patch, apply, contain_tablespaces

if t.TYPE_CHECKING:
    import types
    from pathlib import Path

    from ..repository.model import PostgresInfo
    from ..repository.repository import Repository
    from .sandbox_directory import SandboxDirectory
    from .wal import WalName

_DELIVERED, _ABSENT, _UNKNOWN = b"0", b"1", b"2"
# Above 125 PostgreSQL stops instead of taking the segment for absent (RestoreArchivedFile in xlogarchive.c).
_SCRIPT: t.Final = """\
# $1: name of the file, $2: where it goes, below the data directory
cd {directory} 2>/dev/null && printf '%s\\n' "$1" > ask && IFS= read -r answer < answer || exit 200
cd "$OLDPWD" || exit 200
case $answer in
    0) cp {directory}/"$1" "$2" || exit 200 ;;
    1) exit 1 ;;
    *) exit 200 ;;
esac
"""


class WalService:
    """Answers the server's requests in a thread of its own, from ``__enter__`` to ``__exit__``."""

    def __init__(
        self, repository: Repository, info: PostgresInfo, place: SandboxDirectory, *, beyond_the_backup: bool
    ) -> None:
        """``beyond_the_backup``: whether recovery is to go on when the backup is consistent."""
        self._repository = repository
        self._system_identifier = int(info.system_identifier)
        self._segment_size = info.wal_segment_size
        self._timeline = info.timeline
        self._last_needed = parse_wal_name(info.wal_stop).number(info.wal_segment_size)
        self._beyond_the_backup = beyond_the_backup
        self._place = place
        self._patches: dict[int, tuple[Patch, ...]] = {}
        """By number of the segment: what a record that begins in the one before needs changed."""
        self._thread = threading.Thread(target=self._serve, name="sandbox-wal", daemon=True)
        self._descriptors: list[int] = []
        self._latest: Path | None = None
        self.error: CryoError | None = None
        """Why the server could not be told whether a file exists."""
        self.segments = 0
        self.moved_tablespaces: set[str] = set()
        """Where the WAL wanted to have tablespaces created; they are in the data directory instead."""

    @property
    def restore_command(self) -> str:
        """For postgresql.conf, not quoted for it."""
        return f"/bin/sh {shlex.quote(str(self._directory / 'fetch'))}".replace("%", "%%") + " %f %p"

    @property
    def alive(self) -> bool:
        """Whether requests are answered: a server that waits for an answer would wait for ever."""
        return self._thread.is_alive()

    @property
    def _directory(self) -> Path:
        return self._place.wal

    def __enter__(self) -> t.Self:
        directory = self._directory
        (directory / "fetch").write_text(_SCRIPT.format(directory=shlex.quote(str(directory))))
        (directory / "fetch").chmod(0o644)
        for name in ("ask", "answer"):
            os.mkfifo(directory / name, 0o600)
            self._place.give(directory / name)
            # For reading and writing: opening it never waits for the other side, and it has no end.
            self._descriptors.append(os.open(directory / name, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
        self._descriptors += os.pipe2(os.O_CLOEXEC)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        os.write(self._descriptors[3], b"x")
        self._thread.join()
        for descriptor in self._descriptors:
            os.close(descriptor)

    def _serve(self) -> None:
        ask, answer, ended = self._descriptors[:3]
        pending = b""
        while True:
            ready = select.select([ask, ended], [], [])[0]
            if ended in ready:
                return
            with contextlib.suppress(BlockingIOError):
                pending += os.read(ask, 4096)
            while b"\n" in pending:
                line, _unused, pending = pending.partition(b"\n")
                found = self._answer(line.decode("ascii", "replace"))
                with contextlib.suppress(BlockingIOError):
                    os.read(answer, 4096)  # an answer that nobody came for
                os.write(answer, found + b"\n")

    def _answer(self, text: str) -> bytes:
        name = match_wal_name(text)
        if name is None:
            return _ABSENT
        try:
            return _DELIVERED if self._deliver(name) else _ABSENT
        except CryoError as error:
            if self._is_dispensable(name, error):
                return _ABSENT
            self.error = error
        except OSError as error:
            self.error = RestoreError(f"cannot write {error.filename}: {error.strerror}", id="sandbox-directory")
        return _UNKNOWN

    def _is_dispensable(self, name: WalName, error: CryoError) -> bool:
        """Whether recovery may go on, or end here, as if the file did not exist."""
        if name.kind is WalKind.HISTORY:
            # Asked for to see which timelines are taken. The sandbox's own is seen by nobody.
            return isinstance(error, LocationError) or (name.timeline > self._timeline and not self._beyond_the_backup)
        if name.number(self._segment_size) <= self._last_needed:
            return False
        # Behind the backup the server looks for one more record, to see that it has gone far enough; and a recovery
        # to the end of the archive ends where the locations that answer end.
        return not self._beyond_the_backup or isinstance(error, LocationError)

    def _deliver(self, name: WalName) -> bool:
        if self._latest is not None:
            self._latest.unlink(missing_ok=True)
        path = self._latest = self._directory / str(name)
        if deliver(self._repository, self._system_identifier, str(name), path) is None:
            return False
        if name.kind is WalKind.SEGMENT:
            self._contain(name, path)
            self.segments += 1
        self._place.give(path)
        return True

    def _contain(self, name: WalName, path: Path) -> None:
        number = name.number(self._segment_size)
        segment = path.read_bytes()
        found = contain_tablespaces(segment, lambda: self._following(name.timeline, number + 1))
        self.moved_tablespaces |= set(found.paths)
        if found.following:
            self._patches[number + 1] = found.following
        patches = (*found.here, *self._patches.get(number, ()))
        if patches:
            path.write_bytes(apply(segment, patches))

    def _following(self, timeline: int, number: int) -> bytes | None:
        """The next segment; on whatever timeline, a record that is continued is the same on all that share it."""
        path = self._directory / "following"
        for candidate in range(timeline, timeline + _TIMELINES_TRIED):
            name = segment_name(candidate, number, self._segment_size)
            if deliver(self._repository, self._system_identifier, name, path) is not None:
                content = path.read_bytes()
                path.unlink()
                return content
        return None


_TIMELINES_TRIED: t.Final = 16
