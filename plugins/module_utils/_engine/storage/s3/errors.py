# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What went wrong with a request, in our words: whether to try again, and what its user can do."""

from __future__ import annotations

import dataclasses
import typing as t
import urllib.parse

from ...errors import LocationError, LocationFull

UNTOUCHED: t.Final = "Earlier backups are untouched."
NO_CONDITIONS: t.Final = (
    "Is it a store that knows `If-None-Match`? For one that does not, `create_only: check` looks before and after "
    "every write instead: weaker when two hosts write at once (docs/s3.md). What it holds already should be verified."
)

SPEAKS_TLS: t.Final = "SpeaksTLS"
"""Our own code: there is TLS where none was expected."""
UNSENDABLE: t.Final = "Unsendable"
"""Our own code: something that has to go into a header cannot, such as a token with a line break in it."""
_SLOW_DOWN = frozenset(
    {
        "BandwidthLimitExceeded",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "TooManyRequestsException",
    }
)
_AGAIN = frozenset(
    {
        "BadDigest",  # damaged on the way: what is sent again is whole
        "ConditionalRequestConflict",  # another request for the same name was under way
        "IncompleteBody",
        "InternalError",
        "InvalidDigest",
        "OperationAborted",
        "RequestTimeout",
        "XAmzContentChecksumMismatch",
    }
)
_BAD_CREDENTIALS = frozenset(
    {
        "AuthFailure",
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidIdentityToken",
        "InvalidToken",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
        "UnrecognizedClientException",
    }
)
_FULL = frozenset({"InsufficientStorage", "QuotaExceeded", "StorageFull", "XMinioStorageFull"})


class RequestFailed(LocationError):
    """One request failed for good. ``code`` is the store's word for it, or botocore's where no answer came."""

    def __init__(self, message: str, failure: Failure, *, hint: str, id: str) -> None:
        super().__init__(message, hint=hint, id=id)
        self.failure = failure

    @property
    def code(self) -> str:
        return self.failure.code

    @property
    def status(self) -> int:
        return self.failure.status


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    code: str
    status: int
    """Of HTTP; 0 where no answer came."""
    text: str
    headers: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    region: str = ""
    """Where the store says that the bucket is."""
    role: bool = False
    """It was not the store that refused, but who gives out roles."""

    @property
    def throttled(self) -> bool:
        return self.status in (429, 503) or self.code in _SLOW_DOWN

    @property
    def again(self) -> bool:
        """Whether the same request may well succeed."""
        if self.code in _AGAIN or self.throttled:
            return True
        if self.status == 0:
            return self.code not in _HOPELESS
        return self.status == 408 or (self.status >= 500 and self.status not in (501, 507))

    @property
    def is_silence(self) -> bool:
        """Whether nobody was there, or the connection broke before there was an answer."""
        return self.status == 0 and self.again

    @property
    def is_no_s3(self) -> bool:
        """Whether nothing that speaks S3 has answered."""
        return self.code == "ConnectionClosedError" or (self.status == 400 and self.code == "400")

    @property
    def bad_credentials(self) -> bool:
        return self.code in _BAD_CREDENTIALS or self.code in _NO_CREDENTIALS

    @property
    def retry_after(self) -> float:
        """Seconds that the store asks for."""
        value = self.headers.get("retry-after", "")
        return float(value) if value.isdigit() else 0.0


# Without an answer, and trying again would not get one: by the names of botocore's exceptions.
_NO_CREDENTIALS = frozenset({"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"})
_HOPELESS = _NO_CREDENTIALS | frozenset(
    {
        "SSLError",
        SPEAKS_TLS,
        UNSENDABLE,
        "ParamValidationError",
        "InvalidProxiesConfigError",
        "UnauthorizedSSOTokenError",
    }
)
# What OpenSSL says when the connection broke, or was damaged on the way: no reason to doubt the certificate.
_BROKEN_TLS = ("eof", "reset by peer", "broken pipe", "timed out", "bad record mac", "decryption failed")


