# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``cryobackup config check``: is the configuration sound?"""

from __future__ import annotations

import typing as t

from ._frame import Outcome

if t.TYPE_CHECKING:
    import argparse

    from ._frame import Context


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("check", help="report everything that is wrong with the file; touch nothing else")


def run(_args: argparse.Namespace, context: Context) -> Outcome:
    from ..config.advice import advice

    config = context.config
    names = {
        "locations": list(config.repository.locations),
        "clusters": list(config.clusters),
        "file_sets": list(config.file_sets),
    }
    counted = [f"{what.replace('_', ' ')}: {', '.join(each)}" for what, each in names.items() if each]
    if not config.sources:
        context.reporter.warn("it names no cluster and no file set: there is nothing to back up")
    for each in advice(config):
        context.reporter.warn(f"{each}. {each.hint}")
    return Outcome(
        {"config": str(config.path), **names},
        text="\n  ".join([f"{config.path} is sound", *counted]),
    )
