# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Other people's backup programs, for comparison: the one installed here, or one that is unpacked for it."""

from __future__ import annotations

import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from .cleanup import remove_tree
from .installation import MajorUnavailable
from .majors import COMPLETE, Place, bundle_libraries, cache_directory, locked, unpack_packages

SUITE = "sid"
"""Debian's newest release has the newest versions, which are the ones to compare with."""

BARMAN_PACKAGES = ("barman", "rsync", "zstd", "python3-zstandard")
BARMAN_PROGRAMS = ("rsync", "zstd")
"""What Barman starts by name. PostgreSQL's programs are those of the cluster's major, which its settings name."""
BARMAN_COMMAND = """\
#!/bin/sh
PATH={root}/programs:$PATH exec {root}/usr/bin/{python} -I {root}/usr/bin/barman "$@"
"""


class PeerUnavailable(Exception):
    """The program cannot be had on this machine; the message says why."""


def provide_pgbackrest() -> Path:
    """``pgbackrest`` from PATH, or Debian's newest: unpacked once into the laboratory's cache, not installed.

    Raises PeerUnavailable.
    """
    installed = shutil.which("pgbackrest")
    if installed is not None:
        return Path(installed)
    return _unpacked_once("pgbackrest", Path("usr/bin/pgbackrest"), _unpack_pgbackrest)


def provide_barman() -> Path:
    """``barman`` from PATH, or Debian's newest with its own Python: unpacked once into the cache, not installed.

    Raises PeerUnavailable.
    """
    installed = shutil.which("barman")
    if installed is not None:
        return Path(installed)
    return _unpacked_once("barman", Path("barman"), _unpack_barman)


def _unpacked_once(name: str, program: Path, unpack: Callable[[Path, Path], None]) -> Path:
    """``program`` of the root ``name`` in the cache, which ``unpack`` makes when it is missing."""
    cache = cache_directory()
    final = cache / name
    with locked(cache / f".{name}.lock"):
        if not (final / COMPLETE).exists():
            remove_tree(final)
            try:
                unpack(program, final)
            except (MajorUnavailable, OSError, subprocess.SubprocessError) as error:
                raise PeerUnavailable(f"{name} is not in PATH, and unpacking it failed: {error}") from error
    return final / program


def _unpack_pgbackrest(program: Path, final: Path) -> None:
    building = Path(tempfile.mkdtemp(prefix=f".building-{final.name}-", dir=final.parent))
    try:
        packages = building / "packages"
        unpack_packages(SUITE, [program.name], packages)
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


def _unpack_barman(program: Path, final: Path) -> None:
    building = Path(tempfile.mkdtemp(prefix=f".building-{final.name}-", dir=final.parent))
    try:
        root = building / "root"
        unpack_packages(SUITE, BARMAN_PACKAGES, root)
        programs = root / "programs"
        programs.mkdir()
        for name in BARMAN_PROGRAMS:
            (programs / name).symlink_to(final / "usr/bin" / name)
        python = (root / "usr/bin/python3").readlink().name
        libraries = Path("usr/lib", f"{platform.machine()}-linux-gnu")
        loader = next((root / libraries).glob("ld-linux-*.so.*")).name
        for name in (python, *BARMAN_PROGRAMS):
            # Only the older of the two kinds of run path also holds for what the libraries need.
            run_path = ["--force-rpath", "--set-rpath", str(final / libraries)]
            interpreter = ["--set-interpreter", str(final / libraries / loader)]
            subprocess.run(["patchelf", *interpreter, *run_path, str(root / "usr/bin" / name)], check=True)
        (root / program).write_text(BARMAN_COMMAND.format(root=final, python=python))
        (root / program).chmod(0o755)
        root.chmod(0o755)
        root.rename(final)
    finally:
        remove_tree(building)
    # An installation has its bytecode, too, which those who run it here may not be able to write.
    compiled = ["-I", "-m", "compileall", "-q", "-j", "0", str(final / "usr/lib")]
    subprocess.run([str(final / "usr/bin" / python), *compiled], check=False, capture_output=True)
    subprocess.run([str(final / program), "--version"], check=True, capture_output=True)
    (final / COMPLETE).touch()
