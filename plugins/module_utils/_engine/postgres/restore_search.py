# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where in the WAL a restore point or the end of a transaction lies. Pure.

A name or a transaction id says nothing about when it was, and so nothing about which backup leads to
it. PostgreSQL would find out at the end of a recovery that started too late. The WAL itself knows.

Formats: ``XLogRecord`` in ``access/xlogrecord.h``, pages in ``access/xlog_internal.h``,
``xl_restore_point`` and ``XLOG_RESTORE_POINT`` in ``access/xlog_internal.h`` and ``catalog/pg_control.h``,
transaction records in ``access/xact.h``. Little-endian.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import struct
import typing as t

WAL_PAGE_BYTES: t.Final = 8192
_LONG_HEADER_BYTES, _SHORT_HEADER_BYTES = 40, 24
_RECORD = struct.Struct("<IIQBBxxI")  # total length, xid, previous record, info, resource manager, CRC
_CRC_AT: t.Final = 20
_XLOG_RESOURCE_MANAGER, _XACT_RESOURCE_MANAGER = 0, 1
_RESTORE_POINT: t.Final = 0x70
_NAME_BYTES: t.Final = 64
_OPERATION_MASK: t.Final = 0x70
_COMMIT, _ABORT = 0x00, 0x20
_DATA_SHORT, _DATA_LONG, _ORIGIN, _TOPLEVEL_XID = 255, 254, 253, 252
_RECORD_BYTES_MAX: t.Final = 1 << 20
_CARRY_BYTES: t.Final = _RECORD_BYTES_MAX
_EPOCH: t.Final = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """A record that ends a recovery."""

    lsn: int
    """Where it begins."""
    time: dt.datetime
    what: str
    """``restore point``, ``commit`` or ``abort``."""


class WalSearch:
    """Takes the segments of one way through the WAL, in order and without gaps, and finds records.

    Either ``name`` or ``xid`` is looked for. Memory: a segment and at most one record before it.
    """

    def __init__(self, segment_size: int, *, name: str | None = None, xid: int | None = None) -> None:
        self._segment_size = segment_size
        self._name = name.encode("utf-8", "surrogateescape") if name is not None else None
        self._xid = xid
        self._carry = b""

    def feed(self, number: int, segment: bytes) -> list[Found]:
        """The next segment. Returns what ends in it, wherever it begins."""
        whole = self._carry + without_page_headers(segment)
        start = len(self._carry)
        found = []
        for at in self._candidates(whole):
            examined = self._examine(whole, at)
            # What lies in the carried part entirely was found with the segment before.
            if examined is not None and at + examined[1] > start:
                found.append(dataclasses.replace(examined[0], lsn=self._lsn(number, at - start)))
        self._carry = whole[max(0, len(whole) - _CARRY_BYTES) :]
        return found

    def _candidates(self, whole: bytes) -> t.Iterator[int]:
        """Positions where a record may begin. Records are aligned to 8 bytes."""
        if self._name is not None:
            wanted = self._name + b"\0"
            # The header of the record, that of its data, and the time precede the name.
            before = _RECORD.size + 2 + 8
            at = whole.find(wanted)
            while at >= 0:
                if at >= before and (at - before) % 8 == 0:
                    yield at - before
                at = whole.find(wanted, at + 1)
            return
        import numpy as np

        words = np.frombuffer(whole, "<u4", count=len(whole) // 8 * 2).reshape(-1, 2)
        lengths, xids = words[:, 0], words[:, 1]
        likely = (xids == self._xid) & (lengths >= _RECORD.size) & (lengths <= _RECORD_BYTES_MAX)
        yield from (np.flatnonzero(likely) * 8).tolist()

    def _examine(self, whole: bytes, at: int) -> tuple[Found, int] | None:
        """The record at a position and its length; None when it is not one of those looked for, or not whole."""
        if at + _RECORD.size > len(whole):
            return None
        length, xid, _previous, info, manager, crc = _RECORD.unpack_from(whole, at)
        record = whole[at : at + length]
        if len(record) != length or length < _RECORD.size + 2:
            return None
        what = self._kind(manager, info, xid)
        if what is None or _crc(record) != crc:
            return None
        data = _main_data(record)
        if data is None or len(data) < 8:
            return None
        if self._name is not None and data[8:].partition(b"\0")[0] != self._name:
            return None
        (microseconds,) = struct.unpack_from("<q", data)
        return Found(0, _EPOCH + dt.timedelta(microseconds=microseconds), what), length

    def _kind(self, manager: int, info: int, xid: int) -> str | None:
        if self._name is not None:
            is_point = manager == _XLOG_RESOURCE_MANAGER and info & 0xF0 == _RESTORE_POINT
            return "restore point" if is_point else None
        if manager != _XACT_RESOURCE_MANAGER or xid != self._xid:
            return None
        return {_COMMIT: "commit", _ABORT: "abort"}.get(info & _OPERATION_MASK)

    def _lsn(self, number: int, position: int) -> int:
        """Of a position in the stream of a segment; negative: in that of the segments before."""
        payload = payload_bytes(self._segment_size)
        while position < 0:
            number -= 1
            position += payload
        first = WAL_PAGE_BYTES - _LONG_HEADER_BYTES
        if position < first:
            within = _LONG_HEADER_BYTES + position
        else:
            page, rest = divmod(position - first, WAL_PAGE_BYTES - _SHORT_HEADER_BYTES)
            within = (page + 1) * WAL_PAGE_BYTES + _SHORT_HEADER_BYTES + rest
        return number * self._segment_size + within


def without_page_headers(segment: bytes) -> bytes:
    """The records of a segment as one run of bytes: what continues on the next page follows at once."""
    import numpy as np

    pages = np.frombuffer(segment, np.uint8).reshape(-1, WAL_PAGE_BYTES)
    rest = pages[1:, _SHORT_HEADER_BYTES:]
    return pages[0, _LONG_HEADER_BYTES:].tobytes() + rest.tobytes()


def payload_bytes(segment_size: int) -> int:
    """Bytes of a segment without page headers."""
    pages = segment_size // WAL_PAGE_BYTES
    return segment_size - _LONG_HEADER_BYTES - (pages - 1) * _SHORT_HEADER_BYTES


def _main_data(record: bytes) -> bytes | None:
    """The data of a record that refers to no pages; None for any other."""
    at = _RECORD.size
    while at < len(record):
        kind = record[at]
        if kind == _DATA_SHORT:
            return record[at + 2 : at + 2 + record[at + 1]]
        if kind == _DATA_LONG:
            (length,) = struct.unpack_from("<I", record, at + 1)
            return record[at + 5 : at + 5 + length]
        if kind == _ORIGIN:
            at += 3
        elif kind == _TOPLEVEL_XID:
            at += 5
        else:
            return None
    return None


def _crc(record: bytes) -> int:
    """CRC-32C of what follows the header, then of the header up to its CRC (``ValidXLogRecord``)."""
    import google_crc32c

    return int(google_crc32c.value(record[_RECORD.size :] + record[:_CRC_AT]))
