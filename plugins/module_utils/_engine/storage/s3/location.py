# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A bucket, or a part of one, as a location."""

from __future__ import annotations

import datetime as dt
import time
import typing as t

from ...errors import LocationError, ObjectMissing
from ..base import Capacity, ObjectInfo, check_key
from .calls import Calls
from .download import download
from .errors import NO_CONDITIONS, RequestFailed
from .examine import examine
from .integrity import Integrity
from .parts import PartSender
from .writer import S3Writer

if t.TYPE_CHECKING:
    from ...config.locations import S3Options
    from ..base import ObjectWriter

_BUCKET_SEEN_SECONDS = 60.0
_LOCKED: t.Final = frozenset({"packs", "manifests", "wal", "keys", "wraps", "repository.json"})
"""What a thief must not take away. The rest is deleted by its writers as they go on."""
_KINDS: t.Final = _LOCKED | {"streamed", "leases", "marks", "notes", "probe"}
"""All that a repository has: section 3 of docs/repository-format.md, and what the trial makes."""
_BULK: t.Final = frozenset({"packs", "wal"})
"""What a cheaper storage class is for. Everything else is small, read often or soon deleted: dearer there."""


class S3Location:
    def __init__(self, name: str, where: str, options: S3Options, *, required: bool = True) -> None:
        self._name = name
        self._where = where
        self._required = required
        self.options = options
        self.calls = Calls(name, options)
        self.sender = PartSender(name)
        self.integrity = Integrity(self.calls)
        self._bucket_seen = float("-inf")

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

    def attributes(self, key: str) -> dict[str, t.Any]:
        """What the options want of a new object."""
        kind = key.partition("/")[0]
        found: dict[str, t.Any] = {}
        if self.options.object_lock is not None and kind in _LOCKED:
            found["ObjectLockMode"] = self.options.object_lock.mode.upper()
            found["ObjectLockRetainUntilDate"] = dt.datetime.now(dt.UTC) + self.options.object_lock.retain
        if self.options.storage_class is not None and kind in _BULK:
            found["StorageClass"] = self.options.storage_class
        encryption = self.options.encryption
        if encryption is not None:
            found["ServerSideEncryption"] = "aws:kms" if encryption.kms else "AES256"
            if encryption.key_id is not None:
                found["SSEKMSKeyId"] = encryption.key_id
        return found

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        check_key(key)
        if length is not None and length <= 0:
            return b""
        try:
            return self._fetch(key, offset, length)
        except RequestFailed as error:
            if error.status != 404 or error.code == "NoSuchBucket":
                raise
            if error.code not in ("NoSuchKey", "NoSuchVersion"):
                self._must_have_a_bucket()
            raise self._missing(key) from error

    def head(self, key: str, attempts: int | None = None) -> dict[str, t.Any] | None:
        """What the store says of an object. None when there is surely no such object."""
        try:
            head = self.calls.request("head_object", key, attempts=attempts)
        except RequestFailed as error:
            if error.status != 404:
                raise
            self._must_have_a_bucket()
            return None
        return head

    def stat(self, key: str) -> ObjectInfo | None:
        head = self.head(check_key(key))
        if head is None:
            return None
        size, modified = self.calls.told(head, "ContentLength"), self.calls.told(head, "LastModified")
        return ObjectInfo(key, size, modified.timestamp())

    def confirm(self, key: str) -> None:
        """An object that is there is durable: the store acknowledged it before it showed it."""
        if self.stat(key) is None:
            raise self._missing(key)

    def list(self, prefix: str) -> t.Iterator[ObjectInfo]:
        before = ""
        for answer in self.calls.pages("list_objects_v2", Prefix=self.calls.full(prefix)):
            for found in answer.get("Contents", ()):
                if found["Key"] <= before:
                    raise LocationError(
                        f"location {self._name!r} ({self._where}) does not list its objects in order",
                        hint="Use another store, or another kind of bucket: directory buckets do not.",
                        id="location-unfit",
                    )
                before = found["Key"]
                key = self.calls.short(before)
                if is_ours(key):
                    yield ObjectInfo(key, found["Size"], found["LastModified"].timestamp())

    def delete(self, key: str) -> None:
        try:
            self.calls.request("delete_object", check_key(key))
        except RequestFailed as error:
            # Most stores do not tell; some do, also when the answer to the first attempt was lost.
            if error.status != 404 or error.code == "NoSuchBucket":
                raise

    def now(self) -> float:
        return self.calls.server_time()

    def capacity(self) -> Capacity:
        return Capacity(None, None)

    def sweep(self, older_than: float) -> int:
        """Uploads in parts that were never finished: nobody sees them, and they cost."""
        limit = self.now() - older_than
        removed = 0
        for answer in self.calls.pages("list_multipart_uploads", Prefix=self.calls.full("")):
            for upload in answer.get("Uploads", ()):
                key = self.calls.short(upload["Key"])
                if upload["Initiated"].timestamp() < limit and is_of_a_repository(key):
                    self.abort_upload(key, upload["UploadId"])
                    removed += 1
        return removed

    def abort_upload(self, key: str, upload: str, attempts: int | None = None) -> None:
        """Forget the parts of an upload. Idempotent."""
        try:
            self.calls.request("abort_multipart_upload", key, attempts=attempts, UploadId=upload)
        except RequestFailed as error:
            if error.status != 404:  # finished or aborted meanwhile
                raise

    def requests(self) -> dict[str, int]:
        return self.calls.counts()

    @property
    def is_atomic(self) -> bool:
        return self.options.create_only == "conditional"

    @property
    def unfit_hint(self) -> str:
        return NO_CONDITIONS

    def ways(self) -> t.Sequence[t.Callable[[str], ObjectWriter]]:
        return [self.create, lambda key: S3Writer(self, check_key(key), in_parts=True)]

    def examine(self) -> t.Sequence[str]:
        return examine(self.calls)

    def _fetch(self, key: str, offset: int, length: int | None) -> bytes:
        return download(self.calls, key, offset, length)

    def _missing(self, key: str) -> ObjectMissing:
        return ObjectMissing(
            f"location {self._name!r} has no object {key!r}",
            hint="`cryobackup verify --all --level presence` shows what else is missing.",
        )

    def _must_have_a_bucket(self) -> None:
        """HEAD answers 404 for an object and for a bucket: a missing bucket means "wrong place", never "empty"."""
        if time.monotonic() > self._bucket_seen + _BUCKET_SEEN_SECONDS:
            self.calls.request("list_objects_v2", MaxKeys=1, Prefix=self.calls.full(""))
            self._bucket_seen = time.monotonic()


def is_ours(key: str) -> bool:
    """False for what the repository cannot have written, such as the markers that browsers make for directories."""
    try:
        check_key(key)
    except LocationError:
        return False
    return True


def is_of_a_repository(key: str) -> bool:
    """False for what others have in a bucket where this location has no prefix: it is not ours to tidy up."""
    return is_ours(key) and key.partition("/")[0] in _KINDS
