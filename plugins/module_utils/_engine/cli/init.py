# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``cryobackup init``: create the repository and its keys."""

from __future__ import annotations

import typing as t

from ..errors import ConfigError
from ._frame import Outcome

if t.TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping

    from ..config import Config
    from ..repository.repository import InitResult
    from ._frame import Context


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Creates the keys if there are none, and the repository in every location that does not hold it yet.\n"
        "Run again, it changes nothing. Once there is a repository, a location that lacks it must be named with\n"
        "--new: more likely it is not mounted.\n\n"
        f"{parser.epilog or ''}"
    )

    parser.add_argument(
        "--new",
        metavar="NAME",
        action="append",
        default=[],
        help="this location was added to the configuration and may begin empty; may be given several times",
    )


def run(args: argparse.Namespace, context: Context) -> Outcome:
    from ..repository.repository import init

    config = context.config
    for name in args.new:
        if name not in config.repository.locations:
            raise ConfigError(
                f"there is no location {name!r}: {config.path} does not name it",
                hint=f"The configuration has: {', '.join(config.repository.locations)}.",
                id="unknown-location",
            )
    made = init(config.repository, context.now(), new=args.new, state_directory=config.state_directory)
    where = {name: {"created": created, "where": _where(config, name)} for name, created in made.locations.items()}
    for name, warnings in made.warnings.items():
        for warning in warnings:
            context.reporter.warn(f"location {name}: {warning}")
    result = {
        "changed": made.keys_created or any(made.locations.values()),
        "repository_id": made.repository_id,
        "keys": str(config.repository.keys),
        "keys_created": made.keys_created,
        "locations": where,
    }
    return Outcome(result, text="\n".join(_lines(config, made, where)))


def _where(config: Config, name: str) -> str:
    return config.repository.locations[name].where


def _lines(config: Config, made: InitResult, where: Mapping[str, Mapping[str, object]]) -> Iterator[str]:
    keys = config.repository.keys
    yield f"repository {made.repository_id}"
    for name, location in where.items():
        yield f"  {name}: {'created' if location['created'] else 'was there already'}, {location['where']}"
    yield f"  keys: {'created' if made.keys_created else 'were there already'}, {keys}"
    if not made.keys_created and any(made.locations.values()):
        yield ""
        yield "What to do next:"
        yield "  cryobackup replicate                brings the new location what the others have"
    if made.keys_created:
        yield ""
        yield "What to do next:"
        yield "  cryobackup key kit --output FILE    the keys for a sheet of paper: without them no backup can be read"
        yield f"  Move {keys / 'data.identity'} to where restores are made. Backups do not need it,"
        yield "  and a thief of this host cannot read them without it."
        yield "  cryobackup check                    proves the set-up from end to end"
