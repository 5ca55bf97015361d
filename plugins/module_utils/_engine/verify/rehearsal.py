# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The third rung: PostgreSQL is started on the backup, and asked."""

from __future__ import annotations

import dataclasses
import datetime as dt
import re
import time
import typing as t
from pathlib import Path

from ..crypto.keys import FILES
from ..errors import ConfigError, DamageError, RestoreError
from ..postgres.archive_index import WalIndex, backup_segments, histories
from ..postgres.checks import Answer, Checks, QueryFailed, any_session, log_in
from ..postgres.recovery import CURRENT_TIMELINE, IMMEDIATE, LATEST, Recovery, RecoveryTarget
from ..postgres.restore import materialise
from ..postgres.restore_lease import holding
from ..postgres.restore_plan import leads_to
from ..postgres.sandbox import Sandbox, ServerFailed, find_programs, server_version, unusable
from ..postgres.sandbox_directory import SandboxDirectory
from ..postgres.sandbox_process import Account, server_account
from ..postgres.sandbox_settings import sandbox_settings
from ..postgres.sandbox_wal import WalService
from ..repository.model import PHYSICAL
from .result import DAMAGE, FILES_LISTED, Check

if t.TYPE_CHECKING:
    from ..config import ClusterConfig, Config
    from ..events import Reporter
    from ..postgres.restore import Materialised
    from ..repository.catalog import BackupRecord
    from ..repository.model import PostgresInfo
    from ..repository.repository import Repository
    from .subjects import Subject

_OBJECT = re.compile(r"(?:packs|manifests|wal)/[^\s,;:]+")
GOALS: t.Final = (IMMEDIATE, LATEST)


@dataclasses.dataclass(frozen=True, slots=True)
class SandboxOptions:
    """How a backup is restored to see whether it can be."""

    directory: Path | None = None
    """Where sandboxes are made; None: ``sandbox`` in the state directory."""
    to: str = IMMEDIATE
    """``immediate``: as soon as it is consistent; ``latest``: to the end of the archived WAL."""
    keep: bool = False
    """Leave the stopped cluster where it is."""
    user: str | None = None
    """Who runs the server; None: for root the owner of the living cluster, or postgres; for others themselves."""
    preload: str = ""
    """shared_preload_libraries. Libraries may start workers of their own in there."""


def rehearse(
    config: Config,
    repository: Repository,
    subject: Subject,
    options: SandboxOptions,
    workers: int,
    reporter: Reporter,
    exposed: set[Path],
) -> None:
    """Restore one backup in a sandbox and add checks, figures and findings to the subject.

    ``exposed``: identities that a sandbox's user can read and that were warned of already; gets more.
    Nothing is left of it, unless that was asked for. Raises what kept it from being tried: ConfigError
    (``no-postgresql``, ``sandbox-user``), RestoreError (``sandbox-directory``, ``target-space`` …), LocationError.
    """
    record = subject.record
    if record is None:
        return
    if record.header.postgres is None or record.header.kind not in PHYSICAL:
        raise ConfigError(
            f"backup {record.id} is of kind {record.header.kind}: there is no server to be started on it",
            hint="Verify it at the level content.",
            id="sandbox-not-physical",
        )
    if options.to not in GOALS:
        raise ConfigError(f"a sandbox recovers to {' or '.join(GOALS)}, not to {options.to!r}")
    cluster = config.clusters.get(record.source)
    programs = find_programs(record.header.postgres.version, cluster.bin_directory if cluster else None)
    account = server_account(options.user, cluster.data_directory if cluster else None)
    _warn_of_exposed_identity(config.repository.keys, account, reporter, exposed)
    base = options.directory or config.state_directory / "sandbox"
    run = _Rehearsal(repository, subject, record, record.header.postgres, options, workers, reporter)
    if not run.wal_is_there():
        return
    try:
        with SandboxDirectory(base.absolute(), account, reporter) as place:
            run.restore_and_ask(place, account, programs, cluster)
    except RestoreError as error:
        raise unusable(error) from error


