# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guard: cleans a laboratory up when the process that made it has died without doing so.

It waits on its standard input, whose other end only the laboratory's process holds. The end of that input is
the only signal there is when a test run is killed with SIGKILL.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from .cleanup import clean


def main(roots: list[str]) -> int:
    """Wait for the end of standard input, then clean what still stands of ``roots``."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while sys.stdin.buffer.read(4096):
        pass
    for root in map(Path, roots):
        clean(root)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
