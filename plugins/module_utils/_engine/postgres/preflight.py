# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What must hold before a physical backup, and what is known of the cluster by then."""

from __future__ import annotations

import dataclasses
import os
import typing as t

from ..errors import ClusterError, SourceError
from ..repository.model import Database
from .ancestry import history_of
from .configuration_files import included_files
from .control import ControlFile, read_control
from .lsn import parse_lsn
from .standby import is_standby

if t.TYPE_CHECKING:
    from pathlib import Path

    from .connection import Connection
    from .timeline import TimelineHistory

OLDEST_VERSION: t.Final = 130000
FIRST_UNTESTED_VERSION: t.Final = 190000
FUNCTIONS_RENAMED_IN: t.Final = 150000
"""pg_start_backup and pg_stop_backup became pg_backup_start and pg_backup_stop."""

_SETTINGS: t.Final = (
    # A standby, and so a point-in-time recovery, refuses to start with less (CheckRequiredParameterValues).
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
    "wal_level",
    "wal_log_hints",
    "track_commit_timestamp",
    "shared_preload_libraries",
    "session_preload_libraries",
    "local_preload_libraries",
    "server_encoding",
    "lc_collate",
    "lc_ctype",
    "lc_messages",
    "data_checksums",
    "data_directory_mode",
    "block_size",
    "port",
    "listen_addresses",
    "unix_socket_directories",
    "config_file",
    "hba_file",
    "ident_file",
    "external_pid_file",
    "archive_mode",
    "archive_command",
    "archive_library",
    "full_page_writes",
    "summarize_wal",
    "cluster_name",
    "TimeZone",
)


# Each name is in the encoding of the database that it was given in: as bytes, it is no error to read it here.
_DATABASES = r"SELECT oid::int8, decode(replace(datname::text, '\', '\\'), 'escape') FROM pg_database ORDER BY oid"


@dataclasses.dataclass(frozen=True, slots=True)
class Facts:
    """The cluster, before the backup starts."""

    version: int
    version_text: str
    system_identifier: int
    standby: bool
    history: TimelineHistory
    """Of its timeline."""
    lsn: int
    """Where WAL ends now; on a standby, its last restartpoint: a backup starts there at the earliest."""
    data_directory: str
    """As the server names it."""
    postmaster_started_at: str
    control: ControlFile
    settings: dict[str, str]
    databases: list[Database]
    collation_versions: dict[str, str]
    configuration_files: tuple[str, ...]
    """All that the server reads, wherever they lie."""

    @property
    def major(self) -> int:
        return self.version // 10000

    @property
    def page_checksums(self) -> bool:
        return self.control.checksum_version != 0


def examine(connection: Connection, data_directory: Path) -> Facts:
    """Find out all that a backup needs to know. Changes nothing.

    Raises ClusterError, with one clear reason: ``cluster-version``, ``cluster-pooler``, ``cluster-privileges``,
    ``cluster-mismatch``, ``wal-level``, ``archive-off``, ``archive-command-empty``; and
    SourceError when pg_control cannot be read.
    """
    version = connection.server_version
    if version < OLDEST_VERSION:
        raise ClusterError(
            f"PostgreSQL {version // 10000} is too old",
            hint="PostgreSQL 13 to 18 are supported.",
            id="cluster-version",
        )
    _refuse_pooler(connection)
    _check_privileges(connection, version)
    settings = _settings(connection)
    control = read_control(data_directory / "global" / "pg_control")
    server_directory = _check_directory(connection, control, data_directory)
    standby = is_standby(connection)
    _check_wal_level(settings)
    if not standby:
        _check_archiving(settings)
    lsn, timeline = (control.redo_lsn, control.timeline) if standby else _position(connection)
    return Facts(
        version=version,
        version_text=str(connection.value("SELECT current_setting('server_version')")),
        system_identifier=control.system_identifier,
        standby=standby,
        history=history_of(data_directory, timeline),
        lsn=lsn,
        data_directory=server_directory,
        postmaster_started_at=str(connection.value("SELECT pg_postmaster_start_time()::timestamptz::text")),
        control=control,
        settings=settings,
        databases=[
            Database(int(oid), bytes(name).decode("utf-8", "backslashreplace"))
            for oid, name in connection.query(_DATABASES)
        ],
        collation_versions=_collation_versions(connection, version),
        configuration_files=_configuration_files(connection, settings),
    )


def _refuse_pooler(connection: Connection) -> None:
    """A pooler may give the two ends of a backup to different sessions, and makes up its own process id."""
    if connection.value("SELECT pg_backend_pid()") != connection.protocol_pid:
        raise ClusterError(
            "the connection goes through a connection pooler",
            hint="A backup needs one session from start to stop: set `connection` to the server's own socket or port.",
            id="cluster-pooler",
        )


def backup_functions(version: int) -> tuple[str, str]:
    """The functions' names and argument types, as GRANT wants them."""
    if version >= FUNCTIONS_RENAMED_IN:
        return "pg_backup_start(text, boolean)", "pg_backup_stop(boolean)"
    return "pg_start_backup(text, boolean, boolean)", "pg_stop_backup(boolean, boolean)"


def _check_privileges(connection: Connection, version: int) -> None:
    """Everything that is missing in one message, with what gives it."""
    user = str(connection.value("SELECT quote_ident(current_user)"))
    missing = [
        f"GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO {user};"
        for function in (*backup_functions(version), "pg_control_system()")
        if not connection.value("SELECT has_function_privilege(%s, 'EXECUTE')", f"pg_catalog.{function}")
    ]
    missing += [
        f"GRANT {role} TO {user};"
        for role in ("pg_read_all_settings",)
        if not connection.value("SELECT pg_has_role(%s, 'USAGE')", role)
    ]
    if missing:
        raise ClusterError(
            f"user {user} may not take a backup",
            hint="Connect as a superuser, or run as one, in the database that `connection` names: " + " ".join(missing),
            id="cluster-privileges",
        )


