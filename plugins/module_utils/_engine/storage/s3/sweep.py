# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Removing what was deleted from a bucket that keeps versions: only then does its space become free."""

from __future__ import annotations

import datetime as dt
import itertools
import typing as t

from ..hidden import Hidden
from .errors import RequestFailed
from .location import is_of_a_repository
from .lock import read_lock
from .versions import histories, is_versioned

if t.TYPE_CHECKING:
    from .location import S3Location
    from .versions import History, Version

_DENIED: t.Final = "location-denied"


def sweep_versions(location: S3Location, older_than: float, *, dry_run: bool) -> Hidden | None:
    """See ``storage.hidden.sweep_hidden``."""
    if is_versioned(location.calls) is False:
        return None
    sweep = _Sweep(location, location.now(), older_than, dry_run=dry_run)
    try:
        for history in histories(location.calls, ""):
            if is_of_a_repository(history[0].key):
                sweep.look_at(history)
    except RequestFailed as error:
        if error.id != _DENIED:
            raise
        sweep.done.refused = error.message
    return sweep.done


class _Sweep:
    def __init__(self, location: S3Location, now: float, older_than: float, *, dry_run: bool) -> None:
        self._calls = location.calls
        self._now = now
        self._older_than = older_than
        self._dry_run = dry_run
        self.done = Hidden()

    def look_at(self, history: History) -> None:
        living = list(itertools.takewhile(lambda version: not version.marker, history))
        # Nothing of ours is written twice: the older version is the true one, whatever lies on top.
        self.done.overwritten += len(living) > 1
        deleted = history[len(living) :]
        data = [version for version in deleted if not version.marker]
        if data:
            self.done.objects += 1
            self.done.bytes += sum(version.size for version in data)
        if not deleted or self._now - _deleted_at(deleted) < self._older_than or self.done.refused:
            return
        left = [version for version in data if not self._remove(version)]
        self.done.locked += bool(left) and not self.done.refused
        if not left and not self._dry_run and not self.done.refused:
            # Last, or the object would be there again for a moment.
            for marker in deleted:
                if marker.marker:
                    self._calls.request("delete_object", marker.key, VersionId=marker.id)

    def _remove(self, version: Version) -> bool:
        """Whether it is gone, or would be."""
        if self._is_locked(version) or self.done.refused:
            return False
        if not self._dry_run:
            try:
                self._calls.request("delete_object", version.key, VersionId=version.id)
            except RequestFailed as error:
                if error.id != _DENIED:
                    raise
                self.done.refused = error.message
                return False
        self.done.removed += 1
        self.done.bytes_removed += version.size
        return True

    def _is_locked(self, version: Version) -> bool:
        lock = read_lock(self._calls, version)
        return lock is not None and lock.until > dt.datetime.fromtimestamp(self._now, dt.UTC)


def _deleted_at(deleted: History) -> float:
    """When the oldest of the markers on top was put there: deleting again must not keep anything longer."""
    at = deleted[0].modified
    for version in deleted:
        if not version.marker:
            break
        at = version.modified
    return at
