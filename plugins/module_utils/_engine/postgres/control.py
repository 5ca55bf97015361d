# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_control: what it says, whether it is whole, and how to make a copy of it unable to start.

The structures are those of ``src/include/catalog/pg_control.h``: ``pg_control_version`` 1300
(PostgreSQL 13 to 16, where ``CheckPoint`` stayed the same), 1700 (``wal_level`` moved into the
checkpoint) and 1800 (``default_char_signedness``). They are read as a little-endian machine with
eight-byte alignment writes them (x86-64, aarch64, ppc64le, riscv64).
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import SourceError

CONTROL_FILE_BYTES = 8192
"""Size of the file; what follows the CRC is zero."""

# PostgreSQL starts no WAL in the first segment (number 0), so no checkpoint can be there. pgBackRest
# writes the same value: who meets it knows what happened.
INVALID_CHECKPOINT_LSN = 0xDEAD

_STATES = (
    "starting up",
    "shut down",
    "shut down in recovery",
    "shutting down",
    "in crash recovery",
    "in archive recovery",
    "in production",
)
_WAL_LEVELS = ("minimal", "replica", "logical")

# pg_control_version stays the same when a major version changes nothing in the file; the catalog
# version then tells the major versions apart (src/include/catalog/catversion.h of each release).
_MAJOR_OF_CATALOG = {
    202007201: 13,
    202107181: 14,
    202209061: 15,
    202307071: 16,
    202406281: 17,
    202506291: 18,
}

# Fields in the order of the C structures, with their struct codes; names without a use are kept for
# the offsets of those that follow.
_HEAD = (
    ("system_identifier", "Q"),
    ("control_version", "I"),
    ("catalog_version", "I"),
    ("state", "i"),
    ("modified_at", "q"),
    ("checkpoint_lsn", "Q"),
)
_CHECKPOINT_HEAD = (
    ("redo_lsn", "Q"),
    ("timeline", "I"),
    ("previous_timeline", "I"),
    ("full_page_writes", "?"),
)
_CHECKPOINT_TAIL = (
    ("next_full_xid", "Q"),
    ("next_oid", "I"),
    ("next_multi_xid", "I"),
    ("next_multi_offset", "I"),
    ("oldest_xid", "I"),
    ("oldest_xid_database", "I"),
    ("oldest_multi_xid", "I"),
    ("oldest_multi_xid_database", "I"),
    ("checkpoint_at", "q"),
    ("oldest_commit_timestamp_xid", "I"),
    ("newest_commit_timestamp_xid", "I"),
    ("oldest_active_xid", "I"),
)
_BODY = (
    ("unlogged_lsn", "Q"),
    ("min_recovery_lsn", "Q"),
    ("min_recovery_timeline", "I"),
    ("backup_start_lsn", "Q"),
    ("backup_end_lsn", "Q"),
    ("backup_end_required", "?"),
    ("wal_level", "i"),
    ("wal_log_hints", "?"),
    ("max_connections", "i"),
    ("max_worker_processes", "i"),
    ("max_wal_senders", "i"),
    ("max_prepared_transactions", "i"),
    ("max_locks_per_transaction", "i"),
    ("track_commit_timestamp", "?"),
    ("max_align", "I"),
    ("float_format", "d"),
    ("block_size", "I"),
    ("relation_segment_blocks", "I"),
    ("wal_block_size", "I"),
    ("wal_segment_size", "I"),
    ("name_data_length", "I"),
    ("index_max_keys", "I"),
    ("toast_max_chunk_size", "I"),
    ("large_object_chunk_size", "I"),
    ("float8_by_value", "?"),
    ("checksum_version", "I"),
)
_NONCE = ("mock_authentication_nonce", "32s")
_SIGNEDNESS = ("default_char_signedness", "?")

_ALIGNMENT = {"Q": 8, "q": 8, "d": 8, "I": 4, "i": 4, "?": 1, "32s": 1}

_Field = tuple[str, str]


