# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Inventories that are shipped as examples: what the roles make of them is a configuration that is accepted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cryobackup.config import load_config

CHECKOUT = Path(__file__).parents[3]
INVENTORIES = sorted(path.parent for path in (CHECKOUT / "inventories").glob("*/hosts.yml"))
PLAY = """
- hosts: cryobackup
  connection: local
  gather_facts: false
  vars_files: ["{role}/defaults/main.yml"]
  tasks:
    - ansible.builtin.template:
        src: "{role}/templates/config.yml.j2"
        dest: "{folder}/{{{{ inventory_hostname }}}}.yml"
        mode: "0644"
"""


def run(tmp_path: Path, program: str, *words: str) -> str:
    """What one of Ansible's programs prints."""
    own = {"ANSIBLE_HOME": str(tmp_path / "home"), "ANSIBLE_LOCALHOST_WARNING": "false", "ANSIBLE_NOCOLOR": "true"}
    result = subprocess.run(
        [str(Path(sys.executable).parent / program), *words],
        cwd=tmp_path,
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.parametrize("inventory", INVENTORIES, ids=lambda path: path.name)
def test_the_configuration_of_every_host_is_accepted(inventory: Path, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    (tmp_path / "play.yml").write_text(PLAY.format(role=CHECKOUT / "roles/repository", folder=folder))
    run(
        tmp_path,
        "ansible-playbook",
        f"--inventory={inventory}",
        f"--extra-vars=ansible_python_interpreter={sys.executable}",
        "play.yml",
    )
    hosts = run(tmp_path, "ansible", f"--inventory={inventory}", "cryobackup", "--list-hosts").split()[2:]
    assert hosts
    for host in hosts:
        config = load_config(folder / f"{host}.yml")
        assert list(config.clusters) == ["main"]
        assert any(location.required for location in config.repository.locations.values())
