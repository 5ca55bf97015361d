# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``cryobackup wal-archiver``: the service that ``wal-push --socket`` asks. See ``postgres/archiver.py``."""

from __future__ import annotations

import contextlib
import os
import socket
import socketserver
import stat
import typing as t
from pathlib import Path

from . import _archiver_client as wire
from ._frame import Outcome, Stopped
from ._quick import is_trusted
from ._service import start_watchdog, tell_systemd

if t.TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from ..postgres.archiver import Archiver
    from ._frame import Context

_WORKERS: t.Final = 2
_AHEAD: t.Final = 64
_FIRST_PASSED_DESCRIPTOR: t.Final = 3  # sd_listen_fds(3)
_REQUEST_SECONDS: t.Final = 10.0
_REQUEST_BYTES: t.Final = 1 << 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cluster", metavar="CLUSTER", help="whose WAL; a name under `clusters` in the configuration")
    parser.add_argument(
        "--socket",
        metavar="FILE",
        type=Path,
        help="where to listen (default: what systemd passes, or archiver-CLUSTER.sock in the state directory)",
    )
    parser.add_argument(
        "--workers",
        metavar="N",
        type=int,
        default=_WORKERS,
        choices=range(1, 33),
        help=f"files that are archived at the same time, 1 to 32 (default: {_WORKERS})",
    )


def run(args: argparse.Namespace, context: Context) -> Outcome:
    from ..locks import locked
    from ..postgres.archiver import Archiver
    from ..postgres.archiver_metrics import Publisher

    config = context.config
    cluster = config.cluster(args.cluster)
    socket_path = args.socket or config.state_directory / f"archiver-{cluster.name}.sock"
    with contextlib.ExitStack() as stack:
        stack.enter_context(
            locked(config.state_directory, f"archiver-{cluster.name}", f"the archiver of {cluster.name}")
        )
        archiver = stack.enter_context(
            Archiver(context.config_path, cluster.name, workers=args.workers, ahead=_AHEAD, reporter=context.reporter)
        )
        stack.enter_context(Publisher(archiver.settings.now, archiver.archived, archiver.tally, archiver.reporter))
        server = stack.enter_context(_listening(socket_path, archiver))
        context.reporter.note(f"archiving WAL of {cluster.name}, asked at {server.server_address!s}")
        tell_systemd("READY=1")
        stack.callback(tell_systemd, "STOPPING=1")
        start_watchdog()
        with contextlib.suppress(Stopped):
            server.serve_forever()
    return Outcome({"cluster": cluster.name, "stopped": True}, text="stopped")


class _Handler(socketserver.StreamRequestHandler):
    timeout = _REQUEST_SECONDS

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # who asked has gone
            if is_trusted(self.request):
                self.wfile.write(self._answer(self.rfile.read(_REQUEST_BYTES).split(b"\0")))

    def _answer(self, fields: list[bytes]) -> bytes:
        from ..errors import CryoError

        server = t.cast("_Server", self.server)
        if len(fields) != 5 or fields[0] != wire.REQUEST:
            return wire.NOT_MINE
        config, here, cluster, path = map(os.fsdecode, fields[1:])
        if not server.serves(Path(here) / config if config else None, cluster):
            return wire.NOT_MINE
        try:
            server.archiver.push(Path(path), Path(here))
        except CryoError as error:
            hint = f"\nhint: {error.hint}" if error.hint else ""
            return wire.FAILED + f"error: {error.message}{hint}\n".encode("utf-8", "backslashreplace")
        return wire.ARCHIVED


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, archiver: Archiver, cluster: str) -> None:
        super().__init__("", _Handler, bind_and_activate=False)
        self.archiver = archiver
        self._cluster = cluster

    def serves(self, config: Path | None, cluster: str) -> bool:
        """Whether a command with this configuration and this cluster would do what we do."""
        from ..config import default_config_path

        with contextlib.suppress(OSError):
            same = os.path.samefile(config or default_config_path(), self.archiver.settings.path)
            return same and cluster in ("", self._cluster)
        return False


@contextlib.contextmanager
def _listening(path: Path, archiver: Archiver) -> Iterator[_Server]:
    """Raises ConfigError."""
    from ..errors import ConfigError

    cluster = archiver.settings.now()[1].name
    with _Server(archiver, cluster) as server:
        server.socket.close()
        if os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS") == "1":
            server.socket = socket.socket(fileno=_FIRST_PASSED_DESCRIPTOR)
            server.server_address = server.socket.getsockname()
            yield server
            return
        server.socket = socket.socket(socket.AF_UNIX)
        try:
            # We hold the lock: a socket that is there is that of a process that was killed.
            if path.exists() and stat.S_ISSOCK(path.lstat().st_mode):
                path.unlink()
            before = os.umask(0o177)
            try:
                server.socket.bind(str(path))
            finally:
                os.umask(before)
            server.server_activate()
        except OSError as error:
            raise ConfigError(
                f"cannot listen at {path}: {error.strerror or error}",
                hint="Name another file with --socket; its directory has to be there, and a path may have 107 bytes.",
                id="archiver-socket",
            ) from error
        server.server_address = str(path)
        try:
            yield server
        finally:
            path.unlink(missing_ok=True)
