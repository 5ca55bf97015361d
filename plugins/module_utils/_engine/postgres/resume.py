# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Going on from a backup that was interrupted.

What it had finished is to the next one what a parent is to an incremental, with the same conditions and its own start:
files that did not change since need no reading, pages that did are read again. A full backup that goes on from a full
one stays a full one; an incremental has two then, file by file: what the interrupted run finished, and for the rest
the parent of both (docs/decisions/0016).
"""

from __future__ import annotations

import dataclasses
import time
import typing as t

from ..repository import model
from ..repository.draft import Draft, DraftWriter, drafts_of, read_drafts, remove
from .changes import guards, parent_problem
from .parent import Parent, database_versions

if t.TYPE_CHECKING:
    from pathlib import Path

    from ..config import Config
    from ..repository.repository import Repository
    from .changes import ClusterState
    from .connection import Connection
    from .preflight import Facts

_MARK_SECONDS: t.Final = 1.0
"""How much work at most is lost besides unfinished packs."""
_POSITION: t.Final = (
    # No page on the disk is newer: WAL is written first.
    "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END::text"
)


def drafts_directory(config: Config, source: str) -> Path:
    return config.state_directory / "interrupted" / source


def find_draft(
    config: Config, source: str, repository: Repository, facts: Facts, state: ClusterState, parent: str | None
) -> Draft | None:
    """The one that has most in it of those that a backup of the cluster with that parent can go on from now."""
    best: Draft | None = None
    kind = model.FULL if parent is None else model.INCREMENTAL
    for draft in read_drafts(drafts_directory(config, source), repository.keys.digest_key, kind):
        if draft.header.parent != parent or _problem(draft, facts, state) is not None:
            continue
        if best is None:
            best = draft
        else:
            remove(draft.path)
    return best


def _problem(draft: Draft, facts: Facts, state: ClusterState) -> str | None:
    info = draft.header.postgres
    if info is None or (info.data_directory, info.from_standby) != (facts.data_directory, facts.standby):
        return "it is of another server"
    # Up to its position, the cluster must be the same: what it saw later may have been undone.
    seen = dataclasses.replace(info, stop_lsn=draft.position)
    return parent_problem(dataclasses.replace(draft.header, postgres=seen), state)


def as_parent(draft: Draft, state: ClusterState, before: Parent | None) -> Parent:
    """``before``: the parent that the interrupted backup had. Raises nothing that ``Draft`` did not."""
    # A database directory that is the one that was there before the interrupted run is the one that that run saw.
    versions = (before.versions if before is not None else {}) | database_versions(draft)
    return Parent(draft, guards(draft.header, state), versions)


class Marks:
    """Says from time to time, in the draft of a backup under way, how far the cluster has come."""

    def __init__(self, draft: DraftWriter, connection: Connection) -> None:
        self._draft = draft
        self._connection = connection
        self._last = time.monotonic()

    def tick(self) -> None:
        """To be called often."""
        if time.monotonic() - self._last > _MARK_SECONDS:
            self.set()

    def set(self) -> None:
        """Everything that was added to the session by now counts."""
        self._draft.mark(str(self._connection.value(_POSITION)))
        self._last = time.monotonic()


def forget(config: Config, source: str, kind: str) -> None:
    """There is a backup of that kind now, so the next incremental has another parent than those before; after a full
    one, nothing of what was interrupted is of use any more."""
    for each in (model.INCREMENTAL, kind):
        for path in drafts_of(drafts_directory(config, source), each):
            remove(path)
