# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The laboratory of one test session, and the workspaces in it that single tests work in."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .account import ServerAccount
from .cleanup import MARKER, clean, lab_processes, mounts_below, remove_tree
from .cluster import DEFAULT_SETTINGS, Cluster, Setting
from .installation import Installation, distribution, installation
from .stores import Stores
from .template import Templates

CHECKOUT = Path(__file__).resolve().parents[2]
SOCKET_BASE = Path("/tmp")
"""Sockets stay here whatever LAB_DIR says: a socket's path may have 107 bytes only."""

ENDS_BY_ITSELF = " wal-ahead --recovery "
ENDING_SECONDS = 20.0

SANDBOX_SETTINGS: dict[str, Setting] = {
    "archive_mode": False,
    "hot_standby": True,
    "fsync": False,
    "shared_buffers": DEFAULT_SETTINGS["shared_buffers"],
    # Vacuum would repair what the oracle wants to see.
    "autovacuum": False,
    "ssl": False,
    "primary_conninfo": "",
}
"""Command-line settings of a server on a restored directory."""


class LeftoverError(AssertionError):
    """Something outlived the test that made it."""


def program_environment(marker: Path) -> dict[str, str]:
    """Environment of the laboratory's programs: no PostgreSQL variables of the caller, and the marker."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return {**inherited, "LC_ALL": "C.UTF-8", "HOME": str(marker), MARKER: str(marker)}


class Workspace:
    """A directory, and the clusters and processes of one test. Made by ``Lab.workspace``."""

    def __init__(self, lab: Lab, path: Path, sockets: Path) -> None:
        self.lab = lab
        self.path = path
        self.account = lab.account
        self.environment = program_environment(path)
        self._sockets = sockets
        self._clusters: list[Cluster] = []
        self._processes: list[subprocess.Popen[Any]] = []
        self._finalizers: list[Callable[[], None]] = []
        self.stores = Stores(self)
        """Where its repositories lie."""

    def directory(self, name: str, *, mode: int = 0o700) -> Path:
        """A new, empty directory that belongs to the server's user."""
        path = self.path / name
        path.mkdir()
        path.chmod(mode)
        return self.account.own(path)

    def cluster(
        self,
        name: str = "main",
        *,
        installation: Installation | None = None,
        checksums: bool = True,
        wal_segment_mb: int | None = None,
        fsync: bool = False,
        settings: Mapping[str, Setting] | None = None,
        start: bool = True,
    ) -> Cluster:
        """A new cluster, running unless ``start`` is false.

        Args:
            name: Name of its data directory in the workspace.
            installation: The PostgreSQL to use; the distribution's by default.
            checksums: Whether data checksums are on.
            wal_segment_mb: Size of a WAL segment in MiB (a power of two); 16 by default.
            fsync: Needed only where a crash of the machine is played; a killed process loses nothing without.
            settings: More lines for ``postgresql.conf``.
        """
        made = self._register(name, self.directory(name), installation or distribution(), {})
        made.create(
            self.lab.templates,
            checksums=checksums,
            wal_segment_mb=wal_segment_mb,
            settings={"fsync": fsync, **(settings or {})},
        )
        if start:
            made.start()
        return made

    def adopt(
        self,
        data_dir: Path,
        *,
        name: str | None = None,
        installation: Installation | None = None,
        settings: Mapping[str, Setting] | None = None,
    ) -> Cluster:
        """A cluster, not started, on a directory that something else made, a restore for instance.

        Its command line keeps it from archiving, from the network and from following a primary, whatever the
        directory's configuration files say. ``installation`` is found by the directory's ``PG_VERSION``.
        """
        chosen = installation or installation_of(data_dir)
        overrides = {**SANDBOX_SETTINGS, **(settings or {})}
        return self._register(name or f"adopted-{data_dir.name}", data_dir, chosen, overrides)

    def _register(self, name: str, data_dir: Path, chosen: Installation, overrides: Mapping[str, Setting]) -> Cluster:
        socket_dir = self._sockets / str(len(self._clusters))
        socket_dir.mkdir(mode=0o711)
        self.account.own(socket_dir)
        logs = self.path / "log"
        logs.mkdir(exist_ok=True)
        log_file = logs / f"{name}-{len(self._clusters)}.log"
        made = Cluster(
            data_dir,
            socket_dir,
            chosen,
            self.account,
            environment=self.environment,
            log_file=log_file,
            overrides=overrides,
        )
        self._clusters.append(made)
        return made

    def run(
        self,
        command: Sequence[str | Path],
        *,
        as_server: bool = True,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        stdin: str | None = None,
        cwd: Path | None = None,
        timeout: float = 300.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end and return it with its output as text.

        Runs as the server's user unless ``as_server`` is false. With ``check``, raises AssertionError with
        the output when the command fails. ``env`` adds to the workspace's environment.
        """
        result = subprocess.run(
            self._argv(command, as_server),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            cwd=cwd or "/",
            env={**self.environment, **(env or {})},
            timeout=timeout,
            check=False,
        )
        if check and result.returncode != 0:
            words = " ".join(map(str, command))
            raise AssertionError(f"exit {result.returncode}: {words}\n{result.stdout}{result.stderr}")
        return result

    def popen(
        self,
        command: Sequence[str | Path],
        *,
        as_server: bool = True,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        **options: Any,
    ) -> subprocess.Popen[Any]:
        """Start a command in a process group of its own; it is killed at the workspace's end."""
        process = subprocess.Popen(
            self._argv(command, as_server),
            cwd=cwd or "/",
            env={**self.environment, **(env or {})},
            start_new_session=True,
            **options,
        )
        self._processes.append(process)
        return process

    def _argv(self, command: Sequence[str | Path], as_server: bool) -> list[str]:
        return self.account.argv(command) if as_server else [str(word) for word in command]

    def at_end(self, action: Callable[[], None]) -> None:
        """Do ``action`` when the workspace ends, before its clusters are stopped; last given, first done."""
        self._finalizers.append(action)

    def close(self, *, strict: bool = True) -> None:
        """End and remove everything. Raises LeftoverError when something ran that was not known of."""
        with contextlib.ExitStack() as stack:
            # Done in the opposite order, each whatever became of the ones before it.
            stack.callback(self.lab.forget, self)
            stack.callback(remove_tree, self._sockets)
            stack.callback(self._remove, strict)
            for cluster in self._clusters:
                stack.callback(cluster.close)
            for process in self._processes:
                stack.callback(self._end, process)
            for action in self._finalizers:
                stack.callback(action)

    def _remove(self, strict: bool) -> None:
        self._wait_for_ending()
        found = clean(self.path)
        if found and strict:
            raise LeftoverError(f"left behind in {self.path.name}: " + "; ".join(found))

    def _wait_for_ending(self) -> None:
        """What looks ahead for a recovery sees by itself that it is over. If it does not, it is a left-over."""
        deadline = time.monotonic() + ENDING_SECONDS
        while any(ENDS_BY_ITSELF in process.command for process in lab_processes(self.path)):
            if time.monotonic() > deadline:
                return
            time.sleep(0.02)

    @staticmethod
    def _end(process: subprocess.Popen[Any]) -> None:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(strict=kind is None)


class Lab:
    """The laboratory of one session: its directories, its guard, its workspaces. A context manager.

    Everything lies below ``path``, a new directory in the environment's ``LAB_DIR`` (or else where temporary
    files go), except for sockets, which need short paths.
    """

    def __init__(self, base: Path | None = None) -> None:
        self.account = ServerAccount.discover()
        folder = base or Path(os.environ.get("LAB_DIR") or tempfile.gettempdir())
        folder.mkdir(parents=True, exist_ok=True)
        self.path = Path(tempfile.mkdtemp(prefix="cblab-", dir=folder.resolve()))
        self.sockets = Path(tempfile.mkdtemp(prefix="cbs-", dir=SOCKET_BASE))
        for path in (self.path, self.sockets):
            path.chmod(0o755)
        self.templates = Templates(self.path, self.account)
        self._workspaces: list[Workspace] = []
        self._number = 0
        self._guard = self._start_guard()
        self._outer_marker = os.environ.get(MARKER)
        # Whatever a test starts by itself inherits this and can be found when it is left behind.
        os.environ[MARKER] = str(self.path)

    def _start_guard(self) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if name != MARKER}
        return subprocess.Popen(
            [sys.executable, "-m", "tests.lab.guard", str(self.path), str(self.sockets)],
            stdin=subprocess.PIPE,
            cwd=CHECKOUT,
            env=environment,
            start_new_session=True,
        )

    @property
    def guard_pid(self) -> int:
        """Process id of the guard."""
        return self._guard.pid

    def workspace(self, name: str = "work") -> Workspace:
        """A new workspace; close it, or use it as a context manager."""
        self._number += 1
        # Short, since a test may give a program a directory in it for its sockets.
        label = re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:24]
        path = self.path / f"{self._number}-{label}"
        path.mkdir(mode=0o755)
        sockets = self.sockets / str(self._number)
        sockets.mkdir(mode=0o755)
        made = Workspace(self, self.account.own(path), sockets)
        self._workspaces.append(made)
        return made

    def forget(self, workspace: Workspace) -> None:
        """Take a closed workspace off the list."""
        if workspace in self._workspaces:
            self._workspaces.remove(workspace)

    def leftovers(self) -> list[str]:
        """Words for each process, mount and workspace that still exists."""
        found = [str(process) for process in lab_processes(self.path, exclude=[self._guard.pid])]
        found += [f"mount {point}" for point in mounts_below(self.path)]
        found += [f"workspace {workspace.path.name}" for workspace in self._workspaces]
        return found

    def close(self) -> list[str]:
        """End and remove everything; returns words for what still existed although nothing should have."""
        found = self.leftovers()
        for workspace in list(self._workspaces):
            workspace.close(strict=False)
        clean(self.path)
        remove_tree(self.sockets)
        if self._guard.stdin is not None:
            self._guard.stdin.close()
        self._guard.wait(30)
        if self._outer_marker is None:
            os.environ.pop(MARKER, None)
        else:
            os.environ[MARKER] = self._outer_marker
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        found = self.close()
        if found and kind is None:
            raise LeftoverError("left behind in the laboratory: " + "; ".join(found))


def installation_of(data_dir: Path) -> Installation:
    """The PostgreSQL of the major that a data directory was made by."""
    return installation(int((data_dir / "PG_VERSION").read_text().split(".")[0]))
