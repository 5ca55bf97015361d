# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``--as-of``: the repository as it was, for buckets in which somebody has deleted or overwritten since."""

from __future__ import annotations

import dataclasses
import datetime as dt
import typing as t

if t.TYPE_CHECKING:
    import argparse

    from ..config import Config
    from ._frame import Context


def add_as_of(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--as-of",
        metavar="TIME",
        help="look at the repository as it was then, in buckets that keep versions; ISO 8601 with UTC offset "
        "(default: as it is)",
    )


def config_as_of(args: argparse.Namespace, context: Context) -> Config:
    """The configuration, with the locations that keep versions alone when a time is given.

    Raises ConfigError ``no-versions`` when there is none, UsageError for a time that is none or has not come yet.
    """
    if args.as_of is None:
        return context.config
    moment = _moment(args.as_of, context.now())
    config = context.config
    past = config.repository.as_of(moment)
    left_out = sorted(config.repository.locations.keys() - past.locations.keys())
    if left_out:
        context.reporter.note(f"locations without versions are not asked: {', '.join(left_out)}")
    return dataclasses.replace(config, repository=past)


def _moment(text: str, now: dt.datetime) -> dt.datetime:
    from ..postgres.recovery import parse_time
    from ._parser import UsageError

    moment = parse_time(text)
    if moment > now:
        raise UsageError(f"--as-of {text} has not come yet", hint=f"It is {now.isoformat(timespec='seconds')} now.")
    return moment
