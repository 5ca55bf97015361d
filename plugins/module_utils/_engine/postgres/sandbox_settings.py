# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the server of a sandbox is told. Pure.

The settings of the source are left behind, all but those that decide whether its WAL can be replayed: whatever acts
on the outside, waits for others or starts by itself must not come along.
"""

from __future__ import annotations

import typing as t

from .recovery import Recovery, quote, recovery_settings

if t.TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ..repository.model import PostgresInfo
    from .sandbox_directory import SandboxDirectory

_AS_IN_THE_SOURCE: t.Final = {
    # Prepared transactions are replayed whether the server is in hot standby or not, and need their slots.
    "max_prepared_transactions": "0",
    "max_locks_per_transaction": "64",
    "track_commit_timestamp": "off",
    # Assertions may depend on these.
    "TimeZone": "UTC",
    "default_text_search_config": "pg_catalog.simple",
}
PORT: t.Final = "5432"
"""Only part of the name of a socket in a directory of its own."""


def sandbox_settings(
    info: PostgresInfo, version: int, place: SandboxDirectory, recovery: Recovery, *, preload: str
) -> dict[str, str]:
    """All settings, in the order in which they are to be read.

    ``version``: of the server that will run, as server_version_num. ``preload``: shared_preload_libraries, by default
    nothing: libraries there start workers, pg_cron its jobs.
    """
    return {
        **recovery_settings(recovery),
        **_places(place),
        **_alone(preload),
        **_cheap(info.wal_segment_size),
        **{name: info.settings.get(name, default) for name, default in _AS_IN_THE_SOURCE.items()},
        **_by_version(version),
    }


def _places(place: SandboxDirectory) -> dict[str, str]:
    return {
        "data_directory": str(place.data),
        "hba_file": str(place.configuration / "pg_hba.conf"),
        "ident_file": str(place.configuration / "pg_ident.conf"),
        "external_pid_file": "",
        "unix_socket_directories": str(place.socket),
        "unix_socket_permissions": "0700",
        "port": PORT,
        "listen_addresses": "",
    }


def _alone(preload: str) -> dict[str, str]:
    """Nobody is called, nothing begins by itself, nothing waits for a standby."""
    return {
        "archive_mode": "off",
        "archive_command": "",
        "primary_conninfo": "",
        "primary_slot_name": "",
        "synchronous_standby_names": "",
        "max_wal_senders": "0",
        # Subscriptions of the source would connect to its publisher and move its slot on.
        "max_logical_replication_workers": "0",
        "shared_preload_libraries": preload,
        "autovacuum": "off",
        # Connections are let in when recovery has ended, and its floors (max_connections and the like,
        # CheckRequiredParameterValues in xlogrecovery.c) count for hot standby only.
        "hot_standby": "off",
        "restart_after_crash": "off",
        "ssl": "off",
        "cluster_name": "cryobackup sandbox",
    }


def _cheap(segment_size: int) -> dict[str, str]:
    """It is thrown away: nothing has to last, little has to be fast."""
    return {
        "wal_level": "replica",
        "fsync": "off",
        "full_page_writes": "off",
        "synchronous_commit": "off",
        "shared_buffers": "64MB",
        "maintenance_work_mem": "64MB",
        "max_connections": "20",
        "max_wal_size": f"{max(256, 4 * (segment_size >> 20))}MB",
        "min_wal_size": f"{max(32, 2 * (segment_size >> 20))}MB",
        "huge_pages": "off",
        "jit": "off",
        "log_destination": "stderr",
        "logging_collector": "off",
        "log_line_prefix": "%m [%p] ",
        "lc_messages": "C",
    }


def _by_version(version: int) -> dict[str, str]:
    settings = {}
    if version >= 150000 or 140005 <= version < 150000 or 130008 <= version < 140000:
        # What becomes of tablespaces that the WAL creates (wal_tablespaces); CheckTablespaceDirectory in
        # xlogrecovery.c would stop recovery.
        settings["allow_in_place_tablespaces"] = "on"
    if version >= 150000:
        settings["archive_library"] = ""
    if version >= 170000:
        settings["event_triggers"] = "off"
    return settings


def as_text(settings: Mapping[str, str]) -> str:
    """A configuration file."""
    return "".join(f"{name} = {quote(value)}\n" for name, value in settings.items())


def hba_text() -> str:
    """Whoever can enter the socket's directory may come in: that is the server's user and root."""
    return "local all all trust\n"


def log_end(log: Path, lines: int = 5) -> str:
    """What the server said last, above all what went wrong."""
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return ""
    said = [line.partition("] ")[2] or line for line in text.splitlines() if line.strip()]
    grave = [line for line in said if line.startswith(("FATAL", "PANIC", "ERROR", "HINT", "DETAIL"))]
    return "; ".join((grave or said)[-lines:])
