# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``lock``: objects stay locked for as long as retention keeps the backups that need them."""

from __future__ import annotations

import dataclasses
import typing as t

from . import retention
from .errors import EXIT_DONE, EXIT_PARTIAL, CryoError, LocationError
from .locks import locked
from .prune import candidate, warn_of_dates
from .repository.catalog import Catalog
from .repository.locking import Locker, LockResult, Terms, lockable, run_locker, wanted_in, worries
from .repository.repository import Repository

if t.TYPE_CHECKING:
    import datetime as dt

    from .config import Config
    from .events import Reporter


@dataclasses.dataclass(slots=True)
class LockReport:
    dry_run: bool
    locations: dict[str, LockResult]
    errors: dict[str, CryoError]
    """Locations where not everything could be looked at."""
    attention: list[str]

    @property
    def exit_code(self) -> int:
        return EXIT_PARTIAL if self.errors or self.attention else EXIT_DONE

    def as_dict(self) -> dict[str, t.Any]:
        return {
            "dry_run": self.dry_run,
            "locations": {name: result.as_dict() for name, result in self.locations.items()},
            "errors": {name: error.as_dict() for name, error in self.errors.items()},
            "attention": self.attention,
        }


def keep_locked(config: Config, terms: Terms, *, now: dt.datetime, dry_run: bool, reporter: Reporter) -> LockReport:
    """Lengthen the lock of every object that a kept backup needs, where it ends too early.

    A run that was stopped is continued by the next one. Nothing is ever shortened. ``dry_run`` changes nothing.
    Raises ConfigError ``no-object-lock``, KeyFileError, BusyError, LocationError when no location answers.
    """
    with locked(config.state_directory, "lock", "a look at object locks"):
        repository = Repository.open(config.repository.as_written())
        catalog = Catalog.load(repository)
        places = lockable(repository)
        required = {location.name for location in repository.locations if location.required}
        candidates = [candidate(backup, required) for backup in catalog.backups]
        warn_of_dates(candidates, reporter)
        plan = retention.plan(candidates, config.retention, now)
        errors: dict[str, LocationError] = dict(repository.lost)
        results: dict[str, LockResult] = {}
        for place in places:
            reporter.phase(f"looking at the locks in location {place.name}")
            wanted = wanted_in(place.name, catalog.backups, plan)
            locker = Locker(place, wanted, terms, state=config.state_directory, dry_run=dry_run)
            results[place.name] = run_locker(locker, errors, place.name)
        attention = [
            f"{broken.name} cannot be read, so what only it needs is not locked for longer: {broken.error.message}"
            for broken in catalog.broken
        ]
        attention += [
            f"location {name}: {text}" for name, result in results.items() for text in worries(result, terms, now)
        ]
    return LockReport(dry_run, results, dict(errors), attention)
