# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a location still stores of deleted objects, where it keeps versions."""

from __future__ import annotations

import dataclasses
import typing as t

if t.TYPE_CHECKING:
    from .base import Location


@dataclasses.dataclass(slots=True)
class Hidden:
    """Deleted objects of which versions are still stored, before and after a sweep."""

    objects: int = 0
    bytes: int = 0
    locked: int = 0
    """Of the objects: their time in the trash is over, their lock is not."""
    removed: int = 0
    """Versions that are gone for good now, markers not counted."""
    bytes_removed: int = 0
    overwritten: int = 0
    """Objects that are there and have several versions: somebody wrote over them. They stay."""
    refused: str | None = None
    """Why nothing could be removed, in the store's words."""


def sweep_hidden(location: Location, older_than: float, *, dry_run: bool) -> Hidden | None:
    """Remove for good what was deleted more than so many seconds ago and is not locked; count the rest.

    None for a location that keeps no versions. Idempotent; what is left by a crash is removed by the next one.
    Never asks to bypass a lock. Raises LocationError.
    """
    from .s3.location import S3Location

    if not isinstance(location, S3Location):
        return None
    from .s3.sweep import sweep_versions

    return sweep_versions(location, older_than, dry_run=dry_run)
