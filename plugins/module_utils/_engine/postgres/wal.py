# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of the write-ahead log: their names, and whether a segment is what its name says.

Names and page headers are those of ``src/include/access/xlog_internal.h``.
"""

from __future__ import annotations

import enum
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import SourceError
from .lsn import format_lsn, is_valid_segment_size, last_segment_number, segment_number
from .timeline import TimelineHistory

SEGMENT_HEADER_BYTES = 40
"""The long page header a segment begins with: as much as :func:`check_segment` needs to see."""

_NAME = re.compile(
    r"([0-9A-F]{8})(?:\.history|([0-9A-F]{8})([0-9A-F]{8})(?:\.partial|\.([0-9A-F]{8})\.backup)?)", re.ASCII
)
_LOG_BYTES = 1 << 32

# XLogLongPageHeaderData: xlp_magic, xlp_info, xlp_tli, xlp_pageaddr, xlp_rem_len, padding,
# xlp_sysid, xlp_seg_size, xlp_xlog_blcksz.
_LONG_HEADER = struct.Struct("<HHIQI4xQII")
_LONG_HEADER_FLAG = 0x0002
_KNOWN_FLAGS = 0x000F
# XLOG_PAGE_MAGIC of each release. It changes whenever the format of WAL does, so a beta has another
# one than its release, and values between these and above are possible.
_MAJOR_OF_MAGIC = {0xD106: 13, 0xD10D: 14, 0xD110: 15, 0xD113: 16, 0xD116: 17, 0xD118: 18}
_MAGIC_OLDEST = min(_MAJOR_OF_MAGIC)
_MAGIC_FAMILY = 0xD000
_BLOCK_SIZE_MIN = 1 << 10
_BLOCK_SIZE_MAX = 1 << 16


class WalKind(enum.Enum):
    """The kinds of files PostgreSQL archives."""

    SEGMENT = "segment"
    PARTIAL = "partial"
    """The last, unfinished segment of a timeline that was left; never a substitute for the whole one."""
    HISTORY = "history"
    BACKUP = "backup"


@dataclass(frozen=True, slots=True)
class WalName:
    """The name of a file of the WAL archive, taken apart.

    ``log`` and ``segment`` are the second and third eight digits of a segment's name, 0 for a history
    file. ``offset`` is where in the segment a backup started (``.backup`` only), in bytes.
    """

    kind: WalKind
    timeline: int
    log: int = 0
    segment: int = 0
    offset: int | None = None

    def __str__(self) -> str:
        if self.kind is WalKind.HISTORY:
            return history_name(self.timeline)
        if self.kind is WalKind.PARTIAL:
            return f"{self.segment_name}.partial"
        if self.kind is WalKind.BACKUP:
            return f"{self.segment_name}.{self.offset or 0:08X}.backup"
        return self.segment_name

    @property
    def segment_name(self) -> str:
        """The name of the segment that a ``.partial`` or ``.backup`` file belongs to."""
        return f"{self.timeline:08X}{self.log:08X}{self.segment:08X}"

    def fits(self, segment_size: int) -> bool:
        """Whether segments of ``segment_size`` bytes can have this name."""
        return self.segment < _LOG_BYTES // segment_size and (self.offset or 0) < segment_size

    def number(self, segment_size: int) -> int:
        """The segment's number, counted from the beginning of the cluster's WAL."""
        return self.log * (_LOG_BYTES // segment_size) + self.segment

    def start_lsn(self, segment_size: int) -> int:
        """The LSN of the segment's first byte."""
        return self.number(segment_size) * segment_size


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """What the first page of a segment says about it."""

    magic: int
    postgres_major: int | None
    """None for a format no known release has: newer than this engine, or a beta."""
    timeline: int
    """The timeline of the first page: an ancestor's where the segment holds the switch between the two."""
    start_lsn: int
    system_identifier: int
    segment_size: int
    block_size: int


def match_wal_name(text: str) -> WalName | None:
    """``text`` taken apart, or None when PostgreSQL gives no such name to a file it archives.

    As strict as PostgreSQL: upper-case digits, the exact length. Timeline 0 does not exist.
    """
    match = _NAME.fullmatch(text)
    if match is None or match[1] == "00000000":
        return None
    timeline = int(match[1], 16)
    if match[2] is None:
        return WalName(WalKind.HISTORY, timeline)
    log, segment = int(match[2], 16), int(match[3], 16)
    if match[4] is not None:
        return WalName(WalKind.BACKUP, timeline, log, segment, int(match[4], 16))
    return WalName(WalKind.PARTIAL if text.endswith(".partial") else WalKind.SEGMENT, timeline, log, segment)


