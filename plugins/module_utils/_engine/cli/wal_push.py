# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``cryobackup wal-push``: PostgreSQL's archive_command."""

from __future__ import annotations

import typing as t
from pathlib import Path

from ._frame import Outcome, Stopped

if t.TYPE_CHECKING:
    import argparse

    from ._frame import Context


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", type=Path, help="the file, as PostgreSQL gives it (%%p)")
    parser.add_argument(
        "--socket",
        metavar="FILE",
        help="let the archiver that listens there do it (wal-archiver); where none does, do it here",
    )
    parser.add_argument(
        "--cluster", metavar="NAME", help="the cluster it must belong to (default: the one it is found in)"
    )


def run(args: argparse.Namespace, context: Context) -> Outcome:
    from ..errors import CryoError

    try:
        return _push(args.path, args.cluster, context)
    except Stopped as stopped:
        # PostgreSQL takes an exit code above 125 for the end of its archiver (shell_archive.c).
        raise CryoError(
            f"{args.path.name} is not archived: stopped by {stopped.name}",
            hint="PostgreSQL keeps the file and tries again. Nothing half-done counts.",
            id="stopped",
        ) from stopped


def _push(path: Path, cluster: str | None, context: Context) -> Outcome:
    from ..postgres.archive_backlog import note_result
    from ..postgres.archive_history import history_first
    from ..postgres.archive_run import archive
    from ..postgres.archive_source import WalSource, cluster_of

    config = context.config
    owner = cluster_of(config, path, cluster)
    with WalSource(path, owner.data_directory) as source:
        history = history_first(config, source, owner.data_directory, context.reporter)
        result = archive(config, source)
    for each in (history, result):
        if each is not None:
            note_result(config, each, context.reporter)
    return Outcome(
        {
            "cluster": owner.name,
            "name": result.name,
            "system_identifier": str(result.system_identifier),
            "bytes": result.size,
            "stored": list(result.stored),
            "already": list(result.already),
            "failed": {name: error.as_dict() for name, error in result.failed.items()},
            "caught_up": result.caught_up,
        }
    )
