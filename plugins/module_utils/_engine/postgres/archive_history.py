# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The history of a timeline goes into the archive before the timeline's WAL: without it no recovery gets there.

PostgreSQL hands it over right after a promotion, and only then. A server that was promoted while ``archive_mode`` was
off never does; once it archives, its WAL would lead nowhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import typing as t

from ..errors import SourceError
from ..repository.repository import Repository
from .archive_object import look_at_wal
from .archive_run import Opened, PushResult, archive
from .archive_source import WalSource
from .wal import WalKind, history_name

if t.TYPE_CHECKING:
    from pathlib import Path

    from ..config import Config
    from ..events import Reporter

_DIRECTORY = "wal-history"


def history_first(
    config: Config, source: WalSource, data_directory: Path, reporter: Reporter, opened: Opened = Repository.open
) -> PushResult | None:
    """See that the history of a segment's timeline is archived, once for each timeline; None when nothing was done.

    The state directory remembers it. Raises what ``archive`` raises, but for a history file that is not one, or that is
    not there: then WAL is archived without it, with a warning.
    """
    if source.name.kind not in (WalKind.SEGMENT, WalKind.PARTIAL) or source.name.timeline == 1:
        return None
    name = history_name(source.name.timeline)
    seen = config.state_directory / _DIRECTORY / f"{source.system_identifier}-{name}"
    if seen.exists():
        return None
    path = source.path.with_name(name)
    if path.exists():
        try:
            with WalSource(path, data_directory) as history:
                result = archive(config, history, opened)
        except SourceError as error:
            reporter.warn(f"{name} is not archived, and no recovery follows its timeline: {error.message}")
            return None
        _remember(seen)
        return result
    if _is_archived(config, source.system_identifier, name, opened):
        _remember(seen)
    else:
        reporter.warn(f"{name} is neither in pg_wal nor in the archive: no recovery follows this timeline")
    return None


def _is_archived(config: Config, system_identifier: int, name: str, opened: Opened) -> bool:
    settings = config.repository
    required = {key: place for key, place in settings.locations.items() if place.required}
    repository = opened(dataclasses.replace(settings, locations=required))
    return all(
        look_at_wal(repository.keys, place, system_identifier, name) is not None for place in repository.locations
    )


def _remember(seen: Path) -> None:
    """A hint: without it, the next segment looks again."""
    with contextlib.suppress(OSError):
        seen.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        seen.touch(mode=0o600)
