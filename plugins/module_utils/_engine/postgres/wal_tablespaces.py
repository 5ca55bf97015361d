# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeping the tablespaces of a sandbox inside of it. Pure.

The WAL says where a tablespace was created, and replaying that record makes the same directory again, or takes the
one that is there (``create_tablespace_directories`` in ``tablespace.c``). Replayed on the host of the living cluster
it is that cluster's own directory, which recovery would then write to. So the copy of the WAL that a sandbox gets is
changed: the record's path becomes empty, which makes PostgreSQL create the tablespace in the data directory.

Formats: ``XLogRecord`` in ``access/xlogrecord.h``, ``xl_tblspc_create_rec`` in ``commands/tablespace.h``; the number
of the resource manager is its place in ``access/rmgrlist.h``. Little-endian.
"""

from __future__ import annotations

import struct
import typing as t

from .restore_search import WAL_PAGE_BYTES, without_page_headers

if t.TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_RECORD = struct.Struct("<IIQBBHI")  # total length, xid, previous record, info, resource manager, zero, CRC
_CRC_AT: t.Final = 20
_TABLESPACES: t.Final = 5
_DATA_SHORT, _DATA_LONG, _ORIGIN, _TOPLEVEL_XID = 255, 254, 253, 252
_OID_BYTES: t.Final = 4
_PATH_BYTES_MAX: t.Final = 1024  # MAXPGPATH
_LENGTH_MIN: t.Final = _RECORD.size + 2 + _OID_BYTES + 1
_LENGTH_MAX: t.Final = _RECORD.size + 16 + _OID_BYTES + _PATH_BYTES_MAX
TABLESPACE_RECORD_BYTES_MAX: t.Final = _LENGTH_MAX
_LONG_HEADER_BYTES, _SHORT_HEADER_BYTES = 40, 24


class Patch(t.NamedTuple):
    """Bytes to be put into a segment."""

    offset: int
    data: bytes


class Contained(t.NamedTuple):
    """What is to be changed in a segment, and in the one that follows it, where a record goes on there."""

    paths: tuple[str, ...]
    here: tuple[Patch, ...]
    following: tuple[Patch, ...]


def contain_tablespaces(segment: bytes, following: Callable[[], bytes | None]) -> Contained:
    """Find the creation of tablespaces in records that begin in ``segment``.

    ``following`` gives the next segment, None if there is none; asked for only when a record goes on there.
    """
    stream = without_page_headers(segment)
    limit = len(stream)
    if _goes_on(stream):
        more = following()
        stream += without_page_headers(more) if more is not None else b""
    patches: tuple[list[Patch], list[Patch]] = ([], [])
    paths = []
    for at in _candidates(stream, limit):
        found = _path_of(stream, at)
        if found is None:
            continue
        record, path_at = found
        paths.append(record[path_at:].partition(b"\0")[0].decode("utf-8", "surrogateescape"))
        record[path_at] = 0
        changes = ((at + path_at, b"\0"), (at + _CRC_AT, struct.pack("<I", _crc(bytes(record)))))
        for start, data in changes:
            for number, byte in enumerate(data):
                which, offset = divmod(start + number, limit)
                patches[which].append(Patch(_in_segment(offset), bytes([byte])))
    return Contained(tuple(paths), tuple(patches[0]), tuple(patches[1]))


END_BYTES: t.Final = 2 * WAL_PAGE_BYTES


def goes_over(end: bytes) -> bool:
    """Whether a record that may be the creation of a tablespace goes on in the next segment.

    ``end``: the last ``END_BYTES`` of the segment.
    """
    return _goes_on(without_page_headers(end))


def apply(segment: bytes, patches: t.Iterable[Patch]) -> bytes:
    """The segment with the patches in it."""
    changed = bytearray(segment)
    for patch in patches:
        changed[patch.offset : patch.offset + len(patch.data)] = patch.data
    return bytes(changed)


def _candidates(stream: bytes, limit: int) -> Iterator[int]:
    """Positions before ``limit`` where such a record may begin. Records are aligned to 8 bytes."""
    import numpy as np

    rows = len(stream) // 8
    if rows < 3:
        return
    # Info, resource manager and the zero bytes begin the third word of a record: few words pass, and the others
    # are looked at no further.
    words = np.frombuffer(stream, "<u8", count=rows)
    for row in np.flatnonzero((words[2:] & 0xFFFFFFF0) == _TABLESPACES << 8).tolist():
        at = row * 8
        if at >= limit:
            return
        (length,) = struct.unpack_from("<I", stream, at)
        if _LENGTH_MIN <= length <= _LENGTH_MAX:
            yield at


def _goes_on(stream: bytes) -> bool:
    """Whether a record that may be one of those begins so near the end that it goes on in the next segment."""
    tail = max(0, len(stream) - _LENGTH_MAX) // 8 * 8
    for at in range(tail, len(stream) - 7, 8):
        (length,) = struct.unpack_from("<I", stream, at)
        if not _LENGTH_MIN <= length <= _LENGTH_MAX or at + length <= len(stream):
            continue
        if at + _RECORD.size > len(stream):
            return True
        info, manager, zero = struct.unpack_from("<BBH", stream, at + 16)
        if manager == _TABLESPACES and info & 0xF0 == 0 and zero == 0:
            return True
    return False


def _path_of(stream: bytes, at: int) -> tuple[bytearray, int] | None:
    """The record at a position and where in it the path begins; None when it is no such record, or already empty."""
    length, _xid, _previous, _info, _manager, _zero, crc = _RECORD.unpack_from(stream, at)
    record = stream[at : at + length]
    if len(record) != length or _crc(record) != crc:
        return None
    data_at = _main_data_at(record)
    if data_at is None or data_at + _OID_BYTES >= length or not record[data_at + _OID_BYTES]:
        return None
    return bytearray(record), data_at + _OID_BYTES


def _main_data_at(record: bytes) -> int | None:
    at = _RECORD.size
    while at < len(record):
        kind = record[at]
        if kind == _DATA_SHORT:
            return at + 2
        if kind == _DATA_LONG:
            return at + 5
        if kind not in (_ORIGIN, _TOPLEVEL_XID):
            return None
        at += 3 if kind == _ORIGIN else 5
    return None


def _in_segment(position: int) -> int:
    """Where a byte of the stream of a segment lies in the segment."""
    first = WAL_PAGE_BYTES - _LONG_HEADER_BYTES
    if position < first:
        return _LONG_HEADER_BYTES + position
    page, rest = divmod(position - first, WAL_PAGE_BYTES - _SHORT_HEADER_BYTES)
    return (page + 1) * WAL_PAGE_BYTES + _SHORT_HEADER_BYTES + rest


def _crc(record: bytes) -> int:
    """CRC-32C of what follows the header, then of the header up to its CRC (``ValidXLogRecord``)."""
    import google_crc32c

    return int(google_crc32c.value(record[_RECORD.size :] + record[:_CRC_AT]))
