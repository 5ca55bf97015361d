# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A backup from a standby: what only the primary can do for it, and what must not happen to it meanwhile.

PostgreSQL lets a standby be backed up as it is: the backup starts at the last restartpoint and is consistent where
``pg_control`` says that it must be recovered to (``do_pg_backup_start`` and ``do_pg_backup_stop`` in ``xlog.c``). A
standby can make no checkpoint and finish no WAL segment of its own, though: the primary is asked to, the one that the
configuration names, or else the server that the standby streams from. Where that does not work, the backup starts
further back, and waits for the primary's next segment.
"""

from __future__ import annotations

import time
import typing as t

from ..errors import ClusterError, CryoError
from .connection import Connection
from .control import read_control
from .lsn import format_lsn, parse_lsn
from .relfile import CONTROL_FILE

if t.TYPE_CHECKING:
    from pathlib import Path

    from ..config import ClusterConfig
    from ..events import Reporter
    from .backup_mode import Stopped

_REPLAY_SECONDS: t.Final = 60.0
"""How long the primary's checkpoint may take to arrive: without it, the backup starts at an earlier one."""
_PAUSE_SECONDS: t.Final = 0.05
FIRST_WITH_CHECKPOINT_ROLE: t.Final = 150000
"""pg_checkpoint: who has it may use CHECKPOINT."""


class ClusterChanged(ClusterError):
    id = "cluster-promoted"


def is_standby(connection: Connection) -> bool:
    """Whether the server is in recovery."""
    return bool(connection.value("SELECT pg_is_in_recovery()"))


def advance(connection: Connection, cluster: ClusterConfig, reporter: Reporter) -> None:
    """Bring the standby's last restartpoint as far as possible: a backup starts there, and needs all WAL from there.

    What is refused or does not arrive costs WAL, and is told of; the backup goes on.
    """
    try:
        with _connect_primary(connection, cluster) as primary:
            if not _may_checkpoint(primary):
                reporter.note(f"the role may not use CHECKPOINT on the primary: {_grant(primary)}")
            else:
                primary.query("CHECKPOINT")
                _await_replay(connection, parse_lsn(primary.value("SELECT pg_current_wal_lsn()::text")), reporter)
    except CryoError as error:
        reporter.warn(f"no checkpoint on the primary: {error.message}")
    if _may_checkpoint(connection):
        connection.query("CHECKPOINT")


def finish_segment(connection: Connection, cluster: ClusterConfig, stop_lsn: int, reporter: Reporter) -> None:
    """Have the primary finish the WAL segment that the backup ends in. Without that, it is waited for as it is."""
    try:
        with _connect_primary(connection, cluster) as primary:
            # Nothing new may have been written since, and then PostgreSQL would not switch (``RequestXLogSwitch``).
            primary.query("SELECT pg_logical_emit_message(false, 'cryobackup', 'the end of a backup')")
            end = parse_lsn(primary.value("SELECT pg_switch_wal()::text"))
        if end < stop_lsn:
            reporter.warn(f"the primary's WAL ends at {format_lsn(end)}, before the backup does: is it another branch?")
    except CryoError as error:
        reporter.warn(f"the primary finishes no WAL segment for the backup: {error.message}")


def check_primary(connection: Connection, cluster: ClusterConfig) -> str | None:
    """Whether the primary will do what backups ask of it: what it lacks, or None.

    Raises ClusterError when it cannot be reached, or is not the primary of this standby.
    """
    with _connect_primary(connection, cluster) as primary:
        if not primary.value("SELECT has_function_privilege('pg_switch_wal()', 'EXECUTE')"):
            user = primary.value("SELECT quote_ident(current_user)")
            return f"GRANT EXECUTE ON FUNCTION pg_catalog.pg_switch_wal() TO {user};"
        return None if _may_checkpoint(primary) and _may_checkpoint(connection) else _grant(primary)


