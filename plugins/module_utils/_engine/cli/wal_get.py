# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``cryobackup wal-get``: PostgreSQL's restore_command.

Exit codes: 0 the file is there · 1 there is surely no such file · 200 it could not be found out (see ``_commands``).
"""

from __future__ import annotations

import dataclasses
import os
import time
import typing as t
from pathlib import Path

from ._frame import Outcome
from ._past import add_as_of, config_as_of

if t.TYPE_CHECKING:
    import argparse

    from ..config import Config, RepositoryConfig
    from ..postgres.archive_fetch import Absent
    from ..postgres.archive_get import Delivered
    from ._frame import Context

_RETRY_PAUSE_SECONDS = 2.0
_MISSING_EXIT = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the file's name, as PostgreSQL gives it (%%f)")
    parser.add_argument("destination", metavar="DESTINATION", type=Path, help="where to write it (%%p)")
    whose = parser.add_mutually_exclusive_group()
    whose.add_argument(
        "--system-identifier",
        metavar="N",
        type=int,
        help="of the cluster whose WAL it is (default: of the data directory this is started in)",
    )
    whose.add_argument("--cluster", metavar="NAME", help="the configured cluster whose WAL it is")
    parser.add_argument(
        "--without",
        metavar="LOCATION",
        action="append",
        default=[],
        help="a location that is lost for good: do not ask it (repeatable)",
    )
    parser.add_argument(
        "--required-suffice",
        action="store_true",
        help="what no required location has is not there, whatever an optional one would say that does not answer; "
        "a restore sets this where nothing can be lost by it",
    )
    parser.add_argument(
        "--contain-tablespaces",
        action="store_true",
        help="for a copy beside its source: tablespaces that the WAL creates lie in the copy's data directory",
    )
    add_as_of(parser)
    parser.add_argument(
        "--timeline",
        metavar="N",
        type=int,
        help="the timeline that recovery goes to: what was streamed of one that it leaves is not for it "
        "(default: any that is archived may be that)",
    )
    parser.add_argument(
        "--archived-only",
        action="store_true",
        help="nothing of a segment that was only streamed (see `wal-stream`)",
    )
    parser.add_argument(
        "--no-look-ahead",
        action="store_true",
        help="do not fetch the next segments in advance (in a recovery they are, see `wal-ahead`)",
    )
    parser.add_argument(
        "--retry-for",
        metavar="SECONDS",
        type=float,
        default=0.0,
        help="how long to try again while a location does not answer, for a standby (default: %(default)g)",
    )


def run(args: argparse.Namespace, context: Context) -> Outcome:
    from ..errors import reason_of
    from ..postgres.archive_fetch import Absent
    from ..postgres.wal import match_wal_name
    from ._parser import UsageError

    if match_wal_name(args.name) is None:
        raise UsageError(
            f"{args.name!r} is not the name of a WAL file",
            hint='restore_command passes the name first: wal-get "%f" "%p".',
        )
    config = config_as_of(args, context)
    system_identifier = system_identifier_of(args, config)
    places = without(config.repository.as_written(), args.without)
    found = _fetch(args, places, config.state_directory, system_identifier)
    result: dict[str, object] = {
        "name": args.name,
        "system_identifier": str(system_identifier),
        "found": not isinstance(found, Absent),
    }
    if isinstance(found, Absent):
        for name, error in found.passed_over.items():
            context.reporter.warn(
                f"{args.name} was never archived: no required location has it. Location {name}, which is optional, "
                f"was not waited for: {reason_of(error, name)}"
            )
        context.reporter.note(f"{args.name} is in no location")
        return Outcome(result, exit_code=_MISSING_EXIT)
    for name, error in found.passed_over.items():
        context.reporter.warn(f"{args.name} was taken from {found.location}, not from {name}: {reason_of(error, name)}")
    if found.streamed_to is not None:
        context.reporter.note(f"{args.name} was never archived as a whole: it was streamed up to {found.streamed_to}")
    return Outcome({**result, "location": found.location, "bytes": found.size, "streamed_to": found.streamed_to})


def system_identifier_of(args: argparse.Namespace, config: Config) -> int:
    """Named, or that of the data directory PostgreSQL starts this in, or of the only cluster there is."""
    from ..postgres.control import read_control
    from ._parser import UsageError

    if args.system_identifier is not None:
        return int(args.system_identifier)
    here = Path.cwd()
    if args.cluster is not None:
        directory = config.cluster(args.cluster).data_directory
    elif os.path.exists(here / "global" / "pg_control"):  # By hand, anybody may be anywhere: no if it may not be known.
        directory = here
    elif len(config.clusters) == 1:
        directory = next(iter(config.clusters.values())).data_directory
    else:
        raise UsageError(
            f"whose WAL? {config.path} has {len(config.clusters)} clusters, and this is no data directory",
            hint="Add --system-identifier, which pg_controldata prints, or --cluster.",
        )
    return read_control(directory / "global" / "pg_control").system_identifier


def without(config: RepositoryConfig, lost: list[str]) -> RepositoryConfig:
    """The locations that may be asked. Raises UsageError."""
    from ._parser import UsageError

    for name in lost:
        if name not in config.locations:
            raise UsageError(f"there is no location {name!r}", hint=f"There are: {', '.join(config.locations)}.")
    kept = {name: location for name, location in config.locations.items() if name not in lost}
    if not kept:
        raise UsageError("no location is left to ask", hint="Take out one --without.")
    return dataclasses.replace(config, locations=kept)


def _is_standby() -> bool:
    """PostgreSQL starts this in the data directory. The archive's end promotes no standby: it asks again."""
    return os.path.exists("standby.signal")


def _fetch(
    args: argparse.Namespace, config: RepositoryConfig, state_directory: Path, system_identifier: int
) -> Delivered | Absent:
    """Raises LocationError when it could not be found out within ``--retry-for``."""
    from ..crypto.keys import KeyRing
    from ..errors import LocationError
    from ..postgres.archive_contain import contain
    from ..postgres.archive_fetch import Absent, WalFetch
    from ..postgres.archive_outages import Outages

    fetch = WalFetch(config, KeyRing.load(config.keys, need_identity=True), Outages(state_directory))
    deadline = time.monotonic() + args.retry_for
    while True:
        try:
            found = fetch.fetch(
                system_identifier,
                args.name,
                args.destination,
                required_suffice=args.required_suffice or _is_standby(),
                # A standby would go on writing where the streamed part ends, or be promoted there.
                streamed=not args.archived_only and not _is_standby(),
                timeline=args.timeline,
            )
            if not isinstance(found, Absent) and args.contain_tablespaces:
                contain(fetch.repository, system_identifier, args.name, args.destination)
            return found
        except LocationError:
            if time.monotonic() + _RETRY_PAUSE_SECONDS > deadline:
                raise
            time.sleep(_RETRY_PAUSE_SECONDS)
