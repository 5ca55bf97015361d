# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``cryobackup info``: all that a backup says about itself."""

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
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("backup", metavar="BACKUP", nargs="?", help="its id, or the beginning or the end of it")
    which.add_argument("--latest", metavar="SOURCE", help="the newest backup of a cluster or a file set")
    add_as_of(parser)


def run(args: argparse.Namespace, context: Context) -> Outcome:
    from ..report.backups import details, require_known_source
    from ..repository.catalog import Catalog, newest
    from ..repository.repository import Repository
    from ._backups import reading_exit, warn_of_gaps

    config = config_as_of(args, context)
    repository = Repository.open(config.repository.as_written())
    catalog = Catalog.load(repository, args.latest)
    warn_of_gaps(context.reporter, repository, catalog)
    if args.latest is None:
        backup = catalog.find(args.backup)
    else:
        require_known_source(config, catalog, args.latest)
        backup = newest(catalog.backups) or _none(args.latest)
    result = details(backup, repository)
    return Outcome(result, reading_exit(repository, catalog), lambda: "\n".join(_lines(result)))


def _none(source: str) -> t.NoReturn:
    from ..errors import RepositoryError

    raise RepositoryError(
        f"there is no backup of {source} yet",
        hint=f"`cryobackup backup {source}` makes one.",
        id="no-such-backup",
    )


def _lines(backup: Fields) -> Iterator[str]:
    from ._backups import local_time, verification
    from ._text import counted, format_bytes, format_duration

    yield f"backup        {backup['backup_id']}"
    yield f"source        {backup['source']}"
    yield f"type          {backup['type']}" + (f", parent {backup['parent']}" if backup["parent"] else "")
    yield f"status        {backup['status']}"
    if backup["pinned"]:
        until = f" (until {backup['pinned_until']})" if backup["pinned_until"] else ""
        yield f"pinned        {backup['pin_reason'] or 'without a reason'}{until}"
    if backup["label"]:
        yield f"label         {backup['label']}"
    yield f"started       {local_time(backup['started_at'])}"
    yield f"finished      {local_time(backup['finished_at'])} ({format_duration(backup['seconds'])})"
    yield f"made by       {backup['host']}, cryobackup {backup['tool_version']}"
    yield f"locations     {', '.join(backup['locations'])}"
    yield f"verified      {verification(backup)}"
    read, stored = format_bytes(backup["bytes_read"]), format_bytes(backup["bytes_stored"])
    size = format_bytes(backup["bytes_source"])
    yield f"size          {size} in {counted(backup['files'], 'file')}; read {read}, stored {stored}"
    earlier = backup["packs"]["of_earlier_backups"]
    yield f"packs         {backup['packs']['own']['count']} of its own, {earlier['count']} of earlier backups"
    amplification = backup["packs"]["amplification"]
    if amplification is not None:
        yield f"              {amplification:.2f} times the bytes that a full backup of its state would store"
    yield from _compaction(backup["compaction"])
    epochs = ", ".join(map(str, backup["epochs_needed"]))
    yield f"keys          of epoch {backup['epoch']}; a restore needs the identities of epoch {epochs}"
    yield from _postgres(backup["postgres"])
    yield from _change_detection(backup["change_detection"])
    for damage in backup["damage"]:
        blocks = ", ".join(map(str, damage["blocks"]))
        yield f"damaged       {damage['path']}: blocks {blocks}"


def _postgres(postgres: Fields | None) -> Iterator[str]:
    if postgres is None:
        return
    yield f"PostgreSQL    {_version(postgres['version'])}, system identifier {postgres['system_identifier']}"
    yield f"WAL           {postgres['start_lsn']} to {postgres['stop_lsn']}, timeline {postgres['timeline']}"
    yield f"              {postgres['wal_start']} to {postgres['wal_stop']}"
    databases = ", ".join(database["name"] for database in postgres["databases"])
    yield f"databases     {databases}"
    for tablespace in postgres["tablespaces"]:
        yield f"tablespace    {tablespace['oid']}: {tablespace['path']}"


def _version(server_version_num: int) -> str:
    return f"{server_version_num // 10000}.{server_version_num % 10000}"


def _compaction(done: Fields | None) -> Iterator[str]:
    from ._text import counted, format_bytes

    if done is None:
        return
    left = counted(done["packs_left"], "pack")
    over = f"{format_bytes(done['bytes_overhead'])} in its parent's packs were of no use to it"
    yield f"compaction    {format_bytes(done['bytes'])} stored again: {over},"
    yield f"              {format_bytes(done['bytes_overhead_borne'])} are borne; {left} left behind"


def _change_detection(found: Fields) -> Iterator[str]:
    if found.get("method"):
        reason = f" ({found['reason']})" if found.get("reason") else ""
        yield f"changes by    {found['method']}{reason}"
