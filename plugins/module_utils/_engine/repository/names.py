# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of objects and ids: section 3 of docs/repository-format.md. Pure."""

from __future__ import annotations

import datetime as dt
import re
import typing as t

from ..errors import RepositoryError

REPOSITORY_JSON = "repository.json"
SOURCE = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
IDENTIFIER = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}")


def new_id(now: dt.datetime, random: bytes) -> str:
    """An id that sorts by time; ``random`` is 4 bytes."""
    return f"{now.astimezone(dt.UTC):%Y%m%dT%H%M%SZ}-{random.hex()}"


def is_id(text: str) -> bool:
    return IDENTIFIER.fullmatch(text) is not None


def id_time(identifier: str) -> dt.datetime:
    """The time in an id (UTC, whole seconds)."""
    return dt.datetime.strptime(identifier[:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=dt.UTC)


def pack(backup_id: str, number: int) -> str:
    return f"packs/{backup_id}/{number:06d}.pack"


def packs(backup_id: str) -> str:
    return f"packs/{backup_id}/"


def manifest(source: str, backup_id: str) -> str:
    return f"manifests/{source}/{backup_id}"


def wal(system_identifier: int, name: str) -> str:
    return f"wal/{system_identifier}/{name[:8]}/{name}"


def wal_of(system_identifier: int) -> str:
    return f"wal/{system_identifier}/"


class StreamedPart(t.NamedTuple):
    """A run of bytes of a WAL segment, streamed before the segment was finished."""

    segment: str
    stream: str
    """An id: parts of one stream fit together."""
    begin: int
    end: int
    """From ``begin`` to before ``end``: bytes from the beginning of the segment."""


STREAMED: t.Final = "streamed/"
_STREAMED_PART = re.compile(
    rf"{STREAMED}([0-9]{{1,20}})/([0-9A-F]{{8}})/(\2[0-9A-F]{{16}})/({IDENTIFIER.pattern})-([0-9a-f]{{8}})-([0-9a-f]{{8}})"
)


def streamed_of(system_identifier: int, segment: str) -> str:
    return f"{STREAMED}{system_identifier}/{segment[:8]}/{segment}/"


def streamed_part(system_identifier: int, part: StreamedPart) -> str:
    within = f"{part.stream}-{part.begin:08x}-{part.end:08x}"
    return streamed_of(system_identifier, part.segment) + within


def parse_streamed_part(key: str) -> tuple[int, StreamedPart] | None:
    """(system identifier, part); None for other names."""
    match = _STREAMED_PART.fullmatch(key)
    if match is None or int(match[5], 16) >= int(match[6], 16):
        return None
    return int(match[1]), StreamedPart(match[3], match[4], int(match[5], 16), int(match[6], 16))


def lease(source: str, backup_id: str) -> str:
    return f"leases/{source}/{backup_id}"


def mark(mark_id: str) -> str:
    return f"marks/{mark_id}"


def note(source: str, backup_id: str, note_id: str) -> str:
    return f"notes/{source}/{backup_id}/{note_id}"


class PackName(t.NamedTuple):
    backup_id: str
    number: int


def parse_pack(key: str) -> PackName | None:
    """None for anything that is not the name of a pack."""
    match = re.fullmatch(rf"packs/({IDENTIFIER.pattern})/([0-9]{{6,}})\.pack", key)
    return PackName(match[1], int(match[2])) if match else None


def parse_source_object(key: str, kind: str) -> tuple[str, str] | None:
    """(source, backup id) of ``manifests/…`` or ``leases/…``; None for other names."""
    match = re.fullmatch(rf"{kind}/({SOURCE.pattern})/({IDENTIFIER.pattern})", key)
    return (match[1], match[2]) if match else None


def check_source(source: str) -> str:
    if SOURCE.fullmatch(source) is None:
        raise RepositoryError(f"{source!r} cannot be the name of a source", hint="Use a-z, 0-9, _ and -.")
    return source
