# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the measuring machine is."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path


def _cpu_model() -> str:
    match = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return match.group(1) if match else platform.machine()


def filesystem(path: Path) -> str:
    """Type of the file system that ``path`` is on."""
    best, kind = "", "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _unused, point, found = line.split(" ")[:3]
        below = point == "/" or str(path) == point or str(path).startswith(f"{point}/")
        if below and len(point) >= len(best):
            best, kind = point, found
    return kind


def describe(path: Path) -> dict[str, str]:
    """The machine, and the file system of ``path``, in words."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu_model(),
        "cores": str(os.cpu_count()),
        "memory": f"{memory / 2**30:.0f} GiB",
        "kernel": os.uname().release,
        "file system": filesystem(path.resolve()),
        "python": platform.python_version(),
    }