def parse_wal_name(text: str, *, segment_size: int | None = None) -> WalName:
    """As :func:`match_wal_name`, but SourceError ``wal-name`` instead of None.

    With ``segment_size`` (bytes) the name must also be one that segments of this size can have.
    """
    name = match_wal_name(text)
    if name is None:
        raise SourceError(
            f"{text!r} is not the name of a WAL file",
            hint="archive_command passes names as %f and paths as %p; the WAL archive takes nothing else.",
            id="wal-name",
        )
    if segment_size is not None and not name.fits(segment_size):
        raise SourceError(
            f"{text} cannot be a WAL file of a cluster with segments of {segment_size} bytes",
            hint="Compare wal_segment_size of the cluster with the one this name was made for.",
            id="wal-name",
        )
    return name


def history_name(timeline: int) -> str:
    """The name of the file that tells the ancestry of ``timeline``."""
    return f"{timeline:08X}.history"


def segment_name(timeline: int, number: int, segment_size: int) -> str:
    """The name of segment ``number`` on ``timeline`` (``XLogFileName``)."""
    log, segment = divmod(number, _LOG_BYTES // segment_size)
    return f"{timeline:08X}{log:08X}{segment:08X}"


def segment_name_at(timeline: int, lsn: int, segment_size: int) -> str:
    """The name of the segment that holds the byte at ``lsn`` on ``timeline``."""
    return segment_name(timeline, segment_number(lsn, segment_size), segment_size)


def segment_names(timeline: int, start_lsn: int, stop_lsn: int, segment_size: int) -> Iterator[str]:
    """The segments that hold ``timeline`` from ``start_lsn`` to before ``stop_lsn``, in order.

    What a backup needs: from the segment of its start (``XLByteToSeg``) to the one of the last byte
    before its stop (``XLByteToPrevSeg``). A stop exactly on a boundary does not ask for the segment
    that begins there, which PostgreSQL has not filled and will not archive (``do_pg_backup_stop``).
    At least the segment of ``start_lsn`` is named.
    """
    first = segment_number(start_lsn, segment_size)
    last = max(first, last_segment_number(stop_lsn, segment_size))
    return (segment_name(timeline, number, segment_size) for number in range(first, last + 1))


def history_segment_names(history: TimelineHistory, start_lsn: int, stop_lsn: int, segment_size: int) -> Iterator[str]:
    """As :func:`segment_names`, along the path that leads to ``history.timeline``.

    A segment in which the timeline was switched is named on the new timeline, whose file begins with a
    copy of the old one; recovery prefers it, too (``XLogFileReadAnyTLI``).
    """
    first = segment_number(start_lsn, segment_size)
    last = max(first, last_segment_number(stop_lsn, segment_size))
    for number in range(first, last + 1):
        yield segment_name(history.timeline_of_segment(number, segment_size), number, segment_size)


def parse_segment_header(data: bytes) -> SegmentHeader:
    """The long page header at the beginning of a segment, of which ``data`` has at least 40 bytes.

    Raises SourceError: ``wal-empty`` (nothing but zeros), ``wal-not-wal``, ``wal-version`` (PostgreSQL 12
    or older). An unknown newer format is accepted as long as the header makes sense, with
    ``postgres_major`` None.
    """
    if len(data) < SEGMENT_HEADER_BYTES:
        raise _not_wal(f"only {len(data)} bytes long")
    if not any(data[:SEGMENT_HEADER_BYTES]):
        raise SourceError(
            "the WAL segment is empty: it begins with zeros",
            hint="PostgreSQL made the file in advance and has not written to it: nothing to archive.",
            id="wal-empty",
        )
    magic, flags, timeline, start_lsn, _unused, system_identifier, segment_size, block_size = _LONG_HEADER.unpack_from(
        data
    )
    if magic & 0xF000 != _MAGIC_FAMILY:
        raise _not_wal(f"magic number {magic:04X}")
    if magic < _MAGIC_OLDEST:
        raise SourceError(
            f"the WAL segment has the format of PostgreSQL 12 or older (magic number {magic:04X})",
            hint="PostgreSQL 13 and newer are supported.",
            id="wal-version",
        )
    plausible = (
        flags & _LONG_HEADER_FLAG
        and not (magic in _MAJOR_OF_MAGIC and flags & ~_KNOWN_FLAGS)
        and timeline
        and is_valid_segment_size(segment_size)
        and _BLOCK_SIZE_MIN <= block_size <= _BLOCK_SIZE_MAX
        and start_lsn % segment_size == 0
    )
    if not plausible:
        raise _not_wal("its first page header makes no sense")
    return SegmentHeader(
        magic, _MAJOR_OF_MAGIC.get(magic), timeline, start_lsn, system_identifier, segment_size, block_size
    )


def check_segment(
    header_bytes: bytes,
    file_size: int,
    name: WalName,
    system_identifier: int,
    *,
    history: TimelineHistory | None = None,
) -> SegmentHeader:
    """Whether a file is the segment (or ``.partial``) that ``name`` says, of this cluster.

    ``header_bytes`` are the file's first 40 bytes or more, ``file_size`` is its size in bytes.
    ``history`` is that of ``name.timeline``, where known: the first segment of a timeline begins with a
    copy of its parent's pages up to the switch, page headers included (``XLogInitNewTimeline``), so that
    its header may well tell an older timeline, and only the history says which one it has to be. Without
    it, any older timeline is accepted, a younger one never.

    Raises SourceError, in this order: what :func:`parse_segment_header` raises, ``wal-foreign`` (another
    cluster), ``wal-size``, ``wal-name`` (impossible with this segment size), ``wal-recycled`` (contents
    of an older segment), ``wal-address``, ``wal-timeline``.
    """
    if name.kind not in (WalKind.SEGMENT, WalKind.PARTIAL):
        raise ValueError(f"{name} is not a WAL segment")
    header = parse_segment_header(header_bytes)
    if header.system_identifier != system_identifier:
        raise SourceError(
            f"{name} is WAL of another cluster: system identifier {header.system_identifier}, not {system_identifier}",
            hint="Was the cluster restored, cloned or made anew with archive_mode still on? "
            "Nothing was archived; give each cluster its own entry in the configuration.",
            id="wal-foreign",
        )
    if file_size != header.segment_size:
        raise SourceError(
            f"{name} has {file_size} bytes, but its header says segments have {header.segment_size}",
            hint="The file is cut off or was appended to; PostgreSQL's own is always complete.",
            id="wal-size",
        )
    if not name.fits(header.segment_size):
        raise SourceError(
            f"{name} cannot be the name of a segment of {header.segment_size} bytes",
            hint="The file was renamed, or the name was made for another wal_segment_size.",
            id="wal-name",
        )
    _check_address(header, name)
    _check_timeline(header, name, history)
    return header


def _check_address(header: SegmentHeader, name: WalName) -> None:
    expected = name.start_lsn(header.segment_size)
    if header.start_lsn < expected:
        raise SourceError(
            f"{name} still holds the WAL of an older segment, from {format_lsn(header.start_lsn)} on",
            hint="PostgreSQL recycled the file and has not written to it: nothing to archive.",
            id="wal-recycled",
        )
    if header.start_lsn > expected:
        raise SourceError(
            f"{name} holds the WAL from {format_lsn(header.start_lsn)} on, but its name says {format_lsn(expected)}",
            hint="The file was renamed or copied over; nothing was archived under the wrong name.",
            id="wal-address",
        )


def _check_timeline(header: SegmentHeader, name: WalName, history: TimelineHistory | None) -> None:
    if history is not None and history.timeline != name.timeline:
        raise ValueError(f"the history of timeline {history.timeline} says nothing about {name}")
    if history is None:
        expected, wrong = "at most", header.timeline > name.timeline
        timeline = name.timeline
    else:
        timeline = history.timeline_at(header.start_lsn)
        expected, wrong = "exactly", header.timeline != timeline
    if wrong:
        raise SourceError(
            f"{name} begins with WAL of timeline {header.timeline}, which should be {expected} {timeline}",
            hint="The file was renamed, or two servers that were promoted apart write to one archive.",
            id="wal-timeline",
        )


def _not_wal(reason: str) -> SourceError:
    return SourceError(
        f"the file is not a WAL segment: {reason}",
        hint="It is damaged, compressed or encrypted already, or something else altogether.",
        id="wal-not-wal",
    )
