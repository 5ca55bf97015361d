# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which locations held the repository when this host saw them last: so that "not mounted" is not taken for "new".

One small file for each in the state directory. They are hints: without them one mistake more is possible.
"""

from __future__ import annotations

import typing as t

if t.TYPE_CHECKING:
    from pathlib import Path

    from .repository import Repository

_DIRECTORY: t.Final = "locations"


def remember(state_directory: Path, repository: Repository) -> None:
    """Note the locations that are open. What cannot be noted fails nothing."""
    for location in repository.locations:
        note = state_directory / _DIRECTORY / location.name
        try:
            if not note.exists():
                note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                note.write_text(f"{repository.id}\n", encoding="ascii")
        except OSError:
            continue


def remembered(state_directory: Path, name: str) -> bool:
    """Whether a location of this name has held a repository."""
    try:
        return (state_directory / _DIRECTORY / name).exists()
    except OSError:
        return False
