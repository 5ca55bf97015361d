# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One object in the making: a single request for a small one, parts in the background for a large one.

The name is given by ``PutObject`` or ``CompleteMultipartUpload`` with ``If-None-Match: *``: one request that creates
or refuses. Its answer may get lost, and the request that is sent again is refused then because of the first. So every
object bears its writer's random token: whose the object is that is there tells what became of the request.
"""

from __future__ import annotations

import secrets
import threading
import typing as t

from ...errors import LocationError, ObjectConflict
from .calls import ATTEMPTS
from .errors import RequestFailed
from .first import WRITTEN_BY, is_atomic, version_to_compare, was_first
from .integrity import Checksum
from .parts import MOST_PARTS, PART_BYTES

if t.TYPE_CHECKING:
    from concurrent.futures import Future

    from ..base import Buffer
    from .location import S3Location

WAL_PART_BYTES = 17 << 20
"""A segment that cannot be compressed is still one request: there are many, and one request is one round trip."""
_ABORT_SECONDS = 10.0
_ABORT_ATTEMPTS = 2


class S3Writer:
    def __init__(self, location: S3Location, key: str, *, in_parts: bool = False) -> None:
        self._location = location
        self._key = key
        self._in_parts = in_parts
        self._part_size = WAL_PART_BYTES if key.startswith("wal/") else PART_BYTES
        self._token = secrets.token_hex(16)
        self._buffer = bytearray()
        self._crc = Checksum()
        self._size = 0  # of all parts before this one
        self._upload: Future[str] | None = None
        self._parts: list[Future[dict[str, t.Any]]] = []
        self._checked = 0  # so many of them went well
        self._part_crcs = Checksum()
        self._whole = Checksum()
        self._stop = threading.Event()
        self._over = False

    def write(self, data: Buffer) -> None:
        """Raises what the sending of earlier parts ran into, too."""
        view = memoryview(data).cast("B")
        while len(view):
            if len(self._buffer) == self._part_size:  # only now that it is not the last one
                self._send_part()
            self._check_parts()
            room = self._part_size - len(self._buffer)
            whole = isinstance(data, bytes) and len(view) == len(data) <= room
            piece = view[:room]
            self._location.sender.take(len(piece))
            self._buffer += piece
            self._crc.add(data if whole else piece)
            if self._upload is not None:
                self._whole.add(data if whole else piece)
            view = view[room:]

    def commit(self) -> None:
        if self._location.options.create_only == "check":
            self._must_be_new()
        if self._upload is None and not self._in_parts:
            self._put()
        else:
            self._send_part()
            self._complete()
        self._end()

    def abort(self) -> None:
        """Waits a little for what is being sent. What it cannot remove, nobody sees; ``sweep`` does."""
        if self._over:
            return
        self._stop.set()
        self._end()
        if self._upload is not None:
            from concurrent.futures import wait

            self._upload.cancel()
            for part in self._parts:
                part.cancel()
            wait([self._location.sender.send(0, self._abandon)], timeout=_ABORT_SECONDS)

    def _end(self) -> None:
        if not self._over:
            self._over = True
            self._location.sender.give_back(len(self._buffer))
            self._buffer = bytearray()

    # One request

    def _put(self) -> None:
        # A small body goes with the headers in one piece only as bytes.
        body = bytes(self._buffer) if len(self._buffer) < 1 << 16 else self._buffer
        try:
            answer = self._location.integrity.send(
                "put_object", self._key, body, self._crc, **self._create_only(), **self._attributes()
            )
        except RequestFailed as error:
            self._settle(error)
        else:
            self._must_echo(answer, self._crc.text)
            self._must_be_first(answer)

    # In parts

    def _send_part(self) -> None:
        if len(self._parts) == MOST_PARTS:
            raise LocationError(
                f"location {self._location.name!r}: {self._key} is too large for this location",
                hint=f"At most {MOST_PARTS * self._part_size >> 30} GiB fit into one object.",
            )
        sender = self._location.sender
        if self._upload is None:
            self._upload = sender.send(0, self._begin)
            self._whole.value = self._crc.value
        body, crc, number = self._buffer, self._crc, len(self._parts) + 1
        self._buffer, self._crc = bytearray(), Checksum()
        self._size += crc.size
        self._part_crcs.add(crc.raw)
        self._parts.append(sender.send(len(body), lambda: self._upload_part(number, body, crc)))

    def _begin(self) -> str:
        answer = self._location.integrity.begin(self._key, stop=self._stop, **self._attributes())
        return str(self._location.calls.told(answer, "UploadId"))

    def _upload_part(self, number: int, body: bytearray, crc: Checksum) -> dict[str, t.Any]:
        upload = self._upload_id()
        integrity = self._location.integrity
        answer = integrity.send(
            "upload_part", self._key, body, crc, stop=self._stop, UploadId=upload, PartNumber=number
        )
        self._must_echo(answer, crc.text)
        return {"PartNumber": number, "ETag": self._location.calls.told(answer, "ETag"), **integrity.of_part(crc)}

    def _upload_id(self) -> str:
        """Begun before any part of it, and by the same queue: this never waits for something behind it."""
        if self._upload is None:
            raise LocationError(f"location {self._location.name!r}: {self._key} was never begun")
        return self._upload.result()

    def _check_parts(self) -> None:
        while self._checked < len(self._parts) and self._parts[self._checked].done():
            self._parts[self._checked].result()
            self._checked += 1

    def _complete(self) -> None:
        parts = [part.result() for part in self._parts]
        try:
            answer = self._location.calls.request(
                "complete_multipart_upload",
                self._key,
                UploadId=self._upload_id(),
                MultipartUpload={"Parts": parts},
                MpuObjectSize=self._size,
                **self._create_only(),
            )
        except RequestFailed as error:
            self._settle(error)
        else:
            # Ceph answers with that of the whole object, whatever it was asked for, and calls it what it likes.
            self._must_echo(answer, self._part_crcs.text, self._whole.text)
            self._must_be_first(answer)

    def _abandon(self) -> None:
        """In the queue behind the parts: those still being sent are waited for, or they would outlive the upload."""
        for part in self._parts:
            if not part.cancelled():
                part.exception()
        if self._upload is None or self._upload.cancelled() or self._upload.exception() is not None:
            return
        self._location.abort_upload(self._key, self._upload.result(), attempts=_ABORT_ATTEMPTS)

    # Whose object it is

    def _create_only(self) -> dict[str, t.Any]:
        return {} if self._location.options.create_only == "check" else {"IfNoneMatch": "*"}

    def _attributes(self) -> dict[str, t.Any]:
        return self._location.attributes(self._key) | {"Metadata": {WRITTEN_BY: self._token}}

    def _settle(self, error: RequestFailed) -> None:
        """The request failed, perhaps after it had done its work. Returns when it had."""
        if error.status in (401, 403) or error.failure.bad_credentials:
            raise error
        try:
            head = self._location.head(self._key, attempts=None if error.status == 412 else 1)
        except LocationError:
            head = None
            if error.status == 412:
                raise
        if head is None and error.status == 412:
            # Another writer was there, and has given way to a third one just now (see ``first``).
            raise self._conflict() from error
        if head is None:
            raise error
        self._must_be_mine(head, error)
        self._must_be_first(head, again=True)

    def _must_be_new(self) -> None:
        if self._location.head(self._key) is not None:
            raise self._conflict()

    def _must_be_first(self, answer: dict[str, t.Any], *, again: bool = False) -> None:
        """The store said yes; where it says that to several at once, who was it really?

        ``again``: the request was sent more than once for certain.
        """
        checks = self._location.options.create_only == "check"
        version = version_to_compare(answer)
        if version is not None and (checks or not is_atomic(answer)):
            sent_again = again or answer.get(ATTEMPTS, 1) > 1
            first = was_first(self._location, self._key, version, self._token if sent_again else None)
            if first is not None:
                if not first:
                    raise self._conflict()
                return
        if checks:
            self._must_be_mine(self._location.head(self._key) or {}, None)

    def _must_be_mine(self, head: dict[str, t.Any], error: RequestFailed | None) -> None:
        if head.get("Metadata", {}).get(WRITTEN_BY) != self._token:
            raise self._conflict() from error
        size = self._size or self._crc.size
        kept = self._location.calls.told(head, "ContentLength")
        if kept != size:
            raise self._unfit(f"keeps {kept} of the {size} bytes of {self._key}") from error

    def _must_echo(self, answer: dict[str, t.Any], *expected: str) -> None:
        """What the store says that it has. Not all of them say it."""
        echoed = answer.get("ChecksumCRC32C")
        if echoed is not None and echoed.partition("-")[0] not in expected:
            raise self._unfit(f"has other bytes of {self._key} than were sent to it")

    def _conflict(self) -> ObjectConflict:
        return ObjectConflict(
            f"location {self._location.name!r} has an object {self._key!r} already, with other content",
            hint="Nothing was overwritten. If two hosts write under one name, give them separate sources.",
        )

    def _unfit(self, what: str) -> LocationError:
        return LocationError(
            f"location {self._location.name!r} ({self._location.describe()}) {what}",
            hint="It cannot keep backups safe: use other storage. What it holds already should be verified.",
            id="location-unfit",
        )
