# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests to one bucket: tried again where that helps, counted, and with errors that tell what to do."""

from __future__ import annotations

import collections
import email.utils
import secrets
import threading
import time
import typing as t

from ...errors import LocationError
from .client import DEFAULT_REGION, new_client, speaks_tls
from .errors import SPEAKS_TLS, Failure, Place, RequestFailed, failed, failure_of

if t.TYPE_CHECKING:
    from ...config.locations import S3Options

ATTEMPTS: t.Final = "Attempts"
"""In an answer, beside what the store says: how often the request was sent until then."""
_ENDED: t.Final = "credentials are still expired"
_FIRST_PAUSE_SECONDS = 0.25
_FIRST_PAUSE_THROTTLED_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 20.0
_FIRST_ANSWER_SECONDS = 20.0
"""After that there is no further attempt where nothing ever answered: who asks is told soon that there is nobody."""
_RANDOM = secrets.SystemRandom()


class Operation(t.NamedTuple):
    kind: str
    """As it is counted, and usually priced."""
    verb: str
    right: str
    """The permission it needs."""


OPERATIONS: t.Final = {
    "put_object": Operation("put", "write", "s3:PutObject"),
    "create_multipart_upload": Operation("put", "write", "s3:PutObject"),
    "upload_part": Operation("put", "write", "s3:PutObject"),
    "complete_multipart_upload": Operation("put", "write", "s3:PutObject"),
    "copy_object": Operation("put", "write", "s3:PutObject, and s3:GetObjectVersion,"),
    "put_object_retention": Operation("put", "lock", "s3:PutObjectRetention"),
    "abort_multipart_upload": Operation("delete", "give up the upload of", "s3:AbortMultipartUpload"),
    "delete_object": Operation("delete", "delete", "s3:DeleteObject"),
    "get_object": Operation("get", "read", "s3:GetObject"),
    "get_object_retention": Operation("get", "look at the lock of", "s3:GetObjectRetention"),
    "get_object_lock_configuration": Operation("get", "look at", "s3:GetBucketObjectLockConfiguration"),
    "get_bucket_versioning": Operation("get", "look at", "s3:GetBucketVersioning"),
    "head_object": Operation("head", "look at", "s3:GetObject, and s3:ListBucket to tell what is missing,"),
    "list_objects_v2": Operation("list", "list", "s3:ListBucket"),
    "list_object_versions": Operation("list", "list the versions in", "s3:ListBucketVersions"),
    "list_multipart_uploads": Operation("list", "list the uploads in", "s3:ListBucketMultipartUploads"),
}


