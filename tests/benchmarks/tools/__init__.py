# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The programs that are compared, set up as equally as they can be: one file for each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.stores import Stores
from tests.lab import Cluster, Workspace
from tests.lab.peers import provide_barman, provide_pgbackrest

from .barman import Barman
from .basebackup import PgBasebackup
from .cryobackup import NAME, Cryobackup
from .pgbackrest import Defaults, Tuned
from .protocol import LEVEL, SOURCE, Ability, Command, Setting, Tool

__all__ = ["LEVEL", "LOCAL_ONLY", "NAME", "SOURCE", "TOOLS", "Ability", "Command", "Setting", "Tool", "make"]

_PEERS: dict[str, Callable[[Setting], Tool]] = {
    Tuned.key: lambda setting: Tuned(setting, provide_pgbackrest()),
    Defaults.key: lambda setting: Defaults(setting, provide_pgbackrest()),
    Barman.key: lambda setting: Barman(setting, provide_barman()),
    PgBasebackup.key: PgBasebackup,
}

TOOLS = (NAME, *_PEERS)
"""Names for the command line, this project's first."""
LOCAL_ONLY = (Barman.key, PgBasebackup.key)
"""Those that have no object store here."""


def make(key: str, workspace: Workspace, cluster: Cluster, stores: Stores, *, workers: int, program: Path) -> Tool:
    """The tool of this name with an empty place for its backups; ``program`` is this project's command.

    Raises tests.lab.peers.PeerUnavailable.
    """
    setting = Setting(workspace, cluster, stores.store(key), workers)
    return Cryobackup(setting, program) if key == NAME else _PEERS[key](setting)
