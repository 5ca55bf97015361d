# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Extents: which bytes of a file lie where. Pure; numpy arrays of ``dtype``, sorted by offset."""

from __future__ import annotations

import functools
import typing as t

from ..errors import DamageError

if t.TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Extents: t.TypeAlias = npt.NDArray[np.void]

EXTENT_BYTES: t.Final = 40
ZEROS: t.Final = 0xFFFFFFFF
FOREIGN: t.Final = 1 << 31
UNKNOWN_DIGEST: t.Final = bytes(16)
MAX_LENGTH: t.Final = 1 << 30


@functools.cache
def dtype() -> np.dtype[np.void]:
    """One extent, as it lies in a manifest."""

    import numpy as np

    return np.dtype(
        [
            ("offset", ">u8"),
            ("length", ">u4"),
            ("pack", ">u4"),
            ("frame", ">u4"),
            ("frame_offset", ">u4"),
            ("digest", "V16"),
        ]
    )


def empty() -> Extents:
    import numpy as np

    return np.zeros(0, dtype())


def build(rows: t.Iterable[tuple[int, int, int, int, int, bytes]]) -> Extents:
    """From rows (offset, length, pack, frame, offset in frame, digest)."""

    import numpy as np

    return np.array([(*row[:5], np.void(row[5])) for row in rows], dtype())


def concatenate(parts: t.Sequence[Extents]) -> Extents:
    """One behind the other; they are not sorted."""

    import numpy as np

    if len(parts) == 1:
        return parts[0]
    # Left to itself, numpy would give the result the byte order of the machine.
    return np.concatenate(parts, dtype=dtype()) if parts else empty()


def zeros(offset: int, length: int) -> Extents:
    """Zero bytes, which take no room in a pack."""
    rows = []
    while length:
        part = min(length, MAX_LENGTH)
        rows.append((offset, part, ZEROS, 0, 0, UNKNOWN_DIGEST))
        offset += part
        length -= part
    return build(rows)


def unpack(packed: bytes) -> Extents:
    """Raises DamageError when the length is impossible."""

    import numpy as np

    if len(packed) % EXTENT_BYTES:
        raise DamageError("a manifest has an incomplete extent")
    return np.frombuffer(packed, dtype())


def pack(extents: Extents) -> bytes:
    return extents.astype(dtype(), copy=False).tobytes()


def covers(extents: Extents, size: int) -> bool:
    """Whether the extents cover bytes 0 … size without gap or overlap, in order."""

    import numpy as np

    if len(extents) <= _FEW:
        return _few_cover(extents, size)
    offsets = extents["offset"].astype(np.uint64)
    ends = offsets + extents["length"].astype(np.uint64)
    return bool(
        offsets[0] == 0
        and ends[-1] == size
        and np.all(extents["length"] > 0)
        and np.array_equal(offsets[1:], ends[:-1])
    )


# Most files have one extent. numpy's set operations would take longer than all else that is done with such a file,
# and let other threads go first each time.
_FEW = 16


def _few_cover(extents: Extents, size: int) -> bool:
    at = 0
    for offset, length in zip(extents["offset"].tolist(), extents["length"].tolist(), strict=True):
        if offset != at or not length:
            return False
        at += length
    return at == size


def cut(extents: Extents, start: int, stop: int) -> Extents:
    """The part that covers bytes start … stop of the file.

    An extent that is cut loses its digest: nobody has read its part by itself.
    """

    import numpy as np

    if stop <= start or not len(extents):
        return empty()
    offsets = extents["offset"].astype(np.int64)
    ends = offsets + extents["length"].astype(np.int64)
    first = int(np.searchsorted(ends, start, side="right"))
    last = int(np.searchsorted(offsets, stop, side="left"))
    part = extents[first:last].copy()
    if not len(part):
        return part
    if offsets[first] < start:
        lost = start - int(offsets[first])
        part["offset"][0] = start
        part["length"][0] -= lost
        if part["pack"][0] != ZEROS:
            part["frame_offset"][0] += lost
        part["digest"][0] = np.void(UNKNOWN_DIGEST)
    if ends[last - 1] > stop:
        part["length"][-1] = stop - int(part["offset"][-1])
        part["digest"][-1] = np.void(UNKNOWN_DIGEST)
    return part


