# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How much more is stored, and lies in the way of a restore, than what is needed. Pure, from headers of manifests.

The packs that a backup needs hold dead bytes, too: what later backups have replaced. What a full of the same state
would store is estimated: of each pack that share of its stored bytes which is live in it.
"""

from __future__ import annotations

import typing as t

from ..repository.model import pack_names

if t.TYPE_CHECKING:
    from collections.abc import Sequence

    from ..repository.catalog import BackupRecord
    from ..repository.model import BackupHeader, ForeignPackRow, PackRow
    from .backups import Fields

_CLASSES: t.Final = 10


def of_backup(header: BackupHeader) -> Fields:
    """Of the packs that one backup needs.

    ``bytes_needed``: what one full of its state would store; ``amplification``: the stored bytes of the packs by that,
    None for an empty backup; ``live_ratios``: how many packs are live to so many tenths, up to 10 %, 20 % … 100 %.
    """
    rows = _rows(header)
    needed = bytes_needed(header)
    ratios = [0] * _CLASSES
    for row in rows:
        ratios[_tenth(row)] += 1
    return {
        "bytes_needed": needed,
        "amplification": _quotient(sum(row.size for row in rows), needed),
        "live_ratios": ratios,
    }


def of_source(backups: Sequence[BackupRecord]) -> Fields:
    """Of all backups of one source, oldest first, at least one.

    ``bytes_packs``: stored bytes of all packs that any of them needs, each counted once; ``bytes_full``: what one full
    of the newest would store; ``amplification``: the one by the other; ``newest``: as ``of_backup``.
    """
    packs = {name: size for backup in backups for name, (size, _digest) in pack_names(backup.header).items()}
    newest = of_backup(backups[-1].header)
    stored = sum(packs.values())
    return {
        "packs": len(packs),
        "bytes_packs": stored,
        "bytes_full": newest["bytes_needed"],
        "amplification": _quotient(stored, newest["bytes_needed"]),
        "newest": {"backup_id": backups[-1].id, **newest},
    }


def bytes_needed(header: BackupHeader) -> int:
    """Stored bytes of what a backup needs of its packs."""
    return sum(row.size * row.live // row.plain for row in _rows(header) if row.plain > 0)


def _rows(header: BackupHeader) -> list[PackRow | ForeignPackRow]:
    return [*header.packs, *header.foreign]


def _tenth(row: PackRow | ForeignPackRow) -> int:
    """0 for up to 10 % … 9 for up to 100 %."""
    if row.plain <= 0:
        return 0
    return min(_CLASSES - 1, max(0, -(-row.live * _CLASSES // row.plain) - 1))


def _quotient(stored: int, needed: int) -> float | None:
    return round(stored / needed, 2) if needed else None
