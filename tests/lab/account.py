# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The system user that PostgreSQL runs as."""

from __future__ import annotations

import os
import pwd
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ServerAccount:
    """The user that servers, and commands that servers start, run as.

    PostgreSQL refuses to run as root, so a laboratory started by root uses the system user ``postgres``; one
    started by anybody else uses that user itself.
    """

    name: str
    uid: int
    gid: int

    @classmethod
    def discover(cls) -> ServerAccount:
        """The account for this process. Raises KeyError when root finds no system user ``postgres``."""
        entry = pwd.getpwnam("postgres") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
        return cls(entry.pw_name, entry.pw_uid, entry.pw_gid)

    @property
    def switches(self) -> bool:
        """Whether commands have to change the user to run as this account."""
        return os.geteuid() != self.uid

    def argv(self, command: Sequence[str | Path]) -> list[str]:
        """The argument vector that runs ``command`` as this account.

        ``setpriv`` replaces itself by the command, so the process id of what is started is the command's own.
        """
        words = [str(word) for word in command]
        if not self.switches:
            return words
        return ["setpriv", f"--reuid={self.uid}", f"--regid={self.gid}", "--init-groups", "--", *words]

    def own(self, path: Path, *, recursive: bool = False) -> Path:
        """Give ``path`` (and all below it) to this account; returns ``path``."""
        if not self.switches:
            return path
        os.chown(path, self.uid, self.gid, follow_symlinks=False)
        if recursive:
            for folder, directories, files in os.walk(path):
                for name in (*directories, *files):
                    os.chown(os.path.join(folder, name), self.uid, self.gid, follow_symlinks=False)
        return path
