# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Object locks, as this host saw them when it looked last: asking for them all takes too long for a status."""

from __future__ import annotations

import datetime as dt
import typing as t

from ..repository.lock_state import last_look

if t.TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

    from .backups import Fields

_SOON: t.Final = dt.timedelta(days=3)  # of the seven that `cryobackup lock extend` leaves


def lock_state(state_directory: pathlib.Path, location: str) -> Fields | None:
    """None on a host that never looked: another one looks after the locks."""
    look = last_look(state_directory, location)
    if look is None:
        return None
    return {
        "checked_at": look.at.isoformat(timespec="seconds"),
        "least_until": None if look.least_until is None else look.least_until.isoformat(timespec="seconds"),
        "least_object": look.least_object,
    }


def lock_worries(locks: Fields | None, now: dt.datetime) -> Iterator[str]:
    """What a person should look at."""
    if locks is None:
        return
    if now - dt.datetime.fromisoformat(locks["checked_at"]) > _SOON:
        yield f"its object locks were looked at last at {locks['checked_at']}: run `cryobackup lock extend` every day"
    if locks["least_until"] is not None and dt.datetime.fromisoformat(locks["least_until"]) - now < _SOON:
        yield f"the lock of {locks['least_object']} ends at {locks['least_until']}"
