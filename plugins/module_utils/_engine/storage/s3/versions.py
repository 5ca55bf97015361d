# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Buckets that keep versions: what is hidden in them, and how they were at an earlier time.

A delete in such a bucket only puts a marker on top, and a second write a new version: whoever may do no more than that
destroys nothing. Versions are told from one another by the store's clock, in whole seconds at Amazon's.
"""

from __future__ import annotations

import threading
import typing as t

from ...errors import LocationError, RepositoryError
from ..base import ObjectInfo, check_key
from .download import download
from .errors import RequestFailed
from .location import S3Location, is_ours

if t.TYPE_CHECKING:
    import datetime as dt

    from ...config.locations import S3Options
    from .calls import Calls


class Version(t.NamedTuple):
    key: str
    id: str
    size: int
    modified: float
    """Seconds since 1970 by the store's clock."""
    marker: bool
    """Whether it says that the object is deleted."""
    latest: bool


History: t.TypeAlias = list[Version]
"""All versions of one object, newest first."""


def histories(calls: Calls, prefix: str) -> t.Iterator[History]:
    """Of each object, deleted ones too, whose key begins with ``prefix``; sorted by key. Raises LocationError."""
    pending: dict[str, History] = {}
    for answer in calls.pages("list_object_versions", Prefix=calls.full(prefix)):
        for version in _versions(calls, answer):
            pending.setdefault(version.key, []).append(version)
        # The rest of the last object's versions may be on the next page.
        last = calls.short(answer.get("NextKeyMarker") or "")
        split = pending.pop(last, None) if answer.get("IsTruncated") else None
        yield from _sorted(pending)
        pending = {} if split is None else {last: split}
    yield from _sorted(pending)


def _versions(calls: Calls, answer: dict[str, t.Any]) -> t.Iterator[Version]:
    for kind, marker in (("Versions", False), ("DeleteMarkers", True)):
        for found in answer.get(kind, ()):
            key = calls.short(found["Key"])
            if is_ours(key):
                yield Version(
                    key,
                    found["VersionId"],
                    found.get("Size", 0),
                    found["LastModified"].timestamp(),
                    marker,
                    bool(found.get("IsLatest")),
                )


def _sorted(pending: dict[str, History]) -> t.Iterator[History]:
    for key in sorted(pending):
        # The answer lists versions and markers apart. In one second an object is created, then deleted.
        yield sorted(pending[key], key=lambda each: (each.latest, each.modified, each.marker), reverse=True)


def is_versioned(calls: Calls) -> bool | None:
    """Whether the bucket keeps versions; None when these credentials may not ask."""
    try:
        return "Status" in calls.request("get_bucket_versioning")
    except RequestFailed as error:
        if error.id == "location-denied":
            return None
        raise


class _ByVersion(S3Location):
    """A location in which not the newest version of an object counts."""

    def _find(self, key: str) -> Version | None:
        raise NotImplementedError

    def stat(self, key: str) -> ObjectInfo | None:
        version = self._find(check_key(key))
        return None if version is None else ObjectInfo(key, version.size, version.modified)

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        return self._read_version(self._find(check_key(key)), key, offset, length)

    def _read_version(self, version: Version | None, key: str, offset: int, length: int | None) -> bytes:
        if version is None:
            raise self._missing(key)
        if length is not None and length <= 0:
            return b""
        try:
            return download(self.calls, key, offset, length, VersionId=version.id)
        except RequestFailed as error:
            if error.status != 404 or error.code == "NoSuchBucket":
                raise
            raise self._missing(key) from error

    def _history(self, key: str) -> History:
        """Of one object; empty when there never was one."""
        first = next(histories(self.calls, key), [])
        return first if first and first[0].key == key else []


class FirstS3Location(_ByVersion):
    """The location with the first version of every object that is not deleted: what its writer made.

    Nothing of a repository is ever written twice. A second version is somebody else's, whose credentials could not
    take the first one away.
    """

    def __init__(self, name: str, where: str, options: S3Options, *, required: bool = True) -> None:
        super().__init__(name, where, options, required=required)
        self._known: dict[str, Version] = {}

    def list(self, prefix: str) -> t.Iterator[ObjectInfo]:
        for history in histories(self.calls, prefix):
            version = first_written(history)
            if version is not None:
                self._known[version.key] = version
                yield ObjectInfo(version.key, version.size, version.modified)

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        # The first version stays the first one: nobody can put one before it.
        version = self._known.get(key) or self._find(check_key(key))
        return self._read_version(version, key, offset, length)

    def delete(self, key: str) -> None:
        super().delete(key)
        self._known.pop(key, None)

    def _find(self, key: str) -> Version | None:
        version = first_written(self._history(key))
        if version is not None:
            self._known[key] = version
        return version


def first_written(history: History) -> Version | None:
    """The oldest version since the object was last deleted; None when it is deleted."""
    first = None
    for version in history:
        if version.marker:
            return first
        first = version
    return first


class PastS3Location(_ByVersion):
    """The location as it was at ``moment``: reads, looks and lists; creates and deletes nothing."""

    def __init__(
        self, name: str, where: str, options: S3Options, moment: dt.datetime, *, required: bool = True
    ) -> None:
        super().__init__(name, where, options, required=required)
        self._moment = moment
        self._lock = threading.Lock()
        self._known: dict[str, Version | None] = {}
        self._listed: list[str] = []
        self._looked = False

    def describe(self) -> str:
        return f"{super().describe()} as of {self._moment.isoformat()}"

    def create(self, key: str) -> t.NoReturn:
        raise self._only_read(f"create {key}")

    def delete(self, key: str) -> t.NoReturn:
        raise self._only_read(f"delete {key}")

    def sweep(self, older_than: float) -> t.NoReturn:
        raise self._only_read(f"sweep what is older than {older_than:.0f} s")

    def now(self) -> float:
        return self._moment.timestamp()

    def list(self, prefix: str) -> t.Iterator[ObjectInfo]:
        with self._lock:
            listed = any(prefix.startswith(known) for known in self._listed)
        if not listed:
            self._read_histories(prefix)
        with self._lock:
            found = sorted(key for key, version in self._known.items() if version and key.startswith(prefix))
            infos = [ObjectInfo(key, each.size, each.modified) for key in found if (each := self._known[key])]
        return iter(infos)

    def _find(self, key: str) -> Version | None:
        with self._lock:
            if key in self._known:
                return self._known[key]
            if any(key.startswith(prefix) for prefix in self._listed):
                return None
        self._must_keep_versions()
        version = self._as_it_was(self._history(key))
        with self._lock:
            self._known[key] = version
        return version

    def _read_histories(self, prefix: str) -> None:
        self._must_keep_versions()
        found = {history[0].key: self._as_it_was(history) for history in histories(self.calls, prefix)}
        with self._lock:
            self._known |= found
            self._listed.append(prefix)

    def _as_it_was(self, history: History) -> Version | None:
        limit = self._moment.timestamp()
        then = next((version for version in history if version.modified <= limit), None)
        return None if then is None or then.marker else then

    def _must_keep_versions(self) -> None:
        if not self._looked and is_versioned(self.calls) is False:
            raise RepositoryError(
                f"location {self.name!r}: the bucket {self.options.bucket} keeps no versions, so nobody can see it as "
                "it was",
                hint="Leave out --as-of to read what is there now.",
                id="no-versions",
            )
        self._looked = True

    def _only_read(self, what: str) -> LocationError:
        return LocationError(
            f"location {self.name!r}: cannot {what}: it is looked at as it was at {self._moment.isoformat()}",
            hint="Leave out --as-of to write.",
            id="location-past",
        )
