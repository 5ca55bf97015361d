# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Directories of sandboxes: private, locked by the process they belong to, removed with it or by the next one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import tempfile
import time
import typing as t
from pathlib import Path

from ..errors import RestoreError
from .restore_servers import running_servers
from .sandbox_process import run

if t.TYPE_CHECKING:
    from collections.abc import Iterator

    from ..events import Reporter
    from .sandbox_process import Account

_DIRECTORY: t.Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_KEPT: t.Final = "kept"
_SOCKET_PATH_MAX: t.Final = 90  # of 107, for the name of the socket's file
_GONE_SECONDS: t.Final = 10.0


class SandboxDirectory:
    """One sandbox's places. Used as a context manager: gone on leaving, unless ``keep`` was called.

    The directory belongs to us and can be entered by the server's user, who owns what is in it as far as the server
    writes to it. A lock that the kernel frees tells a sandbox in use from one whose process died.
    """

    def __init__(self, base: Path, account: Account, reporter: Reporter) -> None:
        self._base = base
        self._account = account
        self._reporter = reporter
        self._lock = -1
        self._keep = False
        self.path = base

    def __enter__(self) -> t.Self:
        """Removes what dead sandboxes left in the same base. Raises RestoreError, id ``sandbox-directory``."""
        with self._errors():
            self._make_base()
            with _locked(self._base):
                self._remove_stale()
                self.path = Path(tempfile.mkdtemp(prefix="pg-", dir=self._base))
                self._lock = os.open(self.path, _DIRECTORY)
                fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            with self._errors():
                self._make()
            self._check_reachable()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_unused: object) -> None:
        if not self._keep:
            _remove(self.path)
        os.close(self._lock)

    def keep(self, why: str) -> None:
        """Leave everything where it is; no later run removes it."""
        with self._errors():
            (self.path / _KEPT).write_text(why + "\n")
        self._keep = True

    def _make_base(self) -> None:
        """It belongs to whom the directory above belongs to, so that root and the user of the backups share it."""
        try:
            self._base.parent.mkdir(parents=True, exist_ok=True)
            self._base.mkdir(mode=0o711)
        except FileExistsError:
            return
        if os.geteuid() == 0:
            above = self._base.parent.stat()
            os.chown(self._base, above.st_uid, above.st_gid)

    def _make(self) -> None:
        self.path.chmod(0o711)
        for path in (self.wal, self.configuration, self.tablespaces):
            path.mkdir(mode=0o711)
        socket = self.path / "socket"
        if len(str(socket)) > _SOCKET_PATH_MAX:
            # Paths of sockets are short (sun_path); the link lets whoever cleans up find the place.
            elsewhere = tempfile.mkdtemp(prefix="cryobackup-")
            socket.symlink_to(elsewhere)
            self.give(Path(elsewhere))
        else:
            socket.mkdir(mode=0o700)
            self.give(socket)
        self.log.touch(mode=0o600)

    def give(self, path: Path) -> None:
        """To the server's user."""
        if not self._account.is_me:
            os.chown(path, self._account.uid, self._account.gid)

    def _check_reachable(self) -> None:
        argv = ["/bin/sh", "-c", 'cd "$1"', "sh", str(self.path)]
        if not self._account.is_me and run(argv, self._account, cwd=Path("/")).returncode != 0:
            raise RestoreError(
                f"user {self._account.name}, who runs the sandbox, cannot enter {self._base}",
                hint="Name a directory that this user can reach with --work-directory, or let others pass through "
                "(chmod o+x) those above it.",
                id="sandbox-directory",
            )

    @property
    def data(self) -> Path:
        """The data directory; made by the restore."""
        return self.path / "data"

    @property
    def tablespaces(self) -> Path:
        return self.path / "tablespaces"

    @property
    def wal(self) -> Path:
        return self.path / "wal"

    @property
    def configuration(self) -> Path:
        return self.path / "conf"

    @property
    def socket(self) -> Path:
        """The directory of the server's socket; only the server's user (and root) can enter it."""
        return Path(os.path.realpath(self.path / "socket"))

    @property
    def log(self) -> Path:
        return self.path / "log"

    def _remove_stale(self) -> None:
        for path in sorted(self._base.glob("pg-*")):
            if (path / _KEPT).exists():
                continue
            # In use; or of another user, who cleans up after himself.
            with contextlib.suppress(BlockingIOError, PermissionError), _locked(path, wait=False):
                self._reporter.note(f"removing {path}, which a run that was killed left")
                _end_servers(path)
                _remove(path)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RestoreError(
                f"cannot make a sandbox in {self._base}: {error.strerror} ({error.filename})",
                hint="Name another directory with --work-directory. The repository is as it was.",
                id="sandbox-directory",
            ) from error


@contextlib.contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    descriptor = os.open(path, _DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def _end_servers(path: Path) -> None:
    """Of a sandbox whose process is gone. They end by themselves; this is for those that hang."""
    deadline = time.monotonic() + _GONE_SECONDS
    while True:
        pids = [server.pid for server in running_servers() if path in server.data_directory.parents]
        if not pids or time.monotonic() > deadline:
            return
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _remove(path: Path) -> None:
    socket = path / "socket"
    if socket.is_symlink():
        elsewhere = Path(os.readlink(socket))
        if elsewhere.name.startswith("cryobackup-"):
            shutil.rmtree(elsewhere, ignore_errors=True)
    shutil.rmtree(path, ignore_errors=True)
    # What a process in its last moments wrote meanwhile.
    shutil.rmtree(path, ignore_errors=True)
