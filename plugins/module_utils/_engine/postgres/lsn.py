# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Log sequence numbers: positions in the write-ahead log.

An LSN is a plain ``int``, the byte position since the beginning of the cluster's WAL; 0 is
PostgreSQL's ``InvalidXLogRecPtr``. The segment arithmetic is that of
``src/include/access/xlog_internal.h``.
"""

from __future__ import annotations

import re

INVALID_LSN = 0
MAX_LSN = (1 << 64) - 1

WAL_SEGMENT_SIZE_MIN = 1 << 20
WAL_SEGMENT_SIZE_MAX = 1 << 30
WAL_SEGMENT_SIZE_DEFAULT = 16 << 20

_LSN_TEXT = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})", re.ASCII)


def parse_lsn(text: str) -> int:
    """The LSN written as ``16/B374D848`` (what ``pg_lsn`` accepts); ValueError for anything else."""
    match = _LSN_TEXT.fullmatch(text)
    if match is None:
        raise ValueError(f"not a log sequence number (such as 16/B374D848): {text!r}")
    return int(match[1], 16) << 32 | int(match[2], 16)


def format_lsn(lsn: int) -> str:
    """The text PostgreSQL 13 to 18 print: ``16/B374D848``, without leading zeros in either half."""
    if not 0 <= lsn <= MAX_LSN:
        raise ValueError(f"a log sequence number has 64 bits: {lsn}")
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def is_valid_segment_size(segment_size: int) -> bool:
    """Whether ``segment_size`` (bytes) is a possible ``wal_segment_size``: a power of two, 1 MiB to 1 GiB."""
    in_range = WAL_SEGMENT_SIZE_MIN <= segment_size <= WAL_SEGMENT_SIZE_MAX
    return in_range and segment_size & (segment_size - 1) == 0


def segment_number(lsn: int, segment_size: int) -> int:
    """The number of the segment that holds the byte at ``lsn`` (``XLByteToSeg``)."""
    return lsn // segment_size


def last_segment_number(end_lsn: int, segment_size: int) -> int:
    """The number of the segment that holds the last byte before ``end_lsn`` (``XLByteToPrevSeg``).

    An end position on a segment boundary belongs to the segment it ends, not to the one that begins there.
    """
    return (end_lsn - 1) // segment_size


def segment_start(number: int, segment_size: int) -> int:
    """The LSN of the first byte of segment ``number``."""
    return number * segment_size


def segment_offset(lsn: int, segment_size: int) -> int:
    """The position of ``lsn`` within its segment, in bytes."""
    return lsn & (segment_size - 1)
