# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``wal-get`` in a recovery: ask who looks ahead for it. Imports next to nothing, since replay waits for the segment.

The request is the name, the working directory and the words of ``wal-get`` without name and destination, a zero between
each, up to the end of the stream. The answer is a digit: ``0`` with a descriptor of a sealed file in memory, which is
the segment; ``1`` not at hand; ``2`` not who looks ahead for this. Only what is there is ever answered: that a segment
does not exist is found out by the command itself, each time anew.
"""

from __future__ import annotations

import _socket
import os
import sys

from . import _quick

COMMAND = "wal-get"
SWITCHED_OFF = "--no-look-ahead"
HERE, NOT_HERE, NOT_MINE = b"0", b"1", b"2"
TIMEOUT_SECONDS = 40.0
_DIGITS = frozenset("0123456789ABCDEF")
_NAME_LENGTH = 24
_GENERATIONS = 8
_INIT = 1
_DESCRIPTOR_BYTES = 4  # an int


class Recovery:
    """PostgreSQL's startup process, which replays WAL: its lifetime is that of the recovery."""

    def __init__(self, pid: int, started: int) -> None:
        """``started``: in clock ticks since the boot. With it a process id is never mistaken for another's."""
        self.pid = pid
        self.started = started

    @property
    def address(self) -> str:
        """Where to ask: an abstract socket, which has no file and is gone with the process that listens."""
        return f"\0cryobackup-ahead-{os.geteuid()}-{self.pid}-{self.started}"

    @property
    def goes_on(self) -> bool:
        return _parent_and_start(self.pid)[1] == self.started


class Question:
    """The command line, taken apart."""

    def __init__(self, name: str, destination: str, words: list[str]) -> None:
        """``words``: all the others."""
        self.name = name
        self.destination = destination
        self.words = words

    @property
    def request(self) -> bytes:
        return b"\0".join(map(os.fsencode, (self.name, os.getcwd(), *self.words)))


def run(arguments: list[str]) -> int | None:
    """0 when the segment is there; None when the command has to find out by itself.

    Raises nothing: an exit code of 1, which is Python's for whatever is raised, ends a recovery.
    """
    with _quick.NothingRaised():
        return _run(arguments)
    return None


def _run(arguments: list[str]) -> int | None:
    question = parse(arguments)
    recovery = of_parents() if question is not None else None
    if question is None or recovery is None:
        return None
    temporary = f"{question.destination}.{os.getpid()}.ahead.tmp"

    def stop(number: int, _frame: object) -> None:
        _remove(temporary)
        os._exit(128 + number)

    _quick.on_stop(stop)
    delivered = _fetch(recovery, question, temporary)
    _quick.on_stop(None)
    return 0 if delivered else None


def parse(arguments: list[str]) -> Question | None:
    """None for what is not looked ahead for: other files than segments, and calls by people."""
    if SWITCHED_OFF in arguments or {"--json", "--help", "-h"} & {*arguments} or COMMAND not in arguments:
        return None
    first = arguments.index(COMMAND) + 1
    for at in range(first, len(arguments) - 1):
        name = arguments[at]
        if len(name) == _NAME_LENGTH and _DIGITS.issuperset(name):
            return Question(name, arguments[at + 1], arguments[:at] + arguments[at + 2 :])
    return None


def of_parents() -> Recovery | None:
    """The recovery of the data directory this was started in, if it is what started this.

    None where the server is the first process of a container: what is orphaned becomes its child, and when a child that
    it does not know ends badly it restarts everything (``CleanupBackend`` in ``postmaster.c``).
    """
    try:
        with open("postmaster.pid", "rb") as file:
            server = int(file.readline(32))
    except (OSError, ValueError):
        return None
    pid = os.getppid()
    for _generation in range(_GENERATIONS):
        if server <= _INIT or pid <= _INIT:
            return None
        parent, started = _parent_and_start(pid)
        if parent == server:
            return Recovery(pid, started)
        pid = parent
    return None


def _parent_and_start(pid: int) -> tuple[int, int]:
    """Zeros for a process that has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name, in parentheses, may contain anything. Fields 3, 4 and 22 of proc(5).
            fields = file.read().rpartition(b")")[2].split()
        return (int(fields[1]), int(fields[19])) if fields[0] not in (b"Z", b"X") else (0, 0)
    except (OSError, IndexError, ValueError):
        return 0, 0


def listens(recovery: Recovery) -> bool:
    """Whether somebody looks ahead for this recovery."""
    try:
        _quick.connect(recovery.address, TIMEOUT_SECONDS).close()
    except OSError:
        return False
    return True


def _fetch(recovery: Recovery, question: Question, temporary: str) -> bool:
    """Whether the segment is at its destination now. It has no name before it is whole."""
    try:
        connection = _quick.connect(recovery.address, TIMEOUT_SECONDS)
        try:
            if not _quick.is_trusted(connection):
                return False
            connection.sendall(question.request)
            connection.shutdown(_socket.SHUT_WR)
            answer, descriptor = _receive(connection)
        finally:
            connection.close()
        if descriptor < 0:
            return False
        try:
            if answer != HERE or not sealed(descriptor):
                return False
            _copy(descriptor, temporary)
        finally:
            os.close(descriptor)
        os.replace(temporary, question.destination)
    except OSError:
        _remove(temporary)
        return False
    return True


def _receive(connection: _socket.socket) -> tuple[bytes, int]:
    """The answer, and the descriptor that came with it; -1 where none came (cmsg(3), ``SCM_RIGHTS``)."""
    answer, more, _flags, _address = connection.recvmsg(1, _socket.CMSG_SPACE(_DESCRIPTOR_BYTES))
    for level, kind, data in more:
        if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
            return answer, int.from_bytes(data[:_DESCRIPTOR_BYTES], sys.byteorder)
    return answer, -1


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        return


def sealed(descriptor: int) -> bool:
    """Whether it is a file that nobody can change any more."""
    import fcntl

    wanted = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
    return fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & wanted == wanted


def _copy(source: int, temporary: str) -> None:
    size = os.fstat(source).st_size
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    target = os.open(temporary, flags, 0o600)
    try:
        done = 0
        while done < size:
            sent = os.sendfile(target, source, done, size - done)
            if sent == 0:
                raise OSError
            done += sent
    finally:
        os.close(target)
