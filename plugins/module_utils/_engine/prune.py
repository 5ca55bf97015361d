# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Retention carried out: plan, finish old marks, make new ones.

The plan is made over the backups of all locations; deletion happens in each location by itself.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import os
import typing as t

from . import retention
from .config import Config
from .errors import EXIT_DONE, EXIT_PARTIAL, CryoError, LocationError, RefusedError, RepositoryError
from .events import Reporter
from .locks import locked
from .postgres.lsn import parse_lsn
from .repository.catalog import BackupRecord, Catalog
from .repository.collect import Collected, Collector, Wish
from .repository.model import DAMAGED, OK
from .repository.repository import Repository

_SWEEP_SECONDS = 24 * 3600.0


@dataclasses.dataclass(slots=True)
class PruneResult:
    plan: retention.Plan
    dry_run: bool
    locations: dict[str, Collected]
    errors: dict[str, CryoError]  # locations where it could not be done

    @property
    def complete(self) -> bool:
        return not self.errors

    @property
    def exit_code(self) -> int:
        return EXIT_DONE if self.complete else EXIT_PARTIAL

    @property
    def changed(self) -> bool:
        """Whether anything was, or with ``dry_run`` would be, marked or deleted."""
        return any(done.marked or done.manifests or done.packs or done.wal for done in self.locations.values())

    def as_dict(self) -> dict[str, t.Any]:
        return {
            "dry_run": self.dry_run,
            "keep": self.plan.after,
            "delete": [backup.backup_id for backup in self.plan.deletes],
            "brake": self.plan.brake,
            "locations": {name: dataclasses.asdict(done) for name, done in self.locations.items()},
            "errors": {name: error.as_dict() for name, error in self.errors.items()},
        }


def prune(
    config: Config,
    *,
    now: dt.datetime,
    dry_run: bool,
    yes: bool,
    reporter: Reporter,
    grace: dt.timedelta | None = None,
) -> PruneResult:
    """Delete what marks of earlier runs name, then mark what retention drops now.

    ``yes`` releases the brake. ``grace``: how long a mark must have stood; by default that of the
    configuration; with none at all, what is marked goes at once. Idempotent; a crash at any point
    is harmless. Raises RefusedError, with nothing changed, when the plan needs an explicit yes.
    """
    with locked(config.state_directory, "prune", "a prune"):
        repository = Repository.open(config.repository.as_written())
        policy = config.retention
        if grace is not None:
            policy = dataclasses.replace(policy, grace=grace)
        return prune_repository(repository, policy, now=now, dry_run=dry_run, yes=yes, reporter=reporter)


def prune_repository(
    repository: Repository,
    policy: retention.Policy,
    *,
    now: dt.datetime,
    dry_run: bool,
    yes: bool,
    reporter: Reporter,
) -> PruneResult:
    """As ``prune``, in an open repository; safe beside any number of backups and other prunes."""
    repository.require("delete")
    catalog = Catalog.load(repository)
    required = {location.name for location in repository.locations if location.required}
    candidates = [candidate(backup, required) for backup in catalog.backups]
    warn_of_dates(candidates, reporter)
    plan = retention.plan(candidates, policy, now)
    if plan.brake and not yes and not dry_run:
        raise refusal(plan)
    errors: dict[str, CryoError] = dict(repository.lost)
    wish = _wish(plan, policy, catalog, reporter, complete=not repository.lost)
    done: dict[str, Collected] = {}
    for location in repository.locations:
        collector = Collector(repository, location, dry_run=dry_run)
        done[location.name] = collector.done
        reporter.phase(f"pruning location {location.name}")
        try:
            collector.finish_marks(wish, policy.grace)
            collector.mark(wish, now, os.urandom(4))
            if not policy.grace:
                collector.finish_marks(wish, policy.grace)
            collector.sweep(_SWEEP_SECONDS, policy.trash)
        except (LocationError, RepositoryError) as error:
            errors[location.name] = error
        _warn_of_versions(location.name, collector.done, reporter)
    return PruneResult(plan, dry_run, done, errors)


