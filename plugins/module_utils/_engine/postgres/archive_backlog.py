# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""WAL that an optional location still lacks: noted by ``wal-push``, shown by ``status``.

One empty file for each. They are hints: what a location lacks can always be seen by listing it, so that losing them
loses nothing, and they need not be durable.
"""

from __future__ import annotations

import contextlib
import typing as t

from ..errors import reason_of

if t.TYPE_CHECKING:
    from pathlib import Path

    from ..config import Config
    from ..events import Reporter
    from .archive_run import PushResult

_DIRECTORY = "wal-backlog"


def _marker(state_directory: Path, location: str, system_identifier: int, name: str) -> Path:
    return state_directory / _DIRECTORY / location / f"{system_identifier}-{name}"


def note_missing(state_directory: Path, location: str, system_identifier: int, name: str) -> bool:
    """Note that ``location`` lacks a WAL file. False when the note could not be made; that fails nothing."""
    marker = _marker(state_directory, location, system_identifier, name)
    try:
        marker.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        marker.touch(mode=0o600, exist_ok=False)
    except FileExistsError:
        return True  # its time says since when
    except OSError:
        return False
    return True


def note_stored(state_directory: Path, location: str, system_identifier: int, name: str) -> None:
    """Take the note back, if there is one."""
    try:
        _marker(state_directory, location, system_identifier, name).unlink(missing_ok=True)
    except OSError:
        return


def note_result(config: Config, result: PushResult, reporter: Reporter) -> None:
    """Optional locations that lack a file that was archived are told of, and remembered until they have it."""
    for name, error in result.failed.items():
        reporter.warn(f"{result.name} is archived, but not in location {name}: {reason_of(error, name)}")
        if not note_missing(config.state_directory, name, result.system_identifier, result.name):
            reporter.warn(f"and that could not be noted in {config.state_directory}")
    for name in (*result.stored, *result.already):
        if not config.repository.locations[name].required:
            note_stored(config.state_directory, name, result.system_identifier, result.name)


def waiting_markers(state_directory: Path, location: str, system_identifier: int) -> list[tuple[str, float]]:
    """Names of a cluster's files that the location lacked when it was last heard of, and since when."""
    prefix = f"{system_identifier}-"
    found = []
    for marker in (state_directory / _DIRECTORY / location).glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # stored meanwhile
            found.append((marker.name.removeprefix(prefix), marker.stat().st_mtime))
    return found


def read_backlog(state_directory: Path) -> dict[str, list[str]]:
    """By location, what it lacked when it was last heard of: ``<system identifier>/<name>``, sorted."""
    backlog: dict[str, list[str]] = {}
    try:
        for directory in sorted((state_directory / _DIRECTORY).iterdir()):
            found = sorted(marker.name.replace("-", "/", 1) for marker in directory.iterdir())
            if found:
                backlog[directory.name] = found
    except OSError:
        return backlog
    return backlog
