# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults that the laboratory can make, and the engine's command for the server's user."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab import (
    FullDisk,
    Lab,
    Runtime,
    Workspace,
    executable_by,
    flip_byte,
    flip_bytes_sampled,
    run_and_kill,
    wait_until,
)
from tests.lab.cleanup import lab_processes
from tests.lab.runtime import ENGINE, RuntimeFailed
from tests.lab.workspace import CHECKOUT

# Killing


def test_a_program_is_killed_when_a_file_appears(workspace: Workspace) -> None:
    sign = workspace.path / "sign"
    script = f"echo begun; echo warned >&2; touch {sign}; sleep 600; echo ended"
    killed = run_and_kill(["sh", "-c", script], when=sign, env=workspace.environment)
    assert killed.was_killed
    assert killed.returncode == -9
    assert (killed.stdout, killed.stderr) == ("begun\n", "warned\n")


def test_the_children_of_a_killed_program_are_killed(workspace: Workspace) -> None:
    script = "sleep 600 & sleep 600"

    def both_run() -> bool:
        return len(lab_processes(workspace.path)) == 3

    assert run_and_kill(["sh", "-c", script], when=both_run, env=workspace.environment).was_killed
    wait_until(lambda: lab_processes(workspace.path) == [], "the end of all three")


def test_a_program_is_killed_some_time_after_the_start_or_a_condition(workspace: Workspace) -> None:
    killed = run_and_kill(["sleep", "600"], after=0.05)
    assert killed.was_killed
    assert killed.seconds >= 0.05
    started = time.monotonic()
    killed = run_and_kill(["sleep", "600"], when=lambda: True, after=0.05)
    assert killed.was_killed
    assert time.monotonic() - started >= 0.05


def test_a_program_that_ends_before_the_instant_was_not_killed(workspace: Workspace) -> None:
    killed = run_and_kill(["sh", "-c", "echo done; exit 3"], when=workspace.path / "never")
    assert (killed.was_killed, killed.returncode, killed.stdout) == (False, 3, "done\n")
    with pytest.raises(TimeoutError):
        run_and_kill(["sleep", "600"], when=workspace.path / "never", timeout=0.05)


# Bytes


def test_flipping_a_byte_twice_restores_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    flip_byte(path, 1)
    assert path.read_bytes() == b"a\x9dc"
    flip_byte(path, -2)
    assert path.read_bytes() == b"abc"
    flip_byte(path, -1, 0x01)
    assert path.read_bytes() == b"abb"
    for offset in (3, -4):
        with pytest.raises(ValueError, match="3 bytes"):
            flip_byte(path, offset)


def test_every_byte_or_a_sample_is_flipped_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "file"
    content = bytes(range(200))
    path.write_bytes(content)
    seen = []
    for offset in flip_bytes_sampled(path, 200):
        changed = path.read_bytes()
        assert [n for n in range(200) if changed[n] != content[n]] == [offset]
        seen.append(offset)
    assert seen == list(range(200))
    assert path.read_bytes() == content
    sample = list(flip_bytes_sampled(path, 40))
    assert len(sample) == 40
    assert {0, 199} <= set(sample)
    assert sample == list(flip_bytes_sampled(path, 40))


# Disks


def test_a_disk_is_full_and_then_is_not(workspace: Workspace, full_disk: Callable[..., FullDisk]) -> None:
    disk = full_disk(4)
    assert 3 * 2**20 < disk.free <= 4 * 2**20
    write = ["dd", "if=/dev/zero", f"of={disk.path}/file", "bs=64k", "count=4", "status=none"]
    workspace.run(write)
    disk.fill(leave_bytes=65536)
    assert disk.free == 65536
    (disk.path / "file").unlink()
    disk.fill()
    assert disk.free == 0
    result = workspace.run(write, check=False)
    assert result.returncode != 0
    assert "No space left on device" in result.stderr
    disk.release()
    workspace.run(write)
    disk.read_only()
    assert "Read-only file system" in workspace.run(write, check=False).stderr
    disk.read_only(False)
    workspace.run(write)


def test_a_disk_runs_out_of_inodes(full_disk: Callable[..., FullDisk]) -> None:
    first, second = full_disk(4), full_disk(4, inodes=10)
    assert first.path != second.path

    def use_up() -> None:
        for number in range(20):
            (second.path / str(number)).touch()

    with pytest.raises(OSError, match="No space left") as caught:
        use_up()
    assert caught.value.errno == errno.ENOSPC
    assert second.free > 0


# The engine's command


def test_the_command_runs_as_this_user_and_as_the_servers(lab: Lab, runtime: Path) -> None:
    assert executable_by(lab.account, [runtime, "--version"])
    assert os.access(runtime, os.X_OK)


def test_an_unreachable_checkout_is_copied(lab: Lab, workspace: Workspace) -> None:
    checkout = workspace.path / "private/checkout"
    (checkout / ENGINE).parent.mkdir(parents=True)
    checkout.parent.chmod(0o700)
    os.symlink(CHECKOUT / ".venv", checkout / ".venv")
    shutil.copytree(CHECKOUT / ENGINE, checkout / ENGINE)
    command = Runtime(lab, checkout).command()
    assert executable_by(lab.account, [command, "--version"])
    if lab.account.switches:
        assert command.parent.parent == lab.path
        assert not executable_by(lab.account, [checkout / ".venv/bin/python", "--version"])
    workspace.run([command, "--version"])


def test_a_checkout_without_environment_says_what_to_do(lab: Lab, tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailed, match="make venv"):
        Runtime(lab, tmp_path).command()


def test_a_program_that_is_not_there_is_not_executable(lab: Lab) -> None:
    assert executable_by(lab.account, [sys.executable, "-c", ""])
    assert not executable_by(lab.account, [sys.executable, "-c", "raise SystemExit(1)"])
    assert not executable_by(lab.account, ["/nonexistent"])