def _settings(connection: Connection) -> dict[str, str]:
    rows = connection.query("SELECT name, setting FROM pg_settings WHERE name = ANY(%s)", list(_SETTINGS))
    return {str(name): str(setting) for name, setting in sorted(rows) if setting is not None}


def _check_directory(connection: Connection, control: ControlFile, data_directory: Path) -> str:
    """The files that are about to be read must be those of the server we talk to.

    The system identifier is not enough: a standby on the same host has the same one. Paths are not enough
    either: a server in a container names its directory otherwise. So postmaster.pid, which the running server
    wrote, must say what the server says.
    """
    identifier, directory, started = connection.row(
        "SELECT system_identifier::text, current_setting('data_directory'),"
        " extract(epoch FROM pg_postmaster_start_time())::float8 FROM pg_control_system()"
    )
    if int(identifier) != control.system_identifier:
        raise _mismatch(
            f"{data_directory} holds the cluster with system identifier {control.system_identifier}, "
            f"the server we are connected to is {identifier}"
        )
    if os.path.realpath(directory) == os.path.realpath(data_directory):
        return str(directory)
    pid_file = _postmaster_file(data_directory)
    if len(pid_file) < _PID_FILE_LINES or pid_file[1] != directory or not _close(pid_file[2], float(started)):
        raise _mismatch(f"the server's data directory is {directory}, not {data_directory}")
    return str(directory)


_PID_FILE_LINES = 3
# postmaster.pid has the time at which the process began, the function that at which it was ready to.
_START_SECONDS = 60.0


def _close(text: str, started: float) -> bool:
    return text.isdecimal() and abs(int(text) - started) <= _START_SECONDS


def _postmaster_file(data_directory: Path) -> list[str]:
    try:
        return (data_directory / "postmaster.pid").read_text(errors="surrogateescape").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SourceError(
            f"{data_directory / 'postmaster.pid'} cannot be read: {error.strerror}",
            hint="Run as the user that owns the data directory, usually postgres.",
            id="source-unreadable",
        ) from error


def _mismatch(message: str) -> ClusterError:
    return ClusterError(
        message,
        hint="`data_directory` and `connection` of the configuration must be of the same cluster. Nothing was read.",
        id="cluster-mismatch",
    )


def _check_wal_level(settings: dict[str, str]) -> None:
    if settings.get("wal_level") == "minimal":
        raise ClusterError(
            "wal_level is minimal: a backup of this cluster could not be restored",
            hint="Set wal_level = replica and archive_mode = on, and restart PostgreSQL.",
            id="wal-level",
        )


def _check_archiving(settings: dict[str, str]) -> None:
    if settings.get("archive_mode", "off") == "off":
        raise ClusterError(
            "archive_mode is off: a backup without the WAL written meanwhile could not be restored",
            hint="Set archive_mode = on and archive_command = 'cryobackup wal-push %p', and restart PostgreSQL.",
            id="archive-off",
        )
    if not settings.get("archive_command", "").strip() and not settings.get("archive_library", "").strip():
        raise ClusterError(
            "archive_command is empty: a backup without the WAL written meanwhile could not be restored",
            hint="Set archive_command = 'cryobackup wal-push %p' and reload PostgreSQL.",
            id="archive-command-empty",
        )


def _position(connection: Connection) -> tuple[int, int]:
    """Where the cluster's WAL ends now, and on which timeline."""
    lsn, segment = connection.row("SELECT lsn::text, pg_walfile_name(lsn) FROM pg_current_wal_insert_lsn() AS lsn")
    return parse_lsn(lsn), int(segment[:8], 16)


def _collation_versions(connection: Connection, version: int) -> dict[str, str]:
    """What sorts text here: another version may sort otherwise, and then indexes of text are wrong.

    One collation stands for all of its provider; databases have their own since PostgreSQL 15.
    """
    rows = connection.query(
        "SELECT CASE collprovider WHEN 'i' THEN 'icu' WHEN 'c' THEN 'libc' ELSE collprovider::text END,"
        " pg_collation_actual_version(oid) FROM pg_collation WHERE oid IN"
        " (SELECT min(oid) FROM pg_collation WHERE collversion IS NOT NULL GROUP BY collprovider)"
    )
    if version >= FUNCTIONS_RENAMED_IN:
        rows += connection.query(
            "SELECT 'database ' || datname, pg_database_collation_actual_version(oid) FROM pg_database"
            " WHERE datcollversion IS NOT NULL"
        )
    return {str(name): str(found) for name, found in rows if found is not None}


def _configuration_files(connection: Connection, settings: dict[str, str]) -> tuple[str, ...]:
    """Included files too. A server in a container names them otherwise: then they are found by it, or not at all."""
    found = {settings[name] for name in ("config_file", "hba_file", "ident_file") if settings.get(name)}
    found |= included_files(found)
    if connection.value("SELECT has_table_privilege('pg_file_settings', 'SELECT')") and connection.value(
        "SELECT has_function_privilege('pg_show_all_file_settings()', 'EXECUTE')"
    ):
        found |= {str(row[0]) for row in connection.query("SELECT DISTINCT sourcefile FROM pg_file_settings")}
    return tuple(sorted(path for path in found if path != "None"))