class Calls:
    """Thread-safe. The first request makes the client; nothing is imported or read before."""

    def __init__(self, name: str, options: S3Options) -> None:
        self.name = name
        self.options = options
        self.bucket = options.bucket
        self.endpoint = options.endpoint_url or "Amazon S3"
        self._prefix = f"{options.prefix}/" if options.prefix else ""
        self._client: t.Any = None
        self._stamp: tuple[int, int] | None = None
        self._lock = threading.Lock()
        self._answered = False
        """Something that speaks S3 has done what it was asked for."""
        self._heard = False
        self._silent = False
        """All attempts of a request found nobody there, and nothing was heard since: the next ones try once."""
        self._counts: collections.Counter[str] = collections.Counter()

    def full(self, key: str) -> str:
        """The key in the bucket of a key in the location."""
        return self._prefix + key

    def short(self, full_key: str) -> str:
        return full_key[len(self._prefix) :]

    def counts(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counts)

    def request(
        self,
        operation: str,
        key: str = "",
        *,
        stop: threading.Event | None = None,
        attempts: int | None = None,
        **parameters: t.Any,
    ) -> dict[str, t.Any]:
        """One request about an object (``key``, as the location has it) or about the bucket.

        ``stop``, once set, ends the attempts. Raises RequestFailed (a LocationError) or LocationFull.
        """
        if key:
            parameters["Key"] = self.full(key)
        attempts = 1 if self._silent else attempts or self.options.attempts
        began = time.monotonic()
        renewed = False
        attempt = 0
        while True:
            attempt += 1
            client = self.client()
            failure = self._try(client, operation, parameters)
            if not isinstance(failure, Failure) or failure.status:
                self._heard, self._silent = True, False
            if not isinstance(failure, Failure):
                return failure | {ATTEMPTS: attempt}
            if failure.bad_credentials and not renewed and self._forget_client(client):
                renewed = True
                attempt -= 1
                continue
            never = not self._heard and time.monotonic() - began > _FIRST_ANSWER_SECONDS
            if failure.is_silence and (never or attempt >= self.options.attempts):
                self._silent = True
                attempts = attempt
            if not failure.again or attempt >= attempts or (stop is not None and stop.is_set()):
                raise self.error(operation, key, failure)
            pause(attempt, failure, stop)

    def pages(self, operation: str, **parameters: t.Any) -> t.Iterator[dict[str, t.Any]]:
        """All answers of a request that lists. Raises like ``request``."""
        position: dict[str, t.Any] = {}
        while True:
            answer = self.request(operation, **parameters, **position)
            if "IsTruncated" not in answer:  # a page of somebody in between must not pass for an empty bucket
                raise self._unfit("answers with something that is no list")
            yield answer
            following = {
                name.removeprefix("Next"): answer[name]
                for name in ("NextContinuationToken", "NextKeyMarker", "NextUploadIdMarker", "NextVersionIdMarker")
                if answer.get(name)
            }
            if not answer.get("IsTruncated"):
                return
            if not following or following == position:
                raise self._unfit("says that its list goes on, but not where")
            position = following  # all of it: a marker within the last name is none within this one

    def told(self, answer: dict[str, t.Any], what: str) -> t.Any:
        """A part of an answer that S3 always has. Raises LocationError where somebody took it away."""
        if what not in answer:
            raise self._unfit(f"leaves {what} out of its answers")
        return answer[what]

    def error(self, operation: str, key: str, failure: Failure) -> Exception:
        _kind, verb, right = OPERATIONS[operation]
        return failed(self.place(), verb, key, failure, right)

    def place(self) -> Place:
        options = self.options
        account = str(options.web_identity_token_file or options.credentials_file or "those of this host")
        region = options.region or DEFAULT_REGION
        return Place(self.name, self.bucket, self.endpoint, region, options.role_arn or account)

    def _try(self, client: t.Any, operation: str, parameters: dict[str, t.Any]) -> dict[str, t.Any] | Failure:
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError

        with self._lock:
            self._counts[OPERATIONS[operation].kind] += 1
        try:
            answer: dict[str, t.Any] = getattr(client, operation)(Bucket=self.bucket, **parameters)
        except (ClientError, BotoCoreError, ResponseParserError) as error:
            failure = failure_of(error)
        except RuntimeError as error:
            # botocore's word for a role that has ended, by this host's clock, when it has just been given.
            if _ENDED not in str(error):
                raise
            failure = Failure("RequestExpired", 403, str(error))
        else:
            self._answered = True
            return answer
        if operation == "head_object" and failure.status in (400, 403):
            failure = self._reason(client, parameters) or failure
        if (
            not self._answered
            and self.endpoint.startswith("http://")
            and failure.is_no_s3
            and speaks_tls(self.endpoint)
        ):
            return Failure(SPEAKS_TLS, 0, "")
        return failure

    def _reason(self, client: t.Any, parameters: dict[str, t.Any]) -> Failure | None:
        """Answers to HEAD have no body, and so no reason: ask for the object's first byte."""
        known = {name: parameters[name] for name in ("Key", "VersionId") if name in parameters}
        answer = self._try(client, "get_object", known | {"Range": "bytes=0-0"})
        if isinstance(answer, Failure):
            return answer
        answer["Body"].close()
        return None

    def server_time(self) -> float:
        """Seconds since 1970 by the store's clock, in whole seconds: any answer tells, also a refusal."""
        key = "repository.json"
        try:
            headers: t.Mapping[str, str] = self.request("head_object", key)["ResponseMetadata"]["HTTPHeaders"]
        except RequestFailed as error:
            if error.failure.again or not error.status:
                raise
            headers = error.failure.headers
        try:
            return email.utils.parsedate_to_datetime(headers["date"]).timestamp()
        except (KeyError, ValueError) as error:
            raise self._unfit("does not say what time it is (the header Date)") from error

    def _unfit(self, what: str) -> LocationError:
        return LocationError(
            f"location {self.name!r}: {self.endpoint} {what}",
            hint="Is it S3, and nothing in between that changes its answers? Otherwise it cannot keep backups safe.",
            id="location-unfit",
        )

    def client(self) -> t.Any:
        """The client of botocore. Raises LocationError for unusable options."""
        with self._lock:
            if self._client is None:
                self._stamp = self._credentials_stamp()
                self._client = new_client(self.name, self.options)
            return self._client

    def _forget_client(self, client: t.Any) -> bool:
        """When somebody has put new credentials there since: the next request takes them."""
        with self._lock:
            if self._client is not client:
                return True  # another thread did
            if self._stamp == self._credentials_stamp():
                return False
            self._client = None
            return True

    def _credentials_stamp(self) -> tuple[int, int] | None:
        path = self.options.credentials_file
        try:
            status = path.stat() if path is not None else None
        except OSError:
            return None
        return (status.st_mtime_ns, status.st_ino) if status is not None else None


def pause(attempt: int, failure: Failure, stop: threading.Event | None = None) -> None:
    """Exponential with full jitter, so that clients that failed together do not come back together."""
    first = _FIRST_PAUSE_THROTTLED_SECONDS if failure.throttled else _FIRST_PAUSE_SECONDS
    longest = min(_LONGEST_PAUSE_SECONDS, first * 2**attempt)
    seconds = max(_RANDOM.uniform(0, longest), min(failure.retry_after, _LONGEST_PAUSE_SECONDS))
    if stop is not None:
        stop.wait(seconds)
    else:
        time.sleep(seconds)