def uncovered(old: Extents, new: Extents, size: int) -> Extents:
    """What of ``old`` still shows, up to ``size``, when ``new`` is laid over it.

    Vectorised, for files of which thousands of scattered pages are new. What is cut loses its digest.
    """

    import numpy as np

    old_starts, old_ends = _borders(old)
    new_starts, new_ends = _borders(new)
    gap_starts = np.concatenate([np.zeros(1, np.int64), new_ends])
    gap_ends = np.concatenate([new_starts, np.array([max(size, int(new_ends.max(initial=0)))])])
    # Between two neighbouring borders nothing begins or ends: each such stretch is in one extent and one gap.
    borders = np.unique(np.concatenate([old_starts, old_ends, gap_starts, gap_ends, np.array([size])]))
    starts, ends = borders[:-1], borders[1:]
    source = np.searchsorted(old_starts, starts, side="right") - 1
    gap = np.searchsorted(gap_starts, starts, side="right") - 1
    if not len(old) or not len(starts):
        return empty()
    shows = (source >= 0) & (starts < old_ends[source]) & (starts < gap_ends[gap]) & (ends <= size)
    starts, ends, source = starts[shows], ends[shows], source[shows]
    result: Extents = old[source]
    stored = result["pack"] != ZEROS
    result["frame_offset"][stored] += (starts - old_starts[source])[stored].astype(np.uint32)
    result["offset"] = starts
    result["length"] = ends - starts
    result["digest"][(starts != old_starts[source]) | (ends != old_ends[source])] = np.void(UNKNOWN_DIGEST)
    return result


def _borders(extents: Extents) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    import numpy as np

    starts = extents["offset"].astype(np.int64)
    return starts, starts + extents["length"].astype(np.int64)


def live_bytes(extents: Extents) -> dict[int, int]:
    """Bytes by pack field, zeros left out."""

    import numpy as np

    if len(extents) <= _FEW:
        few: dict[int, int] = {}
        for pack, length in zip(extents["pack"].tolist(), extents["length"].tolist(), strict=True):
            if pack != ZEROS:
                few[pack] = few.get(pack, 0) + length
        return few
    stored = extents[extents["pack"] != ZEROS]
    packs, positions = np.unique(stored["pack"].astype(np.uint32), return_inverse=True)
    sums = np.bincount(positions, weights=stored["length"], minlength=len(packs))
    return {int(number): int(total) for number, total in zip(packs, sums, strict=True)}


def pack_fields(extents: Extents) -> list[int]:
    """The different pack fields, zeros left out."""
    if len(extents) <= _FEW:
        fields = sorted(set(extents["pack"].tolist()))
    else:
        import numpy as np

        fields = np.unique(extents["pack"].astype(np.uint32)).tolist()
    return [field for field in fields if field != ZEROS]


def renumber(extents: Extents, mapping: t.Mapping[int, int]) -> Extents:
    """The same with other pack fields; zeros stay. Raises KeyError for a field that is not mapped."""
    result = extents.copy()
    if len(extents) <= _FEW:
        for field in pack_fields(extents):
            result["pack"][extents["pack"] == field] = mapping[field]
        return result

    import numpy as np

    # All fields at once: at the end of a long chain a file may lie in hundreds of packs.
    fields, positions = np.unique(extents["pack"].astype(np.uint32), return_inverse=True)
    numbers = [field if field == ZEROS else mapping[field] for field in fields.tolist()]
    result["pack"] = np.array(numbers, np.uint32)[positions]
    return result
