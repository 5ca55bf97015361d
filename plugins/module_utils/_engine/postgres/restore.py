# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Restoring a cluster: choose the backup, check everything, write, tell PostgreSQL where to stop."""

from __future__ import annotations

import dataclasses
import datetime as dt
import os
import typing as t
from pathlib import Path

from ..config import default_workers
from ..errors import reason_of
from ..events import Silent
from ..repository.catalog import Catalog
from ..repository.model import PHYSICAL
from ..repository.repository import Repository
from .archive_commands import restore_command, this_command
from .archive_contain import supports_containing
from .archive_index import WalIndex
from .lsn import format_lsn
from .recovery import CURRENT_TIMELINE, NAME, XID, Recovery
from .restore_archive import Outlook, first_segment, load_branches, look_ahead
from .restore_branches import Branches
from .restore_build import Materialised, build
from .restore_kept_wal import Rescued, WalKeeper
from .restore_lease import holding
from .restore_locate import Locator
from .restore_plan import Choice, Wish, choose, leads_to, no_backup, postgres
from .restore_prepare import Prepared, prepare
from .restore_request import OFF, PRESERVED, RestoreRequest, RestoreResult
from .restore_search import Found
from .restore_steps import next_steps, start
from .streamed import Tails
from .target import Protected

if t.TYPE_CHECKING:
    from ..config import Config
    from ..events import Reporter
    from ..repository.catalog import BackupRecord

__all__ = ["Materialised", "RestoreRequest", "RestoreResult", "materialise", "restore_cluster"]


def restore_cluster(
    config: Config,
    source: str,
    request: RestoreRequest,
    *,
    reporter: Reporter,
    clock: t.Callable[[], dt.datetime],
) -> RestoreResult:
    """Restore a cluster to ``request.target``, so that starting PostgreSQL recovers it to the goal.

    The source need not be in the configuration: the repository knows all about it. Durable on return.
    Running it again with ``delta`` after any failure goes on with what is there.

    Raises ConfigError for a request that makes no sense, TargetError when there is nothing that leads to
    the goal, RestoreError when the target must not be or cannot be written, DamageError when parts of the
    backup are damaged (with everything else written), KeyFileError, LocationError.
    """
    request.check()
    begun = clock()
    told = _Telling(reporter)
    told.phase("plan")
    repository = Repository.open(config.repository.as_written(), need_identity=True)
    plan = _plan(repository, source, request, begun, told)
    backup = plan.choice.backup
    in_place = _is_in_place(config, source, request.target)
    prepared = prepare(
        repository,
        backup,
        request.target,
        tablespaces=request.tablespaces,
        tablespace_root=None,
        delta=request.delta,
        owner=request.owner,
        protected=_protected(config),
        keep_wal_link=in_place,
    )
    archiving = request.archiving == "preserve" or (request.archiving == "auto" and in_place)
    if archiving and not in_place:
        told.warn(
            f"the restored cluster archives as its source did, although {request.target} is not the source's data "
            "directory in the configuration: change that first, and never let two clusters archive side by side"
        )
    if not in_place and not supports_containing(prepared.info.version):
        told.warn(
            "this minor version of PostgreSQL cannot keep tablespaces inside of a copy: one that was created after the "
            "backup is created in its own directory again, also when the living cluster uses it"
        )
    recovery = _recovery(config, request, plan, archiving=archiving, in_place=in_place)
    result = _result(request, plan, prepared, archiving=archiving)
    if not request.dry_run:
        keeper = _keeper(plan, prepared, request) if in_place else None
        workers = request.workers or _workers(config, source)
        with holding(repository, backup, clock(), told):
            done = build(prepared, recovery, workers=workers, durable=True, reporter=told, now=clock(), keeper=keeper)
        _fill(result, done)
        _tell_of_failed(repository, request, told)
        _tell_about_wal(done.wal, request.target, told)
        if request.start:
            start(result, request, prepared, _programs(config, source, request), told)
    result.locations = _locations(repository)
    result.next_steps = next_steps(result, prepared, in_place=in_place, port=request.port)
    result.warnings = list(told.warnings)
    result.seconds = round((clock() - begun).total_seconds(), 3)
    return result


