# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One backup, and all of them, as plain data: what ``list``, ``info`` and the modules give out.

Every value is of JSON's own types. Names of files may hold surrogate escapes where they are not
UTF-8; whoever prints them takes care of that.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ..errors import ConfigError
from ..repository.model import OK
from ..repository.pins import pin_reason
from .amplification import of_backup

if t.TYPE_CHECKING:
    from ..config import Config
    from ..repository.catalog import BackupRecord, Catalog
    from ..repository.model import BackupHeader, Note
    from ..repository.repository import Repository

Fields: t.TypeAlias = dict[str, t.Any]


DEGRADED: t.Final = "degraded"


def status_now(backup: BackupRecord, repository: Repository) -> str:
    """What became of it: as the manifest says; ``degraded`` if a location that answers lacks it."""
    status = backup.header.status
    lacking = any(location.name not in backup.locations for location in repository.locations)
    return DEGRADED if status == OK and lacking else status


def summary(backup: BackupRecord, repository: Repository) -> Fields:
    """What a list shows of a backup."""
    header = backup.header
    return {
        "backup_id": header.backup_id,
        "source": header.source,
        "type": header.kind,
        "parent": header.parent,
        "status": status_now(backup, repository),
        "label": header.label,
        "started_at": header.started_at,
        "finished_at": header.finished_at,
        "bytes_source": header.totals.bytes_source,
        "bytes_stored": header.totals.bytes_stored,
        "locations": list(backup.locations),
        "epoch": backup.epoch,
        "pinned": backup.pinned,
        "pin_reason": pin_reason(backup),
        "pinned_until": None if backup.pinned_until is None else backup.pinned_until.isoformat(),
        "verified": _note(backup.verified),
        "restored": _note(backup.restored),
    }


def _note(note: Note | None) -> Fields | None:
    return None if note is None else {"at": note.at, **note.data}


def details(backup: BackupRecord, repository: Repository) -> Fields:
    """All that a backup says about itself without a look at its entries."""
    header = backup.header
    return {
        **summary(backup, repository),
        "seconds": round((backup.finished - backup.started).total_seconds(), 3),
        "host": header.host,
        "tool_version": header.tool_version,
        "files": header.totals.files,
        "entries": header.totals.entries,
        "bytes_read": header.totals.bytes_read,
        "packs": _packs(header),
        "epochs_needed": sorted(header.epochs_needed),
        "change_detection": {key: value for key, value in header.change_detection.items() if key != "compaction"},
        "compaction": header.compaction,
        "damage": [dataclasses.asdict(damage) for damage in header.damage],
        "postgres": None if header.postgres is None else dataclasses.asdict(header.postgres),
        "notes": [{"kind": note.kind, "at": note.at, **note.data} for note in backup.notes],
    }


def _packs(header: BackupHeader) -> Fields:
    """Where the bytes lie: ``bytes`` is what the packs take, ``bytes_live`` plaintext that this backup uses of them."""
    return {
        "own": {
            "count": len(header.packs),
            "bytes": sum(pack.size for pack in header.packs),
            "bytes_live": sum(pack.live for pack in header.packs),
        },
        "of_earlier_backups": {
            "count": len(header.foreign),
            "bytes": sum(pack.size for pack in header.foreign),
            "bytes_live": sum(pack.live for pack in header.foreign),
            "backups": sorted({pack.backup_id for pack in header.foreign}),
        },
        **of_backup(header),
    }


def listing(config: Config, repository: Repository, catalog: Catalog) -> Fields:
    """All backups of a catalog, oldest first, and what may hide others from it."""
    return {
        "repository_id": repository.id,
        "backups": [summary(backup, repository) for backup in catalog.backups],
        "unreadable": [{"name": broken.name, **broken.error.as_dict()} for broken in catalog.broken],
        "locations": {name: location_state(repository, name) for name in config.repository.locations},
    }


def location_state(repository: Repository, name: str) -> Fields:
    """Whether a location answered, and what it said if not."""
    error = repository.lost.get(name)
    return {"ok": error is None, "error": None if error is None else error.as_dict()}


def require_known_source(config: Config, catalog: Catalog, source: str) -> None:
    """Raises ConfigError, id ``unknown-source``, for a name that neither configuration nor backups have."""
    if source in config.sources or catalog.of(source) or catalog.broken:
        return
    known = ", ".join(config.sources)
    raise ConfigError(
        f"there is no source {source!r}: {config.path} does not name it, and there is no backup of it",
        hint=f"The configuration has: {known}." if known else "The configuration names no source at all.",
        id="unknown-source",
    )
