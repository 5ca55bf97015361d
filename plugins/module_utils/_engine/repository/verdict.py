# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all verifications of a backup say together: a lighter one takes nothing back that a deeper one found. Pure."""

from __future__ import annotations

import typing as t

from .model import OK, VERIFIED, Note

if t.TYPE_CHECKING:
    from collections.abc import Container, Iterable

_DEPTH: t.Final = {"presence": 0, "content": 1, "restore": 2}
_RESTORE: t.Final = "restore"


def standing(notes: Iterable[Note], locations: Container[str]) -> Note | None:
    """The verification that counts: the newest, unless one before it failed and was not refuted.

    ``notes``: oldest first. ``locations``: where the backup is; what is broken elsewhere is of no interest any more.
    A failure is refuted by a success at least as deep, in every location in which it found something broken.
    """
    found: Note | None = None
    for note in notes:
        if note.kind != VERIFIED:
            continue
        if found is None or _good(found) or not _good(note) or _refutes(note, found, locations):
            found = note
    return found


def restored(notes: Iterable[Note], locations: Container[str]) -> Note | None:
    """The newest restore that succeeded, if no verification since has found the backup broken."""
    known = [note for note in notes if note.kind == VERIFIED]
    counts = standing(known, locations)
    if counts is None or not _good(counts):
        return None
    return next((note for note in reversed(known) if _good(note) and note.data.get("level") == _RESTORE), None)


def _good(note: Note) -> bool:
    return note.data.get("result") == OK


def _refutes(success: Note, failure: Note, locations: Container[str]) -> bool:
    if _depth(success) < _depth(failure):
        return False
    broken = [name for name, state in _states(failure).items() if state != OK and name in locations]
    return all(_states(success).get(name) == OK for name in broken)


def _depth(note: Note) -> int:
    return _DEPTH.get(str(note.data.get("level")), 0)


def _states(note: Note) -> dict[str, t.Any]:
    states = note.data.get("locations")
    return states if isinstance(states, dict) else {}
