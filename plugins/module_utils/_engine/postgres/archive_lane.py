# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An optional location of the WAL archive, served in a thread that nobody has to wait for."""

from __future__ import annotations

import dataclasses
import threading
import time
import typing as t

from ..errors import CryoError, KeyFileError, LocationError, RepositoryError
from ..repository import names
from .archive_backlog import note_stored, read_backlog
from .archive_push import Push

if t.TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..config import Config, RepositoryConfig
    from ..repository.repository import Repository
    from ..storage.base import Location
    from .archive_source import WalSource

_CATCH_UP_FILES: t.Final = 8


class OptionalLane:
    """Looks at once whether the location has the file; writes it when told to; then brings what it lacks besides.

    The thread is a daemon: the process may end while it waits for an answer. An object half written has no name.
    """

    def __init__(
        self,
        config: Config,
        name: str,
        source: WalSource,
        opened: Callable[[RepositoryConfig], Repository],
        *,
        catch_up: bool,
    ) -> None:
        self.name = name
        self.looked = threading.Event()
        self.ended = threading.Event()
        self.error: CryoError | None = None
        self.outcome: t.Literal["", "stored", "already"] = ""
        self.caught_up = 0
        self.seconds = 0.0
        """How long the location took."""
        self._began = time.monotonic()
        self._config = config
        self._source = source
        self._opened = opened
        self._catches_up = catch_up
        self._go = threading.Event()
        self._stop = threading.Event()
        self._encoded: tuple[bytes, ...] | None = None
        threading.Thread(target=self._main, name=f"location {name}", daemon=True).start()

    def go(self, encoded: tuple[bytes, ...] | None) -> None:
        """The file may be written now. ``encoded``: what was written elsewhere; None: it is to be read again."""
        self._encoded = encoded
        self._go.set()

    def cancel(self) -> None:
        """Begin nothing more."""
        self._stop.set()
        self._go.set()

    def _main(self) -> None:
        try:
            self._serve()
        except CryoError as error:
            self.error = error
        except ModuleNotFoundError as error:
            self.error = missing_module(self.name, error)
        finally:
            self.seconds += time.monotonic() - self._began
            self.looked.set()
            self.ended.set()

    def _serve(self) -> None:
        settings = self._config.repository
        only = dataclasses.replace(settings, locations={self.name: settings.locations[self.name]})
        repository = self._opened(only)
        repository.require("write")
        push = Push(repository.keys, self._source, level=settings.compression_level)
        lacking = push.without_those_that_have_it(repository.locations)
        self.seconds += time.monotonic() - self._began
        self.looked.set()
        self._go.wait()
        self._began = time.monotonic()
        if self._stop.is_set():
            return
        push.write(lacking, self._encoded)
        if push.failed:
            raise push.failed[self.name]
        self.outcome = "stored" if push.stored else "already"
        if self._catches_up:
            self._catch_up(repository.locations[0])

    def _catch_up(self, location: Location) -> None:
        """Bring files that the location lacks, the oldest first, as long as there is time."""
        directory = self._config.state_directory
        owed = read_backlog(directory).get(self.name, [])
        if not owed:
            return
        from ..replicate.transfer import NowhereGood, Sources, Transfer
        from .throttle import Throttle

        settings = self._config.repository
        others = {name: place for name, place in settings.locations.items() if place.required}
        sources = self._opened(dataclasses.replace(settings, locations=others)) if others else None
        if sources is None:
            return
        transfer = Transfer(
            sources.keys,
            Sources(sources.locations),
            location,
            spool=directory,
            throttle=Throttle(None),
            stop=self._stop,
        )
        for each in owed[:_CATCH_UP_FILES]:
            system, _unused, name = each.partition("/")
            if self._stop.is_set():
                return
            key = names.wal(int(system), name)
            try:
                if location.stat(key) is None:
                    transfer.whole(key)
                    self.caught_up += 1
            except NowhereGood:
                # No reason to stop archiving. Damage is for `verify` to tell, and what retention removed is not owed.
                if not _is_nowhere(sources.locations, key):
                    continue
            except (LocationError, RepositoryError, KeyFileError):
                return
            note_stored(directory, self.name, int(system), name)


def _is_nowhere(locations: Iterable[Location], key: str) -> bool:
    """Whether it is surely in none of them."""
    try:
        return all(location.stat(key) is None for location in locations)
    except LocationError:
        return False


def missing_module(location: str, error: ModuleNotFoundError) -> LocationError:
    """Some kinds of locations need packages that others do not."""
    return LocationError(
        f"location {location!r}: the Python module {error.name} is not installed",
        hint="Install it for the Python that runs this, or run the `runtime` role again.",
        id="missing-module",
    )
