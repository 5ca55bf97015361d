# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``cryobackup check``: the whole way, tried out from the configuration to a segment read back from the archive.

Every step is a finding of its own, so that one run shows all that is wrong; a step that needs an earlier one which
failed is left out. Nothing is left behind but one archived segment, which is part of the archive.
"""

from __future__ import annotations

import dataclasses
import os
import typing as t
from pathlib import Path

from ..config.advice import advice
from ..crypto.keys import KeyRing
from ..errors import ClusterError, ConfigError, CryoError, DamageError, reason_of
from ..repository.epochs import behind
from ..repository.probe import probe_location
from ..repository.repository import Repository
from ..repository.rotation import STAGE
from ..words import format_bytes
from .ancestry import left_behind
from .archive_commands import archive_command, this_command
from .archive_object import WalReader, look_at_wal
from .archive_source import WalSource
from .archive_wait import archived_here, archiver_report, wait_for_wal
from .connection import Connection
from .control import ControlFile, read_control
from .lsn import last_segment_number, parse_lsn
from .standby import check_primary, is_standby
from .wal import segment_name

if t.TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Sequence

    from ..config import ClusterConfig, Config
    from ..events import Reporter
    from ..repository.holdings import Room
    from ..storage.base import Location

SUPPORTED_MAJORS: t.Final = range(13, 19)


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One step. ``warning``: it passed, and a person should read the detail."""

    name: str
    ok: bool
    detail: str
    hint: str = ""
    warning: bool = False

    def as_dict(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in ("name", "ok", "warning", "detail", "hint")}


class _Findings:
    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self.all: list[Finding] = []

    def passed(self, name: str, detail: str) -> None:
        self.all.append(Finding(name, ok=True, detail=detail))

    def warn(self, name: str, detail: str, hint: str = "") -> None:
        self.all.append(Finding(name, ok=True, detail=detail, hint=hint, warning=True))

    def failed(self, name: str, error: CryoError) -> None:
        self.all.append(Finding(name, ok=False, detail=error.message, hint=error.hint))


def check(
    config: Config,
    clusters: Sequence[ClusterConfig],
    *,
    now: dt.datetime,
    timeout: float,
    reporter: Reporter,
) -> list[Finding]:
    """Try everything out; ``timeout`` (seconds) is for the archiving of a segment. Raises nothing that it can tell."""
    findings = _Findings(reporter)
    findings.passed("configuration", str(config.path))
    for each in advice(config):
        findings.warn("configuration", str(each), each.hint)
    _check_state_directory(config, findings)
    keys = _check_keys(config, findings)
    if keys is not None:
        for name in config.repository.locations:
            _check_location(config, name, now, findings)
        _check_epoch(config, findings)
    for cluster in clusters:
        reporter.phase(f"checking cluster {cluster.name}")
        _ClusterCheck(config, cluster, keys, findings).run(timeout)
    return findings.all


def _check_state_directory(config: Config, findings: _Findings) -> None:
    path = config.state_directory
    existing = next(parent for parent in (path, *path.parents) if os.path.exists(parent))
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        findings.passed("state directory", str(path))
        return
    findings.failed(
        "state directory",
        ConfigError(
            f"{path} cannot be written by this user",
            hint="Run as the user that makes the backups, or set `state_directory` in the configuration.",
        ),
    )


def _check_keys(config: Config, findings: _Findings) -> KeyRing | None:
    try:
        keys = KeyRing.load(config.repository.keys)
        keys.public(keys.epoch)
    except CryoError as error:
        findings.failed("keys", error)
        return None
    identity = (
        "identity here: this host can read backups" if keys.has_identity else "no identity: this host can only write"
    )
    findings.passed("keys", f"repository {keys.repository_id}, epoch {keys.epoch}, {identity}")
    return keys


