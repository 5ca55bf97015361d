# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backup, restore and WAL archive of a PostgreSQL cluster, measured beside other programs.

``python -m tests.benchmarks --help``; README.md says what is measured and how.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.lab.peers import PeerUnavailable

from .groups import GROUPS
from .measure import RunFailed
from .report import Report
from .runner import Interrupted, Plan, run
from .session import say
from .table import markdown
from .tools import NAME, TOOLS

STORED_SHARE = 0.5
"""Of the cluster's size, that a round's backups of one program take at most."""


def _names(known: Sequence[str]) -> Callable[[str], list[str]]:
    """What reads a list of names, apart by commas; returns them in the order of ``known``."""

    def parse(text: str) -> list[str]:
        wanted = [word for word in text.replace(",", " ").split() if word]
        unknown = sorted({*wanted} - {*known})
        if unknown or not wanted:
            raise argparse.ArgumentTypeError(f"not among {', '.join(known)}: {', '.join(unknown) or 'nothing'}")
        return [name for name in known if name in wanted]

    return parse


def arguments(words: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the cluster, 10^9 bytes (default: 1)")
    parser.add_argument("--rounds", type=int, default=2, help="medians are of so many rounds (default: 2)")
    parser.add_argument("--workers", type=int, default=2, help="threads or processes of each program (default: 2)")
    parser.add_argument("--postgres", type=int, metavar="MAJOR", help="default: the distribution's")
    parser.add_argument(
        "--storage",
        choices=("posix", "s3"),
        default="posix",
        help="where the repositories are: in directories, or in buckets of an object store on this machine, "
        "which keeps them in memory: choose fewer --gigabytes",
    )
    parser.add_argument(
        "--tools",
        type=_names(TOOLS),
        default=list(TOOLS),
        metavar="NAME,…",
        help=f"which programs, of {', '.join(TOOLS)} (default: all; {NAME} is always there)",
    )
    parser.add_argument(
        "--only",
        type=_names(list(GROUPS)),
        default=list(GROUPS),
        metavar="GROUP,…",
        help=f"which measurements, of {', '.join(GROUPS)} (default: all)",
    )
    parser.add_argument(
        "--thorough",
        action="store_true",
        help="let also pgBackRest with its defaults do everything in every round, which takes long",
    )
    parser.add_argument("--cache", choices=("warm", "cold"), default="warm", help="the page cache before each run")
    parser.add_argument(
        "--wait",
        type=float,
        default=0.0,
        metavar="MINUTES",
        help="wait so long at most for a quiet machine (default: 0)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single run there, too")
    options = parser.parse_args(words)
    if options.gigabytes <= 0 or options.rounds < 1 or options.workers < 1:
        parser.error("--gigabytes, --rounds and --workers need positive numbers")
    options.tools = [NAME, *(name for name in options.tools if name != NAME)]
    # The cluster, its WAL, a restore and what is unpacked for it; and the backups.
    needed = options.gigabytes * 1e9 * (5 + STORED_SHARE * options.rounds * len(options.tools)) + 4e9
    base = os.environ.get("LAB_DIR") or tempfile.gettempdir()
    free = shutil.disk_usage(base if os.path.isdir(base) else "/").free
    if free < needed:
        parser.error(
            f"{base} needs {needed / 1e9:.0f} GB free and has {free / 1e9:.0f}; LAB_DIR names another directory"
        )
    return options


def main(words: Sequence[str]) -> int:
    """Exit code 0, 1 when something failed, 130 when interrupted."""
    options = arguments(words)
    plan = Plan(
        gigabytes=options.gigabytes,
        rounds=options.rounds,
        workers=options.workers,
        postgres=options.postgres,
        storage=options.storage,
        tools=options.tools,
        groups=options.only,
        warm=options.cache == "warm",
        thorough=options.thorough,
        wait_minutes=options.wait,
    )
    # Like Ctrl-C: the laboratory then cleans up.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        outcome = run(plan)
    except (RunFailed, PeerUnavailable) as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt as stop:
        with contextlib.suppress(OSError):
            say("interrupted; everything is cleaned up")
        if isinstance(stop, Interrupted):
            publish(stop.args[0], options.json)
        return 130
    publish(outcome.report, options.json)
    for failure in outcome.failures:
        say(f"error: {failure}")
    return 1 if outcome.failures else 0


def publish(report: Report, file: Path | None) -> None:
    """To standard output, and to a file if there is one."""
    print(markdown(report))
    if file:
        file.write_text(json.dumps(report.as_dict(), indent=2) + "\n")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
