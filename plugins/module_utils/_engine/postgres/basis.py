# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a backup takes over from: its parent, what an interrupted run had finished, both, or nothing.

Each file has at most one of them, and with it the start, and the guards, of that one alone: what is proven for an
incremental and its parent is proven for each file by itself.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ..repository.model import Entry
from .parent import Parent, ParentEntries

if t.TYPE_CHECKING:
    from .connection import Connection
    from .timeline import TimelineHistory


class Known(t.NamedTuple):
    """The entry of a file, and who has it."""

    entry: Entry
    parent: Parent


@dataclasses.dataclass(frozen=True, slots=True)
class Basis:
    """With a parent the backup is an incremental, else a full one. The draft's own parent is the same, or none."""

    parent: Parent | None = None
    draft: Parent | None = None

    @property
    def interrupted(self) -> list[str]:
        """The runs whose packs the backup takes over, the last one first."""
        if self.draft is None:
            return []
        header = self.draft.manifest.header
        return [header.backup_id, *header.interrupted]

    def asked(self, connection: Connection, version: int, history: TimelineHistory, start_lsn: int) -> Basis:
        """The same, when the server was asked what has changed since the start of each; see ``Parent.asked``."""
        return Basis(
            self.parent.asked(connection, version, history, start_lsn) if self.parent else None,
            self.draft.asked(connection, version, history, start_lsn) if self.draft else None,
        )


class KnownEntries:
    """The entries of both, asked for in the order of paths. The draft is younger: its word comes first."""

    def __init__(self, basis: Basis) -> None:
        both = (parent for parent in (basis.draft, basis.parent) if parent is not None)
        self._entries = [(parent, ParentEntries(parent.manifest)) for parent in both]

    def at(self, path: bytes) -> Known | None:
        """The entry of that path. Paths must be asked for in ascending order."""
        found = [(entries.at(path), parent) for parent, entries in self._entries]
        return next((Known(entry, parent) for entry, parent in found if entry is not None), None)
