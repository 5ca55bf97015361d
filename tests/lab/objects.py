# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What tests do at an object store by themselves, past the engine: users, buckets, objects, versions."""

from __future__ import annotations

import datetime
import json
import secrets
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .account import ServerAccount

BucketKind = Literal["plain", "versioned", "locked"]
READ = ("s3:GetObject", "s3:GetObjectVersion", "s3:ListBucket", "s3:ListBucketVersions", "s3:GetBucketVersioning")


@dataclass(frozen=True)
class User:
    """Somebody with keys."""

    name: str
    access_key: str
    secret_key: str

    @property
    def arn(self) -> str:
        """What a policy calls this user."""
        return f"arn:aws:iam:::user/{self.name}"

    def ini(self, profile: str = "default") -> str:
        """The keys as the AWS programs' credentials file has them."""
        lines = (f"[{profile}]", f"aws_access_key_id = {self.access_key}", f"aws_secret_access_key = {self.secret_key}")
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Version:
    """A version of an object, or a marker that says it is deleted."""

    key: str
    version_id: str
    latest: bool
    delete_marker: bool
    size: int
    modified: datetime.datetime


class ObjectStore:
    """A store that runs, whichever it is. All attributes are for reading.

    Attributes:
        url: The endpoint.
        ca_file: Certificate of the authority that signed the endpoint's; None without TLS.
        region: What requests have to be signed for.
        owner: The user that makes buckets unless another one is named.
        account: The system user that servers, and commands that they start, run as.
        folder: The directory of the store's files.
    """

    region = "us-east-1"
    ca_file: Path | None = None
    url: str
    owner: User

    def __init__(self, folder: Path, account: ServerAccount | None = None) -> None:
        self.folder = folder
        self.account = account or ServerAccount.discover()
        self._buckets = 0
        self._clients: dict[tuple[User, str, str], Any] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the connections of all clients. May be called twice."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    def client(self, user: User | None = None, *, url: str | None = None, **options: Any) -> Any:
        """A boto3 client that acts as this user (the owner when none is named), without retries."""
        who = user or self.owner
        wanted = (who, url or self.url, json.dumps(options, sort_keys=True))
        with self._lock:
            if wanted not in self._clients:
                self._clients[wanted] = s3_client(wanted[1], who, self.region, self.ca_file, **options)
            return self._clients[wanted]

    def make_bucket(
        self,
        kind: BucketKind = "plain",
        *,
        owner: User | None = None,
        lock: tuple[Literal["GOVERNANCE", "COMPLIANCE"], int] | None = None,
    ) -> Bucket:
        """A new bucket with a name of its own.

        Args:
            kind: ``plain``, ``versioned``, or ``locked``: versioned and with Object Lock enabled.
            owner: The user it belongs to; the store's ``owner`` by default.
            lock: For a locked one, a default retention: the mode and the number of days.
        """
        self._buckets += 1
        who = owner or self.owner
        client = self.client(who)
        name = f"{kind}-{self._buckets}-{secrets.token_hex(3)}"
        wanted = {"ObjectLockEnabledForBucket": True} if kind == "locked" else {}
        client.create_bucket(Bucket=name, **wanted)
        if kind == "versioned":
            client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
        if lock is not None:
            rule = {"DefaultRetention": {"Mode": lock[0], "Days": lock[1]}}
            configuration = {"ObjectLockEnabled": "Enabled", "Rule": rule}
            client.put_object_lock_configuration(Bucket=name, ObjectLockConfiguration=configuration)
        return Bucket(name, kind, who, self)

    def credentials_file(self, user: User) -> Path:
        """An INI file with the user's keys, mode 0600, that the server's system user owns (root reads it, too)."""
        path = self.folder / "credentials" / f"{user.name}.ini"
        if not path.exists():
            path.parent.mkdir(mode=0o755, exist_ok=True)
            path.touch(mode=0o600)
            path.write_text(user.ini())
            self.account.own(path)
        return path


def s3_client(url: str, user: User, region: str, ca_file: Path | None, **options: Any) -> Any:
    """A boto3 client without retries; ``options`` go into botocore's Config."""
    import boto3
    from botocore.config import Config

    settings = {"retries": {"total_max_attempts": 1}, "s3": {"addressing_style": "path"}, **options}
    session = boto3.session.Session(user.access_key, user.secret_key, region_name=region)
    trusted = None if ca_file is None else str(ca_file)
    return session.client("s3", endpoint_url=url, config=Config(**settings), verify=trusted)


def admin_request(
    url: str, user: User, region: str, method: str, path: str, query: Mapping[str, str]
) -> dict[str, Any] | None:
    """A request of the gateway's admin API, signed; its answer. Raises RuntimeError with what it says."""
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    full = f"{url}{path}?{urllib.parse.urlencode({'format': 'json', **query}, quote_via=urllib.parse.quote)}"
    request = AWSRequest(method=method, url=full)
    S3SigV4Auth(Credentials(user.access_key, user.secret_key), "s3", region).add_auth(request)
    prepared = urllib.request.Request(full, method=method, headers=dict(request.headers.items()))
    try:
        with urllib.request.urlopen(prepared, timeout=60) as answer:
            body = answer.read()
    except urllib.error.HTTPError as error:
        with error:
            raise RuntimeError(f"{method} {path} answered {error.code}: {error.read()!r}") from None
    return json.loads(body) if body.strip() else None


