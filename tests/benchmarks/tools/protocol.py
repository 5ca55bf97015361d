# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the measurements ask of a program, whichever it is."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.benchmarks.stores import Store
from tests.lab import Cluster, Workspace

SOURCE = "main"
"""The cluster's name in every program's configuration."""
LEVEL = 3
"""zstd."""

Command = list[str]


class Ability(enum.Enum):
    """What not every program can do."""

    INCREMENTAL = "incremental backup"
    DELTA = "restore into a directory that is there already"
    ARCHIVE = "WAL archive"
    PUSH = "one process for one segment"
    ASK = "a client of what archives ahead"
    REPLAY = "restore_command"
    LIMIT = "bandwidth limit"


@dataclass(frozen=True)
class Setting:
    """What a program is set up with.

    Attributes:
        workers: Threads or processes of each program that can have several.
    """

    workspace: Workspace
    cluster: Cluster
    store: Store
    workers: int


class Tool(Protocol):
    """A program with a place of its own for backups; most methods give command lines.

    Attributes:
        key: Name for ``--tools``.
        name: Name in the tables.
        version: As the program says it.
        how: Compression, encryption and parallelism, in words.
        brief: So slow that it does, once, only what the others are judged by (operations.BRIEF).
        cannot: Why it cannot do a thing: for footnotes.
        archiver_bytes: Peak memory of the service that the last ``archiving`` had; 0 for those without one.
    """

    key: str
    name: str
    version: str
    how: str
    store: Store
    brief: bool
    cannot: Mapping[Ability, str]
    archiver_bytes: int

    def archiving(self) -> contextlib.AbstractContextManager[str]:
        """Everything that archives WAL, made ready; gives the ``archive_command``. Only with Ability.ARCHIVE."""

    def drained(self) -> Command | None:
        """What has to run after PostgreSQL has handed over its last segment, until the archive has it."""

    def backup(self, kind: str, *, limit: int | None = None) -> Command:
        """``kind``: full or incremental (to the newest backup). ``limit``: bytes a second."""

    def restore(self, target: Path, *, delta: bool = False, lsn: str | None = None) -> Command:
        """The newest backup into ``target``, an empty directory, synced; to its own end, or prepared to
        replay WAL up to ``lsn`` and end recovery there."""

    def wal_push(self, segment: Path) -> Command:
        """One segment, by a process that does all the work."""

    def wal_ask(self, segment: Path) -> Command:
        """The client that ``archive_command`` is, while what archives ahead is there (inside ``archiving``)."""


def shell(*steps: Sequence[str]) -> Command:
    """One command that does these lines of a shell, each the words of a command or one text, to the first failure."""
    return ["/bin/sh", "-e", "-c", "\n".join(" ".join(step) for step in steps)]
