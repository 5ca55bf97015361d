# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a replication has done, or would do."""

from __future__ import annotations

import dataclasses
import typing as t

from ..errors import EXIT_DONE, EXIT_PARTIAL

if t.TYPE_CHECKING:
    from ..errors import CryoError


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not where it ought to be, or not what it ought to be."""

    location: str
    object: str
    """Its name; empty: the location as a whole."""
    error: CryoError
    backup: str | None = None

    def as_dict(self) -> dict[str, t.Any]:
        return {"location": self.location, "object": self.object, "backup": self.backup, **self.error.as_dict()}


@dataclasses.dataclass(slots=True)
class Brought:
    """What one location got, or would get."""

    backups: list[str] = dataclasses.field(default_factory=list)
    """Ids of the backups that are there now and were not."""
    completed: list[str] = dataclasses.field(default_factory=list)
    """Ids of the backups that were there, and lacked objects or had damaged ones."""
    packs: int = 0
    wal: int = 0
    notes: int = 0
    keys: int = 0
    """Public keys of epochs, and wraps of secret ones."""
    bytes: int = 0
    """Of all objects."""
    repaired: list[str] = dataclasses.field(default_factory=list)
    """Names of objects that were damaged there and are not any more."""
    error: CryoError | None = None
    """Why the location got no more."""

    @property
    def changed(self) -> bool:
        objects = self.packs + self.wal + self.notes + self.keys
        return bool(self.backups or self.completed or objects or self.repaired)


@dataclasses.dataclass(slots=True)
class ReplicateResult:
    dry_run: bool
    locations: dict[str, Brought] = dataclasses.field(default_factory=dict)
    """Every location that was to get something."""
    problems: list[Problem] = dataclasses.field(default_factory=list)
    read: dict[str, int] = dataclasses.field(default_factory=dict)
    """Bytes read, by the location they came from."""
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        return not self.problems and not any(brought.error for brought in self.locations.values())

    @property
    def changed(self) -> bool:
        return any(brought.changed for brought in self.locations.values())

    @property
    def exit_code(self) -> int:
        return EXIT_DONE if self.complete else EXIT_PARTIAL

    def as_dict(self) -> dict[str, t.Any]:
        return {
            "dry_run": self.dry_run,
            "changed": self.changed,
            "status": "ok" if self.complete else "partial",
            "locations": {name: _as_dict(brought) for name, brought in self.locations.items()},
            "problems": [problem.as_dict() for problem in self.problems],
            "bytes_read": dict(self.read),
            "seconds": round(self.seconds, 3),
        }


def _as_dict(brought: Brought) -> dict[str, t.Any]:
    fields = {field.name: getattr(brought, field.name) for field in dataclasses.fields(brought)}
    return {**fields, "error": None if brought.error is None else brought.error.as_dict()}
