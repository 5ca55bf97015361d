# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a running cluster came to its timeline, as its own ``pg_wal`` tells."""

from __future__ import annotations

import typing as t

from ..errors import SourceError
from .timeline import TimelineHistory, parse_history
from .wal import history_name

if t.TYPE_CHECKING:
    from pathlib import Path


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
