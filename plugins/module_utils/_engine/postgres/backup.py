# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A physical backup of a running cluster, full or incremental, from its lock to its commit.

The order is that of docs/repository-format.md, section 8, around PostgreSQL's own: start, copy, pg_control last,
stop, wait for the WAL.
"""

from __future__ import annotations

import datetime as dt
import time
import typing as t

from ..errors import ClusterError, ConfigError, LocationError, reason_of
from ..locks import locked
from ..repository import model, names
from ..repository.catalog import Catalog
from ..repository.compaction import pack_uses, plan_compaction
from ..repository.epochs import behind
from ..repository.known import remember
from ..repository.lease import boot_id
from ..repository.repository import Repository
from ..repository.session import BackupSession
from ..words import format_bytes
from .ancestry import left_behind
from .archive_outages import Outages
from .archive_wait import WalNotArchived, WalWait, archived_here, wait_for_wal
from .backup_header import Copied, draft_header, new_header
from .backup_mode import Stopped, start_backup, stop_backup
from .backup_wal import bring_wal
from .basis import Basis, KnownEntries
from .changes import ClusterState, Witness
from .connection import Connection
from .control import read_control
from .copier import Copier
from .last_files import control_file, files_of_backup_mode
from .parent import Choice, Parent, choose_parent, leave_out, open_parent
from .preflight import Facts, examine
from .reader import PageRules
from .readers import Readers
from .relfile import CONTROL_FILE
from .result import BackupResult
from .resume import Marks, as_parent, drafts_directory, find_draft, forget
from .room import Checked, Wanted, check_room
from .standby import advance, explain_refusal, finish_segment, is_standby, require_same
from .wal import segment_names
from .walk import Walk

if t.TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..config import ClusterConfig, Config
    from ..errors import CryoError
    from ..events import Reporter
    from ..repository.model import BackupHeader
    from ..repository.session import CommitResult
    from ..storage.base import Location

LABEL_CHARACTERS: t.Final = 200
NEWEST_TESTED_MAJOR: t.Final = 18


def utc_now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def take_backup(
    config: Config,
    cluster: ClusterConfig,
    *,
    kind: str = model.FULL,
    label: str = "",
    reporter: Reporter,
    clock: Callable[[], dt.datetime] = utc_now,
    fast_checkpoint: bool = True,
    space_check: bool = True,
) -> BackupResult:
    """Back up a running cluster. On return the backup exists, durably, in at least one location.

    ``kind``: ``full`` or ``incremental``; an incremental without a usable parent becomes a full one, and the result
    says why. ``label``: one line for people. ``fast_checkpoint``: begin at once, at the price of a burst of
    writing; else PostgreSQL takes its time (``checkpoint_completion_target``). ``space_check``: do not begin what
    cannot fit.

    Raises CryoError for every failure: then there is no backup, and earlier ones are untouched. BusyError when one
    of the same source is running on this host, ClusterError when PostgreSQL does not allow or cannot do it,
    SourceError when its files cannot be read, RepositoryError when they or the WAL cannot be stored.
    """
    check_arguments(kind, label)
    with locked(config.state_directory, f"source-{cluster.name}", f"a backup of {cluster.name}"):
        repository = Repository.open(config.repository)
        remember(config.state_directory, repository)
        require_locations(config, repository)
        for location in repository.locations:
            # It answers: WAL goes there again, too, or it would lack that of the backup.
            Outages(config.state_directory).answered(location.name)
        with Connection(cluster.connection, application_name=f"cryobackup backup {cluster.name}") as connection:
            run = _Run(config, cluster, repository, connection, reporter, clock)
            return run.run(kind, label, fast_checkpoint=fast_checkpoint, space_check=space_check)


def check_arguments(kind: str, label: str) -> None:
    """Raises ConfigError for what no backup can be asked for."""
    if kind not in model.PHYSICAL:
        raise ConfigError(f"{kind!r} is no kind of physical backup", hint="Use full or incremental.", id="usage")
    if len(label) > LABEL_CHARACTERS or not label.isprintable():
        raise ConfigError(
            f"a label is one printable line of at most {LABEL_CHARACTERS} characters", hint="Shorten it.", id="usage"
        )


class _Run:
    """One backup. ``run`` once."""

    def __init__(
        self,
        config: Config,
        cluster: ClusterConfig,
        repository: Repository,
        connection: Connection,
        reporter: Reporter,
        clock: Callable[[], dt.datetime],
    ) -> None:
        self._config = config
        self._cluster = cluster
        self._repository = repository
        self._connection = connection
        self._reporter = reporter
        self._clock = clock

    def run(self, kind: str, label: str, *, fast_checkpoint: bool, space_check: bool) -> BackupResult:
        began = time.monotonic()
        started_at = self._clock()
        if fast_checkpoint and is_standby(self._connection):
            advance(self._connection, self._cluster, self._reporter)
        facts = examine(self._connection, self._cluster.data_directory)
        warn_of(self._repository, facts, self._connection, self._reporter)
        newer = behind(self._repository)
        if newer is not None:
            self._reporter.warn(f"{newer.message}. {newer.hint}")
        state = cluster_state(facts, started_at)
        choice = choose(self._repository, self._cluster.name, kind, state, self._reporter)
        based_on = choice.record.id if choice.record is not None else None
        draft = find_draft(self._config, self._cluster.name, self._repository, facts, state, based_on)
        room = Checked()
        if space_check:
            room = leave_room(
                self._config,
                self._repository,
                self._connection,
                self._cluster.name,
                choice,
                started_at,
                self._reporter,
                there=draft.header.stored_bytes_own if draft is not None else 0,
            )
        if room.left_out:
            choice = choose(self._repository, self._cluster.name, kind, state, self._reporter)
        with BackupSession(
            self._repository,
            source=self._cluster.name,
            parent=choice.record,
            now=started_at,
            spool=self._config.state_directory,
            draft=draft,
        ) as session:
            for location, most in room.quotas:
                session.packs.limit(location, most)
            parent, reason = _open_parent(session, choice, state)
            if parent is None and kind == model.INCREMENTAL:
                self._reporter.note(f"taking a full backup: {reason}")
            basis = self._basis(session, state, parent)
            copied = self._copy(session, facts, state, basis, room.left, fast_checkpoint=fast_checkpoint)
            self._wait_for_wal(session, facts, copied.stopped)
            header = new_header(session, facts, state, copied, reason, label, started_at, finished_at=self._clock())
            commit = session.commit(header)
        forget(self._config, self._cluster.name, header.kind)
        return self._result(kind, header, commit, time.monotonic() - began)

    def _basis(self, session: BackupSession, state: ClusterState, parent: Parent | None) -> Basis:
        draft = session.draft
        if draft is None or draft.header.parent != (parent.manifest.header.backup_id if parent is not None else None):
            return Basis(parent)
        interrupted, done = draft.header.backup_id, format_bytes(draft.bytes)
        self._reporter.note(f"going on from backup {interrupted}, which was interrupted: files of {done} are done")
        return Basis(parent, as_parent(draft, state, parent))

    def _copy(
        self,
        session: BackupSession,
        facts: Facts,
        state: ClusterState,
        basis: Basis,
        room: int | None,
        *,
        fast_checkpoint: bool,
    ) -> Copied:
        """From start to stop. All packs are durable on return."""
        self._reporter.phase("starting")
        data_directory = self._cluster.data_directory
        start_lsn = start_backup(self._connection, f"cryobackup {session.backup_id}", fast=fast_checkpoint)
        next_oid = read_control(data_directory / CONTROL_FILE).next_oid
        header = draft_header(session, facts, state, basis, start_lsn, next_oid)
        directory = drafts_directory(self._config, self._cluster.name)
        marks = Marks(session.keep_draft(directory, header), self._connection)
        if basis.parent is not None or basis.draft is not None:
            self._reporter.phase("asking for changes")
            basis = basis.asked(self._connection, facts.version, state.history, start_lsn)

        def advance(size: int) -> None:
            self._reporter.advance(size)
            marks.tick()

        walk = Walk(
            data_directory,
            major=facts.major,
            catalog_version=facts.control.catalog_version,
            configuration_files=facts.configuration_files,
            warn=self._reporter.warn,
        )
        with Readers(
            session.packs,
            workers=self._cluster.workers,
            rules=PageRules(state.block_size, start_lsn, state.page_checksums),
            bandwidth_limit=self._cluster.bandwidth_limit,
            digest_key=self._repository.keys.digest_key,
            heartbeat=self._connection.keep_alive,
        ) as readers:
            copier = Copier(
                session,
                readers,
                block_size=state.block_size,
                segment_blocks=state.segment_blocks,
                advance=advance,
                compaction=None
                if basis.parent is None
                else plan_compaction(pack_uses(basis.parent.manifest.header), room=room),
            )
            self._reporter.phase("copying", self._expected_bytes(basis.parent))
            self._copy_all(walk, copier, basis)
            control = control_file(data_directory)
            self._reporter.phase("stopping")
            stopped = self._stop(facts)
            for found, contents in (*files_of_backup_mode(stopped, control[0]), control):
                copier.add_contents(found, contents)
            readers.finish()
            marks.set()
        copier.settle(stopped.stop_lsn)
        if copier.counters.partial_pages:
            self._reporter.warn(f"{copier.counters.partial_pages} files of relations do not end with a whole page")
        return Copied(copier, basis, stopped, walk.tablespaces, start_lsn, next_oid)

    def _stop(self, facts: Facts) -> Stopped:
        try:
            stopped = stop_backup(self._connection)
        except ClusterError as error:
            if not facts.standby:
                raise
            raise explain_refusal(self._connection, error) from error
        require_same(stopped, self._cluster.data_directory, standby=facts.standby)
        if facts.standby:
            finish_segment(self._connection, self._cluster, stopped.stop_lsn, self._reporter)
        return stopped

    def _copy_all(self, walk: Walk, copier: Copier, basis: Basis) -> None:
        entries = KnownEntries(basis)
        for found in walk:
            copier.add(found, entries.at(found.path))
            self._connection.keep_alive()
        copier.finish()

    def _expected_bytes(self, parent: Parent | None) -> int | None:
        """What there is to copy, roughly, for people who wait."""
        if parent is not None:
            return parent.manifest.header.totals.bytes_source
        return cluster_bytes(self._connection)

    def _wait_for_wal(self, session: BackupSession, facts: Facts, stopped: Stopped) -> None:
        """Without the WAL written meanwhile a backup is none. A location that lacks it does not get the backup."""
        self._reporter.phase("waiting for WAL")
        start, size = stopped.label, facts.control.wal_segment_size
        segments = [*segment_names(start.start_timeline, start.start_lsn, stopped.stop_lsn, size)]
        session.fanout.each(_must_answer)
        while (wait := self._wait_in(session, facts, segments)) is None:
            self._reporter.note("a location was lost: waiting for the WAL in the others")
        for place in session.fanout.healthy:
            if place.name in wait.missing:
                session.fanout.lose(place, _lacks_wal(place.name, wait))

    def _wait_in(self, session: BackupSession, facts: Facts, segments: list[str]) -> WalWait | None:
        """None when a location that was waited for in vain turns out to be lost."""
        lost, places = session.fanout.lost, session.fanout.healthy
        keys, level = self._repository.keys, self._repository.level
        if any(self._config.repository.locations[name].required for name in lost):
            bring_wal(self._cluster.data_directory, segments, places, keys, level=level, reporter=self._reporter)
        try:
            return wait_for_wal(
                places,
                facts.system_identifier,
                segments,
                timeout=self._cluster.archive_timeout,
                keys=keys,
                explain=lambda: self._explain_archiver(facts, session.fanout.lost),
                glance=None if facts.standby else archived_here(self._cluster.data_directory),
            )
        except WalNotArchived:
            session.fanout.each(_must_answer)
            if session.fanout.lost.keys() == lost.keys():
                raise
            return None

    def _explain_archiver(self, facts: Facts, lost: Iterable[str]) -> str:
        if facts.standby and facts.settings.get("archive_mode") != "always":
            return (
                "The primary archives the WAL of a backup from a standby, when its segment is full or `primary` of the "
                "configuration, or the server that it streams from, could be asked to finish it: look there."
            )
        rows = self._connection.query(
            "SELECT failed_count, last_failed_wal, last_failed_time::text, last_archived_wal FROM pg_stat_archiver"
        )
        failed, wal, when, archived = rows[0] if rows else (0, None, None, None)
        last = f"The last segment it archived was {archived}." if archived else "It has archived nothing so far."
        down = [name for name in lost if self._config.repository.locations[name].required]
        if down:
            last += f" WAL counts as archived only when it is in {', '.join(down)} too, which does not answer."
        if not failed:
            return f"PostgreSQL reports no failure of archive_command. {last}"
        return f"PostgreSQL failed {failed} times to archive WAL, last {wal} at {when}. {last}"

    def _result(self, kind: str, header: BackupHeader, commit: CommitResult, seconds: float) -> BackupResult:
        locations: dict[str, CryoError | None] = {
            name: None if name in commit.locations else commit.lost.get(name)
            for name in self._config.repository.locations
        }
        for name, error in commit.lost.items():
            if name not in self._repository.lost:
                self._reporter.warn(f"location {name} does not have the backup: {reason_of(error, name)}")
        requests = {location.name: location.requests() for location in self._repository.locations}
        return BackupResult.of(header, requested=kind, locations=locations, seconds=seconds, requests=requests)


def _must_answer(location: Location) -> None:
    """Raises LocationError when the location was lost since something was last written there."""
    if location.stat(names.REPOSITORY_JSON) is None:
        raise LocationError(
            f"location {location.name!r}: {location.describe()} holds no repository any more",
            hint="Was it unmounted just now? Nothing was changed.",
            id="not-initialised",
        )


def choose(repository: Repository, source: str, kind: str, state: ClusterState, reporter: Reporter) -> Choice:
    """What a backup of that kind is based on. Optional locations that lack it are left out from here on."""
    if kind == model.FULL:
        return Choice(None, "asked for")
    choice = choose_parent(Catalog.load(repository, source).of(source), state, repository.locations)
    leave_out(repository, choice, reporter)
    return choice


def leave_room(
    config: Config,
    repository: Repository,
    connection: Connection,
    source: str,
    choice: Choice,
    now: dt.datetime,
    reporter: Reporter,
    *,
    there: int = 0,
) -> Checked:
    """``check_room`` for the backup that would be made. ``there``: bytes of it that are stored already."""
    kind = model.FULL if choice.record is None else model.INCREMENTAL
    wanted = Wanted(source, kind, cluster_bytes(connection), there)
    return check_room(
        config, repository, wanted, lambda: Catalog.load(repository, source).backups, now=now, reporter=reporter
    )


def cluster_bytes(connection: Connection) -> int | None:
    """What the cluster takes on its disks, roughly; None where this role may not ask."""
    if not connection.value("SELECT pg_has_role('pg_read_all_stats', 'USAGE')"):
        return None
    return int(connection.value("SELECT sum(pg_tablespace_size(oid))::int8 FROM pg_tablespace"))


def require_locations(config: Config, repository: Repository) -> None:
    """Without a required location no WAL counts as archived, and a backup would wait for its own in vain.

    Raises LocationError.
    """
    for name, error in repository.lost.items():
        if config.repository.locations[name].required:
            raise LocationError(
                f"required location {name} does not answer: {reason_of(error, name)}",
                hint="No backup was begun: it needs its WAL in every required location. Bring the location back; or "
                f"set `required: false` for it, when WAL and backups may count without it. {error.hint}",
                id=error.id,
            )


def warn_of(repository: Repository, facts: Facts, connection: Connection, reporter: Reporter) -> None:
    """Tell what does not stop a backup, and makes it worth less or slow."""
    for name, error in repository.lost.items():
        reporter.warn(f"location {name} does not take part: {reason_of(error, name)}")
    if facts.major > NEWEST_TESTED_MAJOR:
        reporter.warn(f"PostgreSQL {facts.major} is newer than what this version was tested with")
    if not facts.standby:
        other = left_behind(repository.locations, facts.system_identifier, facts.history.timeline)
        if other is not None:
            reporter.warn(other)
    failing = connection.query(
        "SELECT last_failed_wal FROM pg_stat_archiver"
        " WHERE last_failed_time > coalesce(last_archived_time, '-infinity')"
    )
    if failing:
        reporter.warn(f"PostgreSQL fails to archive WAL, last {failing[0][0]}: the backup waits for it")


def cluster_state(facts: Facts, now: dt.datetime) -> ClusterState:
    """What the choice of a parent depends on."""
    control = facts.control
    return ClusterState(
        system_identifier=str(facts.system_identifier),
        version=facts.version,
        history=facts.history,
        lsn=facts.lsn,
        next_oid=control.next_oid,
        block_size=control.block_size,
        segment_blocks=control.relation_segment_blocks,
        wal_segment_size=control.wal_segment_size,
        page_checksums=facts.page_checksums,
        summarize_wal=facts.settings.get("summarize_wal") == "on",
        now=now,
        witness=Witness(boot_id().split("/")[0], facts.postmaster_started_at, control.wal_log_hints),
        standby=facts.standby,
    )


def _open_parent(session: BackupSession, choice: Choice, state: ClusterState) -> tuple[Parent | None, str]:
    """The parent and why it is the one, or None and why there is none."""
    if choice.record is None:
        return None, choice.reason
    opened = open_parent(session, state)
    return (opened, choice.reason) if isinstance(opened, Parent) else (None, opened)


def _lacks_wal(name: str, wait: WalWait) -> LocationError:
    missing = wait.missing[name]
    failure = wait.failed.get(name)
    why = f": {failure.message}" if failure else ""
    return LocationError(
        f"location {name!r} lacks WAL that the backup needs, from {missing[0]} on{why}",
        hint="The backup is complete in the other locations. `cryobackup status` shows what is still on its way there.",
        id="wal-not-archived",
    )
