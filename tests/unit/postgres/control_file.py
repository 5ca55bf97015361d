# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A pg_control that is valid, and says hardly anything."""

from __future__ import annotations

import struct

import google_crc32c

_CRC_AT = 288


def control_file(system_identifier: int) -> bytes:
    """Of PostgreSQL 15."""
    head = struct.pack("<QIIi", system_identifier, 1300, 202209061, 1).ljust(_CRC_AT, b"\0")
    return (head + struct.pack("<I", google_crc32c.value(head))).ljust(8192, b"\0")
