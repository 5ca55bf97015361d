# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the required locations alone can tell that a WAL file was never archived. Pure.

What counts as archived is in every required location: what none of them has was not archived, whatever an optional
location would say that does not answer. That holds as long as a location was required all the time; see
docs/decisions/0007. So a location has to show that it was fed to the very end: it has what comes right before the file,
and nothing that comes after it.
"""

from __future__ import annotations

import typing as t

from .wal import WalKind, WalName

if t.TYPE_CHECKING:
    from collections.abc import Collection


def doubt(wanted: WalName, present: Collection[WalName], segment_size: int | None) -> str | None:
    """Why a location that has ``present``, and not ``wanted``, may still lack something that was archived.

    None when it surely lacks nothing. ``segment_size``: of the segments there, in bytes; None when there are none.
    """
    segments = [name for name in present if name.kind is WalKind.SEGMENT]
    if not segments or segment_size is None:
        return "it has no segment of the cluster"
    of_timeline = [name for name in segments if name.timeline == wanted.timeline]
    if wanted.kind is WalKind.HISTORY:
        if wanted.timeline == 1:
            return None  # there never is one; PostgreSQL asks for it all the same, when it promotes
        return f"it has WAL of timeline {wanted.timeline}, and not its history" if of_timeline else None
    if wanted.kind is not WalKind.SEGMENT:
        return None
    number = wanted.number(segment_size)
    later = [name for name in of_timeline if name.number(segment_size) > number]
    if later:
        return f"it has later segments of the timeline, such as {min(later, key=str)}"
    if not any(name.number(segment_size) == number - 1 for name in segments):
        newest = max(segments, key=lambda name: name.number(segment_size))
        return f"it does not have the segment before it either; the newest that it has is {newest}"
    return None
