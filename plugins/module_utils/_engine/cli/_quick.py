# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Unix sockets and signals for commands that PostgreSQL waits for, segment after segment.

The modules ``socket``, ``signal``, ``typing`` and ``contextlib`` take longer to load than Python takes to start, for
names and types that nobody looks at here. So this, and who uses it before anything else, goes by what they are made of.
"""

from __future__ import annotations

import _socket
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_STOPPING = (1, 2, 15)  # SIGHUP, SIGINT, SIGTERM: these numbers are POSIX's
_DEFAULT = 0  # SIG_DFL
_CREDENTIALS_BYTES = 12  # struct ucred: process, user, group


def on_stop(action: Callable[[int, object], object] | None) -> None:
    """What the signals that end a command do; None: what they usually do."""
    signal = __import__("_signal")
    for number in _STOPPING:
        signal.signal(number, action or _DEFAULT)


def connect(address: str, seconds: float) -> _socket.socket:
    """To whoever listens there. Each later step may take so long. Raises OSError."""
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        connection.settimeout(seconds)
        connection.connect(address)
    except OSError:
        connection.close()
        raise
    return connection


def is_trusted(connection: _socket.socket) -> bool:
    """Whether the process at the other end is of our own user or root."""
    credentials = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _CREDENTIALS_BYTES)
    return int.from_bytes(credentials[4:8], sys.byteorder) in (0, os.geteuid())


class NothingRaised:
    """``contextlib.suppress(Exception)``."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> bool:
        return kind is not None and issubclass(kind, Exception)
