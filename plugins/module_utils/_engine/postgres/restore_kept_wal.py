# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""WAL that only the target has: the newest transactions of a cluster that crashed.

A restore over the cluster's own data directory would delete them. PostgreSQL looks into ``pg_wal`` for
what the archive does not have ("If you have unarchived WAL segment files … copy them into pg_wal",
section 26.3.5 of its documentation), so they are left where they are.
"""

from __future__ import annotations

import dataclasses
import os
import typing as t

from ..errors import SourceError
from .restore_tree import Handles
from .timeline import TimelineHistory
from .wal import SEGMENT_HEADER_BYTES, WalKind, check_segment, match_wal_name

PG_WAL: t.Final = b"pg_wal"


@dataclasses.dataclass(frozen=True, slots=True)
class WalKeeper:
    """Which files of ``pg_wal`` stay."""

    archived: t.Collection[str]
    """Names that are in the archive."""
    history: TimelineHistory
    """The way that recovery takes."""
    first_segment: int
    """Nothing older is needed."""
    segment_size: int
    system_identifier: int

    def wanted(self, handles: Handles) -> list[str]:
        """Names of the files that stay, sorted."""
        status = handles.status(PG_WAL)
        if status is None:
            return []
        found = []
        for raw in handles.names(PG_WAL):
            name = os.fsdecode(raw)
            if name not in self.archived and self._is_wanted(handles, name):
                found.append(name)
        return sorted(found)

    def _is_wanted(self, handles: Handles, name: str) -> bool:
        parsed = match_wal_name(name)
        if parsed is None:
            return False
        if parsed.kind is WalKind.HISTORY:
            return True  # or the number of that timeline would be given to another one
        if parsed.kind is not WalKind.SEGMENT or not parsed.fits(self.segment_size):
            return False
        number = parsed.number(self.segment_size)
        # Segments of other timelines would be in the way of a new timeline of that number.
        on_way = self.history.timeline_of_segment(number, self.segment_size) == parsed.timeline
        if number < self.first_segment or not on_way:
            return False
        descriptor = handles.open(PG_WAL + b"/" + name.encode(), os.O_RDONLY)
        with open(descriptor, "rb") as file:
            head = file.read(SEGMENT_HEADER_BYTES)
            size = os.fstat(descriptor).st_size
        try:
            check_segment(head, size, parsed, self.system_identifier)
        except SourceError:
            return False  # recycled or made in advance, and not written to yet
        return True
