# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Other people's backup programs, for comparison: the one installed here, or one that is unpacked for it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from .cleanup import remove_tree
from .installation import MajorUnavailable
from .majors import COMPLETE, Place, bundle_libraries, cache_directory, locked, unpack_packages

PGBACKREST_SUITE = "sid"
"""Debian's newest release has the newest version, which is the one to compare with."""


class PeerUnavailable(Exception):
    """The program cannot be had on this machine; the message says why."""


def provide_pgbackrest() -> Path:
    """``pgbackrest`` from PATH, or Debian's newest: unpacked once into the laboratory's cache, not installed.

    Raises PeerUnavailable.
    """
    installed = shutil.which("pgbackrest")
    if installed is not None:
        return Path(installed)
    cache = cache_directory()
    final = cache / "pgbackrest"
    program = Path("usr/bin/pgbackrest")
    with locked(cache / ".pgbackrest.lock"):
        if not (final / COMPLETE).exists():
            remove_tree(final)
            try:
                _unpack(program, final)
            except (MajorUnavailable, OSError, subprocess.SubprocessError) as error:
                raise PeerUnavailable(f"pgbackrest is not in PATH, and unpacking it failed: {error}") from error
    return final / program


def _unpack(program: Path, final: Path) -> None:
    building = Path(tempfile.mkdtemp(prefix=f".building-{final.name}-", dir=final.parent))
    try:
        packages = building / "packages"
        unpack_packages(PGBACKREST_SUITE, [program.name], packages)
        place = Place(building / "root", final)
        (place.building / program).parent.mkdir(parents=True)
        place.building.chmod(0o755)
        (packages / program).rename(place.building / program)
        bundle_libraries(packages, place, program.parent.parent)
        place.building.rename(final)
    finally:
        remove_tree(building)
    # It names its final place, and can only be tried there.
    subprocess.run([str(final / program), "version"], check=True, capture_output=True)
    (final / COMPLETE).touch()
