# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``wal-push --socket FILE …``: ask the archiver. Imports next to nothing, since PostgreSQL waits for the answer.

The request is five byte strings with a zero between, up to the end of the stream: ``push1``, configuration file (empty:
the usual one), working directory, name of the cluster (may be empty), path. The answer: a digit, then lines for people.
``0`` archived, ``1`` not archived, ``2`` not the archiver for this.
"""

from __future__ import annotations

import _socket
import os
import sys

from . import _quick

REQUEST = b"push1"
ARCHIVED, FAILED, NOT_MINE = b"0", b"1", b"2"
TIMEOUT_SECONDS = 900.0
_MOST_BYTES = 1 << 16


def run(arguments: list[str]) -> int | None:
    """The exit code; None when there is no archiver that knows: then the command has to do it itself.

    Signals end it with 1, because PostgreSQL takes more than 125 for the end of its own archiver (shell_archive.c).
    """
    at = arguments.index("wal-push")
    before, after = arguments[:at], arguments[at + 1 :]
    path = after[-1] if after else "-"
    if path.startswith("-") or {"--json", "--help", "-h"} & {*arguments}:
        return None
    _quick.on_stop(lambda _number, _frame: os._exit(1))
    answer = ask(_value(after, "--socket"), _value(before, "--config"), _value(after, "--cluster"), path)
    _quick.on_stop(None)
    if answer[:1] == ARCHIVED:
        return 0
    if answer[:1] == FAILED:
        sys.stderr.write(answer[1:].decode("utf-8", "backslashreplace"))
        return 1
    return None


def _value(arguments: list[str], name: str) -> str:
    """What follows an option; empty when it is not there."""
    return arguments[arguments.index(name) + 1] if name in arguments[:-1] else ""


def ask(socket_path: str, config: str, cluster: str, path: str) -> bytes:
    """The archiver's answer; nothing when it gave none, or when it is not our own or root's that listens there."""
    fields = [REQUEST, *map(os.fsencode, (config, os.getcwd(), cluster, path))]
    answer = b""
    try:
        connection = _quick.connect(socket_path, TIMEOUT_SECONDS)
        try:
            if not _quick.is_trusted(connection):
                return b""
            connection.sendall(b"\0".join(fields))
            connection.shutdown(_socket.SHUT_WR)
            while part := connection.recv(_MOST_BYTES):
                answer += part
        finally:
            connection.close()
    except OSError:
        return b""
    return answer
