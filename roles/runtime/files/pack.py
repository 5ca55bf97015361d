# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pack the engine for a host: its files, what it needs, and the command. Run on the controller, with any Python 3.

    pack.py DIRECTORY_OF_THE_ENGINE OUTPUT [WHEELS]

Prints what the packed version is called: the engine's version and a digest of all that is packed. Wheels do not count:
what may be installed stands in the lock, by hash.
"""

from __future__ import annotations

import hashlib
import io
import pathlib
import re
import sys
import tarfile

FILES = pathlib.Path(__file__).parent


def contents(engine: pathlib.Path) -> dict[str, bytes]:
    """Name in the archive to content."""
    found = {
        f"lib/cryobackup/{path.relative_to(engine).as_posix()}": path.read_bytes() for path in engine.rglob("*.py")
    }
    for name in ("requirements.txt", "cryobackup"):
        found[name] = (FILES / name).read_bytes()
    return dict(sorted(found.items()))


def name_of(files: dict[str, bytes]) -> str:
    """Such as 0.1.0-1a2b3c4d."""
    digest = hashlib.sha256()
    for name, content in files.items():
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    version = re.search(rb'^__version__ = "(.+)"$', files["lib/cryobackup/__init__.py"], re.MULTILINE)
    if version is None:
        raise SystemExit("the engine does not say its version")
    return f"{version.group(1).decode()}-{digest.hexdigest()[:8]}"


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.mode = 0o644
    return member


def main(engine: str, output: str, wheels: str = "") -> None:
    """Write the archive, print the name."""
    files = contents(pathlib.Path(engine))
    with tarfile.open(output, "w") as archive:
        for wheel in sorted(pathlib.Path(wheels).glob("*.whl")) if wheels else []:
            archive.add(wheel, f"wheels/{wheel.name}", filter=_anonymous)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.mode = 0o755 if name == "cryobackup" else 0o644
            archive.addfile(member, io.BytesIO(content))
    sys.stdout.write(f"{name_of(files)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
