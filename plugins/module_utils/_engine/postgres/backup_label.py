# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The texts PostgreSQL gives out at the end of a backup: backup_label, ``.backup`` file, tablespace_map.

They are written by ``build_backup_content`` (``src/backend/access/transam/xlogbackup.c``) and
``do_pg_backup_start`` (``xlog.c``), and read by ``read_backup_label`` and ``read_tablespace_map``
(``xlogrecovery.c``). A restore writes the first and the last byte for byte as they were given out; they
are parsed to be checked, never to be written anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import SourceError
from .lsn import parse_lsn
from .wal import WalKind, match_wal_name

_LOCATION = re.compile(r"([0-9A-Fa-f]+/[0-9A-Fa-f]+) \(file ([0-9A-F]{24})\)", re.ASCII)
_LINE_ENDS = "\r\n"
_BACKSLASH_ESCAPED_SINCE = 14
_OID = re.compile(r"[0-9]{1,10}", re.ASCII)


@dataclass(frozen=True, slots=True)
class BackupLabel:
    """What backup_label says.

    Times are as PostgreSQL wrote them: local time with the abbreviation of its time zone, not parseable.
    """

    start_lsn: int
    start_segment: str
    checkpoint_lsn: int
    method: str
    """``streamed`` for every backup made by PostgreSQL's functions."""
    from_standby: bool
    start_time: str
    label: str
    start_timeline: int
    incremental_from_lsn: int | None = None
    """Set by PostgreSQL 17's incremental backups, on which a server refuses to start."""
    incremental_from_timeline: int | None = None


@dataclass(frozen=True, slots=True)
class BackupHistory:
    """What a ``.backup`` file of the WAL archive says."""

    start: BackupLabel
    stop_lsn: int
    stop_segment: str
    """As PostgreSQL wrote it. For a stop on a boundary some releases name the segment after the last one
    needed: go by ``stop_lsn``."""
    stop_time: str
    stop_timeline: int


@dataclass(frozen=True, slots=True)
class TablespaceLink:
    """One line of tablespace_map: ``pg_tblspc/<oid>`` points to ``path``."""

    oid: int
    path: str


def parse_backup_label(text: str) -> BackupLabel:
    """What a backup_label says; SourceError ``backup-label-format`` where PostgreSQL would not accept it."""
    return _label(_fields(text), "backup_label")


def parse_backup_history(text: str) -> BackupHistory:
    """What a ``.backup`` file says; SourceError ``backup-label-format`` for anything else."""
    what = "the backup history file"
    fields = _fields(text)
    stop_lsn, stop_segment = _location(fields, "STOP WAL LOCATION", what)
    return BackupHistory(
        start=_label(fields, what),
        stop_lsn=stop_lsn,
        stop_segment=stop_segment,
        stop_time=fields.get("STOP TIME", ""),
        stop_timeline=_number(fields, "STOP TIMELINE", what),
    )


def parse_tablespace_map(text: str, *, postgres_major: int) -> tuple[TablespaceLink, ...]:
    """The links of a tablespace_map, in its order; SourceError ``tablespace-map-format``.

    A backslash takes what follows literally: a line end or a backslash. PostgreSQL 13 escapes line ends
    only, and leaves a backslash before anything else alone (a path that ends in one is lost there).
    """
    links: list[TablespaceLink] = []
    line: list[str] = []
    escaped = False
    for character in text:
        if escaped:
            if postgres_major < _BACKSLASH_ESCAPED_SINCE and character not in _LINE_ENDS:
                line.append("\\")
            escaped = character == "\\" and postgres_major < _BACKSLASH_ESCAPED_SINCE
            if not escaped:
                line.append(character)
        elif character in _LINE_ENDS:
            if line:
                links.append(_link("".join(line)))
            line = []
        elif character == "\\":
            escaped = True
        else:
            line.append(character)
    if line or escaped:
        raise _bad_map("it ends in the middle of a line")
    return tuple(links)


