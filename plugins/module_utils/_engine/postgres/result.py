# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a backup run has to tell."""

from __future__ import annotations

import dataclasses
import datetime as dt
import typing as t

from ..errors import EXIT_DONE, EXIT_PARTIAL
from ..repository import model

if t.TYPE_CHECKING:
    from collections.abc import Mapping

    from ..errors import CryoError
    from ..repository.model import BackupHeader, Damage

DEGRADED: t.Final = "degraded"
_NOT_FOR_PEOPLE: t.Final = {"witness", "compaction", "interrupted"}
"""Of how changes were found: what later backups need, and what stands elsewhere."""


@dataclasses.dataclass(frozen=True, slots=True)
class BackupResult:
    """A backup that exists: committed, durably, in at least one location."""

    backup_id: str
    source: str
    requested: str
    """The kind that was asked for."""
    type: str
    """The kind that was made: an incremental without a usable parent is made as a full one."""
    parent: str | None
    backup_status: str
    """As in the manifest: ``ok`` or ``damaged``."""
    label: str
    started_at: dt.datetime
    finished_at: dt.datetime
    seconds: float
    system_identifier: str
    postgres_version: int
    timeline: int
    start_lsn: str
    stop_lsn: str
    wal_start: str
    wal_stop: str
    bytes_source: int
    bytes_read: int
    bytes_stored: int
    files: int
    entries: int
    locations: Mapping[str, CryoError | None]
    """Every configured location: None where the backup is, else why it is not there."""
    change_detection: Mapping[str, t.Any]
    damage: tuple[Damage, ...] = ()
    compaction: Mapping[str, int] | None = None
    """What was stored again although it did not change, and why; None when nothing was."""
    requests: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    """By location, of this run: how many of each kind, where requests cost."""

    @classmethod
    def of(
        cls,
        header: BackupHeader,
        *,
        requested: str,
        locations: Mapping[str, CryoError | None],
        seconds: float,
        requests: Mapping[str, Mapping[str, int]] | None = None,
    ) -> BackupResult:
        """What the manifest says, and what only those know who made it or looked for it."""
        info = header.postgres
        if info is None:
            raise ValueError("a physical backup has a header without PostgreSQL in it")
        return cls(
            backup_id=header.backup_id,
            source=header.source,
            requested=requested,
            type=header.kind,
            parent=header.parent,
            backup_status=header.status,
            label=header.label,
            started_at=dt.datetime.fromisoformat(header.started_at),
            finished_at=dt.datetime.fromisoformat(header.finished_at),
            seconds=seconds,
            system_identifier=info.system_identifier,
            postgres_version=info.version,
            timeline=info.timeline,
            start_lsn=info.start_lsn,
            stop_lsn=info.stop_lsn,
            wal_start=info.wal_start,
            wal_stop=info.wal_stop,
            bytes_source=header.totals.bytes_source,
            bytes_read=header.totals.bytes_read,
            bytes_stored=header.totals.bytes_stored,
            files=header.totals.files,
            entries=header.totals.entries,
            locations=locations,
            change_detection=header.change_detection,
            compaction=header.compaction,
            damage=tuple(header.damage),
            requests=requests or {},
        )

    @property
    def status(self) -> str:
        """``ok``; ``damaged``: pages were already broken in the source; ``degraded``: a location lacks it."""
        if self.backup_status != model.OK:
            return self.backup_status
        return DEGRADED if any(self.locations.values()) else model.OK

    @property
    def exit_code(self) -> int:
        return EXIT_DONE if self.status == model.OK else EXIT_PARTIAL

    def as_dict(self) -> dict[str, t.Any]:
        """JSON's own types only."""
        plain = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("backup_status", "change_detection", "requests")
        }
        return {
            **plain,
            "status": self.status,
            "started_at": self.started_at.isoformat(),
            "finished_at": self.finished_at.isoformat(),
            "seconds": round(self.seconds, 3),
            "change_detection": {
                name: value for name, value in self.change_detection.items() if name not in _NOT_FOR_PEOPLE
            },
            "locations": {
                name: _location(error, self.requests.get(name, {})) for name, error in self.locations.items()
            },
            "damage": [{"path": item.path, "blocks": list(item.blocks)} for item in self.damage],
        }


def _location(error: CryoError | None, requests: Mapping[str, int]) -> dict[str, t.Any]:
    found: dict[str, t.Any] = {"status": "ok"} if error is None else {"status": "failed", "error": error.as_dict()}
    return found | ({"requests": dict(sorted(requests.items()))} if requests else {})