@dataclass(frozen=True, slots=True)
class _Layout:
    offsets: dict[str, tuple[int, str]]
    crc: int

    @classmethod
    def of(cls, checkpoint: tuple[_Field, ...], body: tuple[_Field, ...]) -> _Layout:
        offsets: dict[str, tuple[int, str]] = {}
        position = _place(_HEAD, 0, offsets)
        # CheckPoint is a structure of its own: its end, too, is aligned to its widest member.
        position = _align(_place(checkpoint, _align(position, 8), offsets), 8)
        position = _place(body, position, offsets)
        return cls(offsets, _align(position, 4))


def _align(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


def _place(fields: tuple[_Field, ...], position: int, offsets: dict[str, tuple[int, str]]) -> int:
    for name, code in fields:
        position = _align(position, _ALIGNMENT[code])
        offsets[name] = (position, code)
        position += struct.calcsize("<" + code)
    return position


_CHECKPOINT_13 = _CHECKPOINT_HEAD + _CHECKPOINT_TAIL
_CHECKPOINT_17 = (*_CHECKPOINT_HEAD, ("checkpoint_wal_level", "i"), *_CHECKPOINT_TAIL)
_LAYOUTS = {
    1300: _Layout.of(_CHECKPOINT_13, (*_BODY, _NONCE)),
    1700: _Layout.of(_CHECKPOINT_17, (*_BODY, _NONCE)),
    1800: _Layout.of(_CHECKPOINT_17, (*_BODY, _SIGNEDNESS, _NONCE)),
}


@dataclass(frozen=True, slots=True)
class ControlFile:
    """The contents of pg_control.

    LSNs are byte positions, sizes are bytes, times are seconds since 1970 (UTC). ``state`` is what
    ``pg_controldata`` calls it in English. The settings from ``wal_level`` on are those the running
    server recorded: a recovery needs at least the same values.
    """

    system_identifier: int
    control_version: int
    catalog_version: int
    postgres_major: int | None
    """None for a catalog version that no release has (a beta, a fork)."""
    state: str
    modified_at: int
    checkpoint_lsn: int
    redo_lsn: int
    timeline: int
    previous_timeline: int
    full_page_writes: bool
    next_full_xid: int
    next_oid: int
    next_multi_xid: int
    next_multi_offset: int
    oldest_xid: int
    oldest_multi_xid: int
    checkpoint_at: int
    unlogged_lsn: int
    min_recovery_lsn: int
    min_recovery_timeline: int
    backup_start_lsn: int
    backup_end_lsn: int
    backup_end_required: bool
    wal_level: str
    wal_log_hints: bool
    max_connections: int
    max_worker_processes: int
    max_wal_senders: int
    max_prepared_transactions: int
    max_locks_per_transaction: int
    track_commit_timestamp: bool
    block_size: int
    relation_segment_blocks: int
    """Blocks in a full segment file of a relation."""
    wal_block_size: int
    wal_segment_size: int
    checksum_version: int
    """0: data pages have no checksums."""

    @property
    def has_checksums(self) -> bool:
        return self.checksum_version != 0

    @property
    def checkpoint_invalidated(self) -> bool:
        """Whether :func:`invalidate_checkpoint` made this: without backup_label it must not start."""
        return self.checkpoint_lsn == INVALID_CHECKPOINT_LSN


def parse_control(data: bytes) -> ControlFile:
    """What the contents of a pg_control file say.

    Raises SourceError: ``control-size`` (cut off), ``control-version`` (a PostgreSQL this engine does
    not know, or another byte order), ``control-crc`` (torn or damaged).
    """
    layout = _checked_layout(data)
    values = {name: struct.unpack_from("<" + code, data, at)[0] for name, (at, code) in layout.offsets.items()}
    values["postgres_major"] = _MAJOR_OF_CATALOG.get(values["catalog_version"])
    values["state"] = _name(_STATES, values["state"])
    values["wal_level"] = _name(_WAL_LEVELS, values["wal_level"])
    return ControlFile(**{name: values[name] for name in ControlFile.__slots__})


def invalidate_checkpoint(data: bytes) -> bytes:
    """A copy of pg_control's contents whose checkpoint cannot be found, with a correct CRC.

    A restored cluster with it starts from its backup_label, which names the checkpoint, and only from
    that: were the label lost, PostgreSQL would otherwise recover from the checkpoint in pg_control and
    be silently corrupt (``InitWalRecovery`` in ``xlogrecovery.c``; idea from pgBackRest's
    ``pgControlCheckpointInvalidate``). Applying it twice changes nothing. Raises what
    :func:`parse_control` raises.
    """
    layout = _checked_layout(data)
    changed = bytearray(data)
    struct.pack_into("<Q", changed, layout.offsets["checkpoint_lsn"][0], INVALID_CHECKPOINT_LSN)
    struct.pack_into("<I", changed, layout.crc, _crc32c(bytes(changed[: layout.crc])))
    return bytes(changed)


def read_control_bytes(
    path: Path, *, attempts: int = 10, pause: float = 0.05, sleep: Callable[[float], None] = time.sleep
) -> bytes:
    """The contents of the pg_control file at ``path``, read again until they are whole.

    A running server rewrites the file in place, and a reader can see the half of it (``get_controlfile``
    in ``controldata_utils.c`` retries likewise): at most ``attempts`` readings, ``pause`` seconds apart.
    Raises SourceError: ``control-missing``, ``control-unreadable``, and what :func:`parse_control` raises.
    """
    for attempt in range(attempts):
        data = _read(path)
        try:
            _checked_layout(data)
        except SourceError:
            if attempt + 1 >= attempts:
                raise
            sleep(pause)
        else:
            return data
    raise ValueError("read_control needs at least one attempt")


def read_control(
    path: Path, *, attempts: int = 10, pause: float = 0.05, sleep: Callable[[float], None] = time.sleep
) -> ControlFile:
    """As :func:`read_control_bytes`, and parsed."""
    return parse_control(read_control_bytes(path, attempts=attempts, pause=pause, sleep=sleep))


def _read(path: Path) -> bytes:
    try:
        with path.open("rb", buffering=0) as file:
            return file.read(CONTROL_FILE_BYTES)
    except FileNotFoundError as error:
        raise SourceError(
            f"{path} does not exist",
            hint="Check data_directory: a PostgreSQL data directory always has global/pg_control.",
            id="control-missing",
        ) from error
    except OSError as error:
        raise SourceError(
            f"{path} cannot be read: {error.strerror}",
            hint="Run as a user that may read the data directory, usually postgres.",
            id="control-unreadable",
        ) from error


def _checked_layout(data: bytes) -> _Layout:
    """The layout of ``data``, once it is sure that its CRC is right."""
    if len(data) != CONTROL_FILE_BYTES:
        raise SourceError(
            f"pg_control has {len(data)} bytes instead of {CONTROL_FILE_BYTES}",
            hint="The file is damaged; restore the cluster from a backup.",
            id="control-size",
        )
    (version,) = struct.unpack_from("<I", data, 8)
    layout = _LAYOUTS.get(version)
    if layout is None:
        raise SourceError(_unknown_version(version), hint=_VERSION_HINT, id="control-version")
    (stored,) = struct.unpack_from("<I", data, layout.crc)
    if stored != _crc32c(data[: layout.crc]):
        raise SourceError(
            "pg_control does not match its own CRC",
            hint="It was read while PostgreSQL was writing it, or it is damaged: pg_controldata tells which.",
            id="control-crc",
        )
    return layout


_VERSION_HINT = "PostgreSQL 13 to 18 on little-endian machines are supported."


def _unknown_version(version: int) -> str:
    (swapped,) = struct.unpack(">I", struct.pack("<I", version))
    if swapped in _LAYOUTS:
        return "pg_control was written by a machine of the other byte order"
    return f"pg_control has version {version}, which is not known"


def _crc32c(data: bytes) -> int:
    # Imported here: most commands never look at a control file.
    import google_crc32c

    return int(google_crc32c.value(data))


def _name(names: tuple[str, ...], number: int) -> str:
    return names[number] if 0 <= number < len(names) else f"unrecognized ({number})"
