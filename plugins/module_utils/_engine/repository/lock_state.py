# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What this host knows of object locks, in its state directory: to spare requests, and for ``status``."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import json
import os
import threading
import typing as t

from ..errors import CryoError
from ..state import state_errors

if t.TYPE_CHECKING:
    import pathlib


@dataclasses.dataclass(frozen=True, slots=True)
class LastLook:
    """At the locks of one location."""

    at: dt.datetime
    least_until: dt.datetime | None
    least_object: str | None


class LockState:
    """Thread-safe. A file that is lost or broken costs requests, nothing else.

    Under compliance nobody can shorten a lock, so what the store once said stays true.
    """

    def __init__(self, directory: pathlib.Path, location: str, *, remember: bool) -> None:
        self._path = _path(directory, location)
        self._directory = directory
        self._remember = remember
        self._old: dict[str, t.Any] = _read(self._path).get("objects", {}) if remember else {}
        self._new: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()

    def until(self, key: str, version_id: str) -> dt.datetime | None:
        """The end of a version's lock, if it is known."""
        found = self._old.get(key)
        if not isinstance(found, list) or len(found) != 2 or found[0] != version_id:
            return None
        return dt.datetime.fromtimestamp(float(found[1]), dt.UTC)

    def remember(self, key: str, version_id: str, until: dt.datetime) -> None:
        if self._remember:
            with self._lock:
                self._new[key] = version_id, until.timestamp()

    def save(self, at: dt.datetime, least_until: dt.datetime | None, least_object: str | None) -> None:
        """Raises StateError or ConfigError."""
        content = {
            "checked_at": at.isoformat(),
            "least_until": None if least_until is None else least_until.isoformat(),
            "least_object": least_object,
            "objects": self._new,
        }
        temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
        with state_errors(self._directory):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary.write_text(json.dumps(content), encoding="ascii")
            temporary.replace(self._path)


def last_look(directory: pathlib.Path, location: str) -> LastLook | None:
    """When this host looked last at the locks of a location, and what it saw; None when it never did."""
    found = _read(_path(directory, location))
    with contextlib.suppress(KeyError, TypeError, ValueError):
        until = found["least_until"]
        return LastLook(
            dt.datetime.fromisoformat(found["checked_at"]),
            None if until is None else dt.datetime.fromisoformat(until),
            found["least_object"],
        )
    return None


def _path(directory: pathlib.Path, location: str) -> pathlib.Path:
    return directory / "object-locks" / f"{location}.json"


def _read(path: pathlib.Path) -> dict[str, t.Any]:
    try:
        with state_errors(path.parent):
            found = json.loads(path.read_text(encoding="ascii"))
    except (CryoError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
