# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the programs of each PostgreSQL major are."""

from __future__ import annotations

import functools
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

DISTRIBUTION = Path("/usr/lib/postgresql")
NEEDED_PROGRAMS = ("postgres", "initdb", "pg_dumpall", "pg_checksums", "pg_controldata", "pgbench", "psql")


class MajorUnavailable(Exception):
    """No server of the wanted major can be had on this machine; the message says why."""


@dataclass(frozen=True, order=True)
class Installation:
    """The programs of one PostgreSQL major."""

    major: int
    bin_dir: Path

    def __str__(self) -> str:
        return f"PostgreSQL {self.major}"

    def program(self, name: str) -> str:
        """Path of a program; raises FileNotFoundError when this major does not have it."""
        path = self.bin_dir / name
        if not path.exists():
            raise FileNotFoundError(f"{self} has no {name} in {self.bin_dir}")
        return str(path)

    def has(self, name: str) -> bool:
        """Whether this major has the program."""
        return (self.bin_dir / name).exists()

    @functools.cached_property
    def version(self) -> str:
        """Full version, such as ``17.5``."""
        return program_version(self.bin_dir)


def program_version(bin_dir: Path) -> str:
    """The version that ``postgres`` in ``bin_dir`` reports, such as ``17.5`` or ``18beta1``."""
    words = subprocess.run([str(bin_dir / "postgres"), "--version"], check=True, capture_output=True, text=True).stdout
    match = re.search(r"\(PostgreSQL\) (\S+)", words)
    if match is None:
        raise MajorUnavailable(f"{bin_dir}/postgres reports no version: {words!r}")
    return match.group(1)


def _complete(bin_dir: Path) -> bool:
    return all((bin_dir / program).exists() for program in NEEDED_PROGRAMS)


def _packaged() -> list[Installation]:
    found = [
        Installation(int(folder.name), folder / "bin")
        for folder in DISTRIBUTION.glob("*")
        if folder.name.isdigit() and _complete(folder / "bin")
    ]
    return sorted(found)


@functools.cache
def distribution() -> Installation:
    """The newest PostgreSQL that this machine's package manager installed. Raises MajorUnavailable."""
    packaged = _packaged()
    if not packaged:
        raise MajorUnavailable(f"no PostgreSQL server below {DISTRIBUTION}: install the package postgresql")
    return packaged[-1]


@functools.cache
def installation(major: int) -> Installation:
    """The programs of ``major``: the distribution's, or else a root that is built on first use and cached.

    Raises MajorUnavailable when neither can be had.
    """
    for candidate in _packaged():
        if candidate.major == major:
            return candidate
    from . import majors

    return majors.provide(major)


def default_majors() -> list[int]:
    """The majors that tests run on: ``PG_MAJORS`` (numbers apart by blanks or commas), or else three."""
    wanted = os.environ.get("PG_MAJORS", "").replace(",", " ").split()
    if wanted:
        return [int(word) for word in wanted]
    try:
        return sorted({distribution().major, 17, 18})
    except MajorUnavailable:
        return [17, 18]
