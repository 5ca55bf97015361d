# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``cryobackup wal-ahead``: what ``wal-get`` leaves behind, so that the next segments are there when asked for.

Nobody has to start or stop it. It belongs to one recovery, and ends with it; with nobody asking for a while; with other
options of ``wal-get``; and with another configuration. See ``postgres/archive_ahead.py``.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import subprocess
import threading
import time
import typing as t
from pathlib import Path

from . import _ahead_client as wire
from ._frame import Context, Outcome
from ._quick import is_trusted

if t.TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from ..postgres.archive_ahead import LookAhead

IDLE_SECONDS: t.Final = 60.0
_LOOK_SECONDS: t.Final = 0.5
_REQUEST_SECONDS: t.Final = 10.0
_REQUEST_BYTES: t.Final = 1 << 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--recovery", metavar="PID:START", required=True, help="PostgreSQL's startup process, and when it started"
    )
    parser.add_argument("--after", metavar="NAME", required=True, help="the segment that was delivered last")
    parser.add_argument("--segment-size", metavar="BYTES", type=int, required=True, help="of the cluster's WAL")
    parser.add_argument("words", metavar="WORD", nargs="*", help="after `--`: how wal-get is called, without its files")


def start(arguments: list[str]) -> None:
    """Let somebody look ahead for the recovery that asked for a segment, just delivered, if nobody does yet.

    ``arguments`` are the command line of ``wal-get``. Does nothing where it is switched off, where no recovery asks,
    and where it cannot be done: recovery goes on without. Raises nothing: the segment is there, and an exit code of 1
    would end the recovery all the same.
    """
    with contextlib.suppress(Exception):
        question = wire.parse(arguments)
        recovery = wire.of_parents() if question is not None else None
        if question is not None and recovery is not None and not wire.listens(recovery):
            _start(question, recovery, os.path.getsize(question.destination))


def _start(question: wire.Question, recovery: wire.Recovery, size: int) -> None:
    from ..postgres.archive_ahead import depth_for
    from ..postgres.archive_commands import this_command

    if depth_for(size):
        command = [*this_command(), "wal-ahead", "--recovery", f"{recovery.pid}:{recovery.started}"]
        command += ["--after", question.name, "--segment-size", str(size), "--", *question.words]
        # What one thread has freed shall serve the others: with an arena for each, it takes a third more memory.
        environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
        nowhere = subprocess.DEVNULL
        # The server's standard error must not stay open: its collector of logs would wait for us.
        subprocess.Popen(
            command, stdin=nowhere, stdout=nowhere, stderr=nowhere, env=environment, start_new_session=True
        )


def run(args: argparse.Namespace, context: Context) -> Outcome:
    from ..postgres.archive_ahead import LookAhead

    recovery = _recovery(args.recovery)
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(_listening(recovery))
        if listening is None:
            return Outcome({"already": True})
        # Whatever is short of memory should take it from here first: nothing is lost by it.
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")
        service = _Service(recovery, args.words)
        fetch = service.prepare(args.segment_size, context)
        os.chdir("/")  # the data directory's file system can be unmounted
        ahead = stack.enter_context(LookAhead(fetch, args.segment_size))
        ahead.begin(args.after)
        service.serve(listening, ahead)
    return Outcome({"already": False})


def _recovery(text: str) -> wire.Recovery:
    from ._parser import UsageError

    pid, _unused, started = text.partition(":")
    if not (pid.isdecimal() and started.isdecimal()):
        raise UsageError(f"{text!r} is no process", hint="wal-get starts this command by itself.")
    return wire.Recovery(int(pid), int(started))


@contextlib.contextmanager
def _listening(recovery: wire.Recovery) -> Iterator[socket.socket | None]:
    """None when somebody else listens there."""
    with socket.socket(socket.AF_UNIX) as listening:
        try:
            listening.bind(recovery.address)
            listening.listen()
        except OSError:
            yield None
            return
        yield listening


class _Service:
    """Answers the ``wal-get`` of one recovery."""

    def __init__(self, recovery: wire.Recovery, words: list[str]) -> None:
        self._recovery = recovery
        self._asked_as = b"\0".join(map(os.fsencode, (os.getcwd(), *words)))
        self._words = words
        self._config: Path | None = None
        self._seen: object = None
        self._outdated = threading.Event()

    def prepare(self, segment_size: int, context: Context) -> t.Any:
        """What fetches segments as that ``wal-get`` would. Raises what that would raise."""
        from ..crypto.keys import KeyRing
        from ..postgres.archive_ahead_fetch import AheadFetch
        from ..postgres.archive_outages import Outages
        from . import wal_get
        from ._parser import Parser, split
        from ._past import config_as_of

        invocation = split(self._words)
        parser = Parser.of_command("wal-get", "")
        wal_get.add_arguments(parser)
        # The files are of no interest here, but have their place in the command line.
        args = parser.parse(["-", "-", *invocation.rest])
        inner = Context(config_path=invocation.config, json=False, reporter=context.reporter)
        self._config = inner.config_path.absolute()
        self._seen = self._state()
        config = config_as_of(args, inner)
        return AheadFetch(
            wal_get.without(config.repository.as_written(), args.without),
            KeyRing.load(config.repository.keys, need_identity=True),
            Outages(config.state_directory),
            wal_get.system_identifier_of(args, config),
            segment_size,
            contains_tablespaces=args.contain_tablespaces,
        )

    def _state(self) -> object:
        """Changes when the configuration does."""
        if self._config is None:
            return None
        try:
            status = self._config.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns

    def serve(self, listening: socket.socket, ahead: LookAhead) -> None:
        """Until the recovery has ended, nobody asks any more, or what is asked for is not what we have."""
        asked = time.monotonic()
        with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
            selector.register(listening, selectors.EVENT_READ)
            with contextlib.suppress(OSError):  # kernels before 5.3 do not have it: then it is looked at now and then
                process = os.pidfd_open(self._recovery.pid)
                stack.callback(os.close, process)
                selector.register(process, selectors.EVENT_READ)
            while self._recovery.goes_on and not self._outdated.is_set():
                ready = {key.fileobj for key, _events in selector.select(_LOOK_SECONDS)}
                if listening in ready:
                    self._answer(listening, ahead)
                    asked = time.monotonic()
                elif time.monotonic() - asked > IDLE_SECONDS:
                    return

    def _answer(self, listening: socket.socket, ahead: LookAhead) -> None:
        with contextlib.suppress(OSError):  # who asked has gone
            connection, _address = listening.accept()
            with connection:
                connection.settimeout(_REQUEST_SECONDS)
                if is_trusted(connection):
                    self._deliver(connection, _read(connection), ahead)

    def _deliver(self, connection: socket.socket, request: bytes, ahead: LookAhead) -> None:
        name, _unused, asked_as = request.partition(b"\0")
        if not name:
            return  # only wants to know whether we are here
        if asked_as != self._asked_as or self._state() != self._seen:
            self._outdated.set()
            connection.sendall(wire.NOT_MINE)
            return
        descriptor = ahead.take(os.fsdecode(name), lambda: self._recovery.goes_on)
        if descriptor is None:
            connection.sendall(wire.NOT_HERE)
            return
        try:
            socket.send_fds(connection, [wire.HERE], [descriptor])
        finally:
            os.close(descriptor)


def _read(connection: socket.socket) -> bytes:
    request = b""
    while part := connection.recv(_REQUEST_BYTES):
        request += part
        if len(request) > _REQUEST_BYTES:
            return b""
    return request
