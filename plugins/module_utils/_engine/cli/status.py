# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``cryobackup status``: how well everything is backed up."""

from __future__ import annotations

import typing as t

from ._frame import Outcome
from ._past import add_as_of, config_as_of

if t.TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from ..report.backups import Fields
    from ._frame import Context


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_as_of(parser)


def run(args: argparse.Namespace, context: Context) -> Outcome:
    from ..report.status import status
    from ..repository.catalog import Catalog
    from ..repository.repository import Repository
    from ._backups import reading_exit

    config = config_as_of(args, context)
    repository = Repository.open(config.repository.as_written())
    catalog = Catalog.load(repository)
    result = status(config, repository, catalog, context.now())
    return Outcome(result, reading_exit(repository, catalog), lambda: "\n".join(_lines(result)))


def _lines(result: Fields) -> Iterator[str]:
    from ._text import format_table

    if result["sources"]:
        header = ("SOURCE", "BACKUPS", "NEWEST", "AGE", "STATUS", "VERIFIED", "STORED", "RUNNING")
        rows = [_source(name, each) for name, each in result["sources"].items()]
        yield format_table(header, rows, right=("BACKUPS", "STORED"))
        yield ""
    places = [_location(name, each) for name, each in result["locations"].items()]
    columns = ("LOCATION", "STATE", "BACKUPS", "LACKS", "NEWEST WAL", "ROOM", "WHERE")
    yield format_table(columns, places, right=("BACKUPS", "ROOM"))
    if result["attention"]:
        yield ""
        yield "Attention:"
        yield from (f"  {text}" for text in result["attention"])


def _source(name: str, source: Fields) -> tuple[str, ...]:
    from ._backups import local_time
    from ._text import format_bytes, format_duration

    newest, proven = source["newest"], source["newest_verified"]
    return (
        name,
        str(source["backups"]),
        newest["backup_id"] if newest else "-",
        format_duration(max(0, source["newest_age_seconds"])) if newest else "-",
        newest["status"] if newest else "-",
        local_time(proven["verified"]["at"]) if proven else "never",
        format_bytes(source["bytes_stored"]),
        ", ".join(map(_running, source["running"])) or "-",
    )


def _running(job: Fields) -> str:
    """A backup by its id; another job by its word, too."""
    return str(job["backup_id"]) if job["purpose"] == "backup" else f"{job['purpose']} {job['backup_id']}"


def _location(name: str, location: Fields) -> tuple[str, ...]:
    from ._text import format_bytes

    room = location["bytes_room"]
    return (
        name,
        "ok" if location["ok"] else "lost",
        str(location["backups"]),
        _lacks(location),
        _newest_wal(location),
        "-" if room is None else format_bytes(room),
        location["where"] or "-",
    )


def _lacks(location: Fields) -> str:
    from ..words import counted

    backups, wal = location["backups_missing"], location["wal_missing"]
    words = [counted(backups, "backup")] if backups else []
    words += [f"{wal} WAL"] if wal else []
    return ", ".join(words) or "-"


def _newest_wal(location: Fields) -> str:
    """Of the newest timeline of each cluster."""
    if location["lag"] is None:
        return "-"
    newest = [timelines[max(timelines, key=int)]["newest"] or "none" for timelines in location["lag"]["wal"].values()]
    return ", ".join(newest) or "-"
