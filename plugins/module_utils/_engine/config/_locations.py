# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What may stand in the configuration of one location."""

from __future__ import annotations

import re
import typing as t
from datetime import timedelta
from pathlib import Path

from .. import retention_policy as retention
from ..errors import ConfigError
from ._section import Section
from .locations import (
    DEFAULT_PRIORITY,
    Addressing,
    CreateOnly,
    Encryption,
    LocationConfig,
    LockMode,
    ObjectLock,
    Prices,
    S3Options,
    SftpOptions,
)

LOCATION_TYPES: t.Final = ("posix", "s3", "sftp")
_URI_USER = re.compile(r"[a-z0-9+.-]+://[^/?#]*@", re.IGNORECASE)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_KEY_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=-]*")
_ROLE = re.compile(r"arn:\S+")
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*(%[A-Za-z0-9]+)?")
_MIN_QUOTA: t.Final = 1 << 20
_MIN_TIMEOUT: t.Final = 1.0
_OFFLINE_CLASSES: t.Final = ("GLACIER", "DEEP_ARCHIVE")


def read_location(name: str, section: Section) -> LocationConfig:
    kind = section.choice("type", LOCATION_TYPES, required=True)
    required = section.flag("required", default=True)
    quota = section.size("quota", at_least=_MIN_QUOTA)
    prices = _prices(section.section("prices"))
    priority = section.integer("priority", default=DEFAULT_PRIORITY.get(kind or "", 10), at_least=1, at_most=1000)
    path: Path | None = None
    s3: S3Options | None = None
    sftp: SftpOptions | None = None
    if kind == "posix":
        path = section.path("path")
    elif kind == "s3":
        s3 = _s3(section)
    elif kind == "sftp":
        sftp = _sftp(section)
    else:
        # Which keys there may be depends on the type; one problem is enough.
        section.ignore_rest()
    return LocationConfig(name, kind or "", required, path, s3, sftp, priority, quota, prices)


def _prices(section: Section | None) -> Prices:
    if section is None:
        return Prices()
    prices = Prices(
        storage_gb_month=section.amount("storage_gb_month"),
        put_1000=section.amount("put_1000"),
        get_1000=section.amount("get_1000"),
        egress_gb=section.amount("egress_gb"),
        currency=section.text("currency", default="USD"),
    )
    section.finish()
    return prices


def _s3(section: Section) -> S3Options:
    bucket = section.text("bucket")
    if bucket and _BUCKET.fullmatch(bucket) is None:
        section.problem("bucket", "is not the name of a bucket: no s3:// before it, no / in it")
    options = S3Options(
        bucket=bucket,
        prefix=_prefix(section),
        region=section.optional_text("region"),
        endpoint_url=_url(section, "endpoint_url"),
        credentials_file=section.optional_path("credentials_file"),
        profile=section.optional_text("profile"),
        role_arn=section.optional_text("role_arn"),
        web_identity_token_file=section.optional_path("web_identity_token_file"),
        addressing=t.cast(Addressing | None, section.choice("addressing", ("auto", "path", "virtual"))) or "auto",
        ca_file=section.optional_path("ca_file"),
        proxy=_url(section, "proxy"),
        encryption=_encryption(section.section("encryption")),
        storage_class=_storage_class(section),
        create_only=t.cast(CreateOnly | None, section.choice("create_only", ("conditional", "check"))) or "conditional",
        object_lock=_object_lock(section.section("object_lock")),
        timeout=section.seconds("timeout", default=60.0, at_least=_MIN_TIMEOUT),
        attempts=section.integer("attempts", default=6, at_least=1, at_most=50),
    )
    if options.profile and options.credentials_file is None:
        section.problem("profile", "is a section of credentials_file, which is missing")
    if options.role_arn and _ROLE.fullmatch(options.role_arn) is None:
        section.problem("role_arn", "is not the ARN of a role, such as arn:aws:iam::123456789012:role/backup")
    if options.web_identity_token_file is not None and options.role_arn is None:
        section.problem("web_identity_token_file", "needs role_arn: the role that the token is for")
    return options


def _storage_class(section: Section) -> str | None:
    name = section.optional_text("storage_class")
    if name in _OFFLINE_CLASSES:
        section.problem(
            "storage_class",
            f"{name} takes hours to give an object back, and backups read what earlier ones wrote: "
            "use a class that is read at once, such as STANDARD_IA or GLACIER_IR",
        )
    return name


def _prefix(section: Section) -> str:
    prefix = (section.optional_text("prefix") or "").strip("/")
    if prefix and not all(_KEY_PART.fullmatch(part) for part in prefix.split("/")):
        section.problem("prefix", "must be words of letters, digits, . _ = and - with / between them")
    return prefix


def _url(section: Section, key: str) -> str | None:
    value = section.optional_text(key)
    if value is None:
        return None
    if not value.startswith(("http://", "https://")):
        section.problem(key, "must begin with https:// (or http:// in a laboratory)")
    if _URI_USER.match(value):
        section.problem(key, "must not have a user or a password in it: name a credentials_file")
    return value


def _encryption(section: Section | None) -> Encryption | None:
    if section is None:
        return None
    kind = section.choice("type", ("s3", "kms"), required=True)
    key_id = section.optional_text("key_id")
    if key_id and kind != "kms":
        section.problem("key_id", "belongs to type: kms")
    section.finish()
    return Encryption(kms=kind == "kms", key_id=key_id)


def _object_lock(section: Section | None) -> ObjectLock | None:
    if section is None:
        return None
    mode = t.cast(LockMode | None, section.choice("mode", ("governance", "compliance"), required=True))
    retain = timedelta(days=30)
    text = section.text("retain")
    try:
        retain = retention.parse_duration(text) if text.strip() else retain
    except ConfigError as error:
        section.problem("retain", f"{error.message}. {error.hint}")
    section.finish()
    return ObjectLock(mode or "governance", retain)


def _sftp(section: Section) -> SftpOptions:
    host = section.text("host")
    if host.strip() and _HOST.fullmatch(host) is None:
        section.problem("host", "must be a name or an address only: user and port have keys of their own")
    path = section.text("path")
    if path.startswith("~"):
        section.problem("path", "must not begin with ~: what is relative begins in the user's directory anyway")
    elif ".." in path.split("/"):
        section.problem("path", "must not have .. in it")
    return SftpOptions(
        host=host,
        user=section.text("user"),
        path=path,
        key_file=section.path("key_file"),
        known_hosts=section.path("known_hosts"),
        port=section.integer("port", default=22, at_least=1, at_most=65535),
        timeout=section.seconds("timeout", default=60.0, at_least=_MIN_TIMEOUT),
    )
