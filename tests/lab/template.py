# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""New data directories, each with a system identifier of its own, in a tenth of the time initdb takes.

initdb runs once for each kind of cluster; what it made is copied. The copy gets another system identifier in
the two places that have one: ``pg_control`` (``src/include/catalog/pg_control.h``), whose checksum is computed
anew, and the long header of each WAL segment's first page (``src/include/access/xlog_internal.h``).
"""

from __future__ import annotations

import itertools
import os
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from .account import ServerAccount

POLYNOMIAL = 0x82F63B78
LONG_HEADER_IDENTIFIER = 24
"""Offset of ``xlp_sysid``, behind the short page header."""

_numbers = itertools.count()


def _table() -> list[int]:
    entries = []
    for byte in range(256):
        rest = byte
        for _unused in range(8):
            rest = (rest >> 1) ^ (POLYNOMIAL if rest & 1 else 0)
        entries.append(rest)
    return entries


CRC_TABLE = _table()


def crc32c(data: bytes) -> int:
    """The checksum that PostgreSQL uses for pg_control and WAL records (Castagnoli)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def new_identifier() -> int:
    """A system identifier as initdb makes one: seconds, microseconds, and a number instead of the process id."""
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    return (seconds << 32) | ((nanoseconds // 1000) << 12) | ((os.getpid() + next(_numbers)) & 0xFFF)


def with_identifier(control: bytes, identifier: int) -> bytes:
    """The content of a pg_control file with another system identifier. Raises ValueError for another file."""
    # The checksum follows the last field, whose offset differs between majors: find where it is right.
    for end in range(160, 512, 4):
        if struct.unpack_from("=I", control, end)[0] == crc32c(control[:end]):
            changed = struct.pack("=Q", identifier) + control[8:end]
            return changed + struct.pack("=I", crc32c(changed)) + control[end + 4 :]
    raise ValueError("no checksum in pg_control is right")


class Templates:
    """What initdb made in this session, by its options."""

    def __init__(self, folder: Path, account: ServerAccount) -> None:
        self._folder = folder
        self._account = account
        self._made: dict[tuple[str, ...], Path] = {}

    def instantiate(self, key: tuple[str, ...], initdb: Callable[[Path], None], target: Path) -> None:
        """Fill ``target``, an empty directory, with a new cluster.

        Args:
            key: Everything that makes a difference for initdb.
            initdb: Runs initdb on an empty directory; called when there is no template for ``key`` yet.
            target: The data directory.
        """
        if key not in self._made:
            template = self._folder / f"template-{len(self._made)}"
            template.mkdir(mode=0o700)
            initdb(self._account.own(template))
            self._made[key] = template
        subprocess.run(
            ["cp", "--archive", "--reflink=auto", "--sparse=always", f"{self._made[key]}/.", str(target)],
            check=True,
            capture_output=True,
        )
        self._change_identifier(target, new_identifier())

    @staticmethod
    def _change_identifier(data_dir: Path, identifier: int) -> None:
        control = data_dir / "global/pg_control"
        control.write_bytes(with_identifier(control.read_bytes(), identifier))
        # Small segments are several, and some of them are still empty.
        for segment in (path for path in (data_dir / "pg_wal").iterdir() if path.is_file()):
            with open(segment, "r+b") as file:
                if file.read(2) != b"\0\0":
                    file.seek(LONG_HEADER_IDENTIFIER)
                    file.write(struct.pack("=Q", identifier))
