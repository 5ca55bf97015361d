# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``wal-get``: one file from whichever location has it, or what is known when none gives it.

Locations are asked in their order, each in a thread: after a while without an answer the next one is asked as well,
and the first that has the file ends it. Nothing is opened that is not needed. When not all of them answer, the required
ones may still know that the file was never archived (``archive_absence``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import queue
import threading
import time
import typing as t

from ..errors import CryoError, DamageError, KeyFileError, LocationError, ObjectMissing, RepositoryError, RestoreError
from ..repository import names
from ..repository.epochs import check_published
from ..repository.repository import Repository, check_features, must_be_ours
from ..storage.open import open_location
from .archive_absence import doubt
from .archive_get import Delivered, discard, must_have_wal, put_in_place, raise_doubt, save
from .archive_lane import missing_module
from .archive_object import WalReader, look_at_wal
from .lsn import format_lsn
from .streamed import find_streamed, gets_farther, segment_content, was_left
from .wal import WalKind, match_wal_name, parse_wal_name

if t.TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from ..config import RepositoryConfig
    from ..crypto.keys import KeyRing
    from ..storage.base import Location
    from .archive_outages import Outages

_PATIENCE_SECONDS: t.Final = 10.0


@dataclasses.dataclass(frozen=True, slots=True)
class Absent:
    """The file was never archived: no location has it, or no required one, and ``passed_over`` do not answer."""

    passed_over: dict[str, CryoError]


class WalFetch:
    """Fetches files for one process of ``wal-get``. ``keys`` have the identity. For one thread.

    ``config`` has the locations that may be asked; ``outages``, which of them did not answer lately.
    """

    def __init__(
        self, config: RepositoryConfig, keys: KeyRing, outages: Outages, *, patience: float = _PATIENCE_SECONDS
    ) -> None:
        self._keys = keys
        self._outages = outages
        self._patience = patience
        self._places = [open_location(place) for place in config.locations.values()]
        self._level = config.compression_level

    @property
    def repository(self) -> Repository:
        """The locations that answer, as far as that is known, those first that did not fail."""
        places = sorted(self._places, key=lambda place: self._outages.known(place.name) is not None)
        return Repository(self._keys, places, level=self._level)

    def fetch(
        self,
        system_identifier: int,
        name: str,
        destination: Path,
        *,
        required_suffice: bool = False,
        streamed: bool = False,
        timeline: int | None = None,
    ) -> Delivered | Absent:
        """Write an archived file to ``destination``, replacing what is there, or tell that it was never archived.

        ``required_suffice``: an optional location that does not answer has no more than the required ones, or nothing
        is lost when it has. ``streamed``: a segment that was never archived is made of what was streamed of it,
        for a recovery to ``timeline``, where that is known.

        The name appears only once the whole content is authenticated. It is not synced: PostgreSQL does that
        itself with what it keeps (``KeepFileRestoredFromArchive`` in ``xlogarchive.c``).

        Raises DamageError (or what else keeps it from being read) when the file is damaged wherever it is,
        LocationError when it cannot be known whether it was archived, RepositoryError ``empty-archive`` when there is
        no WAL of this system identifier at all, RestoreError when ``destination`` cannot be written.
        """
        found = self._archived(system_identifier, name, destination, required_suffice=required_suffice)
        if isinstance(found, Delivered) or not streamed or parse_wal_name(name).kind is not WalKind.SEGMENT:
            return found
        with contextlib.suppress(ObjectMissing):  # gone meanwhile: the segment is there
            made = self._streamed(system_identifier, name, destination, found, timeline)
            if made is not None:
                return made
        # What was streamed is deleted once the segment is archived, which may have been just now.
        return self._archived(system_identifier, name, destination, required_suffice=required_suffice)

    def _streamed(
        self, system_identifier: int, name: str, destination: Path, absent: Absent, timeline: int | None
    ) -> Delivered | None:
        repository = self.repository
        repository.locations = [place for place in repository.locations if place.name not in absent.passed_over]
        streamed = find_streamed(repository.locations, system_identifier, name)
        if streamed is None:
            return None
        temporary = destination.with_name(f"{destination.name}.{os.getpid()}.tmp")
        try:
            save(segment_content(repository, streamed), temporary)
            size = temporary.stat().st_size
            if was_left(repository, streamed, size, timeline):
                return None
            if not gets_farther(temporary, destination.with_name(name)):
                return None
            if self._knows(repository, system_identifier, name):
                return None
            put_in_place(temporary, destination)
        finally:
            discard(temporary)
        return Delivered("stream", size, absent.passed_over, format_lsn(streamed.end_lsn(size)))

    def _knows(self, repository: Repository, system_identifier: int, name: str) -> bool:
        """Whether the segment was archived meanwhile: some of what was streamed may have been deleted before."""
        return any(place.stat(names.wal(system_identifier, name)) is not None for place in repository.locations)

    def _archived(
        self, system_identifier: int, name: str, destination: Path, *, required_suffice: bool
    ) -> Delivered | Absent:
        search = _Search(self._keys, system_identifier, name, destination, self._outages)
        try:
            return self._search(search, required_suffice=required_suffice)
        finally:
            search.clean_up()

    def _search(self, search: _Search, *, required_suffice: bool) -> Delivered | Absent:
        put_off = [
            place for place in self._places if not place.required and self._outages.waiting(place.name) is not None
        ]
        for place in self._places:
            if place not in put_off and search.ask(place, self._patience):
                return search.deliver()
        proof = _Proof(self._keys, search, required_suffice=required_suffice)
        if not proof.holds(self._places):
            for place in put_off:
                search.begin(place)
            if search.listen(None):
                return search.deliver()
            if not proof.holds(self._places):
                raise_doubt(search.name, search.errors, proof.words)
        absent = search.absent(self._places, self._outages)
        if not absent.passed_over:
            must_have_wal(self._places, search.system_identifier)
        return absent


class _Search:
    """One file in the locations that were asked for it so far."""

    def __init__(self, keys: KeyRing, system_identifier: int, name: str, destination: Path, outages: Outages) -> None:
        self.system_identifier = system_identifier
        self.name = name
        self.errors: dict[str, CryoError] = {}
        self.lacking: set[str] = set()
        """Locations that surely do not have it."""
        self._keys = keys
        self._destination = destination
        self._outages = outages
        self._ended: queue.SimpleQueue[_Question] = queue.SimpleQueue()
        self._open: list[_Question] = []
        self._found: _Question | None = None

    def begin(self, place: Location) -> None:
        temporary = self._destination.with_name(f"{self._destination.name}.{os.getpid()}.{place.name}.tmp")
        self._open.append(_Question(self, self._keys, place, temporary, self._ended))

    def ask(self, place: Location, patience: float) -> bool:
        """Whether the file was found, there or in one that was asked before; False also when time is over."""
        self.begin(place)
        return self.listen(patience)

    def listen(self, seconds: float | None) -> bool:
        """Wait until the file is found, until all have answered, or so long. Raises RestoreError."""
        deadline = time.monotonic() + seconds if seconds is not None else None
        newest = self._open[-1] if self._open else None
        while self._open and self._found is None:
            left = max(0.0, deadline - time.monotonic()) if deadline is not None else None
            try:
                question = self._ended.get(timeout=left)
            except queue.Empty:
                break
            self._open.remove(question)
            self._note(question)
            if question is newest and seconds is not None:
                break
        return self._found is not None

    def _note(self, question: _Question) -> None:
        name, error = question.place.name, question.error
        if isinstance(error, LocationError):
            self._outages.failed(name, error, question.seconds)
        elif isinstance(error, RestoreError):
            raise error
        else:
            self._outages.answered(name)
        if question.size is not None:
            self._found = question
        elif question.absent:
            self.lacking.add(name)
        else:
            self.errors[name] = error or RepositoryError(f"location {name!r}: it could not be asked", id="internal")

    def deliver(self) -> Delivered:
        """Raises RestoreError when the destination cannot be written."""
        if self._found is None or self._found.size is None:
            raise RestoreError("internal: nothing was found", hint="Please report this.")
        put_in_place(self._found.temporary, self._destination)
        return Delivered(self._found.place.name, self._found.size, self.errors)

    def absent(self, places: Iterable[Location], outages: Outages) -> Absent:
        """With an error for each place that was not asked, or has not answered yet."""
        silent = {}
        for place in places:
            if place.name not in self.lacking:
                known = outages.known(place.name)
                error = known.error(place.name) if known is not None else _no_answer(place.name)
                silent[place.name] = self.errors.get(place.name, error)
        return Absent(silent)

    def clean_up(self) -> None:
        """Those that are still being asked: nobody waits for them."""
        for question in self._open:
            self._outages.failed(question.place.name, _no_answer(question.place.name), question.seconds)
            discard(question.temporary)


def _no_answer(location: str) -> LocationError:
    return LocationError(f"location {location!r}: no answer so far", id="location-slow")


class _Question:
    """One location, asked for the file in a thread of its own, which nobody has to wait for."""

    def __init__(
        self, search: _Search, keys: KeyRing, place: Location, temporary: Path, ended: queue.SimpleQueue[_Question]
    ) -> None:
        self.place = place
        self.temporary = temporary
        self.error: CryoError | None = None
        self.size: int | None = None
        """Of the file, when it was found and lies at ``temporary``."""
        self.absent = False
        """Whether it is surely not there. Only what was said so clearly counts: it may end a recovery."""
        self._began = time.monotonic()
        self._took: float | None = None
        self._search = search
        self._keys = keys
        self._queue = ended
        threading.Thread(target=self._main, name=f"location {place.name}", daemon=True).start()

    @property
    def seconds(self) -> float:
        return self._took if self._took is not None else time.monotonic() - self._began

    def _main(self) -> None:
        try:
            size = self._fetch()
            # No answer counts before it is known to come from this repository.
            check_features(self.place, must_be_ours(self.place, self._keys), "read")
            self.size, self.absent = size, size is None
        except ModuleNotFoundError as error:
            self.error = missing_module(self.place.name, error)
        except (RepositoryError, KeyFileError, RestoreError) as error:
            # Also what looks like another version or epoch: the byte that says so may be the damaged one.
            self.error = self._rather(error)
            discard(self.temporary)
        finally:
            self._took = time.monotonic() - self._began
            self._queue.put(self)

    def _rather(self, error: CryoError) -> CryoError:
        """With a wrong key every object looks damaged: what the location has published tells."""
        if isinstance(error, DamageError):
            try:
                check_published(self.place, self._keys)
            except KeyFileError as wrong:
                return wrong
            except RepositoryError:
                return error
        return error

    def _fetch(self) -> int | None:
        try:
            reader = WalReader.archived(self._keys, self.place, self._search.system_identifier, self._search.name)
            save(reader.chunks(), self.temporary)
        except ObjectMissing:
            return None
        return reader.stored.size


class _Proof:
    """Whether it is known that the file was never archived."""

    def __init__(self, keys: KeyRing, search: _Search, *, required_suffice: bool) -> None:
        self._keys = keys
        self._search = search
        self._required_suffice = required_suffice
        self.words = ""
        """Why the required locations cannot tell, as a sentence; empty where that was not the question."""

    def holds(self, places: list[Location]) -> bool:
        search = self._search
        self.words = ""
        if all(place.name in search.lacking for place in places):
            return True
        if not self._required_suffice:
            return False
        required = [place for place in places if place.required]
        if not required or any(not isinstance(error, LocationError) for error in search.errors.values()):
            return False
        if any(place.name not in search.lacking for place in required):
            return False
        for place in required:
            why = self._doubt(place)
            if why is not None:
                self.words = f" Location {place.name} is required, but cannot tell: {why}."
                return False
        return True

    def _doubt(self, place: Location) -> str | None:
        system = self._search.system_identifier
        try:
            found = (match_wal_name(info.key.rpartition("/")[2]) for info in place.list(names.wal_of(system)))
            present = [name for name in found if name is not None]
            return doubt(parse_wal_name(self._search.name), present, self._segment_size(place, present))
        except (RepositoryError, KeyFileError) as error:
            return error.message

    def _segment_size(self, place: Location, present: Iterable[t.Any]) -> int | None:
        newest = max((name for name in present if name.kind is WalKind.SEGMENT), key=str, default=None)
        if newest is None:
            return None
        stored = look_at_wal(self._keys, place, self._search.system_identifier, str(newest))
        return stored.size if stored is not None else None
