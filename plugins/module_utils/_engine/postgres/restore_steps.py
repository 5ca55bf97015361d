# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What comes after a restore: starting the server, or telling people how."""

from __future__ import annotations

import shlex
import typing as t
from pathlib import Path

from ..errors import ConfigError
from .archive_contain import supports_containing
from .recovery import AUTO_CONF
from .restore_prepare import Prepared
from .restore_request import OFF, RestoreRequest, RestoreResult
from .restore_start import (
    IN_PRODUCTION,
    IN_RECOVERY,
    SHUT_DOWN,
    find_bin_directory,
    pg_ctl_command,
    server_options,
    start_server,
)

if t.TYPE_CHECKING:
    from ..events import Reporter

_SAVED_CONFIG = ".cryobackup/config"


def start(
    result: RestoreResult,
    request: RestoreRequest,
    prepared: Prepared,
    programs: Path | None,
    reporter: Reporter,
) -> None:
    """Start PostgreSQL on the restored directory and wait for what the recovery action leads to.

    Raises RestoreError ``start-failed``, ConfigError ``no-postgresql``.
    """
    reporter.phase("recovery")
    command = _command(result, prepared, programs)
    states = {"promote": {IN_PRODUCTION}, "pause": {IN_RECOVERY}, "shutdown": {SHUT_DOWN}}
    result.state = start_server(
        command,
        prepared.target.path,
        prepared.owner_name,
        until=states[request.action],
        timeout=request.start_timeout,
    )
    result.started = request.action != "shutdown"


def next_steps(result: RestoreResult, prepared: Prepared, *, in_place: bool, port: int | None = None) -> list[str]:
    """What is left to be done by a person, in order."""
    steps: list[str] = []
    if result.dry_run:
        return [f"Nothing was written. Without --dry-run this would restore to {result.target}."]
    if not result.started and not result.state:
        steps += _how_to_start(result, prepared, in_place=in_place)
    if result.recovery["action"] == "pause":
        steps.append(
            "The server answers before it has reached the goal. When SELECT pg_is_wal_replay_paused() says t, recovery "
            "is paused there: look at the data. SELECT pg_wal_replay_resume() then promotes it."
        )
    if result.recovery["action"] == "shutdown":
        # Without recovery.signal it would go on with all WAL that lies in pg_wal, past the goal.
        steps.append(
            f"The server shuts down at the goal. To open it there set recovery_target_action = 'promote' in "
            f"{result.target}/{AUTO_CONF}, leave recovery.signal, and start it again."
        )
    if port is not None:
        steps.append(
            f"port = {port} stays in {result.target}/{AUTO_CONF}. When this cluster is to be reached where the "
            "original was: ALTER SYSTEM RESET port, and restart it."
        )
    if not in_place and supports_containing(prepared.info.version):
        steps.append(
            "Tablespaces that were created after the backup lie inside of the copy, in pg_tblspc; those of the backup "
            "lie where the result says."
        )
    if result.archiving == OFF:
        steps.append(
            f"archive_mode is off in {result.target}/{AUTO_CONF}, so that this copy never archives into the archive of "
            "its source. If it is to take its source's place, stop the source, make this the data_directory of the "
            "configuration, and restore once more with --delta before anybody writes to it."
        )
    elif in_place:
        steps.append("After the promotion take a new full backup: history goes on in a new timeline.")
    return steps


def _how_to_start(result: RestoreResult, prepared: Prepared, *, in_place: bool) -> list[str]:
    if in_place and not prepared.survey.has_postgresql_conf:
        return [_start_in_place(result)]
    try:
        command = _command(result, prepared, None)
    except ConfigError as error:
        return [f"Start PostgreSQL on {result.target}: {error.message}."]
    steps = []
    if not prepared.survey.has_postgresql_conf:
        saved = prepared.target.path / _SAVED_CONFIG
        steps.append(f"The configuration lay outside of the data directory. It was saved in {saved}.")
    return [*steps, f"Start it as user {result.owner}: {shlex.join(command)}"]


def _start_in_place(result: RestoreResult) -> str:
    """On a new machine the configuration is gone as the data directory was."""
    lost = [path for path in result.config_files if not Path(path).exists()]
    if not lost:
        return "Start the cluster as usual (its configuration is outside of the data directory and as it was)."
    return (
        f"Bring back the configuration ({', '.join(lost)}): copies are below {result.target}/{_SAVED_CONFIG}. "
        "Then start the cluster as usual."
    )


def _command(result: RestoreResult, prepared: Prepared, programs: Path | None) -> list[str]:
    target = prepared.target.path
    config_file = None
    if not prepared.survey.has_postgresql_conf:
        config_file = _saved_config_file(result, target)
    options = server_options(target, config_file)
    return pg_ctl_command(find_bin_directory(prepared.info.version, programs), target, options)


def _saved_config_file(result: RestoreResult, target: Path) -> Path | None:
    named = [path for path in result.config_files if Path(path).name == "postgresql.conf"]
    return target / _SAVED_CONFIG / named[0].lstrip("/") if named else None
