# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The places that hold the repository, as configured. Plain values, no I/O."""

from __future__ import annotations

import dataclasses
import typing as t
from datetime import datetime, timedelta
from pathlib import Path

DEFAULT_PRIORITY: t.Final = {"posix": 10, "sftp": 20, "s3": 30}
"""By type: what is read first when nobody says, the nearest."""

CreateOnly: t.TypeAlias = t.Literal["conditional", "check"]
LockMode: t.TypeAlias = t.Literal["governance", "compliance"]
Addressing: t.TypeAlias = t.Literal["auto", "path", "virtual"]


@dataclasses.dataclass(frozen=True, slots=True)
class ObjectLock:
    """S3 Object Lock on packs, manifests and WAL."""

    mode: LockMode
    retain: timedelta
    """How long every new object is locked at first; `cryobackup lock` extends it for what is kept longer."""


@dataclasses.dataclass(frozen=True, slots=True)
class Encryption:
    """Encryption by the store itself, on top of our own."""

    kms: bool
    """SSE-KMS; False: SSE-S3."""
    key_id: str | None = None
    """The key of SSE-KMS; None: the default one of the account."""


@dataclasses.dataclass(frozen=True, slots=True)
class S3Options:
    bucket: str
    prefix: str = ""
    """Without "/" at either end."""
    region: str | None = None
    endpoint_url: str | None = None
    credentials_file: Path | None = None
    """An INI file as the AWS programs have it. None: what the AWS SDK finds, such as the instance's role."""
    profile: str | None = None
    """The section of ``credentials_file``; None: ``default``."""
    role_arn: str | None = None
    """A role to take, with the credentials, or with the token."""
    web_identity_token_file: Path | None = None
    addressing: Addressing = "auto"
    ca_file: Path | None = None
    """Certificates to trust instead of the system's."""
    proxy: str | None = None
    encryption: Encryption | None = None
    storage_class: str | None = None
    create_only: CreateOnly = "conditional"
    """``check``: the store does not know ``If-None-Match``; look before and after instead. Weaker."""
    object_lock: ObjectLock | None = None
    timeout: float = 60.0
    """Seconds without a byte before a request is given up."""
    attempts: int = 6
    """How often a request is tried before the location counts as down."""
    as_of: datetime | None = None
    """Not from the file: look at the bucket as it was then (``RepositoryConfig.as_of``)."""
    first_versions: bool = False
    """Not from the file: pass over what was written over an object (``RepositoryConfig.as_written``)."""


@dataclasses.dataclass(frozen=True, slots=True)
class SftpOptions:
    host: str
    user: str
    path: str
    """The directory on the server: absolute, or relative to where the server puts its user."""
    key_file: Path
    """The private key. No passwords."""
    known_hosts: Path
    """Which keys the server may have."""
    port: int = 22
    timeout: float = 60.0
    """Seconds without an answer before a request is given up."""


@dataclasses.dataclass(frozen=True, slots=True)
class Prices:
    """What a location costs, in any one currency. All 0: nothing is estimated."""

    storage_gb_month: float = 0.0
    put_1000: float = 0.0
    """A thousand requests that write or list."""
    get_1000: float = 0.0
    """A thousand requests that read."""
    egress_gb: float = 0.0
    currency: str = "USD"


@dataclasses.dataclass(frozen=True, slots=True)
class LocationConfig:
    """One physical place that holds the repository."""

    name: str
    type: str
    """``posix``, ``s3`` or ``sftp``."""
    required: bool = True
    """WAL counts as archived only when every required location has it."""
    path: Path | None = None
    """The directory of a ``posix`` location; None for other types."""
    s3: S3Options | None = None
    sftp: SftpOptions | None = None
    priority: int = 10
    """Readers ask the location with the smallest number first."""
    quota: int | None = None
    """Bytes that may be used there at most."""
    prices: Prices = dataclasses.field(default_factory=Prices)

    @property
    def where(self) -> str:
        """For people. No secrets."""
        if self.s3 is not None:
            return f"s3://{self.s3.bucket}" + (f"/{self.s3.prefix}" if self.s3.prefix else "")
        if self.sftp is not None:
            port = f":{self.sftp.port}" if self.sftp.port != 22 else ""
            return f"sftp://{self.sftp.user}@{self.sftp.host}{port}/{self.sftp.path.lstrip('/')}"
        return str(self.path)
