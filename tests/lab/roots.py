# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Roots of another Debian release whose servers run here: unpacked once, never modified by those who use them."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from .cleanup import remove_tree
from .installation import MajorUnavailable
from .majors import COMPLETE, cache_directory, locked, unpack_packages

MERGED = ("bin", "sbin", "lib", "lib64")


class RootUnavailable(Exception):
    """A root cannot be had on this machine; the message says why."""


def require_namespaces() -> None:
    """Raises RootUnavailable where a server cannot be put into a root and namespaces of its own."""
    if os.geteuid() != 0:
        raise RootUnavailable("running a server in a root of its own needs root")


def provide_root(name: str, suite: str, packages: Sequence[str], prepare: Callable[[Path], None] | None = None) -> Path:
    """The directory of the root ``name``: these packages of a Debian release and what they need.

    Made on first use, in the laboratory's cache, by whoever holds the lock; ``prepare`` is called with the new
    root before it counts as made. Raises RootUnavailable.
    """

    def make(root: Path) -> None:
        _unpack(suite, packages, root)
        if prepare is not None:
            prepare(root)

    return provide(name, make)


def provide(name: str, make: Callable[[Path], None]) -> Path:
    """The directory ``name`` of the laboratory's cache; ``make`` fills it on first use. Raises RootUnavailable."""
    require_namespaces()
    cache = cache_directory()
    final = cache / name
    with locked(cache / f".{name}.lock"):
        if not (final / COMPLETE).exists():
            remove_tree(final)
            try:
                _make(make, final)
            except (MajorUnavailable, OSError, subprocess.SubprocessError) as error:
                raise RootUnavailable(f"{name} cannot be made: {_words(error)}") from error
    return final


def _make(make: Callable[[Path], None], final: Path) -> None:
    building = Path(tempfile.mkdtemp(prefix=f".building-{final.name}-", dir=final.parent))
    try:
        root = building / "root"
        make(root)
        root.chmod(0o755)
        root.rename(final)
    finally:
        remove_tree(building)
    (final / COMPLETE).touch()


def _unpack(suite: str, packages: Sequence[str], root: Path) -> None:
    unpack_packages(suite, packages, root)
    # Packages that are unpacked without being installed leave these links to the one who does it.
    for link in MERGED:
        if not (root / link).exists() and (root / "usr" / link).is_dir():
            (root / link).symlink_to(Path("usr") / link)
    for folder in ("proc", "run", "tmp", "root"):
        (root / folder).mkdir(exist_ok=True)
    if not (root / "var/run").exists():
        (root / "var/run").symlink_to("/run")
    for part in ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache/apt", "var/lib/apt"):
        remove_tree(root / part)


def _words(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        output = f"{error.stdout or ''}{error.stderr or ''}".strip().splitlines()
        return f"{error.cmd[0]} exited {error.returncode}: " + " / ".join(output[-4:])
    return str(error)
