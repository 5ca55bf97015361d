# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``make demo``: it proves what it says, and leaves nothing, also when it fails or is interrupted.

Every process that it starts carries the mark of the workspace, which fails the test if one is left.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.lab import Workspace, wait_until
from tests.lab.cleanup import lab_processes
from tests.lab.workspace import CHECKOUT

# A smaller shop than the one that people see.
SMALL = {"demo_customers": 200, "demo_orders": 2000}


class Demo:
    """The playbook as ``make demo`` runs it, in a directory of the workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.base = workspace.directory("demo", mode=0o755)

    def command(self, **variables: object) -> list[str]:
        words = [
            f"--extra-vars={name}={value}" for name, value in {**SMALL, "demo_base": self.base, **variables}.items()
        ]
        return [sys.executable, "-m", "ansible", "playbook", *words, str(CHECKOUT / "playbooks/demo.yml")]

    @property
    def environment(self) -> dict[str, str]:
        return {
            "ANSIBLE_CONFIG": str(CHECKOUT / "playbooks/demo.cfg"),
            "ANSIBLE_HOME": str(self.workspace.path / "ansible"),
            "ANSIBLE_NOCOLOR": "true",
        }

    def run(self, **variables: object) -> subprocess.CompletedProcess[str]:
        return self.workspace.run(self.command(**variables), as_server=False, check=False, env=self.environment)

    def start(self) -> subprocess.Popen[Any]:
        output = (self.workspace.path / "demo.log").open("wb")
        try:
            return self.workspace.popen(
                self.command(), as_server=False, env=self.environment, stdout=output, stderr=output
            )
        finally:
            output.close()

    def left(self) -> list[str]:
        """Directories and processes that there should not be any more."""
        processes = [process.command for process in lab_processes(self.workspace.path)]
        return [*os.listdir(self.base), *processes]


@pytest.fixture
def demo(workspace: Workspace) -> Demo:
    return Demo(workspace)


def test_shows_what_it_proves_and_leaves_nothing(demo: Demo) -> None:
    result = demo.run()
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2,342 of 2,342 orders are back" in result.stdout
    assert "none lost, none too many" in result.stdout
    assert "tables and indexes are sound" in result.stdout
    assert "WARNING" not in result.stdout + result.stderr
    assert os.listdir(demo.base) == []


def test_a_step_that_fails_is_told_and_leaves_nothing(demo: Demo) -> None:
    result = demo.run(demo_customers="nobody")
    assert result.returncode != 0
    assert '"Open a shop with thousands of orders" failed' in result.stdout
    assert "nobody" in result.stdout
    assert os.listdir(demo.base) == []


@pytest.mark.parametrize(
    ("number", "moment"),
    [(signal.SIGKILL, "shop/postmaster.pid"), (signal.SIGINT, "shop-before-the-accident")],
)
def test_an_interruption_leaves_nothing(demo: Demo, number: signal.Signals, moment: str) -> None:
    process = demo.start()
    wait_until(lambda: any(demo.base.glob(f"*/{moment}")) or process.poll() is not None, moment, timeout=180)
    assert process.poll() is None, (demo.workspace.path / "demo.log").read_text()
    process.send_signal(number)
    process.wait(60)
    wait_until(lambda: not demo.left(), "the end of everything", timeout=60)


def test_the_directory_can_be_kept(demo: Demo) -> None:
    """To find out why something failed, for example."""
    result = demo.run(demo_keep=True, demo_customers="nobody")
    assert result.returncode != 0
    (kept,) = demo.base.iterdir()
    assert {"config.yml", "keys", "repository-here", "repository-there", "shop"} <= set(os.listdir(kept))
    assert not list(kept.glob("*/postmaster.pid"))


def test_says_so_when_the_user_cannot_run_the_program(demo: Demo) -> None:
    result = demo.run(demo_program=Path("/root/nowhere/cryobackup"))
    assert result.returncode != 0
    assert "make demo" in result.stdout
    assert os.listdir(demo.base) == []
