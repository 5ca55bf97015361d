# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which of several writers of one name was first, where a bucket keeps versions.

With versions nothing is overwritten: a second object of one name only hides the first. Ceph lets several writers create
one name at the same time then, and tells each of them that it was the one. So a writer there looks for itself: the
object belongs to whose version is the oldest, and everybody else gives way.
"""

from __future__ import annotations

import itertools
import typing as t

from .errors import RequestFailed

if t.TYPE_CHECKING:
    from .location import S3Location

ATOMIC_SERVERS: t.Final = frozenset({"AmazonS3"})
"""By the header Server: these keep the promise of If-None-Match with versions, too."""


WRITTEN_BY: t.Final = "cryo-write"
"""The metadata with the writer's token."""


def version_to_compare(answer: dict[str, t.Any]) -> str | None:
    """The id of the version that was just made, when others may have been made at the same time."""
    version = answer.get("VersionId")
    if not isinstance(version, str) or version == "null":  # no versions, or no more of them
        return None
    return version


def is_atomic(answer: dict[str, t.Any]) -> bool:
    server = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("server", "")
    return server in ATOMIC_SERVERS


def was_first(location: S3Location, key: str, version: str, token: str | None) -> bool | None:
    """Whether the writer of this version was the first; when not, its version gives way to the first one.

    ``token`` is the writer's, when it has sent its request more than once: each may have made a version. None when
    these credentials may not look at versions. Raises LocationError.
    """
    from .versions import histories

    try:
        history = next((found for found in histories(location.calls, key) if found[0].key == key), [])
    except RequestFailed as error:
        if error.id == "location-denied" or error.status in (405, 501):
            return None
        raise
    living = list(itertools.takewhile(lambda each: not each.marker, history))  # newest first
    first = living[-1].id if living else version
    if first == version:
        return True
    own = [version, *(each.id for each in living[:-1] if each.id != version and _wrote(location, key, each.id, token))]
    mine = _wrote(location, key, first, token)
    if not _remove(location, key, own) and not mine:
        # They may not be deleted, or not by this host: then the first one is put on top once more.
        full = {"Bucket": location.calls.bucket, "Key": location.calls.full(key), "VersionId": first}
        location.calls.request("copy_object", key, CopySource=full, **location.attributes(key))
    return mine


def _wrote(location: S3Location, key: str, version: str, token: str | None) -> bool:
    """Whether the writer with this token made this version, too. False when it is gone, or nobody says."""
    if token is None:
        return False
    try:
        head = location.calls.request("head_object", key, VersionId=version)
    except RequestFailed as error:
        if error.status in (400, 403, 404, 405):
            return False
        raise
    return bool(head.get("Metadata", {}).get(WRITTEN_BY) == token)


def _remove(location: S3Location, key: str, versions: t.Iterable[str]) -> bool:
    """Readers see the newest version: let that be the first one's content again. False where that is not allowed."""
    for version in versions:
        try:
            location.calls.request("delete_object", key, VersionId=version)
        except RequestFailed as error:
            if error.status not in (400, 403, 404, 405):
                raise
            if error.status != 404:
                return False
    return True
