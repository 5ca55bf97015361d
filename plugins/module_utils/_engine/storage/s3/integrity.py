# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checksums that travel with every body, so that the store refuses what changed on the way.

CRC32C where the store knows it: the processor computes it for next to nothing. MD5 for the others. Not a word is
believed of ETags: they depend on how an object was sent, and on how it is encrypted.
"""

from __future__ import annotations

import base64
import hashlib
import typing as t

from .errors import RequestFailed

if t.TYPE_CHECKING:
    from ..base import Buffer
    from .calls import Calls


class Checksum:
    """CRC32C, and bytes so far."""

    def __init__(self) -> None:
        self.value = 0
        self.size = 0

    def add(self, data: Buffer) -> None:
        import google_crc32c

        # It takes nothing but bytes; frames are bytes already.
        self.value = google_crc32c.extend(self.value, data if isinstance(data, bytes) else bytes(data))
        self.size += len(data)

    @property
    def raw(self) -> bytes:
        return self.value.to_bytes(4, "big")

    @property
    def text(self) -> str:
        """As S3 writes it."""
        return base64.b64encode(self.raw).decode()


class Integrity:
    """What one store knows of checksums. Thread-safe: at worst several requests find out the same."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self.crc32c = True

    def begin(self, key: str, **parameters: t.Any) -> dict[str, t.Any]:
        """Begin an upload in parts. Raises like ``Calls.request``."""
        if self.crc32c:
            try:
                wanted: dict[str, t.Any] = {"ChecksumAlgorithm": "CRC32C", "ChecksumType": "COMPOSITE"}
                return self._calls.request("create_multipart_upload", key, **wanted, **parameters)
            except RequestFailed as error:
                self._do_without(error)
        return self._calls.request("create_multipart_upload", key, **parameters)

    def send(self, operation: str, key: str, body: Buffer, checksum: Checksum, **parameters: t.Any) -> dict[str, t.Any]:
        """A request with a body. Raises like ``Calls.request``."""
        if self.crc32c:
            try:
                # Ceph looks at the checksum of a whole object only where the algorithm is named as well.
                crc: dict[str, t.Any] = {"ChecksumAlgorithm": "CRC32C", "ChecksumCRC32C": checksum.text}
                return self._calls.request(operation, key, Body=body, **crc, **parameters)
            except RequestFailed as error:
                self._do_without(error)
        md5 = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        return self._calls.request(operation, key, Body=body, ContentMD5=md5, **parameters)

    def of_part(self, checksum: Checksum) -> dict[str, str]:
        """What completing an upload has to say of a part."""
        return {"ChecksumCRC32C": checksum.text} if self.crc32c else {}

    def _do_without(self, error: RequestFailed) -> None:
        """From now on, when that is what the store complains of. Raises the error when it is not."""
        if error.status not in (400, 501) or "checksum" not in error.failure.text.lower() or error.failure.again:
            raise error
        self.crc32c = False
