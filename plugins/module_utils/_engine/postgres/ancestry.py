# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a running cluster came to its timeline, as its ``pg_wal`` tells, and whether another server went on from it."""

from __future__ import annotations

import typing as t

from ..errors import LocationError, SourceError
from ..repository import names
from .timeline import TimelineHistory, parse_history
from .wal import history_name

if t.TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from ..storage.base import Location


def history_of(data_directory: Path, timeline: int) -> TimelineHistory:
    """The ancestry of ``timeline``; without ancestors where its history file is missing or makes no sense.

    PostgreSQL keeps history files in ``pg_wal`` for good (``RemoveOldXlogFiles`` leaves them). Without one nothing
    of another timeline counts as an ancestor: what is based on it takes a full backup, no wrong one.
    """
    if timeline == 1:
        return TimelineHistory(timeline)
    try:
        text = (data_directory / "pg_wal" / history_name(timeline)).read_text("utf-8", "surrogateescape")
        return parse_history(text, timeline)
    except (OSError, SourceError):
        return TimelineHistory(timeline)


def left_behind(locations: Iterable[Location], system_identifier: int, timeline: int) -> str | None:
    """Whether the archive has the next timeline, though a primary is on this one; why that matters, in words.

    A promoted server archives the history of its timeline at once, and takes the number after the highest that it
    knows of (``findNewestTimeLine``). One request to each location, up to the first that has it.
    """
    name = history_name(timeline + 1)
    for location in locations:
        try:
            if location.stat(names.wal(system_identifier, name)) is None:
                continue
        except LocationError:
            continue
        return (
            f"location {location.name} has timeline {timeline + 1}, and this primary is on {timeline}: another server "
            "was promoted, and both may take writes, or a promoted copy archives here"
        )
    return None
