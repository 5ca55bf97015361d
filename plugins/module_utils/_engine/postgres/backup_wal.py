# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The WAL of a backup whose required location was lost on the way.

PostgreSQL archives nothing then: WAL counts as archived only in every required location. The locations that are left
get what the backup needs from the backup itself, out of ``pg_wal``, where PostgreSQL keeps it until then. It stays
unarchived as far as PostgreSQL knows, and its ``archive_command`` finds it there, equal, when the location is back.
"""

from __future__ import annotations

import os
import typing as t

from ..errors import CryoError
from .archive_push import Push
from .archive_source import WalSource
from .wal import history_name

if t.TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ..crypto.keys import KeyRing
    from ..events import Reporter
    from ..storage.base import Location


def bring_wal(
    data_directory: Path,
    segments: Sequence[str],
    locations: Sequence[Location],
    keys: KeyRing,
    *,
    level: int,
    reporter: Reporter,
) -> None:
    """Archive those of ``segments``, all of one timeline, that PostgreSQL has finished and not archived.

    What cannot be brought is told of. Whether everything is there is to be looked at afterwards.
    """
    directory = data_directory / "pg_wal"
    timeline = int(segments[0][:8], 16)
    for name in (history_name(timeline), *segments):
        if not os.path.exists(directory / "archive_status" / f"{name}.ready"):
            continue
        try:
            with WalSource(directory / name, data_directory) as source:
                push = Push(keys, source, level=level)
                push.run(locations)
                push.check()
        except CryoError as error:
            reporter.warn(f"{name} was not archived by the backup: {error.message}")
            return
