# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether two data directories hold the same pages, but for what differs without anything being wrong.

What is overlooked is the least of what PostgreSQL itself overlooks when it compares pages with their replay
(``wal_consistency_checking``, ``src/backend/access/common/bufmask.c``).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from cryobackup.postgres import relfile
from cryobackup.postgres.relfile import Fork

PAGE = 8192
_HEADER = 24
_LINE_POINTER = struct.Struct("<I")
_NORMAL, _DEAD = 1, 3
_HINT_FLAGS = 0x0003
"""``PD_HAS_FREE_LINES`` and ``PD_PAGE_FULL``."""
_XMIN_HINTS, _XMAX_HINTS = 0x0300, 0x0C00
_INDEX_OPAQUE = 16
"""Size of the special space of B-tree, hash and GiST pages, which end with 16 bits of flags and a number."""
_GARBAGE = {0xFF80: 1 << 7, 0xFF81: 1 << 4}
"""By the number at the end, of hash and of GiST pages: the flag that says that there are dead items."""
_BTREE_GARBAGE = 1 << 6

_SPGIST_MAGIC = struct.pack("<I", 0xBA0BABEE)
_SPGIST_CACHE = slice(28, 92)

COMPARED = ("base", "global", "pg_tblspc", "pg_xact", "pg_multixact")


def files(data_dir: Path) -> dict[str, Path]:
    """The files of a stopped cluster that recovery alone writes, by path; tablespaces through their links."""
    found: dict[str, Path] = {}
    for part in COMPARED:
        for directory, _unused, names in os.walk(data_dir / part, followlinks=True):
            for name in names:
                path = Path(directory) / name
                relative = str(path.relative_to(data_dir))
                if not _is_own(relative, name):
                    found[relative] = path
    return found


def _is_own(path: str, name: str) -> bool:
    """pg_control tells where *this* directory's recovery is; the relation caches are made anew by each server."""
    return path == relfile.CONTROL_FILE or name.startswith("pg_internal.init")


def differences(left: Path, right: Path) -> Iterator[str]:
    """Words for each file and page that two stopped clusters do not share."""
    ours, theirs = files(left), files(right)
    yield from (f"{name} is only in {left.name}" for name in sorted(ours.keys() - theirs.keys()))
    yield from (f"{name} is only in {right.name}" for name in sorted(theirs.keys() - ours.keys()))
    for name in sorted(ours.keys() & theirs.keys()):
        yield from different_pages(name, ours[name].read_bytes(), theirs[name].read_bytes())


def different_pages(name: str, ours: bytes, theirs: bytes) -> Iterator[str]:
    """Words for what is different in one file, hints apart."""
    if ours == theirs:
        return
    relation = relfile.relation_file(name)
    if relation is None:
        yield f"{name} differs"
        return
    if len(ours) != len(theirs):
        yield f"{name} has {len(ours) // PAGE} and {len(theirs) // PAGE} pages"
    # Maps have no hints, and no holes: they use the page without saying so in its header.
    hints = relation.name.fork not in (Fork.VM, Fork.FSM)
    for offset in range(0, min(len(ours), len(theirs)), PAGE):
        one, other = ours[offset : offset + PAGE], theirs[offset : offset + PAGE]
        if one != other and not (hints and masked(one) == masked(other)):
            yield f"{name} differs in page {offset // PAGE}: {_lsn(one)} and {_lsn(other)}"


def without_cache(file: bytes) -> bytes:
    """An SP-GiST index without what its first page remembers of pages with room, which is changed without WAL.

    Nor is the page's LSN raised (``SpGistUpdateMetaPage``): a crash loses it as well, and it is looked up before use.
    """
    if file[_HEADER:28] != _SPGIST_MAGIC:
        return file
    return file[:8] + file[10 : _SPGIST_CACHE.start] + file[_SPGIST_CACHE.stop :]  # nor its checksum


def _lsn(page: bytes) -> str:
    high, low = struct.unpack_from("<II", page)
    return f"{high:X}/{low:X}"


def masked(page: bytes) -> bytes:
    """The page without its hints. Its LSN stays: nothing is a hint that raises it.

    Hints are set by whoever looks, the backups' own queries too, and are logged at most once after a checkpoint,
    with the page as it is then. What is set later reaches the disk, and the next backup, but no earlier one's recovery.
    """
    result = bytearray(page)
    lower, upper, special = struct.unpack_from("<HHH", page, 12)
    if not _HEADER <= lower <= upper <= special <= PAGE:
        return page
    # The checksum covers the hints; what it says is proven apart.
    struct.pack_into("<H", result, 8, 0)
    struct.pack_into("<H", result, 10, struct.unpack_from("<H", page, 10)[0] & ~_HINT_FLAGS)
    struct.pack_into("<I", result, 20, 0)  # pd_prune_xid: a hint when pruning may be worth while
    if page[_HEADER:28] == _SPGIST_MAGIC:
        result[_SPGIST_CACHE] = bytes(64)
    # Old tuples stay in the hole when a page is pruned; a page image in WAL leaves the hole out.
    result[lower:upper] = bytes(upper - lower)
    for place in range(_HEADER, lower, 4):
        (pointer,) = _LINE_POINTER.unpack_from(page, place)
        kind, tuple_at = pointer >> 15 & 3, pointer & 0x7FFF
        if special == PAGE and kind == _NORMAL and _HEADER <= tuple_at <= PAGE - _HEADER:
            _mask_tuple(result, tuple_at)
        elif PAGE - special == _INDEX_OPAQUE and kind == _DEAD:
            # An index scan met a row that is dead to all.
            _LINE_POINTER.pack_into(result, place, pointer & ~(3 << 15) | _NORMAL << 15)
    if PAGE - special == _INDEX_OPAQUE:
        flags, number = struct.unpack_from("<HH", page, special + 12)
        struct.pack_into("<H", result, special + 12, flags & ~_GARBAGE.get(number, _BTREE_GARBAGE))
    return bytes(result)


def _mask_tuple(page: bytearray, at: int) -> None:
    """Of a row's t_infomask, what pg_xact says as well. Both bits for xmin say that it is frozen: that is no hint."""
    (bits,) = struct.unpack_from("<H", page, at + 20)
    bits &= ~_XMAX_HINTS
    if bits & _XMIN_HINTS != _XMIN_HINTS:
        bits &= ~_XMIN_HINTS
    struct.pack_into("<H", page, at + 20, bits)
