# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A throw-away PostgreSQL on a restored backup.

It listens on a socket in a private directory and nowhere else, archives nothing, calls nobody, and ends with the
process that started it, however that one ends.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
import typing as t
from pathlib import Path

from ..errors import ConfigError, CryoError, RestoreError
from .restore_start import find_bin_directory
from .sandbox_process import Account, launch, run
from .sandbox_settings import PORT, as_text, hba_text, log_end

if t.TYPE_CHECKING:
    import types
    from collections.abc import Callable, Mapping

    from .sandbox_directory import SandboxDirectory

_POLL_SECONDS: t.Final = 0.05
_NO_FILE: t.Final = "/nonexistent"
_STOP_SECONDS: t.Final = 120.0
_IMMEDIATE_SECONDS: t.Final = 15.0
# Line 8 of postmaster.pid (src/include/utils/pidfile.h): PM_STATUS_READY
_READY: t.Final = "ready"
_VERSION = re.compile(r"\(PostgreSQL\) (\d+)(?:\.(\d+))?")
_SESSION_OPTIONS: t.Final = (
    # What roles and databases may have set for themselves (ALTER ROLE ... SET) is weaker than these.
    "-c default_transaction_read_only=off -c statement_timeout=0 -c lock_timeout=0 -c session_preload_libraries= "
    "-c local_preload_libraries= -c client_min_messages=warning -c row_security=off"
)


class ServerFailed(Exception):
    """The server ended, or never became ready: what it said last."""


class Sandbox:
    """The server of a sandbox. Used as a context manager: on leaving it is gone."""

    def __init__(self, place: SandboxDirectory, account: Account, programs: Path) -> None:
        self.place = place
        self.account = account
        self.programs = programs
        self._process: subprocess.Popen[bytes] | None = None
        self.user = ""
        """The superuser that sessions are of; empty until ``log_in`` found one."""

    def __enter__(self) -> t.Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self.end()

    def configure(self, settings: Mapping[str, str]) -> None:
        """Write the configuration, and empty the one that came with the backup and would be read after it."""
        folder = self.place.configuration
        for name, text in (
            ("postgresql.conf", as_text(settings)),
            ("pg_hba.conf", hba_text()),
            ("pg_ident.conf", ""),
        ):
            path = folder / name
            path.write_text(text, encoding="utf-8", errors="surrogateescape")
            path.chmod(0o644)
        auto_conf = str(self.place.data / "postgresql.auto.conf")
        # As the server's user, who owns the directory: nothing that lies there can lead us elsewhere.
        emptied = run(["/bin/sh", "-c", ': > "$1"', "sh", auto_conf], self.account, cwd=self.place.path)
        if emptied.returncode != 0:
            raise RestoreError(f"cannot empty {auto_conf}: {emptied.stderr.strip()}", id="sandbox-directory")

    def start(self) -> None:
        """Start the server; ``wait_ready`` tells whether it came up."""
        argv = [
            str(self.programs / "postgres"),
            "-D",
            str(self.place.data),
            "-c",
            f"config_file={self.place.configuration / 'postgresql.conf'}",
        ]
        with self.place.log.open("ab") as log:
            self._process = launch(
                argv, self.account, at_our_end=signal.SIGQUIT, cwd=self.place.path, stdout=log, stderr=log
            )

    def wait_ready(self, is_hopeless: Callable[[], bool]) -> float:
        """Wait until recovery has ended and sessions are let in, however long that takes. Returns the seconds.

        Raises ServerFailed when the server ends before, or when ``is_hopeless`` says so.
        """
        began = time.monotonic()
        while self._status() != _READY:
            if self._process is None or self._process.poll() is not None or is_hopeless():
                raise ServerFailed(log_end(self.place.log) or "it said nothing")
            time.sleep(_POLL_SECONDS)
        return time.monotonic() - began

    def _status(self) -> str:
        try:
            lines = (self.place.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return ""
        return lines[7].strip() if len(lines) > 7 else ""

    def stop(self) -> None:
        """A clean shutdown, after which ``pg_checksums`` runs. Raises ServerFailed."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGINT)
        try:
            code = self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise ServerFailed(f"it did not stop within {_STOP_SECONDS:.0f} s") from None
        self._process = None
        if code != 0:
            raise ServerFailed(f"it stopped with exit code {code}: {log_end(self.place.log)}")

    def end(self) -> None:
        """Whatever state it is in: gone. Idempotent."""
        if self._process is None:
            return
        for number, seconds in ((signal.SIGQUIT, _IMMEDIATE_SECONDS), (signal.SIGKILL, _IMMEDIATE_SECONDS)):
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
                break
        self._process = None

    # Sessions and programs

    def conninfo(self, database: str, user: str | None = None) -> str:
        from psycopg2.extensions import make_dsn

        return str(
            make_dsn(
                host=str(self.place.socket),
                port=PORT,
                dbname=database,
                user=user or self.user,
                options=_SESSION_OPTIONS,
                sslmode="disable",
                passfile=_NO_FILE,
            )
        )

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one of PostgreSQL's programs as the server's user, against this server."""
        environment = {
            "PGHOST": str(self.place.socket),
            "PGPORT": PORT,
            "PGUSER": self.user,
            "PGOPTIONS": _SESSION_OPTIONS,
            "PGPASSFILE": _NO_FILE,
        }
        argv = [str(self.programs / program), *arguments]
        return run(argv, self.account, environment=environment, cwd=self.place.path)

    def has(self, program: str) -> bool:
        return os.access(self.programs / program, os.X_OK)


def find_programs(version: int, wanted: Path | None) -> Path:
    """The directory of PostgreSQL's programs of the major that made a backup; ``version`` is a server_version_num.

    ``wanted``: where the living cluster's are, which may be of a newer major than an old backup. Raises ConfigError,
    id ``no-postgresql``.
    """
    on_path = shutil.which("postgres")
    places = [wanted, Path(os.path.realpath(on_path)).parent if on_path is not None else None]
    for place in places:
        if place is not None and (place / "postgres").exists() and server_version(place) // 10000 == version // 10000:
            return place
    try:
        return find_bin_directory(version)
    except ConfigError as error:
        error.hint = "Install that major version, or name their directory with `bin_directory` of the cluster."
        raise


def server_version(programs: Path) -> int:
    """What ``postgres --version`` says, as server_version_num. Raises ConfigError, id ``no-postgresql``."""
    try:
        result = subprocess.run([str(programs / "postgres"), "--version"], capture_output=True, text=True, check=False)
    except OSError as error:
        raise ConfigError(f"cannot run {programs / 'postgres'}: {error.strerror}", id="no-postgresql") from error
    match = _VERSION.search(result.stdout)
    if match is None:
        raise ConfigError(f"{programs / 'postgres'} --version says {result.stdout.strip()!r}", id="no-postgresql")
    return int(match[1]) * 10000 + int(match[2] or 0)


def unusable(error: CryoError) -> CryoError:
    """An error of the restore in a sandbox, with what helps there."""
    if error.id == "target-space":
        error.hint = "Make room, or name a directory on a larger file system with --work-directory."
    return error
