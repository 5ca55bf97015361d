# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the actions of ``cryobackup key`` have in common. No key is ever part of a result."""

from __future__ import annotations

import typing as t

from ..errors import EXIT_DONE, EXIT_PARTIAL, reason_of
from ._text import format_table

if t.TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from ..crypto.keys import Key
    from ..errors import CryoError


def shown(keys: Iterable[Key], directory: Path) -> list[dict[str, object]]:
    """Keys by their fingerprints."""
    from ..crypto.keys import FILE_OF

    return [
        {
            "role": key.role,
            "epoch": key.epoch,
            "fingerprint": key.fingerprint(),
            "file": str(directory / FILE_OF[key.role]),
        }
        for key in keys
    ]


def keys_table(rows: Iterable[Mapping[str, object]]) -> str:
    header = ("KEY", "EPOCH", "FINGERPRINT", "FILE")
    return format_table(header, [tuple(str(row[name.lower()]) for name in ("role", *header[1:])) for row in rows])


def failures(errors: Mapping[str, CryoError]) -> dict[str, dict[str, str]]:
    """Locations where something could not be done, with why."""
    return {name: error.as_dict() for name, error in errors.items()}


def failure_lines(errors: Mapping[str, CryoError]) -> list[str]:
    return [f"  location {name}: not done: {reason_of(error, name)}" for name, error in errors.items()]


def exit_of(errors: Mapping[str, CryoError]) -> int:
    return EXIT_PARTIAL if errors else EXIT_DONE
