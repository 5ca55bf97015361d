# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real OpenSSH server on loopback that offers SFTP only, with its own keys, and ways to break it.

It runs as the laboratory's account, serves that account only, and knows nothing of the machine's own sshd.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cleanup import descendants, kill_processes
from .network import LOOPBACK, free_ports
from .waiting import wait_until

if TYPE_CHECKING:
    from .workspace import Workspace

PROGRAM = Path("/usr/sbin/sshd")
CONFIGURATION = """\
Port {port}
ListenAddress {host}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PubkeyAuthentication yes
DisableForwarding yes
PermitTTY no
PermitUserRC no
MaxStartups 200
MaxSessions 100
LogLevel VERBOSE
Subsystem sftp internal-sftp
ForceCommand internal-sftp{arguments}
"""
NO_PENALTIES = "PerSourcePenalties no\n"
"""Since OpenSSH 9.8: connections that a test kills must not lock out the next test, all come from one address."""
APPEND_ONLY = ("remove", "rmdir", "rename", "posix-rename", "setstat", "fsetstat", "lsetstat", "symlink", "copy-data")
"""Requests that a server has to deny so that a stolen key can add, but neither change nor delete."""


class SshServer:
    """An SFTP server for the laboratory's account. Made by the fixture ``sftp_server``.

    Args:
        workspace: Where it lives; the server ends with it.
        name: Of its directory in the workspace.
        root: The directory that ``options`` point into; a new one by default.
        denied: SFTP requests that it refuses, by the names that ``sftp-server -Q requests`` lists.
    """

    host = LOOPBACK

    def __init__(
        self, workspace: Workspace, name: str = "sshd", *, root: Path | None = None, denied: Sequence[str] = ()
    ) -> None:
        self._workspace = workspace
        self._folder = workspace.directory(name)
        self.root = root or workspace.directory(f"{name}-root")
        self.user = workspace.account.name
        self.key_file = self._folder / "user_key"
        self.known_hosts = self._folder / "known_hosts"
        self.log_file = self._folder / "log"
        self.denied = tuple(denied)
        (self.port,) = free_ports(1)
        self._process: subprocess.Popen[Any] | None = None
        for key in ("host_key", "user_key"):
            workspace.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", key, "-f", self._folder / key])
        shutil.copy(self._folder / "user_key.pub", self._folder / "authorized_keys")
        self._own("authorized_keys")
        self._write_known_hosts()
        workspace.at_end(self.stop)

    def _own(self, name: str) -> Path:
        return self._workspace.account.own(self._folder / name)

    def _write_known_hosts(self) -> None:
        key = (self._folder / "host_key.pub").read_text().rsplit(" ", 1)[0]
        self.known_hosts.write_text(f"[{LOOPBACK}]:{self.port} {key}\n")
        self._own("known_hosts")

    def settings(self, path: str = "repository", **more: Any) -> dict[str, Any]:
        """The configuration of a location in a directory below ``root``, as a user writes it."""
        return {
            "type": "sftp",
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "path": str(self.root / path),
            "key_file": str(self.key_file),
            "known_hosts": str(self.known_hosts),
            **more,
        }

    def start(self) -> SshServer:
        """Start it, or start it again. Raises AssertionError with its log when it does not come up."""
        for _unused in range(5):
            self._configure()
            self._process = self._workspace.popen(
                # A server that is not ended by anybody ends with the test run.
                ["setpriv", "--pdeathsig", "KILL", PROGRAM, "-D", "-E", self.log_file, "-f", self._folder / "config"],
            )
            with contextlib.suppress(TimeoutError):
                wait_until(lambda: self._answers() or not self.running, "sshd to listen", timeout=20)
            if self.running and self._answers():
                return self
            self.stop()
            # Somebody else may have got the port in between.
            (self.port,) = free_ports(1)
            self._write_known_hosts()
        raise AssertionError(f"sshd does not start: {self.log_file.read_text()}")

    def _configure(self) -> None:
        arguments = f" -P {','.join(self.denied)}" if self.denied else ""
        text = CONFIGURATION.format(port=self.port, host=LOOPBACK, folder=self._folder, arguments=arguments)
        config = self._folder / "config"
        config.write_text(text + NO_PENALTIES)
        if self._workspace.run([PROGRAM, "-t", "-f", config], check=False).returncode != 0:
            config.write_text(text)
            self._workspace.run([PROGRAM, "-t", "-f", config])
        self._own("config")

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _answers(self) -> bool:
        try:
            with socket.create_connection((LOOPBACK, self.port), timeout=5) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False

    def connections(self) -> list[int]:
        """Processes that serve connections."""
        return descendants(self._process.pid) if self._process is not None and self.running else []

    def kill_connections(self) -> int:
        """Break all connections there are, at once; new ones are possible. How many processes ended."""
        pids = self.connections()
        kill_processes(pids)
        return len(pids)

    def freeze_connections(self) -> None:
        """Let the processes of all connections hang: their peers see a server that says nothing any more."""
        for pid in self.connections():
            os.kill(pid, signal.SIGSTOP)

    def deny(self, *requests: str) -> None:
        """Refuse these SFTP requests from now on. Breaks all connections."""
        self.denied = requests
        self.stop()
        self.start()

    def stop(self) -> None:
        """Break all connections, and refuse new ones."""
        if self._process is None:
            return
        pids = [self._process.pid, *self.connections()]
        kill_processes([pid for pid in pids if _exists(pid)])
        self._process.wait()
        self._process = None

    def new_host_key(self) -> None:
        """Give the server another key, as a reinstallation does: what is in ``known_hosts`` is wrong then."""
        self.stop()
        for name in ("host_key", "host_key.pub"):
            (self._folder / name).unlink()
        key = self._folder / "host_key"
        self._workspace.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "new", "-f", key])
        self.start()

    def lock_out(self) -> None:
        """Take the user's key off the list of those that may log in."""
        (self._folder / "authorized_keys").write_text("")
        self.kill_connections()


def _exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
