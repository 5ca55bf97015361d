# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A replication from its beginning to its end, one location after the other."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import threading
import time
import typing as t

from ..errors import BusyError, ConfigError, LocationError, ObjectMissing, RepositoryError, reason_of
from ..locks import locked
from ..postgres.archive_backlog import read_backlog
from ..postgres.throttle import Throttle
from ..prune_preview import plan_now
from ..repository import names
from ..repository.catalog import Catalog
from ..repository.known import remember
from ..repository.repository import Repository
from .delivery import Delivery, Job, Options
from .result import Brought, Problem, ReplicateResult
from .stock import Lack, Stock, lack
from .transfer import NowhereGood, Sources
from .wanted import Wanted, Which, choose

if t.TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from ..config import Config
    from ..events import Reporter
    from ..repository.catalog import BackupRecord
    from ..retention_policy import Policy
    from ..storage.base import Location


def utc_now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def replicate(
    config: Config,
    *,
    which: Which | None = None,
    options: Options | None = None,
    reporter: Reporter,
    clock: Callable[[], dt.datetime] = utc_now,
) -> ReplicateResult:
    """Bring to every location what it lacks of the backups and of the WAL that retention keeps.

    What is in the result is there, durably. Idempotent; after a crash at any instant the next run goes on. Safe beside
    backups, prunes, archiving and other replications. Needs no identity; with it, the content of WAL is proven, too.
    What cannot be brought is in the result, never an exception.

    Raises ConfigError for an unknown location or a request that makes no sense, KeyFileError, BusyError when one is
    running on this host, LocationError when no location answers, RepositoryError for an unknown backup.
    """
    options = options or Options()
    check_names(config, options)
    with contextlib.ExitStack() as lock:
        if not options.dry_run:
            lock.enter_context(locked(config.state_directory, "replicate", "a replication"))
        repository = Repository.open(config.repository.as_written())
        if not options.dry_run:
            remember(config.state_directory, repository)
        return replicate_repository(
            repository,
            config.retention,
            which or Which(),
            options,
            configured=list(config.repository.locations),
            state_directory=config.state_directory,
            reporter=reporter,
            now=clock(),
            quotas={
                name: place.quota for name, place in config.repository.locations.items() if place.quota is not None
            },
        )


def check_names(config: Config, options: Options) -> None:
    """Raises ConfigError."""
    known = config.repository.locations
    for name in (*options.sources, *options.destinations):
        if name not in known:
            raise ConfigError(
                f"there is no location {name!r}: {config.path} does not name it",
                hint=f"The configuration has: {', '.join(known)}.",
                id="unknown-location",
            )
    if set(options.sources) and {*options.sources} == {*options.destinations} and len({*options.sources}) == 1:
        raise ConfigError(
            f"location {options.sources[0]!r} cannot bring anything to itself", hint="Name two.", id="usage"
        )


def replicate_repository(
    repository: Repository,
    policy: Policy,
    which: Which,
    options: Options,
    *,
    configured: Iterable[str],
    state_directory: Path,
    reporter: Reporter,
    now: dt.datetime,
    quotas: Mapping[str, int] | None = None,
) -> ReplicateResult:
    """As ``replicate``, in an open repository; ``configured``: the names of all locations, also of those not open."""
    began = time.monotonic()
    reporter.phase("listing locations")
    repository.require("read")
    catalog = Catalog.load(repository)
    result = ReplicateResult(options.dry_run)
    # One that was deleted since it was listed is no loss.
    broken = [each for each in catalog.broken if not isinstance(each.error, ObjectMissing)]
    result.problems += [Problem("", each.name, each.error) for each in broken]
    sources = Sources([place for place in repository.locations if _is_source(options, place.name)])
    chosen = choose(catalog, which, lambda: plan_now(repository, catalog, policy, now))
    wanted = _in_sources(chosen, sources)
    stop = threading.Event()
    throttle = Throttle(options.bandwidth_limit, stop.wait)
    job = Job(
        repository.keys,
        sources,
        wanted,
        options,
        state_directory,
        throttle,
        stop,
        reporter,
        now,
        result.problems,
        read_backlog(state_directory),
        sees_all=not options.sources and not repository.lost,
        quotas=quotas or {},
    )
    for name in configured:
        _note_lost(result, options, name, repository.lost.get(name))
    stocks = [Stock(place) for place in sources.locations]
    for place in repository.locations:
        if _is_destination(options, place.name):
            stop.clear()
            result.locations[place.name] = Brought()
            _bring_to(job, place, stocks, result.locations[place.name])
            if which.named:
                result.problems += _not_to_be_had(chosen, wanted, place)
    failed = {name for name, brought in result.locations.items() if brought.error is not None}
    result.problems += [problem for problem in sources.problems if problem.object or problem.location not in failed]
    result.read = dict(sources.read)
    result.seconds = time.monotonic() - began
    return result


def _is_source(options: Options, name: str) -> bool:
    return not options.sources or name in options.sources


def _is_destination(options: Options, name: str) -> bool:
    return name in options.destinations if options.destinations else set(options.sources) != {name}


def _note_lost(result: ReplicateResult, options: Options, name: str, error: LocationError | None) -> None:
    """A location that does not answer: it gets nothing, and what only it holds nobody gets."""
    if error is not None and _is_destination(options, name):
        result.locations[name] = Brought(error=error)
    elif error is not None and _is_source(options, name):
        result.problems.append(Problem(name, "", error))


def _in_sources(wanted: Wanted, sources: Sources) -> Wanted:
    """Without the backups that only locations have which are not to be read."""
    known = {place.name for place in sources.locations}

    def to_be_had(backups: Iterable[BackupRecord]) -> tuple[BackupRecord, ...]:
        return tuple(backup for backup in backups if known & {*backup.locations})

    return dataclasses.replace(wanted, first=to_be_had(wanted.first), then=to_be_had(wanted.then))


def _not_to_be_had(chosen: Wanted, wanted: Wanted, place: Location) -> Iterator[Problem]:
    """Backups that were asked for by name, are not there, and are in none of the locations to be read."""
    ids = {backup.id for backup in wanted.backups}
    for backup in chosen.backups:
        if backup.id not in ids and place.name not in backup.locations:
            error = NowhereGood(
                f"no location that is to be read has backup {backup.id}: it is in {', '.join(backup.locations)}",
                hint="Leave --from out, or name one of these with it.",
            )
            yield Problem(place.name, names.manifest(backup.source, backup.id), error, backup.id)


def _bring_to(job: Job, place: Location, stocks: list[Stock], brought: Brought) -> None:
    stock = next((each for each in stocks if each.location is place), None) or Stock(place)
    others = [each for each in stocks if each.location is not place]
    try:
        missing = lack(stock, others, job.wanted)
        if job.options.dry_run:
            _predict(brought, missing)
        else:
            Delivery(job, place, stock, others, brought).run(missing)
    except (RepositoryError, BusyError) as error:
        brought.error = error
        job.reporter.warn(f"location {place.name} did not get everything: {reason_of(error, place.name)}")


def _predict(brought: Brought, missing: Lack) -> None:
    brought.backups += [backup.id for backup in missing.backups]
    brought.completed += [backup.id for backup in missing.incomplete]
    brought.packs, brought.wal, brought.notes = len(missing.packs), len(missing.wal), len(missing.notes)
    brought.bytes = missing.bytes
