# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A pg_control that is valid, and says hardly anything."""

from __future__ import annotations

import struct

import google_crc32c

_CRC_AT = 288
_BLOCK_SIZE_AT, _SEGMENT_BLOCKS_AT, _WAL_SEGMENT_SIZE_AT, _CHECKSUMS_AT = 216, 220, 228, 252


def control_file(
    system_identifier: int,
    *,
    block_size: int = 8192,
    segment_blocks: int = 131072,
    wal_segment_size: int = 16 << 20,
    checksums: bool = False,
    catalog: int = 202209061,
) -> bytes:
    """Of PostgreSQL 15, unless ``catalog`` is another's."""
    head = bytearray(struct.pack("<QIIi", system_identifier, 1300, catalog, 1).ljust(_CRC_AT, b"\0"))
    for at, value in (
        (_BLOCK_SIZE_AT, block_size),
        (_SEGMENT_BLOCKS_AT, segment_blocks),
        (_WAL_SEGMENT_SIZE_AT, wal_segment_size),
        (_CHECKSUMS_AT, checksums),
    ):
        struct.pack_into("<I", head, at, value)
    contents = bytes(head)
    return (contents + struct.pack("<I", google_crc32c.value(contents))).ljust(8192, b"\0")
