# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``cryobackup unpin``: let the retention rules decide about a backup again."""

from __future__ import annotations

import typing as t

if t.TYPE_CHECKING:
    import argparse

    from ._frame import Context, Outcome


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("backup", metavar="BACKUP", help="its id, or the beginning or the end of it")


def run(args: argparse.Namespace, context: Context) -> Outcome:
    from ..repository.pins import unpin
    from ._backups import change_pin

    return change_pin(
        context,
        args.backup,
        lambda repository, backup: unpin(repository, backup, context.now()),
    )
