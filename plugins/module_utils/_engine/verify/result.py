# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a verification has to tell."""

from __future__ import annotations

import dataclasses
import datetime as dt
import typing as t

from ..errors import EXIT_DAMAGE, EXIT_DONE, EXIT_FAILED, EXIT_PARTIAL

if t.TYPE_CHECKING:
    from ..errors import CryoError

PRESENCE, CONTENT, RESTORE = "presence", "content", "restore"
LEVELS: t.Final = (PRESENCE, CONTENT, RESTORE)

OK, DAMAGED, FAILED, UNVERIFIED, INCOMPLETE = "ok", "damaged", "failed", "unverified", "incomplete"
_WORST_FIRST: t.Final = (DAMAGED, FAILED, UNVERIFIED, INCOMPLETE, OK)
ABSENT, LOST = "absent", "lost"

DAMAGE, PARTLY, NOTICE = "damage", "incomplete", "notice"
"""How grave a finding is: something is not what was written; something could not be looked at, or is not where it
ought to be as well; something a person may want to know."""

FILES_LISTED: t.Final = 1000


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be, for one backup; or for none, when no backup of those examined needs it."""

    kind: str
    """``missing`` ``size`` ``damaged`` ``inconsistent`` ``page`` ``unreadable`` ``absent`` ``location`` ``repository``
    ``orphan`` ``unknown`` ``wal-gap`` ``wal-history`` ``deleted``: stable, for programs."""
    severity: str
    location: str
    object: str
    what: str
    backup: str | None = None
    files: tuple[str, ...] = ()
    """Paths in the backup that cannot be restored from this object, ``FILES_LISTED`` of them at most."""
    files_total: int = 0
    blocks: tuple[int, ...] = ()
    """Of the one file named, counted from the beginning of the relation."""

    def as_dict(self) -> dict[str, t.Any]:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**fields, "files": list(self.files), "blocks": list(self.blocks)}


def bare(words: str, name: str) -> str:
    """An error's message without the name of the object that a finding has anyway."""
    return words.removeprefix(f"object {name} is damaged: ").removeprefix(f"object {name} ")


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """One question that a restored cluster was asked."""

    name: str
    ok: bool | None
    """None: it could not be asked here; ``detail`` says why."""
    detail: str
    seconds: float = 0.0

    def as_dict(self) -> dict[str, t.Any]:
        return {"name": self.name, "ok": self.ok, "detail": self.detail, "seconds": round(self.seconds, 3)}


@dataclasses.dataclass(slots=True)
class BackupResult:
    """One backup. ``locations`` has every location of the repository that was to be looked at."""

    backup_id: str
    source: str
    kind: str | None
    """None when the manifest is readable nowhere."""
    locations: dict[str, str] = dataclasses.field(default_factory=dict)
    """Name → ``ok``, ``damaged``, ``incomplete``, ``absent`` or ``lost``."""
    findings: list[Finding] = dataclasses.field(default_factory=list)
    checks: list[Check] = dataclasses.field(default_factory=list)
    figures: dict[str, t.Any] = dataclasses.field(default_factory=dict)
    error: CryoError | None = None
    """Why it could not be verified."""

    @property
    def result(self) -> str:
        severities = {finding.severity for finding in self.findings}
        if DAMAGE in severities:
            return DAMAGED
        if any(check.ok is False for check in self.checks):
            return FAILED
        if self.error is not None:
            return UNVERIFIED
        return INCOMPLETE if PARTLY in severities else OK

    def as_dict(self) -> dict[str, t.Any]:
        return {
            "backup_id": self.backup_id,
            "source": self.source,
            "type": self.kind,
            "result": self.result,
            "locations": dict(self.locations),
            "figures": self.figures,
            "checks": [check.as_dict() for check in self.checks],
            "findings": [finding.as_dict() for finding in self.findings],
            "error": self.error.as_dict() if self.error is not None else None,
        }


@dataclasses.dataclass(slots=True)
class LocationResult:
    status: str = OK
    """``ok``, ``damaged``, ``incomplete`` or ``lost``."""
    objects: int = 0
    bytes: int = 0
    """Stored bytes that were read there; 0 at the level ``presence``."""
    pages: int = 0
    """Pages of relations that were looked at."""
    error: CryoError | None = None

    def as_dict(self) -> dict[str, t.Any]:
        error = self.error.as_dict() if self.error is not None else None
        return {
            "status": self.status,
            "objects": self.objects,
            "bytes": self.bytes,
            "pages": self.pages,
            "error": error,
        }


@dataclasses.dataclass(slots=True)
class VerifyReport:
    level: str
    started_at: dt.datetime
    seconds: float = 0.0
    backups: list[BackupResult] = dataclasses.field(default_factory=list)
    others: list[Finding] = dataclasses.field(default_factory=list)
    """Findings that belong to no backup of those examined."""
    locations: dict[str, LocationResult] = dataclasses.field(default_factory=dict)

    @property
    def findings(self) -> list[Finding]:
        """All of them."""
        return [*self.others, *(finding for backup in self.backups for finding in backup.findings)]

    @property
    def result(self) -> str:
        """The worst of all."""
        found = {backup.result for backup in self.backups}
        severities = {finding.severity for finding in self.others}
        found |= {DAMAGED} if DAMAGE in severities else {INCOMPLETE} if PARTLY in severities else set()
        return next((word for word in _WORST_FIRST if word in found), OK)

    @property
    def damaged(self) -> bool:
        """Whether something is not what it should be, as opposed to: could not be looked at."""
        return self.result in (DAMAGED, FAILED)

    @property
    def exit_code(self) -> int:
        if self.damaged:
            return EXIT_DAMAGE
        if self.result == UNVERIFIED:
            some = any(backup.result != UNVERIFIED for backup in self.backups)
            return EXIT_PARTIAL if some else EXIT_FAILED
        return EXIT_PARTIAL if self.result == INCOMPLETE else EXIT_DONE

    def as_dict(self) -> dict[str, t.Any]:
        """JSON's own types only; paths that are not UTF-8 hold surrogates."""
        return {
            "level": self.level,
            "result": self.result,
            "started_at": self.started_at.isoformat(),
            "seconds": round(self.seconds, 3),
            "backups": [backup.as_dict() for backup in self.backups],
            "locations": {name: found.as_dict() for name, found in self.locations.items()},
            "findings": [finding.as_dict() for finding in self.others],
        }
