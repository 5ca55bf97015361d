# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tarball holds what a user of the collection needs, nothing else, and installs by itself."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tarfile

import pytest
import yaml

import cryobackup

CHECKOUT = pathlib.Path(__file__).parents[2]
GALAXY = (sys.executable, "-m", "ansible.cli.galaxy", "collection")

# Everything that may be in it, by its first part; a directory ends with a slash.
BELONGS = {
    "CHANGELOG.md",
    "FILES.json",
    "LICENSE",
    "MANIFEST.json",
    "README.md",
    "changelogs/",
    "docs/",
    "inventories/",
    "meta/",
    "playbooks/",
    "plugins/",
    "roles/",
}
REQUIRED = {"LICENSE", "README.md", "meta/runtime.yml", "roles/runtime/files/requirements.txt"}


@pytest.fixture(scope="module")
def tarball(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The collection, built as `make build` does it."""
    output = tmp_path_factory.mktemp("build")
    subprocess.run(["tools/build.sh", str(output)], cwd=CHECKOUT, check=True, capture_output=True, text=True)
    (built,) = output.glob("cryoprotect-backup-*.tar.gz")
    return built


def checkout_files(*under: str) -> set[str]:
    """What belongs to the checkout below these directories: committed, or new and not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *under],
        cwd=CHECKOUT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return {name for name in listed.split("\0") if name and (CHECKOUT / name).is_file()}


def test_holds_only_what_belongs_in_it(tarball: pathlib.Path) -> None:
    with tarfile.open(tarball) as archive:
        files = {member.name for member in archive if not member.isdir()}
    strangers = {name for name in files if name not in BELONGS and f"{name.partition('/')[0]}/" not in BELONGS}
    assert not strangers
    assert not [name for name in files if "__pycache__" in name or name.startswith("docs/decisions/")]
    assert files >= REQUIRED


def test_holds_the_engine_whole(tarball: pathlib.Path) -> None:
    with tarfile.open(tarball) as archive:
        files = {member.name for member in archive if member.isfile()}
    engine = checkout_files("plugins/module_utils/_engine")
    assert engine
    assert engine <= files


def test_installs_without_a_network(tarball: pathlib.Path, tmp_path: pathlib.Path) -> None:
    # The environment of the checkout has the collection already, as a link: that one does not count here.
    environment = os.environ | {"ANSIBLE_HOME": str(tmp_path / "home"), "ANSIBLE_COLLECTIONS_SCAN_SYS_PATH": "false"}
    subprocess.run(
        [*GALAXY, "install", "--offline", "--collections-path", str(tmp_path), str(tarball)],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    )
    listed = subprocess.run(
        [*GALAXY, "list", "--collections-path", str(tmp_path), "cryoprotect.backup"],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    ).stdout
    assert "cryoprotect.backup" in listed
    installed = tmp_path / "ansible_collections/cryoprotect/backup"
    verified = subprocess.run(
        [*GALAXY, "verify", "--offline", "--collections-path", str(tmp_path), "cryoprotect.backup"],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert (installed / "plugins/module_utils/_engine/errors.py").is_file()


def test_the_engine_has_the_version_of_the_collection() -> None:
    version = yaml.safe_load((CHECKOUT / "galaxy.yml").read_text())["version"]
    assert cryobackup.__version__ == version
