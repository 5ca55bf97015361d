# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What hosts are made of: a root of a Debian release, and wheels for its Python. Both are made once, in the cache."""

from __future__ import annotations

import hashlib
import inspect
import sys
from pathlib import Path

from ..cleanup import remove_tree
from ..majors import run
from ..roots import provide

CHECKOUT = Path(__file__).parents[3]
REQUIREMENTS = CHECKOUT / "roles/runtime/files/requirements.txt"

PYTHON = {"bookworm": "3.11", "trixie": "3.13"}
"""Debian release to its Python."""
PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "libpam-systemd", "libnss-systemd"),
    *("python3", "python3-apt", "python3-venv", "acl", "sudo", "iproute2", "nftables", "procps", "openssh-server"),
    *("ca-certificates", "postgresql"),
)
# A cluster of the base would have the same system identifier on every host.
WITHOUT_CLUSTER = """chroot "$1" pg_lsclusters --no-header | while read -r version name rest; do
    chroot "$1" pg_dropcluster "$version" "$name"
done"""
MASKED = ("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer")
# The C library that a wheel may ask for: Debian 12 has 2.36.
PLATFORMS = ("manylinux_2_34_x86_64", "manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def base_root(suite: str) -> Path:
    """The root that hosts of a Debian release begin with. Raises RootUnavailable."""
    recipe = _digest(f"{PACKAGES} {WITHOUT_CLUSTER} {MASKED} {inspect.getsource(_install)}")
    return provide(f"host-{suite}-{recipe}", lambda root: _install(suite, root))


def wheels(suite: str) -> Path:
    """A directory with the wheels that the engine needs on a host of a Debian release. Raises RootUnavailable."""
    recipe = _digest(f"{PLATFORMS} {REQUIREMENTS.read_text()}")
    return provide(f"wheels-{suite}-{recipe}", lambda folder: _download(PYTHON[suite], folder))


def _digest(recipe: str) -> str:
    return hashlib.sha256(recipe.encode()).hexdigest()[:8]


def _install(suite: str, root: Path) -> None:
    run(
        *("mmdebstrap", "--variant=minbase", '--aptopt=Acquire::Languages "none"'),
        *(f"--include={','.join(PACKAGES)}", f"--customize-hook={WITHOUT_CLUSTER}"),
        *(suite, root),
    )
    for name in ("etc/hostname", "etc/hosts", "var/lib/dbus/machine-id"):
        (root / name).unlink(missing_ok=True)
    for key in root.glob("etc/ssh/ssh_host_*"):
        key.unlink()
    (root / "etc/machine-id").write_text("")
    (root / "etc/fstab").write_text("")
    for timer in MASKED:
        (root / "etc/systemd/system" / timer).symlink_to("/dev/null")
    for part in ("usr/share/doc", "usr/share/man", "usr/share/locale"):
        remove_tree(root / part)


def _download(python: str, folder: Path) -> None:
    folder.mkdir()
    # The lock names every package, so that nothing has to be resolved for another Python than this one.
    run(
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"),
        *("--no-deps", "--only-binary=:all:", "--require-hashes", f"--requirement={REQUIREMENTS}"),
        *("--implementation=cp", f"--python-version={python}", *(f"--platform={name}" for name in PLATFORMS)),
        f"--dest={folder}",
    )
