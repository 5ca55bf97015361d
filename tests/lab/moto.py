# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A quick imitation of S3 for the inner loop: ready in half a second, checks neither secrets nor integrity.

Nothing that is claimed of authentication, checksums or retention may rest on it: use ``ceph`` for that.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .account import ServerAccount
from .network import LOOPBACK, answers, free_ports
from .objects import ObjectStore, User
from .waiting import wait_until


class MotoFailed(Exception):
    """The server did not start; the message has what it wrote."""


class MotoServer(ObjectStore):
    """Moto's S3 as a process, without TLS. Close it; the laboratory's guard ends it when its owner dies."""

    def __init__(self, folder: Path, account: ServerAccount | None = None) -> None:
        super().__init__(folder, account)
        folder.mkdir(mode=0o755)
        self.owner = User("owner", "testing", "testing")
        (port,) = free_ports(1)
        self.url = f"http://{LOOPBACK}:{port}"
        log = folder / "log"
        with open(log, "wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", LOOPBACK, "-p", str(port)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            wait_until(lambda: answers(port) or self._process.poll() is not None, "moto's server")
        except TimeoutError:
            self.close()
            raise
        if self._process.poll() is not None:
            raise MotoFailed(f"moto's server ended: {log.read_text()[-2000:]}")

    def user(self, name: str) -> User:
        """A user like any other: nobody is refused."""
        return User(name, f"key-{name}", "secret")

    def close(self) -> None:
        """End it at once. May be called twice."""
        super().close()
        self._process.kill()
        self._process.wait()
