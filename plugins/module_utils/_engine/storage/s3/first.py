# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which of several writers of one name was first, where a bucket keeps versions.

With versions nothing is overwritten: a second object of one name only hides the first. Ceph lets several writers create
one name at the same time then, and tells each of them that it was the one. So a writer there looks for itself: the
object belongs to whose version is the oldest, and everybody else gives way.
"""

from __future__ import annotations

import typing as t

from .errors import RequestFailed

if t.TYPE_CHECKING:
    from .location import S3Location

ATOMIC_SERVERS: t.Final = frozenset({"AmazonS3"})
"""By the header Server: these keep the promise of If-None-Match with versions, too."""


def version_to_compare(answer: dict[str, t.Any]) -> str | None:
    """The id of the version that was just made, when others may have been made at the same time."""
    version = answer.get("VersionId")
    if not isinstance(version, str) or version == "null":  # no versions, or no more of them
        return None
    return version


def is_atomic(answer: dict[str, t.Any]) -> bool:
    server = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("server", "")
    return server in ATOMIC_SERVERS


def was_first(location: S3Location, key: str, version: str) -> bool | None:
    """Whether the writer of this version was the first; when not, its version gives way to the first one.

    None when these credentials may not look at versions. Raises LocationError.
    """
    from .versions import histories

    try:
        history = next((found for found in histories(location.calls, key) if found[0].key == key), [])
    except RequestFailed as error:
        if error.id == "location-denied" or error.status in (405, 501):
            return None
        raise
    first = None
    for each in history:  # newest first
        if each.marker:
            break
        first = each.id
    if first is None or first == version:
        return True
    _give_way(location, key, version, first)
    return False


def _give_way(location: S3Location, key: str, version: str, first: str) -> None:
    """Readers see the newest version: let that be the first one's content again."""
    try:
        location.calls.request("delete_object", key, VersionId=version)
    except RequestFailed as error:
        if error.status not in (400, 403, 405):
            raise
        # It may not be deleted, or not by this host: then the first one is put on top once more.
        full = {"Bucket": location.calls.bucket, "Key": location.calls.full(key), "VersionId": first}
        location.calls.request("copy_object", key, CopySource=full, **location.attributes(key))
