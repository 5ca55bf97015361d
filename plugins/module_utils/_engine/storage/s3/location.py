# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A bucket, or a part of one, as a location."""

from __future__ import annotations

import typing as t

from ...errors import LocationError, ObjectMissing
from ..base import Capacity, ObjectInfo, check_key
from .calls import Calls
from .errors import RequestFailed
from .writer import S3Writer

if t.TYPE_CHECKING:
    from ...config.locations import S3Options

_PIECE_BYTES = 1 << 20


class S3Location:
    def __init__(self, name: str, where: str, options: S3Options, *, required: bool = True) -> None:
        self._name = name
        self._where = where
        self._required = required
        self.options = options
        self.calls = Calls(name, options)
        self._bucket_is_there = False

    @property
    def name(self) -> str:
        return self._name

    @property
    def required(self) -> bool:
        return self._required

    def describe(self) -> str:
        return self._where

    def prepare(self) -> None:
        """Buckets cost, and have rules: whoever administers them makes them."""

    def create(self, key: str) -> S3Writer:
        return S3Writer(self, check_key(key))

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        check_key(key)
        if length is not None and length <= 0:
            return b""
        last = "" if length is None else str(offset + length - 1)
        ranged: dict[str, t.Any] = {} if offset == 0 and length is None else {"Range": f"bytes={offset}-{last}"}
        try:
            answer = self.calls.request("get_object", key, **ranged)
        except RequestFailed as error:
            if error.status == 416:
                return b""
            if error.code == "NoSuchKey":
                raise self._missing(key) from error
            raise
        data: bytes = answer["Body"].read()
        return data

    def stat(self, key: str) -> ObjectInfo | None:
        check_key(key)
        try:
            head = self.calls.request("head_object", key)
        except RequestFailed as error:
            if error.status != 404:
                raise
            self._must_have_a_bucket()
            return None
        return ObjectInfo(key, head["ContentLength"], head["LastModified"].timestamp())

    def confirm(self, key: str) -> None:
        """An object that is there is durable: the store acknowledged it before it showed it."""
        if self.stat(key) is None:
            raise self._missing(key)

    def list(self, prefix: str) -> t.Iterator[ObjectInfo]:
        parameters: dict[str, t.Any] = {"Prefix": self.calls.full(prefix)}
        while True:
            answer = self.calls.request("list_objects_v2", **parameters)
            for found in answer.get("Contents", ()):
                key = self.calls.short(found["Key"])
                if _is_ours(key):
                    yield ObjectInfo(key, found["Size"], found["LastModified"].timestamp())
            token = answer.get("NextContinuationToken")
            if not answer.get("IsTruncated") or not token:
                return
            parameters["ContinuationToken"] = token

    def delete(self, key: str) -> None:
        self.calls.request("delete_object", check_key(key))

    def now(self) -> float:
        return self.calls.server_time()

    def capacity(self) -> Capacity:
        return Capacity(None, None)

    def sweep(self, older_than: float) -> int:
        """Uploads in parts that were never finished: nobody sees them, and they cost."""
        limit = self.now() - older_than
        parameters: dict[str, t.Any] = {"Prefix": self.calls.full("")}
        removed = 0
        while True:
            answer = self.calls.request("list_multipart_uploads", **parameters)
            for upload in answer.get("Uploads", ()):
                if upload["Initiated"].timestamp() < limit:
                    self._abort(self.calls.short(upload["Key"]), upload["UploadId"])
                    removed += 1
            if not answer.get("IsTruncated"):
                return removed
            parameters["KeyMarker"] = answer.get("NextKeyMarker", "")
            parameters["UploadIdMarker"] = answer.get("NextUploadIdMarker", "")

    def _abort(self, key: str, upload: str) -> None:
        try:
            self.calls.request("abort_multipart_upload", key, UploadId=upload)
        except RequestFailed as error:
            if error.status != 404:  # finished or aborted meanwhile
                raise

    def requests(self) -> dict[str, int]:
        return self.calls.counts()

    def _missing(self, key: str) -> ObjectMissing:
        return ObjectMissing(
            f"location {self._name!r} has no object {key!r}",
            hint="`cryobackup verify --all --level presence` shows what else is missing.",
        )

    def _must_have_a_bucket(self) -> None:
        """HEAD answers 404 for an object and for a bucket: a missing bucket means "wrong place", never "empty"."""
        if not self._bucket_is_there:
            self.calls.request("list_objects_v2", MaxKeys=1, Prefix=self.calls.full(""))
            self._bucket_is_there = True


def _is_ours(key: str) -> bool:
    """False for what the repository cannot have written, such as the markers that browsers make for directories."""
    try:
        check_key(key)
    except LocationError:
        return False
    return True