def _warn_of_exposed_identity(keys: Path, account: Account, reporter: Reporter, exposed: set[Path]) -> None:
    """What is in a backup can run programs as the user of its server: it may be a thief who made it."""
    identity = keys / FILES["identity"]
    if identity in exposed or not account.may_read(identity):
        return
    exposed.add(identity)
    reporter.warn(
        f"the sandbox runs as {account.name}, who can read {identity}: code in a backup that somebody has prepared "
        "could take the identity with it. Run this as root, with keys that only root can read and --user of an account "
        "that owns nothing else"
    )


class _Rehearsal:
    def __init__(
        self,
        repository: Repository,
        subject: Subject,
        record: BackupRecord,
        info: PostgresInfo,
        options: SandboxOptions,
        workers: int,
        reporter: Reporter,
    ) -> None:
        self._repository = repository
        self._subject = subject
        self._record = record
        self._info = info
        self._options = options
        self._workers = workers
        self._reporter = reporter
        self._began = time.monotonic()

    def _check(self, name: str, ok: bool | None, detail: str, seconds: float = 0.0) -> None:
        self._subject.result.checks.append(Check(name, ok, detail, seconds))

    def wal_is_there(self) -> bool:
        """Without it the server cannot become consistent: no need to restore anything to see that."""
        index = WalIndex.load(self._repository, int(self._info.system_identifier))
        missing = index.missing(backup_segments(self._info))
        if missing and not index.lost:
            words = f"no location has {missing[0]}, which the backup needs ({len(missing)} are missing)"
            self._check("wal", False, words)
            return False
        return True

    def restore_and_ask(
        self, place: SandboxDirectory, account: Account, programs: Path, cluster: ClusterConfig | None
    ) -> None:
        info = self._info
        service = WalService(self._repository, info, place, beyond_the_backup=self._options.to == LATEST)
        with holding(self._repository, self._record, _now(), self._reporter), service:
            recovery = self._recovery(service)
            if self._materialise(place, account, recovery) is None:
                return
            with Sandbox(place, account, programs) as sandbox:
                version = server_version(programs)
                settings = sandbox_settings(info, version, place, recovery, preload=self._options.preload)
                sandbox.configure(settings)
                self._ask(sandbox, service, version, cluster)
        self._subject.result.figures["total_seconds"] = round(time.monotonic() - self._began, 3)
        if self._options.keep:
            place.keep(f"the sandbox of backup {self._record.id}, which was to be kept")
            self._reporter.note(f"the sandbox is kept in {place.path}; it is yours to remove")

    def _recovery(self, service: WalService) -> Recovery:
        if self._options.to == IMMEDIATE:
            return Recovery(service.restore_command, RecoveryTarget.immediate(), CURRENT_TIMELINE)
        index = WalIndex.load(self._repository, int(self._info.system_identifier))
        known = histories(self._repository, index).values()
        timeline = max(
            (history.timeline for history in known if leads_to(self._record, history)), default=self._info.timeline
        )
        # A number needs a history file, which there may not be of the backup's own timeline.
        wanted = CURRENT_TIMELINE if timeline == self._info.timeline else str(timeline)
        return Recovery(service.restore_command, RecoveryTarget.latest(), wanted)

    def _materialise(self, place: SandboxDirectory, account: Account, recovery: Recovery) -> Materialised | None:
        """None when parts of the backup are damaged, which is a finding then."""
        try:
            done = materialise(
                self._repository,
                self._record,
                place.data,
                recovery=recovery,
                tablespace_root=place.tablespaces,
                workers=self._workers,
                owner=account.name,
                durable=False,
                reporter=self._reporter,
            )
        except DamageError as error:
            self._blame(error)
            return None
        self._subject.result.figures |= {
            "restore_seconds": round(done.seconds, 3),
            "files": done.files,
            "bytes_restored": done.bytes_restored,
        }
        self._check("restore", True, f"{done.files} files, {done.bytes_restored} bytes", done.seconds)
        return done

    def _blame(self, error: DamageError) -> None:
        """What was read is in no location as it should be; which objects those are stands in the error."""
        files = [str(file) for file in getattr(error, "files", ())]
        where = ", ".join(self._subject.holders)
        objects = dict.fromkeys(_OBJECT.findall(error.message)) or {self._subject.manifest_name: None}
        for name in objects:
            what = "a restore fails because of it"
            self._subject.add("damaged", DAMAGE, where, name, what, files=files[:FILES_LISTED], files_total=len(files))
        self._check("restore", False, error.message)

    def _ask(self, sandbox: Sandbox, service: WalService, version: int, cluster: ClusterConfig | None) -> None:
        self._reporter.phase("recovering")
        try:
            sandbox.start()
            seconds = sandbox.wait_ready(lambda: not service.alive)
        except ServerFailed as error:
            self._did_not_start(service, error)
            return
        self._reporter.phase("checking the restored cluster")
        log_in(sandbox, [*_user_of(cluster), "postgres", sandbox.account.name])
        figures = self._subject.result.figures
        figures["recovery_seconds"] = round(seconds, 3)
        figures["wal_segments"] = service.segments
        try:
            point = figures["recovery_point"] = self._recovery_point(sandbox)
        except QueryFailed as error:
            self._check("recovery", False, str(error), seconds)
            return
        self._check("recovery", True, _recovered_words(point, service), seconds)
        checks = Checks(sandbox, version, self._workers)
        assertions = cluster.verify.assertions if cluster is not None else ()
        for answer in checks.of_the_running_server(assertions):
            self._add(answer)
        figures |= {"databases": checks.databases, "tables": checks.tables}
        if not self._stop(sandbox):
            return
        self._add(checks.of_the_stopped_server(page_checksums=self._info.page_checksums))

    def _stop(self, sandbox: Sandbox) -> bool:
        began = time.monotonic()
        try:
            sandbox.stop()
        except ServerFailed as error:
            self._check("stop", False, str(error))
            return False
        self._check("stop", True, "a clean shutdown", time.monotonic() - began)
        return True

    def _did_not_start(self, service: WalService, error: ServerFailed) -> None:
        """A location that does not answer is no fault of the backup; everything else is."""
        known = service.error
        if known is not None and not isinstance(known, DamageError):
            raise known
        if not service.alive:
            raise RestoreError(
                "the thread that gives WAL to the sandbox has ended",
                hint="This is a defect of cryobackup: please report it.",
                id="internal",
            )
        said = f"{known.message}; " if known is not None else ""
        self._check("recovery", False, f"PostgreSQL did not get through recovery: {said}{error}")

    def _add(self, answer: Answer) -> None:
        self._check(answer.name, answer.ok, answer.detail, answer.seconds)
        if answer.ok is None:
            self._reporter.note(f"{answer.name} was left out: {answer.detail}")

    def _recovery_point(self, sandbox: Sandbox) -> dict[str, t.Any]:
        """What the recovered cluster says itself: the newest transaction it has, and where replay ended."""
        query = (
            "SELECT pg_catalog.pg_last_wal_replay_lsn(),"
            " pg_catalog.to_char(pg_catalog.pg_last_xact_replay_timestamp() AT TIME ZONE 'UTC',"
            " 'YYYY-MM-DD\"T\"HH24:MI:SS.US+00:00')"
        )
        with any_session(sandbox) as session:
            lsn, when = session.query(query)[0]
        return {"lsn": lsn, "time": when, "timeline": self._info.timeline, "goal": self._options.to}


def _user_of(cluster: ClusterConfig | None) -> list[str]:
    from psycopg2 import ProgrammingError
    from psycopg2.extensions import parse_dsn

    try:
        user = parse_dsn(cluster.connection).get("user") if cluster is not None else None
    except ProgrammingError:
        return []
    return [user] if user else []


def _recovered_words(point: dict[str, t.Any], service: WalService) -> str:
    when = f", last transaction of {point['time']}" if point["time"] else ", no transaction on the way"
    moved = sorted(service.moved_tablespaces)
    also = f"; tablespaces that the WAL creates are inside the sandbox: {', '.join(moved)}" if moved else ""
    return f"consistent and open at {point['lsn']}{when}{also}"


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