def failure_of(error: Exception) -> Failure:
    """Of an exception of botocore, or of what is below it."""
    response: t.Any = getattr(error, "response", None)
    if not isinstance(response, dict):
        code, text = type(error).__name__, str(error)
        if code == "SSLError" and any(words in text.lower() for words in _BROKEN_TLS):
            code = "ConnectionClosedError"
        if "invalid header value" in text.lower():  # it repeats the value, which may be a token of the environment
            code, text = UNSENDABLE, ""
        return Failure(code, 0, text)
    found = response.get("Error", {})
    metadata = response.get("ResponseMetadata", {})
    headers = metadata.get("HTTPHeaders", {})
    return Failure(
        str(found.get("Code", "")),
        int(metadata.get("HTTPStatusCode", 0)),
        str(found.get("Message", "")),
        headers,
        str(found.get("Region") or headers.get("x-amz-bucket-region", "")),
        role=str(getattr(error, "operation_name", "")).startswith("AssumeRole"),
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """What the words need to know of a location."""

    name: str
    bucket: str
    endpoint: str
    region: str
    account: str
    """Where its credentials come from."""


def failed(place: Place, verb: str, key: str, failure: Failure, right: str) -> LocationError:
    """The error for a request that was given up. ``right`` is the permission that it needs."""
    what = f"location {place.name!r}: cannot {verb} {key or 'bucket ' + place.bucket}"
    if failure.code in _FULL or failure.status == 507:
        return LocationFull(
            f"{what}: there is no space left ({failure.code or failure.status})",
            hint=f"{UNTOUCHED} Raise the quota there or let `cryobackup prune` make room, then run again.",
        )
    words = _Words(place, failure, right)
    for explain in (words.unanswered, words.credentials, words.clock, words.elsewhere, words.forbidden, words.unknown):
        found = explain()
        if found is not None:
            return RequestFailed(f"{what}: {found.reason}", failure, hint=f"{found.hint} {UNTOUCHED}", id=found.id)
    text = f"{failure.code}: {failure.text}" if failure.text else failure.code
    return RequestFailed(
        f"{what}: {place.endpoint} answers {failure.status} {text}".rstrip(),
        failure,
        hint=f"{UNTOUCHED} Mend the location, then run again.",
        id="location-down" if failure.again else "location",
    )


class Explained(t.NamedTuple):
    reason: str
    hint: str
    id: str


@dataclasses.dataclass(frozen=True, slots=True)
class _Words:
    place: Place
    failure: Failure
    right: str

    def unanswered(self) -> Explained | None:
        if self.failure.status != 0 or self.failure.code in _NO_CREDENTIALS:
            return None
        if self.failure.code == "SSLError":
            return self._untrusted()
        if self.failure.code == "ProxyConnectionError":
            return Explained(
                f"the proxy does not answer ({self.failure.text})", "Correct proxy, or mend it.", id="location-down"
            )
        if self.failure.code == SPEAKS_TLS:
            return Explained(
                f"{self.place.endpoint} speaks TLS",
                "endpoint_url has to begin with https://, or another port is meant.",
                id="location-config",
            )
        if self.failure.code == UNSENDABLE:
            return Explained(
                f"the credentials ({self.place.account}) cannot be sent: they are not one word each",
                "Is there a line break in a key or in a token?",
                id="location-denied",
            )
        if self.failure.code in ("ParamValidationError", "InvalidProxiesConfigError"):
            return Explained(self.failure.text, "Correct the options of this location.", id="location-config")
        reason = {
            "ConnectTimeoutError": "does not answer",
            "ReadTimeoutError": "stopped answering",
            "EndpointConnectionError": "cannot be reached",
            "ConnectionClosedError": "closes the connection",
            "ShortAnswer": "breaks off its answers",
            "ResponseParserError": "answers in another language than S3's",
        }.get(self.failure.code, f"fails ({self.failure.text})")
        return Explained(
            f"{self.place.endpoint} {reason}",
            "Is endpoint_url right, is the network up, does the store run?",
            id="location-down",
        )

    def _untrusted(self) -> Explained:
        text = self.failure.text.lower()
        if "wrong version number" in text or "record layer failure" in text:
            return Explained(
                f"{self.place.endpoint} does not speak TLS",
                "Is the port right? A store without TLS has an endpoint_url that begins with http://.",
                id="location-config",
            )
        other = "mismatch" in text or "n't match" in text
        reason = "expired" if "expired" in text else "of another name" if other else "not trusted"
        return Explained(
            f"the certificate of {self.place.endpoint} is {reason}",
            "For a certificate authority of your own name its certificate in ca_file.",
            id="location-untrusted",
        )

    def credentials(self) -> Explained | None:
        if self.failure.role and not self.failure.again:
            return Explained(
                f"the role {self.place.account} is refused: {self.failure.code}: {self.failure.text}",
                "Does it trust these credentials, or the issuer of this token, and is the token fresh?",
                id="location-denied",
            )
        if self.failure.code in _NO_CREDENTIALS:
            return Explained(
                "there are no credentials" if self.failure.code == "NoCredentialsError" else self.failure.text,
                "Name a credentials_file, or let the host have a role.",
                id="location-denied",
            )
        if self.failure.code in _BAD_CREDENTIALS:
            expired = "Expired" in self.failure.code or "Refresh" in self.failure.code
            state = "have expired" if expired else "are not accepted"
            return Explained(
                f"the credentials ({self.place.account}) {state}: {self.failure.code}",
                "Put new ones there; a job that runs takes them up by itself."
                if expired
                else "Are they those of this store, complete, and not revoked?",
                id="location-denied",
            )
        return None

    def clock(self) -> Explained | None:
        if self.failure.code not in ("RequestTimeTooSkewed", "RequestExpired"):
            return None
        return Explained(
            f"the clocks of this host and of the store differ too much ({self.failure.text})",
            "Set this host's clock (timedatectl, chronyc); the store accepts a difference of 15 minutes.",
            id="location-clock",
        )

    def elsewhere(self) -> Explained | None:
        if self.failure.code == "NoSuchBucket":
            return Explained(
                f"there is no bucket {self.place.bucket!r} at {self.place.endpoint}",
                "Create it, or correct bucket, region or endpoint_url. The program makes no buckets.",
                id="location-config",
            )
        target = urllib.parse.urlsplit(self.failure.headers.get("location", ""))
        if self.failure.status in (301, 302, 307, 308) and target.netloc and not self.failure.region:
            return Explained(
                f"{self.place.endpoint} sends everybody to {target.scheme}://{target.netloc}",
                "If that is the store, put it into endpoint_url.",
                id="location-config",
            )
        wrong = self.failure.code in (
            "AuthorizationHeaderMalformed",
            "IllegalLocationConstraintException",
            "PermanentRedirect",
        )
        if wrong or self.failure.status in (301, 307):
            where = f"region {self.failure.region}" if self.failure.region else "another region"
            return Explained(
                f"bucket {self.place.bucket!r} is in {where}, not in {self.place.region}",
                f"Set region{': ' + self.failure.region if self.failure.region else ''}.",
                id="location-config",
            )
        return None

    def forbidden(self) -> Explained | None:
        if self.failure.code == "InvalidObjectState":
            return Explained(
                "it lies in an archive that cannot be read at once",
                "Restore it there first. Do not use a storage class that needs that for backups.",
                id="location",
            )
        if self.failure.status != 403 and self.failure.code not in ("AccessDenied", "Forbidden"):
            return None
        return Explained(
            f"the credentials ({self.place.account}) may not do that ({self.failure.code or self.failure.status})",
            f"It needs the right {self.right} on {self.place.bucket!r}: see docs/s3.md.",
            id="location-denied",
        )

    def unknown(self) -> Explained | None:
        if self.failure.status != 501 and self.failure.code != "NotImplemented":
            return None
        return Explained(
            f"{self.place.endpoint} does not know such a request ({self.failure.text or self.failure.code})",
            NO_CONDITIONS if self.right == "s3:PutObject" else "Use other storage.",
            id="location-unfit",
        )
