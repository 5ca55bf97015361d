# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs of a file's bytes become extents: zeros cost nothing, small runs share a frame."""

from __future__ import annotations

import itertools
import typing as t

from ..crypto.suite import keyed_digest
from ..repository import extents as xt
from ..repository.packs import FRAME_TARGET_BYTES

if t.TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..repository.packs import FrameRef, PackSink

UNIT_BYTES: t.Final = 8192
"""Zeros are looked for in units of this size, in files that have no pages."""

_OWN_FRAME_BYTES = FRAME_TARGET_BYTES // 2

Row: t.TypeAlias = tuple[int, int, int, int, int, bytes]
"""As ``extents.build`` takes it: offset, length, pack, frame, offset in the frame, digest."""


class FrameWriter:
    """Stores runs of bytes in one pack sink. For one thread at a time.

    Small runs are gathered until they fill a frame. The frame's place is known before it is written, so that
    extents are complete at once; ``flush`` makes them true.
    """

    def __init__(self, sink: PackSink, digest_key: bytes) -> None:
        self._sink = sink
        self._digest_key = digest_key
        self._gathered = bytearray(FRAME_TARGET_BYTES)
        self._filled = 0
        self._place: FrameRef | None = None

    def store(self, offset: int, data: memoryview) -> Row:
        """Store one run, of at most a frame's size, that lies at ``offset`` in its file."""
        digest = keyed_digest(self._digest_key, data)[:16]
        if len(data) >= _OWN_FRAME_BYTES:
            self.flush()
            pack, frame = self._sink.store(data)
            return offset, len(data), pack, frame, 0, digest
        if self._filled + len(data) > FRAME_TARGET_BYTES:
            self.flush()
        if self._place is None:
            self._place = self._sink.upcoming()
        at, self._filled = self._filled, self._filled + len(data)
        self._gathered[at : self._filled] = data
        return offset, len(data), *self._place, at, digest

    def flush(self) -> None:
        """Write what was gathered."""
        if self._place is None:
            return
        with memoryview(self._gathered) as view, view[: self._filled] as frame:
            place = self._sink.store(frame)
        if place != self._place:
            raise RuntimeError(f"a frame came to lie at {place} instead of {self._place}")
        self._place, self._filled = None, 0

    def finish(self) -> None:
        """Write what was gathered, and finish the pack: all that was stored is durable on return."""
        self.flush()
        self._sink.close()

    def abort(self) -> None:
        self._sink.abort()


def store_units(
    writer: FrameWriter, offset: int, data: memoryview, wanted: npt.NDArray[np.bool_], unit: int
) -> list[Row]:
    """Store the wanted units of ``data``, which lies at ``offset`` in its file.

    ``wanted`` has one item for each unit of ``unit`` bytes, the last of which may be shorter. Neighbouring units
    become one extent; units of zeros become extents that take no room.
    """
    import numpy as np

    kinds = wanted.astype(np.int8) + (wanted & zero_units(data, unit))
    return _store_runs(writer, data, kinds, offset + np.arange(len(kinds), dtype=np.int64) * unit, unit)


def store_blocks(writer: FrameWriter, blocks: npt.NDArray[np.int64], data: memoryview, unit: int) -> list[Row]:
    """Store all units of ``data``, which are those of a file that ``blocks`` numbers, in ascending order."""
    import numpy as np

    return _store_runs(writer, data, 1 + zero_units(data, unit).astype(np.int8), blocks * unit, unit)


def _store_runs(
    writer: FrameWriter, data: memoryview, kinds: npt.NDArray[np.int8], offsets: npt.NDArray[np.int64], unit: int
) -> list[Row]:
    """``kinds``, of each unit: 0 not wanted, 1 wanted, 2 wanted and zero. ``offsets``: where it lies in its file."""
    import numpy as np

    parted = (np.diff(kinds) != 0) | (np.diff(offsets) != unit)
    borders = [0, *(np.flatnonzero(parted) + 1).tolist(), len(kinds)]
    rows: list[Row] = []
    for first, last in itertools.pairwise(borders):
        if first == last or not kinds[first]:
            continue
        offset, start, stop = int(offsets[first]), first * unit, min(last * unit, len(data))
        if kinds[first] == 1:
            rows.append(writer.store(offset, data[start:stop]))
        else:
            rows.append((offset, stop - start, xt.ZEROS, 0, 0, xt.UNKNOWN_DIGEST))
    return rows


def zero_units(data: memoryview, unit: int) -> npt.NDArray[np.bool_]:
    """For every unit of ``data``, whether it is zero throughout; the last one may be shorter."""
    import numpy as np

    whole, rest = divmod(len(data), unit)
    zero = np.zeros(whole + (rest > 0), np.bool_)
    words = np.frombuffer(data[: whole * unit], np.uint64).reshape(whole, unit // 8)
    candidates = np.flatnonzero(words[:, 0] == 0)
    if len(candidates):
        zero[candidates] = ~words[candidates].any(axis=1)
    if rest:
        zero[-1] = not any(data[whole * unit :])
    return zero


def join_zeros(rows: list[Row]) -> list[Row]:
    """The same extents, with neighbouring runs of zeros in one."""
    joined: list[Row] = []
    for row in rows:
        if joined and row[2] == xt.ZEROS == joined[-1][2]:
            offset, length = joined[-1][:2]
            if offset + length == row[0] and length + row[1] <= xt.MAX_LENGTH:
                joined[-1] = (offset, length + row[1], *row[2:])
                continue
        joined.append(row)
    return joined