def require_same(stopped: Stopped, data_directory: Path, *, standby: bool) -> None:
    """Raises ClusterError when the server was promoted, or followed its primary to another timeline, meanwhile.

    Such a backup would need WAL of two timelines; another one, right now, does not.
    """
    label = stopped.label
    if label.from_standby != standby:
        raise ClusterChanged(
            "the server was promoted while the backup began",
            hint="There is no backup; earlier ones are untouched. Run it again: the server is a primary now.",
        )
    if not standby:
        return
    timeline = read_control(data_directory / CONTROL_FILE).min_recovery_timeline
    if timeline != label.start_timeline:
        raise ClusterChanged(
            f"the standby followed its primary from timeline {label.start_timeline} to {timeline} during the backup",
            hint="There is no backup; earlier ones are untouched. Run it again, when the new primary has made its "
            "first checkpoint.",
            id="cluster-timeline-changed",
        )


def explain_refusal(connection: Connection, error: ClusterError) -> ClusterError:
    """What PostgreSQL says at the end of a standby's backup, in our words when the server was promoted meanwhile."""
    if error.id == "connection-lost" or is_standby(connection):
        return error
    return ClusterChanged(
        "the standby was promoted while it was backed up",
        hint="There is no backup; earlier ones are untouched. Run it again: the server is a primary now.",
    )


def _connect_primary(standby: Connection, cluster: ClusterConfig) -> Connection:
    """Raises ClusterError: ``cluster-unreachable``, ``cluster-mismatch``."""
    conninfo = cluster.primary or _upstream(standby, cluster)
    primary = Connection(conninfo, application_name=f"cryobackup backup {cluster.name}")
    try:
        control = read_control(cluster.data_directory / CONTROL_FILE)
        identifier = int(primary.value("SELECT system_identifier FROM pg_control_system()"))
        problem = ""
        if identifier != control.system_identifier:
            problem = f"is of another cluster (system identifier {identifier}, not {control.system_identifier})"
        elif is_standby(primary):
            problem = "is a standby itself"
        if problem:
            raise ClusterError(
                f"the server at {conninfo} {problem}",
                hint="`primary` of the cluster's configuration must name the primary of this standby. It may name "
                "several hosts, with target_session_attrs=read-write.",
                id="cluster-mismatch",
            )
    except BaseException:
        primary.close()
        raise
    return primary


def _upstream(standby: Connection, cluster: ClusterConfig) -> str:
    """How to connect to the server that the standby streams from, as the same user. Raises ClusterError."""
    from psycopg2.extensions import make_dsn

    rows = standby.query("SELECT sender_host, sender_port FROM pg_stat_wal_receiver WHERE sender_host IS NOT NULL")
    if not rows:
        raise ClusterError(
            "the primary is not known: `primary` is not set, and the standby streams from no server that we may see",
            hint=f"Set clusters.{cluster.name}.primary.",
        )
    host, port = rows[0]
    return make_dsn(cluster.connection, host=str(host), port=str(port))


def _may_checkpoint(connection: Connection) -> bool:
    if connection.value("SELECT rolsuper FROM pg_roles WHERE rolname = current_user"):
        return True
    if connection.server_version < FIRST_WITH_CHECKPOINT_ROLE:
        return False
    return bool(connection.value("SELECT pg_has_role('pg_checkpoint', 'USAGE')"))


def _grant(connection: Connection) -> str:
    if connection.server_version < FIRST_WITH_CHECKPOINT_ROLE:
        return "only superusers may before PostgreSQL 15"
    return f"GRANT pg_checkpoint TO {connection.value('SELECT quote_ident(current_user)')};"


def _await_replay(connection: Connection, lsn: int, reporter: Reporter) -> None:
    deadline = time.monotonic() + _REPLAY_SECONDS
    while parse_lsn(connection.value("SELECT coalesce(pg_last_wal_replay_lsn(), '0/0')::text")) < lsn:
        if time.monotonic() > deadline:
            late = f"it has not replayed {format_lsn(lsn)} within {_REPLAY_SECONDS:g} s"
            reporter.warn(f"the standby lags behind: {late}")
            return
        time.sleep(_PAUSE_SECONDS)
