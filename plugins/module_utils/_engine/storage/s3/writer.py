# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One object in the making: a single request for a small one, parts in the background for a large one."""

from __future__ import annotations

import base64
import secrets
import typing as t

from ...errors import ObjectConflict
from .errors import RequestFailed

if t.TYPE_CHECKING:
    from ..base import Buffer
    from .location import S3Location

WRITTEN_BY = "cryo-write"
"""The metadata that names the writer."""


class S3Writer:
    def __init__(self, location: S3Location, key: str) -> None:
        self._location = location
        self._key = key
        self._token = secrets.token_hex(16)
        self._buffer = bytearray()

    def write(self, data: Buffer) -> None:
        self._buffer += data

    def commit(self) -> None:
        import google_crc32c

        crc = base64.b64encode(google_crc32c.value(bytes(self._buffer)).to_bytes(4, "big")).decode()
        try:
            self._location.calls.request(
                "put_object",
                self._key,
                Body=self._buffer,
                ContentLength=len(self._buffer),
                ChecksumCRC32C=crc,
                IfNoneMatch="*",
                Metadata={WRITTEN_BY: self._token},
                ContentType="application/octet-stream",
            )
        except RequestFailed as error:
            if error.status not in (0, 412):
                raise
            self._whose(error)

    def _whose(self, error: RequestFailed) -> None:
        head = self._location.calls.request("head_object", self._key)
        if head.get("Metadata", {}).get(WRITTEN_BY) == self._token:
            return
        raise ObjectConflict(
            f"location {self._location.name!r} has an object {self._key!r} already, with other content",
            hint="Nothing was overwritten. If two hosts write under one name, give them separate sources.",
        ) from error

    def abort(self) -> None:
        self._buffer = bytearray()
