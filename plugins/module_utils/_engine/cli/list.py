# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``cryobackup list``: which backups there are."""

from __future__ import annotations

import typing as t

from ._frame import Outcome
from ._past import add_as_of, config_as_of

if t.TYPE_CHECKING:
    import argparse

    from ._frame import Context


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", nargs="?", help="a cluster or a file set (default: all)")
    add_as_of(parser)


def run(args: argparse.Namespace, context: Context) -> Outcome:
    from ..report.backups import listing, require_known_source
    from ..repository.catalog import Catalog
    from ..repository.repository import Repository
    from ._backups import reading_exit, table, warn_of_gaps

    config = config_as_of(args, context)
    repository = Repository.open(config.repository.as_written())
    catalog = Catalog.load(repository, args.source)
    if args.source is not None:
        require_known_source(config, catalog, args.source)
    warn_of_gaps(context.reporter, repository, catalog)
    result = listing(config, repository, catalog)
    return Outcome(result, reading_exit(repository, catalog), lambda: table(result["backups"]))
