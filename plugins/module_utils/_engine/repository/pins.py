# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pins: a backup that bears one stays, whatever the retention rules say. Notes of the repository, as verifications."""

from __future__ import annotations

import dataclasses
import datetime as dt
import os
import typing as t

from ..errors import ConfigError
from . import names
from .catalog import write_note
from .model import PIN, UNPIN, Note

if t.TYPE_CHECKING:
    from .catalog import BackupRecord
    from .repository import Repository

REASON_CHARACTERS: t.Final = 200


@dataclasses.dataclass(frozen=True, slots=True)
class PinResult:
    backup_id: str
    source: str
    pinned: bool
    reason: str
    until: str | None
    changed: bool

    def as_dict(self) -> dict[str, t.Any]:
        return dataclasses.asdict(self)


def pin(
    repository: Repository,
    backup: BackupRecord,
    reason: str,
    now: dt.datetime,
    *,
    until: dt.datetime | None = None,
    dry_run: bool = False,
) -> PinResult:
    """Pin a backup, in every location that answers. Durable on return; idempotent for the same reason and end.

    Raises ConfigError for a reason that is none, and for an end that has passed.
    """
    if not reason.strip() or len(reason) > REASON_CHARACTERS or not reason.isprintable():
        raise ConfigError(
            f"a reason is one printable line of at most {REASON_CHARACTERS} characters",
            hint="Write down for whoever will find the pin next year why this backup stays.",
            id="usage",
        )
    if until is not None and until <= now:
        raise ConfigError(
            f"{until.isoformat()} has passed: nothing would be pinned until then",
            hint="Name a later time, or leave it out to pin the backup until it is unpinned.",
            id="usage",
        )
    changed = pin_reason(backup) != reason or backup.pinned_until != until
    end = None if until is None else until.isoformat()
    if changed and not dry_run:
        _write(repository, backup, PIN, {"reason": reason} | ({} if end is None else {"until": end}), now)
    return PinResult(backup.id, backup.source, pinned=True, reason=reason, until=end, changed=changed)


def parse_until(text: str) -> dt.datetime:
    """A time with its offset. Raises ConfigError."""
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ConfigError(
            f"{text!r} is no time with an offset from UTC",
            hint="For instance 2026-03-08T12:00:00+01:00, or 2026-03-08T11:00:00Z.",
            id="usage",
        )
    return moment


def unpin(repository: Repository, backup: BackupRecord, now: dt.datetime, *, dry_run: bool = False) -> PinResult:
    """Take the pin off: from now on the retention rules decide. Durable on return; idempotent."""
    changed = backup.pinned
    if changed and not dry_run:
        _write(repository, backup, UNPIN, {}, now)
    return PinResult(backup.id, backup.source, pinned=False, reason="", until=None, changed=changed)


def pin_reason(backup: BackupRecord) -> str | None:
    """Why the backup is pinned; None if it is not."""
    return str(backup.pin.data.get("reason", "")) if backup.pin is not None else None


def _write(repository: Repository, backup: BackupRecord, kind: str, data: dict[str, str], now: dt.datetime) -> None:
    note = Note(backup.id, backup.source, kind, now.isoformat(timespec="microseconds"), dict(data))
    lost = write_note(repository, note, names.new_id(now, os.urandom(4)))
    repository.lost.update(lost)
