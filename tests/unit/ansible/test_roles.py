# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Roles: what their specifications, defaults, documentation and examples say is the same."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

CHECKOUT = Path(__file__).parents[3]
ROLES = sorted(path for path in (CHECKOUT / "roles").iterdir() if path.is_dir())


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_specification_and_defaults_have_the_same_variables(role: Path) -> None:
    options = load(role / "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    assert set(options) == set(load(role / "defaults/main.yml"))


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_specification_and_defaults_have_the_same_values(role: Path) -> None:
    options = load(role / "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    for name, value in load(role / "defaults/main.yml").items():
        if not str(value).startswith("{{"):
            assert options[name].get("default") == value, name
        else:
            # Taken from a variable that roles share, else what the specification says.
            default = options[name].get("default")
            assert options[name].get("required") or f"default({default!r})".lower() in str(value).lower(), name


def test_the_readme_of_every_role_is_up_to_date() -> None:
    checked = subprocess.run(
        [sys.executable, "tools/role_docs.py", "--check"], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout


def test_every_shared_variable_is_documented() -> None:
    page = (CHECKOUT / "docs/ansible.md").read_text()
    texts = [path.read_text() for folder in ("roles", "playbooks") for path in (CHECKOUT / folder).rglob("*.yml")]
    names = {name for text in texts for name in re.findall(r"\bcryobackup_[a-z_]+\b", text)}
    assert names
    assert not {name for name in names if f"`{name}`" not in page}


def test_examples_use_documented_variables_only() -> None:
    page = (CHECKOUT / "docs/ansible.md").read_text()
    files = [path for path in (CHECKOUT / "inventories").glob("*/group_vars/**/*.yml") if path.name != "vault.yml"]
    assert files
    for file in files:
        for name in load(file):
            assert f"`{name}`" in page, f"{file}: {name}"
