# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A backup of a cluster that is not too old: found, or taken, or only said that it would be taken."""

from __future__ import annotations

import dataclasses
import datetime as dt
import re
import typing as t

from ..errors import EXIT_DONE, EXIT_PARTIAL, ConfigError
from ..repository import model
from ..repository.catalog import Catalog
from ..repository.model import OK
from ..repository.repository import Repository
from .backup import check_arguments, choose, cluster_state, leave_room, take_backup, utc_now, warn_of
from .connection import Connection
from .control import read_control
from .parent import lags
from .preflight import examine
from .relfile import CONTROL_FILE
from .result import BackupResult

if t.TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..config import ClusterConfig, Config
    from ..errors import CryoError
    from ..events import Reporter
    from ..repository.catalog import BackupRecord

_AGE = re.compile(r"([0-9]{1,6})(min|h|d|w)")
_UNITS: t.Final = {"min": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@dataclasses.dataclass(frozen=True, slots=True)
class BackupWish:
    """What there should be."""

    kind: str = model.FULL
    """``full`` or ``incremental``; where an incremental is wanted, a full backup is as good."""
    label: str = ""
    max_age: dt.timedelta | None = None
    """A backup that was finished within this time is good enough; None: only a new one is."""
    space_check: bool = True
    """Do not begin what cannot fit."""


@dataclasses.dataclass(frozen=True, slots=True)
class Prediction:
    """The backup that would be taken."""

    source: str
    requested: str
    type: str
    parent: str | None
    label: str
    change_detection: Mapping[str, t.Any]
    locations: Mapping[str, CryoError | None]

    @property
    def exit_code(self) -> int:
        return EXIT_PARTIAL if any(self.locations.values()) else EXIT_DONE

    def as_dict(self) -> dict[str, t.Any]:
        """JSON's own types only; a part of what ``BackupResult`` has."""
        locations = {
            name: {"status": "ok"} if error is None else {"status": "failed", "error": error.as_dict()}
            for name, error in self.locations.items()
        }
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**fields, "change_detection": dict(self.change_detection), "locations": locations}


@dataclasses.dataclass(frozen=True, slots=True)
class Ensured:
    backup: BackupResult | Prediction
    taken: bool
    """Whether it was, or would be, taken now."""
    reason: str
    """Why it was taken, or why not."""


def ensure_backup(
    config: Config,
    cluster: ClusterConfig,
    wish: BackupWish,
    *,
    dry_run: bool = False,
    reporter: Reporter,
    clock: Callable[[], dt.datetime] = utc_now,
) -> Ensured:
    """See to it that there is a backup as wished: take one unless there is.

    Durable on return, idempotent within ``max_age``. With ``dry_run`` nothing is changed, and all is tried that can
    be without: configuration, keys, locations, connection, and whether the cluster can be backed up. Raises what
    ``take_backup`` does.
    """
    check_arguments(wish.kind, wish.label)
    if wish.max_age is not None:
        found = _recent(config, cluster, wish.kind, wish.max_age, clock())
        if found is not None:
            age = _words(clock() - found.finished_at)
            reason = f"{found.type} backup {found.backup_id} is {age} old, which is good enough"
            return Ensured(found, taken=False, reason=reason)
    reason = "a new backup was asked for" if wish.max_age is None else "there is no good backup that is young enough"
    if dry_run:
        return Ensured(_predict(config, cluster, wish, reporter, clock()), taken=True, reason=reason)
    taken = take_backup(
        config,
        cluster,
        kind=wish.kind,
        label=wish.label,
        reporter=reporter,
        clock=clock,
        space_check=wish.space_check,
    )
    return Ensured(taken, taken=True, reason=reason)


def parse_age(text: str) -> dt.timedelta:
    """``90min``, ``24h``, ``7d`` or ``2w``. Raises ConfigError, id ``usage``.

    Not as in the retention rules, where ``m`` is a month: whoever means minutes would get no backup for years.
    """
    match = _AGE.fullmatch(text.strip())
    if match is None or not int(match[1]):
        raise ConfigError(f"{text!r} is not an age", hint="Write for example 90min, 24h, 7d or 2w.", id="usage")
    return dt.timedelta(**{_UNITS[match[2]]: int(match[1])})


def _recent(
    config: Config, cluster: ClusterConfig, kind: str, max_age: dt.timedelta, now: dt.datetime
) -> BackupResult | None:
    """The newest backup that will do.

    It must be of the cluster that is there now, complete in every required location that answers, and not found damaged
    since. One that is in all locations comes first. A location that does not answer, or lags behind, makes it
    ``degraded``: another backup would be no better.
    """
    repository = Repository.open(config.repository)
    catalog = Catalog.load(repository, cluster.name)
    identifier = str(read_control(cluster.data_directory / CONTROL_FILE).system_identifier)
    kinds = {model.FULL} if kind == model.FULL else set(model.PHYSICAL)
    answering = {location.name for location in repository.locations}
    required = {location.name for location in repository.locations if location.required} or answering
    good = [
        record
        for record in reversed(catalog.backups)
        if dt.timedelta() <= now - record.finished <= max_age
        and record.header.kind in kinds
        and _is_sound(record, identifier)
    ]
    for needed in (answering, required):
        for record in (record for record in good if needed <= {*record.locations}):
            locations: dict[str, CryoError | None] = {
                name: None if name in record.locations else repository.lost.get(name) or lags(name, record.id)
                for name in config.repository.locations
            }
            seconds = (record.finished - record.started).total_seconds()
            return BackupResult.of(record.header, requested=kind, locations=locations, seconds=seconds)
    return None


def _is_sound(record: BackupRecord, identifier: str) -> bool:
    info, verified = record.header.postgres, record.verified
    if record.header.status != OK or info is None or info.system_identifier != identifier:
        return False
    return verified is None or verified.data.get("result") == OK


def _predict(
    config: Config, cluster: ClusterConfig, wish: BackupWish, reporter: Reporter, now: dt.datetime
) -> Prediction:
    repository = Repository.open(config.repository)
    repository.require("write")
    with Connection(cluster.connection, application_name=f"cryobackup check of {cluster.name}") as connection:
        facts = examine(connection, cluster.data_directory)
        warn_of(repository, facts, connection, reporter)
        state = cluster_state(facts, now)
        choice = choose(repository, cluster.name, wish.kind, state, reporter)
        if (
            wish.space_check
            and leave_room(config, repository, connection, cluster.name, choice, now, reporter).left_out
        ):
            choice = choose(repository, cluster.name, wish.kind, state, reporter)
    return Prediction(
        source=cluster.name,
        requested=wish.kind,
        type=model.FULL if choice.record is None else model.INCREMENTAL,
        parent=None if choice.record is None else choice.record.id,
        label=wish.label,
        change_detection={"reason": choice.reason},
        locations={name: repository.lost.get(name) for name in config.repository.locations},
    )


def _words(age: dt.timedelta) -> str:
    """Roughly, for people."""
    seconds = int(age.total_seconds())
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
