# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The laboratory's hosts: real ones, and gone without a trace however their owner ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.cleanup import descendants, is_alive
from tests.lab.hosts.world import cgroup_directories
from tests.lab.waiting import wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes namespaces and boots hosts in them")

HOSTS = (sys.executable, "-m", "tests.lab.hosts")
SSH = "ssh -i /run/cryobackup-hosts/id_ed25519 -o UserKnownHostsFile=/run/cryobackup-hosts/known_hosts"
UP = f"{sys.executable} -m tests.lab.hosts up one=10.77.0.11=trixie two=10.77.0.12=bookworm"


def test_hosts_are_reached_over_ssh_and_see_each_other() -> None:
    question = "hostname; cat /proc/1/comm; systemctl is-system-running; ls /usr/lib/postgresql; ls /etc/postgresql"
    script = f"set -e; {UP}; for n in 1 2; do {SSH} root@10.77.0.1$n '{question}; : </dev/tcp/10.77.0.12/22'; done"
    result = subprocess.run([*HOSTS, "run", "bash", "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [*("one", "systemd", "running", "17"), *("two", "systemd", "running", "15")]
    assert not [folder for folder in cgroup_directories() if folder.exists()]


def test_a_command_that_fails_says_so() -> None:
    assert subprocess.run([*HOSTS, "run", "sh", "-c", "exit 7"], check=False).returncode == 7


@pytest.fixture
def abandoned(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    """A world with a running host, and all processes in it."""
    ready = tmp_path / "ready"
    script = f"{UP.rpartition(' ')[0]} && touch {ready} && sleep 1000"
    owner = subprocess.Popen([*HOSTS, "run", "bash", "-c", script])
    try:
        wait_until(ready.exists, timeout=300)
        processes = descendants(owner.pid)
        assert len(processes) > 5
        yield owner, processes
    finally:
        owner.kill()
        owner.wait()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_its_owner(
    abandoned: tuple[subprocess.Popen[bytes], list[int]], number: signal.Signals
) -> None:
    owner, processes = abandoned
    owner.send_signal(number)
    owner.wait()
    wait_until(lambda: not [pid for pid in processes if is_alive(pid)], timeout=30)
    # The world's mounts and networks were in namespaces that no process is in any more.
    if number == signal.SIGTERM:
        assert not [folder for folder in cgroup_directories() if folder.exists()]


def test_what_a_killed_run_left_is_swept_by_the_next_and_nothing_else() -> None:
    stranger = cgroup_directories()[0].with_name("cryobackup-hosts-somebody")
    left = [folder / "gone/init.scope" for folder in cgroup_directories()]
    try:
        for folder in [stranger, *left]:
            os.makedirs(folder)
        subprocess.run([*HOSTS, "run", "true"], check=True)
        assert not [folder for folder in cgroup_directories() if folder.exists()]
        assert stranger.exists()
    finally:
        stranger.rmdir()
