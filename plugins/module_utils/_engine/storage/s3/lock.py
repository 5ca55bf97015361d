# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Object Lock on what exists already: until when an object is locked, and longer; never shorter."""

from __future__ import annotations

import datetime as dt
import typing as t

from .errors import RequestFailed

if t.TYPE_CHECKING:
    from .calls import Calls
    from .versions import Version

COMPLIANCE: t.Final = "COMPLIANCE"
GOVERNANCE: t.Final = "GOVERNANCE"

_NOT_LOCKED: t.Final = ("NoSuchObjectLockConfiguration", "ObjectLockConfigurationNotFoundError", "InvalidRequest")


class Lock(t.NamedTuple):
    mode: str
    until: dt.datetime


def read_lock(calls: Calls, version: Version) -> Lock | None:
    """The lock of one version, also of one that is over; None when it never had one. Raises LocationError."""
    try:
        answer = calls.request("get_object_retention", version.key, VersionId=version.id)
    except RequestFailed as error:
        if error.code in _NOT_LOCKED or (error.status == 404 and error.code not in ("NoSuchBucket", "NoSuchVersion")):
            return None
        raise
    found = answer.get("Retention", {})
    if "RetainUntilDate" not in found:
        return None
    return Lock(str(found.get("Mode", "")), found["RetainUntilDate"].astimezone(dt.UTC))


def lengthen(calls: Calls, version: Version, old: Lock | None, new: Lock) -> None:
    """Lock a version until ``new.until``, which must be later than ``old.until``. A stricter mode stays.

    Never asks to bypass governance, so a store refuses to shorten whatever this program believes.
    Raises LocationError.
    """
    if old is not None and old.until > new.until:
        raise ValueError(f"{version.key} is locked for longer already")
    mode = COMPLIANCE if old is not None and old.mode == COMPLIANCE else new.mode
    calls.request(
        "put_object_retention",
        version.key,
        VersionId=version.id,
        Retention={"Mode": mode, "RetainUntilDate": new.until},
    )
