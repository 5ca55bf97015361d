# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backup mode: telling PostgreSQL when the copying begins and ends (``do_pg_backup_start`` in ``xlog.c``).

It belongs to the session that began it. When that is closed or lost, PostgreSQL ends backup mode by itself, and
what was copied is void.
"""

from __future__ import annotations

import dataclasses
import typing as t

from .backup_label import BackupLabel, TablespaceLink, parse_backup_label, parse_tablespace_map
from .lsn import parse_lsn
from .preflight import FUNCTIONS_RENAMED_IN

if t.TYPE_CHECKING:
    from .connection import Connection

_START = "SELECT pg_backup_start(%s, %s)::text"
_START_BEFORE_15 = "SELECT pg_start_backup(%s, %s, false)::text"

# As bytes: the texts are to be kept as they are, whatever the encodings of the server and of this session.
# Whether the WAL has arrived is for us to find out: PostgreSQL would wait without end.
_RESULT = r"""SELECT lsn::text, decode(replace(labelfile, '\', '\\'), 'escape'),
 decode(replace(coalesce(spcmapfile, ''), '\', '\\'), 'escape') FROM """
_STOP = _RESULT + "pg_backup_stop(false)"
_STOP_BEFORE_15 = _RESULT + "pg_stop_backup(false, false)"


@dataclasses.dataclass(frozen=True, slots=True)
class Stopped:
    """What PostgreSQL gives out at the end of a backup."""

    stop_lsn: int
    label_file: bytes
    """The contents of backup_label, byte for byte."""
    map_file: bytes
    """Those of tablespace_map; empty when there are no tablespaces that are links."""

    @property
    def label(self) -> BackupLabel:
        return parse_backup_label(self.label_file.decode("utf-8", "surrogateescape"))

    def tablespaces(self, postgres_major: int) -> tuple[TablespaceLink, ...]:
        text = self.map_file.decode("utf-8", "surrogateescape")
        return parse_tablespace_map(text, postgres_major=postgres_major)


def start_backup(connection: Connection, label: str, *, fast: bool) -> int:
    """Begin; returns the LSN from which on WAL is needed. Waits for a checkpoint, a hurried one if ``fast``.

    Raises ClusterError.
    """
    statement = _START if connection.server_version >= FUNCTIONS_RENAMED_IN else _START_BEFORE_15
    return parse_lsn(connection.value(statement, label, fast))


def stop_backup(connection: Connection) -> Stopped:
    """End, and have the last WAL segment that is needed finished and archived soon. Raises ClusterError."""
    statement = _STOP if connection.server_version >= FUNCTIONS_RENAMED_IN else _STOP_BEFORE_15
    lsn, label_file, map_file = connection.row(statement)
    return Stopped(parse_lsn(lsn), bytes(label_file), bytes(map_file))
