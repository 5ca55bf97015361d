# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``cryobackup wal-stream``: the service that stores the unfinished segment. See ``postgres/stream.py``."""

from __future__ import annotations

import argparse
import contextlib
import re
import typing as t

from ._frame import Outcome, Stopped
from ._service import start_watchdog, tell_systemd

if t.TYPE_CHECKING:
    from ._frame import Context

_INTERVAL_SECONDS: t.Final = 1.0
_SLOT = re.compile(r"[a-z0-9_]{1,63}")  # ReplicationSlotValidateName


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cluster", metavar="CLUSTER", help="whose WAL; a name under `clusters` in the configuration")
    parser.add_argument(
        "--interval",
        metavar="SECONDS",
        type=_interval,
        default=_INTERVAL_SECONDS,
        help=f"how long WAL may wait until it is stored, 0.1 to 60 (default: {_INTERVAL_SECONDS:g})",
    )
    parser.add_argument(
        "--slot",
        metavar="NAME",
        type=_slot,
        help="stream through this physical replication slot, made when it is not there (default: none; none is needed)",
    )


def run(args: argparse.Namespace, context: Context) -> Outcome:
    from ..locks import locked
    from ..postgres.stream import Streamer

    cluster = context.config.cluster(args.cluster)
    with locked(context.config.state_directory, f"stream-{cluster.name}", f"the stream of {cluster.name}"):
        streamer = Streamer(
            context.config_path, cluster.name, slot=args.slot, interval=args.interval, reporter=context.reporter
        )
        start_watchdog()
        tell_systemd("READY=1")
        with contextlib.suppress(Stopped):
            streamer.run()
        tell_systemd("STOPPING=1")
    return Outcome({"cluster": cluster.name, "stopped": True}, text="stopped")


def _interval(text: str) -> float:
    seconds = float(text)
    if not 0.1 <= seconds <= 60:
        raise argparse.ArgumentTypeError(f"{text} is not between 0.1 and 60")
    return seconds


def _slot(text: str) -> str:
    if _SLOT.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be the name of a slot: use a-z, 0-9 and _")
    return text
