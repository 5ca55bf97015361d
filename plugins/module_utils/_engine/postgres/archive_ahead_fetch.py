# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One segment for a recovery that is looked ahead for, when it is there without any ado; see ``archive_ahead``."""

from __future__ import annotations

import os
import threading
import typing as t

from ..errors import LocationError, ObjectMissing
from ..repository.repository import check_features, must_be_ours
from ..storage.open import open_location
from .archive_ahead import memory_file, seal
from .archive_contain import changes
from .archive_get import write_all
from .archive_object import WalReader
from .wal import parse_wal_name, segment_name
from .wal_tablespaces import END_BYTES, goes_over

if t.TYPE_CHECKING:
    from ..config import RepositoryConfig
    from ..crypto.keys import KeyRing
    from ..storage.base import Location
    from .archive_outages import Outages

_ENDS_KNOWN: t.Final = 64


class _NotPlain(Exception):
    """``wal-get`` looks further than we do."""


class AheadFetch:
    """What ``wal-get`` would deliver, or None. Thread-safe.

    ``keys`` have the identity; ``outages`` are looked at and not written: a location that does not answer is noted when
    somebody waits for it. ``contains_tablespaces``: as ``wal-get --contain-tablespaces``.
    """

    def __init__(
        self,
        config: RepositoryConfig,
        keys: KeyRing,
        outages: Outages,
        system_identifier: int,
        segment_size: int,
        *,
        contains_tablespaces: bool,
    ) -> None:
        self._places = [open_location(place) for place in config.locations.values()]
        self._keys = keys
        self._outages = outages
        self._system_identifier = system_identifier
        self._segment_size = segment_size
        self._contains = contains_tablespaces
        self._lock = threading.Lock()
        self._ends: dict[str, bool] = {}
        """By name of a segment: whether what is to be changed may go on in the next one."""
        self._one_at_a_time = threading.Lock()

    def __call__(self, name: str) -> int | None:
        """A sealed file in memory with the content as PostgreSQL is to get it, authenticated to the last byte.

        The descriptor is the caller's to close. None when the segment is in no location that answers, and where
        ``wal-get`` would have something to tell or to look at twice. Raises what reading an object raises, and OSError.
        """
        descriptor = self._read(name)
        if descriptor is None:
            return None
        try:
            if self._contains:
                self._contain(name, descriptor)
            seal(descriptor)
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, _NotPlain):
                return None
            raise
        return descriptor

    def _contain(self, name: str, descriptor: int) -> None:
        with self._one_at_a_time:  # it takes several times the segment's size of memory
            content = os.pread(descriptor, self._segment_size, 0)
            _paths, patches = changes(content, lambda distance: self._neighbour(name, distance))
            for patch in patches:
                os.pwrite(descriptor, patch.data, patch.offset)

    def _read(self, name: str) -> int | None:
        """As it was archived, from the first location that has it, those last that did not answer lately."""
        for place in sorted(self._places, key=lambda place: self._outages.known(place.name) is not None):
            try:
                descriptor = self._from(place, name)
            except (ObjectMissing, LocationError, ModuleNotFoundError):
                continue
            if descriptor is not None and self._contains:
                self._note_end(name, descriptor)
            return descriptor
        return None

    def _note_end(self, name: str, descriptor: int) -> None:
        end = os.pread(descriptor, END_BYTES, self._segment_size - END_BYTES)
        with self._lock:
            self._ends[name] = goes_over(end)
            for oldest in list(self._ends)[:-_ENDS_KNOWN]:
                del self._ends[oldest]

    def _from(self, place: Location, name: str) -> int | None:
        reader = WalReader.archived(self._keys, place, self._system_identifier, name)
        if reader.stored.size != self._segment_size:
            return None
        descriptor = memory_file(name)
        try:
            for chunk in reader.chunks():
                write_all(descriptor, chunk)
            check_features(place, must_be_ours(place, self._keys), "read")
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _neighbour(self, name: str, distance: int) -> bytes | None:
        """As ``changes`` wants it; None also for one that has nothing to do with this segment. Raises _NotPlain."""
        here = parse_wal_name(name)
        number = here.number(self._segment_size) + distance
        other = segment_name(here.timeline, number, self._segment_size)
        with self._lock:
            if distance < 0 and self._ends.get(other) is False:
                return None
        descriptor = self._read(other)
        if descriptor is None:  # there may be one on another timeline
            raise _NotPlain
        try:
            return os.pread(descriptor, self._segment_size, 0)
        finally:
            os.close(descriptor)