@dataclass(frozen=True)
class Bucket:
    """A bucket, with its owner's hands on it: what is done here is what an administrator or a thief could do."""

    name: str
    kind: BucketKind
    owner: User
    store: ObjectStore

    @property
    def client(self) -> Any:
        """A boto3 client of the owner."""
        return self.store.client(self.owner)

    def config(self, user: User | None = None, *, url: str | None = None, **more: Any) -> dict[str, Any]:
        """A location of this bucket as ``config.yml`` has it; ``url`` for a proxy, ``more`` for other keys."""
        made: dict[str, Any] = {
            "type": "s3",
            "bucket": self.name,
            "region": self.store.region,
            "endpoint_url": url or self.store.url,
            "credentials_file": str(self.store.credentials_file(user or self.owner)),
        }
        if self.store.ca_file is not None:
            made["ca_file"] = str(self.store.ca_file)
        return {**made, **more}

    def keys(self, prefix: str = "") -> list[str]:
        """The objects that a reader sees, by name."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def size(self, prefix: str = "") -> int:
        """Bytes of the objects that a reader sees, together."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
        return sum(item["Size"] for page in pages for item in page.get("Contents", []))

    def read(self, key: str, version_id: str | None = None) -> bytes:
        """The bytes of an object, or of one of its versions."""
        chosen = {} if version_id is None else {"VersionId": version_id}
        body = self.client.get_object(Bucket=self.name, Key=key, **chosen)["Body"]
        with body:
            return bytes(body.read())

    def metadata(self, key: str) -> dict[str, str]:
        """What the writer said of an object."""
        return dict(self.client.head_object(Bucket=self.name, Key=key)["Metadata"])

    def write(self, key: str, data: bytes, *, metadata: Mapping[str, str] | None = None) -> str | None:
        """Put an object whatever is there; returns the version's id where there are versions."""
        answer = self.client.put_object(Bucket=self.name, Key=key, Body=data, Metadata=dict(metadata or {}))
        return str(answer["VersionId"]) if "VersionId" in answer else None

    def tamper(self, key: str, change: int = 0x01, *, at: int = -1) -> None:
        """Change one byte of an object, keeping size and metadata."""
        data = bytearray(self.read(key))
        data[at] ^= change
        self.write(key, bytes(data), metadata=self.metadata(key))

    def delete(self, key: str, version_id: str | None = None, *, bypass_governance: bool = False) -> None:
        """Delete an object (where there are versions: mark it as deleted), or one version for good."""
        chosen: dict[str, Any] = {} if version_id is None else {"VersionId": version_id}
        if bypass_governance:
            chosen["BypassGovernanceRetention"] = True
        self.client.delete_object(Bucket=self.name, Key=key, **chosen)

    def versions(self, prefix: str = "") -> list[Version]:
        """All versions and deletion markers; of each key the newest first."""
        found = []
        for page in self.client.get_paginator("list_object_versions").paginate(Bucket=self.name, Prefix=prefix):
            for kind in ("Versions", "DeleteMarkers"):
                for item in page.get(kind, []):
                    version = Version(
                        item["Key"],
                        item["VersionId"],
                        item["IsLatest"],
                        kind == "DeleteMarkers",
                        item.get("Size", 0),
                        item["LastModified"],
                    )
                    found.append(version)
        return sorted(found, key=lambda version: (version.key, -version.modified.timestamp(), not version.latest))

    def allow(self, user: User, actions: Sequence[str], *, prefix: str = "") -> None:
        """Let another user do just these actions; replaces the bucket's policy."""
        where = [f"arn:aws:s3:::{self.name}", f"arn:aws:s3:::{self.name}/{prefix}*"]
        statement = {"Effect": "Allow", "Principal": {"AWS": [user.arn]}, "Action": list(actions), "Resource": where}
        self.set_policy([statement])

    def set_policy(self, statements: Sequence[Mapping[str, Any]]) -> None:
        """Replace the bucket's policy."""
        policy = json.dumps({"Version": "2012-10-17", "Statement": list(statements)})
        self.client.put_bucket_policy(Bucket=self.name, Policy=policy)

    def set_lifecycle(self, rules: Sequence[Mapping[str, Any]]) -> None:
        """Replace the bucket's lifecycle; ``Gateway.run_lifecycles`` makes it act."""
        self.client.put_bucket_lifecycle_configuration(Bucket=self.name, LifecycleConfiguration={"Rules": list(rules)})

    def empty(self, *, bypass_governance: bool = True) -> None:
        """Delete every version of everything. Raises ClientError where a lock forbids it."""
        for version in self.versions():
            self.delete(version.key, version.version_id, bypass_governance=bypass_governance and self.kind == "locked")
        for page in self.client.get_paginator("list_multipart_uploads").paginate(Bucket=self.name):
            for upload in page.get("Uploads", []):
                self.client.abort_multipart_upload(Bucket=self.name, Key=upload["Key"], UploadId=upload["UploadId"])