def format_tablespace_map(links: Iterable[TablespaceLink], *, postgres_major: int) -> str:
    """The tablespace_map with these links: for a restore that moves tablespaces elsewhere."""
    special = _LINE_ENDS if postgres_major < _BACKSLASH_ESCAPED_SINCE else _LINE_ENDS + "\\"
    escapes = str.maketrans({character: "\\" + character for character in special})
    return "".join(f"{link.oid} {link.path.translate(escapes)}\n" for link in links)


def _link(line: str) -> TablespaceLink:
    oid, separator, path = line.partition(" ")
    if not separator or not path or _OID.fullmatch(oid) is None:
        raise _bad_map(f"cannot make sense of the line {line!r}")
    return TablespaceLink(int(oid), path)


def _fields(text: str) -> dict[str, str]:
    # The label is free text and may hold line ends: what comes first counts, so that its later lines
    # cannot pass for fields that stand before it.
    fields: dict[str, str] = {}
    for line in text.split("\n"):
        key, separator, value = line.partition(": ")
        if separator:
            fields.setdefault(key, value)
    return fields


def _label(fields: dict[str, str], what: str) -> BackupLabel:
    start_lsn, start_segment = _location(fields, "START WAL LOCATION", what)
    segment = match_wal_name(start_segment)
    if segment is None or segment.kind is not WalKind.SEGMENT:
        raise _bad_label(what, f"{start_segment} is not a WAL segment")
    timeline = _number(fields, "START TIMELINE", what)
    if timeline != segment.timeline:
        raise _bad_label(what, f"it names timeline {timeline} and a segment of timeline {segment.timeline}")
    incremental = "INCREMENTAL FROM LSN" in fields
    return BackupLabel(
        start_lsn=start_lsn,
        start_segment=start_segment,
        checkpoint_lsn=_lsn(fields, "CHECKPOINT LOCATION", what),
        method=_required(fields, "BACKUP METHOD", what),
        from_standby=_required(fields, "BACKUP FROM", what) == "standby",
        start_time=fields.get("START TIME", ""),
        label=fields.get("LABEL", ""),
        start_timeline=timeline,
        incremental_from_lsn=_lsn(fields, "INCREMENTAL FROM LSN", what) if incremental else None,
        incremental_from_timeline=_number(fields, "INCREMENTAL FROM TLI", what) if incremental else None,
    )


def _required(fields: dict[str, str], key: str, what: str) -> str:
    try:
        return fields[key]
    except KeyError:
        raise _bad_label(what, f"{key} is missing") from None


def _location(fields: dict[str, str], key: str, what: str) -> tuple[int, str]:
    match = _LOCATION.fullmatch(_required(fields, key, what))
    if match is None:
        raise _bad_label(what, f"{key} is {fields[key]!r}")
    return _parsed_lsn(match[1], key, what), match[2]


def _lsn(fields: dict[str, str], key: str, what: str) -> int:
    return _parsed_lsn(_required(fields, key, what), key, what)


def _parsed_lsn(text: str, key: str, what: str) -> int:
    try:
        return parse_lsn(text)
    except ValueError:
        raise _bad_label(what, f"{key} is {text!r}") from None


def _number(fields: dict[str, str], key: str, what: str) -> int:
    text = _required(fields, key, what)
    if _OID.fullmatch(text) is None:
        raise _bad_label(what, f"{key} is {text!r}")
    return int(text)


def _bad_label(what: str, reason: str) -> SourceError:
    return SourceError(
        f"{what} is invalid: {reason}",
        hint="It must be kept byte for byte as PostgreSQL gave it out; take it from the backup again.",
        id="backup-label-format",
    )


def _bad_map(reason: str) -> SourceError:
    return SourceError(
        f"tablespace_map is invalid: {reason}",
        hint="It must be kept byte for byte as PostgreSQL gave it out; take it from the backup again.",
        id="tablespace-map-format",
    )
