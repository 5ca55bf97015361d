# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What kind of bucket it is: versions, Object Lock, and what it does to every new object."""

from __future__ import annotations

import typing as t

from ...errors import LocationError
from .errors import RequestFailed

if t.TYPE_CHECKING:
    from .calls import Calls


def examine(calls: Calls) -> list[str]:
    """What a person should know. Raises LocationError when Object Lock is configured and the bucket has none."""
    return [*_versions(calls), *_lock(calls)]


def _versions(calls: Calls) -> t.Iterator[str]:
    answer = _ask(calls, "get_bucket_versioning")
    if isinstance(answer, RequestFailed):
        if answer.id == "location-denied":
            yield "whether the bucket keeps versions is not known: s3:GetBucketVersioning is not allowed"
        else:
            yield "the store keeps no versions: what somebody deletes with these credentials is gone"
    elif answer.get("Status") != "Enabled":
        yield "the bucket keeps no versions: what somebody deletes with these credentials is gone"


def _lock(calls: Calls) -> t.Iterator[str]:
    wanted = calls.options.object_lock is not None
    answer = _ask(calls, "get_object_lock_configuration")
    if isinstance(answer, RequestFailed):
        if answer.id == "location-denied":
            if wanted:
                yield (
                    "whether the bucket has Object Lock is not known: s3:GetBucketObjectLockConfiguration is not "
                    "allowed"
                )
            return
        found: dict[str, t.Any] = {}
    else:
        found = answer.get("ObjectLockConfiguration", {})
    if wanted and found.get("ObjectLockEnabled") != "Enabled":
        raise LocationError(
            f"location {calls.name!r}: the bucket {calls.bucket} has no Object Lock, which object_lock asks for",
            hint="Make a bucket with Object Lock (docs/object-lock.md), or take object_lock out of the configuration. "
            "Nothing was written.",
            id="location-unfit",
        )
    default = found.get("Rule", {}).get("DefaultRetention")
    if default:
        length = f"{default['Days']} days" if "Days" in default else f"{default['Years']} years"
        yield (
            f"the bucket itself locks every new object for {length} ({default.get('Mode', '').lower()}), also leases, "
            "marks and notes: what is deleted stays that long as an older version, and costs"
        )


def _ask(calls: Calls, operation: str) -> dict[str, t.Any] | RequestFailed:
    """The refusal where the store says that there is no such thing, or that it does not tell. Raises LocationError."""
    try:
        return calls.request(operation)
    except RequestFailed as error:
        # What has another id (a wrong clock, another region, no such bucket) says nothing of the bucket's settings.
        if error.id in _NOT_THERE_IDS and not error.failure.bad_credentials and error.status in _NOT_THERE:
            return error
        raise


_NOT_THERE: t.Final = (400, 403, 404, 405, 501)
_NOT_THERE_IDS: t.Final = ("location", "location-denied", "location-unfit")
