# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts with different keys on one repository."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from cryobackup.config import Config, load_config
from tests.integration.restore.lab import RestoreLab

PASSPHRASE = "correct horse battery staple"


class Host:
    """A configuration of its own, with a key directory of its own, for the repository of a laboratory."""

    def __init__(self, lab: RestoreLab, name: str) -> None:
        self.lab = lab
        self.directory = lab.workspace.directory(name)
        self.keys = self.directory / "keys"
        self.state = self.directory / "state"
        self.config_path = self.directory / "config.yml"
        settings = json.loads(json.dumps(lab.settings))
        settings["repository"]["keys"] = str(self.keys)
        settings["state_directory"] = str(self.state)
        self.config_path.write_text(json.dumps(settings))
        lab.workspace.account.own(self.config_path)

    def config(self) -> Config:
        return load_config(self.config_path)

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return self.lab.workspace.run(
            [str(self.lab.runtime), "--config", str(self.config_path), "--json", *map(str, words)], check=False
        )

    def json(self, *words: str | Path, exit_code: int = 0) -> dict[str, Any]:
        done = self.run(*words)
        assert done.returncode == exit_code, (done.stdout, done.stderr)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def error(self, *words: str | Path, exit_code: int = 1) -> dict[str, str]:
        error: dict[str, str] = self.json(*words, exit_code=exit_code)["error"]
        assert error["hint"]
        return error

    def secret(self, name: str, text: str) -> Path:
        """A file that only this user can read."""
        path = self.directory / name
        path.write_text(f"{text}\n")
        path.chmod(0o600)
        return self.lab.workspace.account.own(path)

    def copy_keys_to(self, other: Host) -> None:
        shutil.copytree(self.keys, other.keys)
        self.lab.workspace.account.own(other.keys, recursive=True)


def keeper_of(lab: RestoreLab) -> Host:
    """The host that keeps all keys; the laboratory's own becomes one that only writes."""
    keeper = Host(lab, "keeper")
    shutil.move(lab.directory / "keys", keeper.keys)
    exported = keeper.directory / "writer"
    keeper.json("key", "export", "--writer", exported)
    # Brought there by hand, and imported there.
    done = lab.run("--json", "key", "import", str(exported))
    assert done.returncode == 0, done.stderr
    shutil.rmtree(exported)
    return keeper