def _check_epoch(config: Config, findings: _Findings) -> None:
    try:
        newer = behind(Repository.open(config.repository))
    except CryoError:
        return  # the findings about the locations say it
    if newer is not None:
        findings.warn("keys", newer.message, newer.hint)
    if (config.repository.keys / STAGE).exists():
        findings.warn("keys", "a rotation was interrupted; nothing uses its keys yet", "Run `cryobackup key rotate`.")


def _check_location(config: Config, name: str, now: dt.datetime, findings: _Findings) -> None:
    title = f"location {name}"
    try:
        probe = probe_location(config.repository, name, now)
    except CryoError as error:
        findings.failed(title, error)
        return
    findings.passed(title, f"{probe.where}: creates, refuses to overwrite, reads, deletes{_left(probe.room)}")
    for warning in probe.warnings:
        findings.warn(title, warning)


def _left(room: Room) -> str:
    if room.left is None:
        return ""
    if room.by_quota:
        return f", its quota of {format_bytes(room.quota or 0)} leaves {format_bytes(room.left)}"
    return f", {format_bytes(room.left)} free"


class _ClusterCheck:
    """The steps for one cluster, in order."""

    def __init__(self, config: Config, cluster: ClusterConfig, keys: KeyRing | None, findings: _Findings) -> None:
        self._config = config
        self._cluster = cluster
        self._keys = keys
        self._findings = findings

    def _title(self, step: str) -> str:
        return f"cluster {self._cluster.name}: {step}"

    def run(self, timeout: float) -> None:
        step = "data directory"
        try:
            control = self._data_directory()
            step = "connection"
            with Connection(self._cluster.connection, application_name="cryobackup check") as connection:
                self._version(connection)
                step = "privileges"
                self._privileges(connection)
                step = "same server"
                self._same_server(connection, control)
                step = "settings"
                self._settings(connection)
                step = "primary"
                self._primary(connection)
                step = "archiving"
                if self._archiving(connection):
                    step = "archive a segment"
                    self._round_trip(connection, control, timeout)
        except CryoError as error:
            self._findings.failed(self._title(step), error)

    def _data_directory(self) -> ControlFile:
        directory = self._cluster.data_directory
        control = read_control(directory / "global" / "pg_control")
        self._findings.passed(
            self._title("data directory"),
            f"{directory}, system identifier {control.system_identifier}, "
            f"data checksums {'on' if control.has_checksums else 'off'}",
        )
        if not control.has_checksums:
            self._findings.warn(
                self._title("data directory"),
                "without data checksums damaged pages cannot be found when they are backed up",
                hint="pg_checksums --enable turns them on while the cluster is stopped.",
            )
        return control

    def _version(self, connection: Connection) -> None:
        version = connection.server_version
        if version // 10000 not in SUPPORTED_MAJORS:
            raise ClusterError(
                f"PostgreSQL {version // 10000} is not supported",
                hint=f"Supported are {SUPPORTED_MAJORS[0]} to {SUPPORTED_MAJORS[-1]}.",
                id="cluster-version",
            )
        text = connection.value("SHOW server_version")
        user = connection.value("SELECT current_user::text")
        self._findings.passed(self._title("connection"), f"PostgreSQL {text}, as {user}")

    def _same_server(self, connection: Connection, control: ControlFile) -> None:
        """A clone has the same system identifier, and another server may listen here: both must fit."""
        identifier = int(connection.value("SELECT system_identifier FROM pg_control_system()"))
        shown = connection.value("SELECT current_setting('data_directory', true)")
        same = _same_directory(shown, self._cluster.data_directory) if shown else True
        if identifier != control.system_identifier or not same:
            raise ClusterError(
                f"the connection leads to another server (data directory {shown}, system identifier {identifier}) "
                f"than {self._cluster.data_directory} belongs to (system identifier {control.system_identifier})",
                hint="Make `connection` and `data_directory` name one cluster.",
                id="cluster-mismatch",
            )
        self._findings.passed(self._title("same server"), f"its data directory is {shown}")

    def _privileges(self, connection: Connection) -> None:
        if connection.value("SELECT rolsuper FROM pg_roles WHERE rolname = current_user"):
            self._findings.passed(self._title("privileges"), "superuser")
            return
        major = connection.server_version // 10000
        start, stop = ("pg_backup_start", "pg_backup_stop") if major >= 15 else ("pg_start_backup", "pg_stop_backup")
        names = [start, stop, "pg_switch_wal", "pg_create_restore_point"]
        refused = connection.query(
            "SELECT oid::regprocedure::text FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace"
            " AND proname = ANY (%s) AND NOT has_function_privilege(oid, 'EXECUTE') ORDER BY 1",
            names,
        )
        grants = [f"GRANT EXECUTE ON FUNCTION {row[0]} TO …" for row in refused]
        if not connection.value("SELECT pg_has_role('pg_read_all_settings', 'MEMBER')"):
            grants.append("GRANT pg_read_all_settings TO …")
        if grants:
            raise ClusterError(
                f"the user of `connection` lacks {len(grants)} privileges that a backup needs",
                hint="; ".join(grants),
                id="cluster-privileges",
            )
        self._findings.passed(self._title("privileges"), ", ".join(names))

    def _settings(self, connection: Connection) -> None:
        for name, why in (
            ("fsync", "a crash of the machine can destroy the cluster"),
            ("full_page_writes", "a crash of the machine can destroy pages"),
        ):
            if connection.value("SELECT current_setting(%s)", name) == "off":
                self._findings.warn(self._title("settings"), f"{name} is off: {why}")
        if connection.value("SELECT current_setting('summarize_wal', true)") == "off":
            self._findings.warn(
                self._title("settings"),
                "summarize_wal is off: an incremental reads every file that changed, not the changed blocks alone",
                hint="ALTER SYSTEM SET summarize_wal = on; and reload PostgreSQL. It needs no restart.",
            )

    def _primary(self, connection: Connection) -> None:
        """What a backup from a standby needs. Raises ClusterError when `primary` leads elsewhere, or nowhere."""
        if not is_standby(connection):
            return
        title = self._title("primary")
        try:
            lacks = check_primary(connection, self._cluster)
        except ClusterError as error:
            if self._cluster.primary is not None:
                raise
            self._findings.warn(title, f"backups wait until it finishes a segment: {error.message}", hint=error.hint)
            return
        if lacks:
            self._findings.warn(title, "it finishes no segment, or makes no checkpoint, for a backup", hint=lacks)
        else:
            self._findings.passed(title, "it finishes segments and makes checkpoints for backups from this standby")

    def _archiving(self, connection: Connection) -> bool:
        """Whether a segment can be expected to be archived. Raises ClusterError when it should, and cannot."""
        mode, command, library, level, standby = connection.row(
            "SELECT current_setting('archive_mode'), current_setting('archive_command'),"
            " coalesce(current_setting('archive_library', true), ''), current_setting('wal_level'),"
            " pg_is_in_recovery()"
        )
        title = self._title("archiving")
        if standby and mode != "always":
            self._findings.warn(title, "a standby: its WAL is archived by the primary; check it there")
            return False
        suggestion = f"archive_command = '{self._suggestion()}'"
        if level == "minimal":
            raise ClusterError(
                "wal_level is minimal: such WAL cannot be archived",
                hint="Set wal_level = replica and restart PostgreSQL.",
                id="wal-level",
            )
        if mode == "off":
            raise ClusterError(
                "archive_mode is off",
                hint=f"Set archive_mode = on and {suggestion}, and restart PostgreSQL.",
                id="archive-off",
            )
        if not command and not library:
            raise ClusterError(
                "archive_command is empty",
                hint=f"Set {suggestion}, and reload PostgreSQL.",
                id="archive-command-empty",
            )
        if "wal-push" not in command:
            used = f"archive_library {library}" if library else f"archive_command: {command}"
            self._findings.warn(
                title, f"WAL is not archived by this program ({used})", hint=f"Set {suggestion}, and reload PostgreSQL."
            )
        else:
            self._findings.passed(title, f"archive_mode {mode}, archive_command: {command}")
        if standby:
            self._findings.warn(title, "a standby with archive_mode always: segments cannot be switched here")
        return not standby

    def _suggestion(self) -> str:
        try:
            command = this_command()
        except ConfigError:
            command = ["cryobackup"]
        return archive_command(command, self._config.path.absolute()).replace("'", "''")

    def _round_trip(self, connection: Connection, control: ControlFile, timeout: float) -> None:
        title = self._title("archive a segment")
        if self._keys is None:
            return
        segment = switch_segment(connection, control.wal_segment_size)
        repository = Repository.open(self._config.repository)
        for name, lost in repository.lost.items():
            if self._config.repository.locations[name].required:
                raise lost
            self._findings.warn(title, f"location {name!r} was left out: {reason_of(lost, name)}")
        other = left_behind(repository.locations, control.system_identifier, int(segment[:8], 16))
        if other is not None:
            self._findings.warn(title, other, hint="End the server that was left behind, or have it follow: pg_rewind.")
        waited = wait_for_wal(
            repository.locations,
            control.system_identifier,
            [segment],
            timeout=timeout,
            keys=repository.keys,
            explain=lambda: archiver_report(connection),
            glance=archived_here(self._cluster.data_directory),
        )
        for name in waited.missing:
            self._findings.warn(title, f"the optional location {name!r} does not have {segment}")
        places = [location for location in repository.locations if location.name not in waited.missing]
        proofs = self._compare(repository, places, control.system_identifier, segment)
        where = ", ".join(place.name for place in places)
        self._findings.passed(title, f"{segment} is in {where} after {waited.seconds:.1f} s; {'; '.join(proofs)}")

    def _compare(
        self, repository: Repository, places: Sequence[Location], system_identifier: int, segment: str
    ) -> list[str]:
        expected = self._digest_in_pg_wal(repository.keys, segment)
        for place in places:
            stored = look_at_wal(repository.keys, place, system_identifier, segment)
            if stored is None or (expected is not None and stored.digest != expected):
                raise DamageError(
                    f"{segment} in location {place.name!r} is not what PostgreSQL has in pg_wal",
                    hint="Something else archives under this system identifier. See archive_command of all copies.",
                )
            if repository.keys.has_identity:
                for _unused in WalReader.archived(repository.keys, place, system_identifier, segment).chunks():
                    pass
        return [
            "equal to the one in pg_wal" if expected is not None else "pg_wal does not have it any more",
            "read back in full" if repository.keys.has_identity else "not read back, as there is no identity here",
        ]

    def _digest_in_pg_wal(self, keys: KeyRing, segment: str) -> bytes | None:
        """None when PostgreSQL has recycled the segment already."""
        path = self._cluster.data_directory / "pg_wal" / segment
        if not path.exists():
            return None
        with WalSource(path, self._cluster.data_directory) as source:
            return source.digest(keys.digest_key)


def switch_segment(connection: Connection, segment_size: int) -> str:
    """Write a little WAL and finish its segment, on a primary. Returns the name of the finished segment.

    Without something new in it PostgreSQL would not switch (``RequestXLogSwitch``).
    """
    connection.query("SELECT pg_logical_emit_message(false, 'cryobackup', 'check')")
    lsn, current = connection.row("SELECT lsn::text, pg_walfile_name(lsn) FROM pg_switch_wal() AS lsn")
    # The position is the end of the switch record, on which releases name different segments if it is a boundary.
    number = last_segment_number(parse_lsn(lsn), segment_size)
    return segment_name(int(current[:8], 16), number, segment_size)


def _same_directory(one: str, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
