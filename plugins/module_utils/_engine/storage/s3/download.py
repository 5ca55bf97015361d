# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bytes of one object: as many as were asked for, however often the connection breaks."""

from __future__ import annotations

import typing as t

from ...errors import LocationError
from .calls import Calls, pause
from .errors import Failure, RequestFailed, failure_of

_PIECE_BYTES = 1 << 20


def download(calls: Calls, key: str, offset: int, length: int | None, **which: t.Any) -> bytes:
    """At most ``length`` bytes from ``offset`` on; ``which`` may name a version. Raises RequestFailed."""
    pieces: list[bytes] = []
    arrived = 0
    breaks = 0
    while True:
        left = None if length is None else length - arrived
        try:
            answer = calls.request("get_object", key, **_range(offset + arrived, left), **which)
        except RequestFailed as error:
            if error.status == 416:  # the object ends before this
                return b"".join(pieces)
            raise
        announced = int(answer["ContentLength"])
        if left is not None and announced > left:
            answer["Body"].close()
            raise LocationError(
                f"location {calls.name!r}: {calls.endpoint} does not read parts of objects",
                hint="Use other storage, or mend what stands between: it takes the header Range away.",
                id="location-unfit",
            )
        failure, got = _drain(answer["Body"], pieces)
        arrived += got
        if got == announced:
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        breaks = 1 if got > _PIECE_BYTES else breaks + 1  # a store that gets on is not down
        if breaks >= calls.options.attempts:
            raise calls.error("get_object", key, failure)
        pause(breaks, failure)


def _range(offset: int, length: int | None) -> dict[str, t.Any]:
    if not offset and length is None:
        return {}
    return {"Range": f"bytes={offset}-{'' if length is None else offset + length - 1}"}


def _drain(body: t.Any, pieces: list[bytes]) -> tuple[Failure, int]:
    """Everything that comes, and how much that was. Short bodies end with an error, or without."""
    from botocore.exceptions import BotoCoreError

    got = 0
    failure = Failure("ShortAnswer", 0, "")
    try:
        while piece := body.read(_PIECE_BYTES):
            pieces.append(piece)
            got += len(piece)
    except BotoCoreError as error:
        failure = failure_of(error)
    finally:
        body.close()
    return failure, got
