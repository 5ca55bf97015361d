# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The last entries of a physical backup: what PostgreSQL gave out at its end, and pg_control."""

from __future__ import annotations

import os
import time
import typing as t

from ..repository import model
from .changes import Identity
from .control import read_control_bytes
from .relfile import BACKUP_LABEL_FILE, CONTROL_FILE, TABLESPACE_MAP_FILE
from .walk import Found, status_of

if t.TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .backup_mode import Stopped

File: t.TypeAlias = tuple[Found, bytes]


def control_file(data_directory: Path) -> File:
    """pg_control as it is now, whole. To be called when everything else has been read. Raises SourceError."""
    path = data_directory / CONTROL_FILE
    seen = time.time_ns()
    contents = read_control_bytes(path)
    status = status_of(os.fsencode(path))
    identity = Identity.of_status(status)._replace(size=len(contents))
    source, mode = os.fsencode(path), status.st_mode & 0o7777
    entry = Found(CONTROL_FILE.encode(), source, model.FILE, mode, status.st_uid, status.st_gid, identity, seen)
    return entry, contents


def files_of_backup_mode(stopped: Stopped, like: Found) -> Iterator[File]:
    """backup_label, and tablespace_map if there is one, with the owner that ``like`` has.

    They exist in the backup only: in the living data directory they would keep it from starting.
    """
    for name, contents in ((BACKUP_LABEL_FILE, stopped.label_file), (TABLESPACE_MAP_FILE, stopped.map_file)):
        if contents or name == BACKUP_LABEL_FILE:
            now = time.time_ns()
            identity = Identity(len(contents), now, now, 0, 0)
            yield Found(name.encode(), b"", model.FILE, 0o600, like.uid, like.gid, identity, now), contents
