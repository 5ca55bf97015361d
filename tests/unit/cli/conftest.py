# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The real command, run as a user would, and a configuration of its own for every test."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

COMMAND = Path(sys.executable).parent / "cryobackup"


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run of the command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, t.Any]:
        """The one object on standard output."""
        assert self.out.endswith("}\n")
        assert self.out.count("\n") == 1
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found

    @property
    def error(self) -> dict[str, t.Any]:
        """The error object of a failed run with --json; what people read must say the same."""
        assert self.code != 0
        assert list(self.json) == ["error"]
        error = self.json["error"]
        assert sorted(error) == ["hint", "id", "message"]
        assert f"error: {error['message']}\n" in self.err
        assert not error["hint"] or f"hint: {error['hint']}\n" in self.err
        assert "Traceback" not in self.err
        assert isinstance(error, dict)
        return error


class Cli:
    """Runs ``cryobackup`` with the configuration of ``place``."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.config = place / "config.yml"
        self.keys = place / "keys"
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(place),
            "TZ": "UTC",
            "CRYOBACKUP_CONFIG": str(self.config),
        }

    def write_config(self, *locations: str, more: str = "") -> None:
        lines = ["repository:", "  locations:"]
        lines += [f"    {name}: {{type: posix, path: {self.place / name}}}" for name in locations]
        lines += [f"  keys: {self.keys}", f"state_directory: {self.place / 'state'}", more]
        self.config.write_text("\n".join(lines))

    def __call__(self, *words: str, stdin: str = "", **options: t.Any) -> Result:
        environment = {**self.environment, **options.pop("env", {})}
        done = subprocess.run(
            [str(COMMAND), *words],
            input=stdin,
            text=True,
            capture_output=True,
            env=environment,
            cwd=self.place,
            timeout=60,
            check=False,
            **options,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def start(self, *words: str, **options: t.Any) -> subprocess.Popen[str]:
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen(
            [str(COMMAND), *words], text=True, env=self.environment, cwd=self.place, **{**pipes, **options}
        )


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """With one location, one cluster, and nothing created yet."""
    made = Cli(tmp_path)
    made.write_config("one", more=f"clusters: {{main: {{data_directory: {tmp_path}/pg, connection: dbname=x}}}}")
    return made