def _warn_of_versions(name: str, done: Collected, reporter: Reporter) -> None:
    hidden = done.hidden
    if hidden is None:
        return
    if hidden.overwritten:
        reporter.warn(
            f"location {name}: {hidden.overwritten} objects were written over, which this program never does: somebody "
            "else has its credentials. The first version of each is kept and is what counts here"
        )
    if hidden.refused is not None:
        reporter.note(
            f"location {name}: versions of deleted objects cannot be removed ({hidden.refused}): let a lifecycle do it"
        )


def warn_of_dates(candidates: t.Iterable[retention.Candidate], reporter: Reporter) -> None:
    """Backups that say they ended after they were stored: a wrong clock, or somebody who makes backups up."""
    for each in candidates:
        if each.postdated and each.stored_at is not None:
            reporter.warn(
                f"backup {each.backup_id} of {each.source} says that it ended at {each.finished_at.isoformat()}, but "
                f"was stored at {each.stored_at.isoformat(timespec='seconds')}, which counts: compare the clocks, and "
                "find out who made it"
            )


def refusal(plan: retention.Plan) -> RefusedError:
    """What a plan that pulls the brake ends with, unless it is confirmed."""
    return RefusedError(
        f"the plan needs an explicit yes: {plan.brake}",
        hint="Nothing was deleted. Look at the plan first (`cryobackup prune --dry-run`, or a task in check mode with "
        "diff); if it is what you want, confirm it (--yes, or `confirm: true`).",
    )


def _wish(
    plan: retention.Plan, policy: retention.Policy, catalog: Catalog, reporter: Reporter, *, complete: bool
) -> Wish:
    dropped = frozenset(backup.backup_id for backup in plan.deletes)
    if not catalog.broken:
        systems = frozenset(
            int(backup.header.postgres.system_identifier) for backup in catalog.backups if backup.header.postgres
        )
        return Wish(dropped, plan.wal_needed, systems if complete else None, policy.abandoned_wal.total_seconds())
    for broken in catalog.broken:
        reporter.warn(f"{broken.name} cannot be read, so all WAL is kept: {broken.error.message}")
    return Wish(dropped, lambda _system, _name: True)


def candidate(backup: BackupRecord, required: t.AbstractSet[str]) -> retention.Candidate:
    """A backup as the retention planner sees it. ``required``: locations that should hold it."""
    header, postgres = backup.header, backup.header.postgres
    verified = backup.verified
    return retention.Candidate(
        backup_id=header.backup_id,
        source=header.source,
        kind=_kind(header.kind),
        finished_at=backup.finished,
        status=_status(backup, required),
        verified=verified is not None and verified.data.get("result") == "ok" and _deep(verified.data.get("level")),
        pinned=backup.pinned,
        pinned_until=backup.pinned_until,
        start_lsn=parse_lsn(postgres.start_lsn) if postgres else None,
        stop_lsn=parse_lsn(postgres.stop_lsn) if postgres else None,
        timeline=postgres.timeline if postgres else None,
        system_identifier=int(postgres.system_identifier) if postgres else None,
        wal_start=postgres.wal_start if postgres else None,
        stored_bytes=header.stored_bytes_own,
        stored_at=backup.stored_at,
    )


def _status(backup: BackupRecord, required: t.AbstractSet[str]) -> retention.Status:
    """What is known today: the manifest's word, the newest verification, and where the backup is."""
    verified = backup.verified
    if backup.header.status == DAMAGED or (verified is not None and verified.data.get("result") != "ok"):
        return "damaged"
    if backup.header.status != OK:
        return "partial"
    return "ok" if required <= set(backup.locations) else "degraded"


def _deep(level: object) -> bool:
    return level in ("content", "restore")


def _kind(kind: str) -> retention.Kind:
    for known in retention.KINDS:
        if kind == known:
            return known
    raise RepositoryError(f"a backup has the unknown kind {kind!r}", hint="Use the version that wrote it to prune.")
