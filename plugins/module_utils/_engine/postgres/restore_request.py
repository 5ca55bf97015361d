# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a restore is asked for, and what it has to say afterwards."""

from __future__ import annotations

import dataclasses
import re
import typing as t
from pathlib import Path

from ..errors import EXIT_DONE, EXIT_PARTIAL, ConfigError
from .recovery import ACTIONS, CURRENT_TIMELINE, LATEST_TIMELINE, RecoveryTarget

ARCHIVING: t.Final = ("auto", "preserve", "off")
PRESERVED, OFF = "preserved", "off"


@dataclasses.dataclass(frozen=True, slots=True)
class RestoreRequest:
    target: Path
    backup: str | None = None
    """The id, or its beginning or end; None: the one that fits the goal."""
    goal: RecoveryTarget = dataclasses.field(default_factory=RecoveryTarget.latest)
    inclusive: bool = True
    timeline: str = LATEST_TIMELINE
    """``latest``, ``current`` (that of the backup) or a number."""
    action: str = "promote"
    delta: bool = False
    """Whether the target may hold this cluster already; what is equal stays."""
    tablespaces: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    """New directory by old directory or OID."""
    archiving: str = "auto"
    """``auto``: as it was in the configured data directory of the source, off anywhere else."""
    workers: int | None = None
    owner: str | None = None
    without: tuple[str, ...] = ()
    """Locations that are lost for good: recovery does not wait for them."""
    dry_run: bool = False
    start: bool = False
    start_timeout: float = 3600.0
    """Seconds for start and recovery."""
    port: int | None = None
    bin_directory: Path | None = None

    def check(self) -> None:
        """Raises ConfigError (exit 2) for a request that makes no sense by itself."""
        if self.action not in ACTIONS:
            raise ConfigError(f"{self.action!r} is no recovery action", hint=f"One of: {', '.join(ACTIONS)}.")
        if self.archiving not in ARCHIVING:
            raise ConfigError(f"archiving {self.archiving!r} is not known", hint=f"One of: {', '.join(ARCHIVING)}.")
        timelines = (LATEST_TIMELINE, CURRENT_TIMELINE)
        if self.timeline not in timelines and not re.fullmatch("[1-9][0-9]{0,9}", self.timeline):
            raise ConfigError(
                f"{self.timeline!r} is no timeline",
                hint="latest, current (that of the backup) or a number; in decimal: 00000002 is 2.",
            )
        if not self.goal.is_point and (self.action != "promote" or not self.inclusive):
            raise ConfigError(
                "an action or an exclusive end needs a recovery target",
                hint="Without a target recovery goes to the end of the WAL, and the cluster is promoted there.",
            )


@dataclasses.dataclass(slots=True)
class RestoreResult:
    """What happened. ``partial``: the goal "latest" ends at a gap, with WAL behind it that is lost."""

    status: str
    backup_id: str
    source: str
    kind: str
    target: str
    files: int
    bytes_restored: int
    """Of all files; what of it had to be fetched, compared and written follows."""
    bytes_fetched: int
    bytes_compared: int
    bytes_written: int
    seconds: float
    recovery: dict[str, t.Any]
    """``target``, ``value``, ``timeline``, ``inclusive``, ``action``; for a name or a transaction where it was
    found: ``lsn``, ``time``."""
    archiving: str
    """``preserved`` or ``off``."""
    tablespaces: dict[str, str]
    """Directory by OID."""
    owner: str
    config_files: list[str]
    """Configuration that lay outside of the data directory; its copy is below ``.cryobackup/config``."""
    kept_wal: list[str]
    """Files of ``pg_wal`` that were never archived and stay there for recovery to use."""
    saved_wal: dict[str, t.Any]
    """Files of ``pg_wal`` that were never archived, put aside: ``directory`` (None: there are none), ``files``."""
    dry_run: bool
    locations: dict[str, dict[str, t.Any]] = dataclasses.field(default_factory=dict)
    """By name: ``status`` (``ok`` or ``failed``, on the way or before), ``bytes_read`` of packs, ``error``."""
    started: bool = False
    state: str = ""
    """What pg_control said at the end, when the server was started."""
    warnings: list[str] = dataclasses.field(default_factory=list)
    next_steps: list[str] = dataclasses.field(default_factory=list)

    @property
    def exit_code(self) -> int:
        return EXIT_DONE if self.status == "ok" else EXIT_PARTIAL

    def as_dict(self) -> dict[str, object]:
        """JSON's own types only."""
        return dataclasses.asdict(self)