def materialise(
    repository: Repository,
    backup: BackupRecord,
    target: Path,
    *,
    recovery: Recovery,
    tablespaces: t.Mapping[str, str] | None = None,
    tablespace_root: Path | None = None,
    delta: bool = False,
    workers: int = 2,
    owner: str | None = None,
    durable: bool = True,
    reporter: Reporter | None = None,
    now: dt.datetime | None = None,
) -> Materialised:
    """One backup into one directory, without any planning: for sandboxes and verification.

    Args:
        repository: Opened with the identity.
        backup: A physical backup.
        target: Missing or empty, unless ``delta``.
        recovery: What the cluster is told for its first start.
        tablespaces: New directory by old directory or OID.
        tablespace_root: Where the other tablespaces go, each as ``<root>/<oid>``; the directory must exist. None:
            where they came from, which is dangerous beside a living cluster, and refused when they are in use.
        delta: Whether the target may hold this cluster already.
        workers: Threads.
        owner: The user that everything belongs to; by default as recorded for root, the caller for others.
        durable: False: nothing is synced, for a directory that is thrown away.
        reporter: Told about progress and damage.
        now: For the marker file.

    Raises what ``restore_cluster`` does but for the planning.
    """
    prepared = prepare(
        repository,
        backup,
        target,
        tablespaces=tablespaces or {},
        tablespace_root=tablespace_root,
        delta=delta,
        owner=owner,
    )
    return build(
        prepared,
        recovery,
        workers=workers,
        durable=durable,
        reporter=reporter or Silent(),
        now=now or dt.datetime.now(dt.UTC),
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _Plan:
    choice: Choice
    index: WalIndex
    found: Found | None
    outlook: Outlook


def _plan(repository: Repository, source: str, request: RestoreRequest, now: dt.datetime, reporter: Reporter) -> _Plan:
    told = _Telling(reporter)
    catalog = Catalog.load(repository, source)
    for name, error in repository.lost.items():
        if name not in request.without:
            told.warn(
                f"location {name} does not answer ({reason_of(error, name)}): recovery stops where only it has more "
                f"WAL; --without {name} if it is lost for good"
            )
    for broken in catalog.broken:
        told.warn(f"{broken.name} cannot be read and is passed over: {broken.error.message}")
    named = _named(catalog, request.backup) if request.backup is not None else None
    backups = _of_one_cluster(catalog, named, told)
    index = WalIndex.load(repository, int(postgres(backups[-1]).system_identifier))
    branches = load_branches(repository, index, backups)
    tails = Tails(repository, index.system_identifier)
    found = _locate(repository, index, tails, branches, backups, request, named, told)
    wish = Wish(request.goal, request.timeline, found.lsn if found else None)
    choice = choose(backups, wish, branches, named=named)
    outlook = look_ahead(index, tails, choice, wish, now)
    for text in (*choice.warnings, *outlook.warnings):
        told.warn(text)
    return _Plan(choice, index, found, outlook)


def _named(catalog: Catalog, text: str) -> BackupRecord:
    """The backup the user named. Raises the error of its manifest when that cannot be read."""
    for broken in catalog.broken:
        if text in broken.name.rpartition("/")[2]:
            raise broken.error
    return catalog.find(text)


class _Telling(Silent):
    """Passes everything on, and remembers the warnings for the result."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__()
        self._reporter = reporter

    def phase(self, name: str, total_bytes: int | None = None) -> None:
        self._reporter.phase(name, total_bytes)

    def advance(self, done_bytes: int) -> None:
        self._reporter.advance(done_bytes)

    def note(self, text: str) -> None:
        self._reporter.note(text)

    def warn(self, text: str) -> None:
        super().warn(text)
        self._reporter.warn(text)


def _of_one_cluster(catalog: Catalog, named: BackupRecord | None, told: Reporter) -> list[BackupRecord]:
    """The physical backups of one system identifier: that of the newest backup, or of the one that was named."""
    physical = [backup for backup in catalog.backups if backup.header.kind in PHYSICAL]
    if named is None and not physical:
        raise no_backup()
    identifier = postgres(named or physical[-1]).system_identifier
    others = sorted({postgres(backup).system_identifier for backup in physical} - {identifier})
    if others and named is None:
        told.warn(
            f"there are also backups of another cluster under this name (system identifier {', '.join(others)}); "
            "--backup ID restores one of them"
        )
    return [backup for backup in physical if postgres(backup).system_identifier == identifier]


def _locate(
    repository: Repository,
    index: WalIndex,
    tails: Tails,
    branches: Branches,
    backups: t.Sequence[BackupRecord],
    request: RestoreRequest,
    named: BackupRecord | None,
    told: Reporter,
) -> Found | None:
    """Where the restore point or the transaction is, when the goal is one."""
    if request.goal.kind not in (NAME, XID):
        return None
    if named is not None:
        return None  # the search is for choosing a backup
    if request.timeline == CURRENT_TIMELINE:
        timeline = postgres(max(backups, key=lambda backup: backup.finished)).timeline
    else:
        timeline = int(request.timeline) if request.timeline.isdigit() else branches.newest
    history = branches.history(timeline)
    told.phase("search")
    on_way = [backup for backup in backups if leads_to(backup, history)]
    found = Locator(repository, index, tails, history, branches.segment_size, told).locate(request.goal, on_way)
    told.note(f"{request.goal}: {found.what} of {found.time.isoformat()}, {format_lsn(found.lsn)}")
    return found


def _is_in_place(config: Config, source: str, target: Path) -> bool:
    cluster = config.clusters.get(source)
    return cluster is not None and os.path.realpath(cluster.data_directory) == os.path.realpath(target)


def _protected(config: Config) -> list[Protected]:
    """What a restore must keep away from, whatever the user says."""
    places = [
        Protected(config.repository.keys, "the key directory"),
        Protected(config.path, "the configuration"),
        Protected(config.state_directory, "the state directory"),
    ]
    for name, location in config.repository.locations.items():
        if location.path is not None:
            places.append(Protected(location.path, f"the repository (location {name!r})"))
    for name, cluster in config.clusters.items():
        places.append(Protected(cluster.data_directory, f"the data directory of cluster {name!r}", itself_allowed=True))
    return places


def _recovery(config: Config, request: RestoreRequest, plan: _Plan, *, archiving: bool, in_place: bool) -> Recovery:
    info = postgres(plan.choice.backup)
    timeline = plan.choice.history.timeline
    contain = not in_place and supports_containing(info.version)
    command = restore_command(
        this_command(),
        config.path.absolute(),
        int(info.system_identifier),
        without=[name for name in request.without if name in config.repository.locations],
        required_suffice=_required_suffice(config, request, plan),
        contain_tablespaces=contain,
        as_of=config.repository.moment,
        timeline=timeline,
    )
    settings = {"port": str(request.port)} if request.port is not None else {}
    if contain:
        settings["allow_in_place_tablespaces"] = "on"
    return Recovery(
        command,
        request.goal,
        # A number, so that a timeline that turns up later changes nothing; but PostgreSQL asks for a history
        # file of every number above 1 that is named, and there may be none of the backup's own.
        CURRENT_TIMELINE if timeline == info.timeline else str(timeline),
        request.inclusive,
        request.action,
        archiving,
        settings,
    )


def _required_suffice(config: Config, request: RestoreRequest, plan: _Plan) -> bool:
    """Whether recovery may go on without optional locations that stop answering.

    To a goal: PostgreSQL does not take the end of the archive for it. To the end of the WAL: when all optional ones
    have just been seen to have no more than the required ones.
    """
    if request.goal.is_point:
        return True
    asked = {name: place for name, place in config.repository.locations.items() if name not in request.without}
    required = [name for name, place in asked.items() if place.required]
    optional = [name for name, place in asked.items() if not place.required]
    first, size = first_segment(plan.choice.backup), postgres(plan.choice.backup).wal_segment_size
    return {*asked} <= {*plan.index.locations} and not any(
        plan.index.ahead(name, required, first=first, segment_size=size) for name in optional
    )


def _keeper(plan: _Plan, prepared: Prepared, request: RestoreRequest) -> WalKeeper:
    return WalKeeper(
        plan.index.names(),
        plan.choice.history,
        first_segment(plan.choice.backup),
        prepared.info.wal_segment_size,
        int(prepared.info.system_identifier),
        to_the_end=not request.goal.is_point,
    )


def _workers(config: Config, source: str) -> int:
    cluster = config.clusters.get(source)
    return cluster.workers if cluster is not None else default_workers()


def _programs(config: Config, source: str, request: RestoreRequest) -> Path | None:
    cluster = config.clusters.get(source)
    return request.bin_directory or (cluster.bin_directory if cluster is not None else None)


def _result(request: RestoreRequest, plan: _Plan, prepared: Prepared, *, archiving: bool) -> RestoreResult:
    """All that is known before anything is written."""
    recovery: dict[str, t.Any] = {
        "target": request.goal.kind,
        "value": request.goal.value or None,
        "timeline": plan.choice.history.timeline,
        "inclusive": request.inclusive,
        "action": request.action,
    }
    if plan.found is not None:
        recovery |= {"lsn": format_lsn(plan.found.lsn), "time": plan.found.time.isoformat()}
    return RestoreResult(
        status="partial" if plan.outlook.partial else "ok",
        backup_id=prepared.backup.id,
        source=prepared.backup.source,
        kind=prepared.backup.header.kind,
        target=str(prepared.target.path),
        files=prepared.survey.files,
        bytes_restored=prepared.survey.size,
        bytes_fetched=0,
        bytes_compared=0,
        bytes_written=0,
        seconds=0.0,
        recovery=recovery,
        archiving=PRESERVED if archiving else OFF,
        tablespaces={str(oid): str(path) for oid, path in prepared.tablespaces.items()},
        owner=prepared.owner_name,
        config_files=list(prepared.survey.config_files),
        kept_wal=[],
        saved_wal={"directory": None, "files": []},
        dry_run=request.dry_run,
    )


def _tell_about_wal(wal: Rescued, target: Path, told: Reporter) -> None:
    if wal.kept:
        told.note(f"{len(wal.kept)} files of pg_wal that were never archived stay for recovery to use")
    if wal.directory is not None:
        told.warn(
            f"{len(wal.aside)} files of pg_wal that were never archived were put aside in {target / wal.directory}: "
            "recovery does not use all of them, and nobody else has them. Remove that directory once nobody will want "
            "another moment than this one"
        )


def _locations(repository: Repository) -> dict[str, dict[str, t.Any]]:
    """Where the backup was read from, and what did not answer."""
    read = repository.breaker.read
    failed = {**repository.breaker.failures, **repository.lost}
    found: dict[str, dict[str, t.Any]] = {}
    for name in (*(location.name for location in repository.locations), *repository.lost):
        found[name] = {"status": "failed" if name in failed else "ok", "bytes_read": read.get(name, 0)}
        if name in failed:
            found[name]["error"] = failed[name].as_dict()
    return found


def _tell_of_failed(repository: Repository, request: RestoreRequest, told: Reporter) -> None:
    required = {location.name for location in repository.locations if location.required}
    for name, error in repository.breaker.failures.items():
        others = ", ".join(other for other in repository.breaker.read if other != name)
        words = f"location {name} failed during the restore ({reason_of(error, name)}): the rest is from {others}"
        if name in required and name not in request.without:
            words += (
                f". Recovery stops where only it may have more WAL: --delta --without {name} if it is lost for good"
            )
        told.warn(words)


def _fill(result: RestoreResult, done: Materialised) -> None:
    result.bytes_fetched = done.bytes_fetched
    result.bytes_compared = done.bytes_compared
    result.bytes_written = done.bytes_written
    result.kept_wal = list(done.wal.kept)
    result.saved_wal = {"directory": done.wal.directory, "files": list(done.wal.aside)}
