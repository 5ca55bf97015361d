# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the commands that show backups have in common."""

from __future__ import annotations

import datetime as dt
import typing as t

from ..errors import EXIT_DAMAGE, EXIT_DONE, EXIT_PARTIAL, UnknownEpoch, reason_of
from ._text import format_bytes, format_table, format_time

if t.TYPE_CHECKING:
    from collections.abc import Callable, Container

    from ..errors import CryoError
    from ..events import Reporter
    from ..report.backups import Fields
    from ..repository.catalog import BackupRecord, Catalog
    from ..repository.pins import PinResult
    from ..repository.repository import Repository
    from ._frame import Context, Outcome


def reading_exit(repository: Repository, catalog: Catalog) -> int:
    """A list that cannot be complete is never called a success. What there are no keys for is no damage."""
    published = {epoch for epochs in repository.published.values() for epoch in epochs}
    if any(not _lacks_keys(broken.error, published) for broken in catalog.broken):
        return EXIT_DAMAGE
    return EXIT_PARTIAL if repository.lost or catalog.broken else EXIT_DONE


def _lacks_keys(error: CryoError, published: Container[int]) -> bool:
    return isinstance(error, UnknownEpoch) and error.epoch in published


def warn_of_gaps(reporter: Reporter, repository: Repository, catalog: Catalog) -> None:
    """Say what was not looked at."""
    for name, error in repository.lost.items():
        reporter.warn(f"location {name} was not looked at: {reason_of(error, name)}")
    for broken in catalog.broken:
        reporter.warn(f"{broken.name} cannot be read: {broken.error.message}")


def table(backups: list[Fields]) -> str:
    """Backups in rows, for people."""
    if not backups:
        return "There are no backups."
    header = ("BACKUP", "SOURCE", "TYPE", "FINISHED", "SIZE", "STORED", "STATUS", "VERIFIED", "LOCATIONS")
    return format_table(header, map(_row, backups), right=("SIZE", "STORED"))


def _row(backup: Fields) -> tuple[str, ...]:
    return (
        backup["backup_id"],
        backup["source"],
        backup["type"],
        local_time(backup["finished_at"]),
        format_bytes(backup["bytes_source"]),
        format_bytes(backup["bytes_stored"]),
        backup["status"] + (" (pinned)" if backup["pinned"] else ""),
        verification(backup),
        ",".join(backup["locations"]),
    )


def verification(backup: Fields) -> str:
    """The verification that counts in a word or two, and that it was restored if that was another one."""
    verified, restored = backup["verified"], backup["restored"]
    if verified is None:
        return "-"
    level = str(verified.get("level", "?"))
    if verified.get("result") != "ok":
        return f"{level}: {verified.get('result', '?')}"
    return level if restored is None or restored["at"] == verified["at"] else f"{level}, restore"


def local_time(moment: str) -> str:
    """An ISO 8601 time in the zone of this host."""
    return format_time(dt.datetime.fromisoformat(moment))


def change_pin(context: Context, text: str, change: Callable[[Repository, BackupRecord], PinResult]) -> Outcome:
    """Pin or unpin the backup with that id. A location that did not get the note may delete it all the same."""
    from ..report.backups import location_state
    from ..repository.catalog import Catalog
    from ..repository.repository import Repository
    from ._frame import Outcome

    repository = Repository.open(context.config.repository.as_written())
    catalog = Catalog.load(repository)
    result = change(repository, catalog.find(text))
    for name, error in repository.lost.items():
        context.reporter.warn(f"location {name} does not know of it: {reason_of(error, name)}")
    end = f" until {result.until}" if result.until else ""
    state = f"pinned{end}: {result.reason}" if result.pinned else "not pinned"
    was = "" if result.changed else ", as it was before"
    locations = {name: location_state(repository, name) for name in context.config.repository.locations}
    fields = {**result.as_dict(), "locations": locations}
    return Outcome(fields, reading_exit(repository, catalog), f"backup {result.backup_id} is {state}{was}")
