# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a service says to systemd: sd_notify(3). Nothing where nobody wants to know."""

from __future__ import annotations

import contextlib
import os
import socket
import threading


def tell_systemd(state: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.connect(f"\0{address[1:]}" if address.startswith("@") else address)
        notify.sendall(state.encode())


def start_watchdog() -> None:
    """Say that we are alive, as often as ``WatchdogSec=`` wants it, in a thread of its own."""
    threading.Thread(target=_watchdog, name="watchdog", daemon=True).start()


def _watchdog() -> None:
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    while microseconds.isdecimal():
        tell_systemd("WATCHDOG=1")
        threading.Event().wait(int(microseconds) / 3e6)
