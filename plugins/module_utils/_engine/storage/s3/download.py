# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bytes of one object: as many as were asked for, however often the connection breaks."""

from __future__ import annotations

import http.client
import typing as t

from ...errors import LocationError
from .calls import Calls, pause
from .errors import Failure, RequestFailed, failure_of

_PIECE_BYTES = 4 << 20
_WHOLE_BYTES = 16 << 20
"""Up to this an answer is read in one go, which takes a quarter less processor time than piece by piece."""


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
        try:
            announced = _announced(calls, answer, offset + arrived, left)
        except LocationError:
            answer["Body"].close()
            raise
        failure, got = _drain(answer["Body"], announced, pieces)
        arrived += got
        if got == announced:
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        breaks = 1 if got >= _PIECE_BYTES else breaks + 1  # a store that gets on is not down
        if breaks >= calls.options.attempts:
            raise calls.error("get_object", key, failure)
        pause(breaks, failure)


def _range(offset: int, length: int | None) -> dict[str, t.Any]:
    if not offset and length is None:
        return {}
    return {"Range": f"bytes={offset}-{'' if length is None else offset + length - 1}"}


def _announced(calls: Calls, answer: dict[str, t.Any], offset: int, length: int | None) -> int:
    """How many bytes come. Raises LocationError when they are others than those that were asked for."""
    announced = int(calls.told(answer, "ContentLength"))
    begins = str(answer.get("ContentRange", f"bytes {offset}-")).startswith(f"bytes {offset}-")
    whole = answer["ResponseMetadata"]["HTTPStatusCode"] != 206
    if (length is not None and announced > length) or (offset and (whole or not begins)):
        raise LocationError(
            f"location {calls.name!r}: {calls.endpoint} does not read parts of objects",
            hint="Use other storage, or mend what stands between: it takes the header Range away.",
            id="location-unfit",
        )
    return announced


def _drain(body: t.Any, announced: int, pieces: list[bytes]) -> tuple[Failure, int]:
    """Everything that comes, and how much that was. Short bodies end with an error, or without."""
    from botocore.exceptions import BotoCoreError
    from urllib3.exceptions import HTTPError

    before = len(pieces)
    failure = Failure("ShortAnswer", 0, "")
    try:
        if announced <= _WHOLE_BYTES:
            pieces.append(body.read())
        else:
            while piece := body.read(_PIECE_BYTES):
                pieces.append(piece)
    except HTTPError as error:  # TLS that breaks in the middle of a body gets past botocore
        failure = Failure("ConnectionClosedError", 0, str(error))
    except BotoCoreError as error:
        failure = failure_of(error)
        pieces.append(_arrived(error))
    finally:
        body.close()
    return failure, sum(map(len, pieces[before:]))


def _arrived(error: BaseException | None) -> bytes:
    """What came before the end came too early, as far as anybody kept it."""
    while error is not None:
        if isinstance(error, http.client.IncompleteRead):
            return bytes(error.partial)
        error = error.__cause__ or error.__context__
    return b""
