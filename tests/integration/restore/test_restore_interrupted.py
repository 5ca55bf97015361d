# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A restore that is killed leaves nothing that a server starts on, and the next one goes on with it."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from cryobackup.postgres.target import MARKER, OLD_CONTROL
from tests.lab import prove_restore, run_and_kill
from tests.lab.cluster import ServerFailed

from .lab import Story
from .test_restore_goals import QUICK, side

SEED = 20260301


def start_must_fail(story: Story, target: Path) -> None:
    server = story.lab.workspace.adopt(target, installation=story.lab.cluster.installation)
    with pytest.raises(ServerFailed):
        server.start(timeout=20)
    server.close()


def kill_a_restore(story: Story, target: Path, seconds: float, *options: str, when: str = MARKER) -> bool:
    """Whether the restore was cut off by SIGKILL so long after a file appeared in the target."""
    command = [*story.lab.command, "restore", "main", "--target", str(target), *side(story, target), *options]
    killed = run_and_kill(story.lab.workspace.account.argv(command), when=target / when, after=seconds, cwd=Path("/"))
    return killed.was_killed


def test_killed_at_twenty_instants(story: Story) -> None:
    """One target, killed over and over at random instants of an ever new restore over it, then completed."""
    rng = random.Random(SEED)
    finished = 0
    for round_ in range(20):
        target = story.lab.place(f"killed-{round_ % 4}")
        options = ["--delta"] if target.exists() else []
        was_killed = kill_a_restore(story, target, rng.uniform(0, 0.5), *options)
        if not was_killed:
            finished += 1
            continue
        if (target / MARKER).exists() and not (target / "global/pg_control").exists():
            start_must_fail(story, target)
        else:
            # Killed behind the last rename: complete.
            assert (target / "recovery.signal").exists()
    assert finished < 10
    for number in range(4):
        target = story.lab.place(f"killed-{number}")
        result = story.lab.restore(target, *side(story, target), "--delta")
        assert result["bytes_restored"] > 0
        assert not (target / MARKER).exists()
        assert not [path for path in target.rglob("*") if "cryobackup" in path.name]
        prove_restore(
            story.lab.workspace,
            target,
            golden=story.golden,
            rows=story.writer.expect_all(),
            amcheck=number == 0,
            visibility=number == 0,
        )


def test_killed_over_a_cluster_that_was_whole(story: Story) -> None:
    """Its old control file must not be what the next start finds."""
    target = story.lab.place("whole")
    story.lab.restore(target, *side(story, target))
    prove_restore(story.lab.workspace, target, rows=story.writer.expect_all(), **QUICK)
    assert (target / "global/pg_control").exists()
    assert kill_a_restore(story, target, 0.0, "--delta", when=OLD_CONTROL)
    start_must_fail(story, target)
    options = ["--delta", "--to-name", "first"]
    story.lab.restore(target, *side(story, target), *options)
    prove_restore(story.lab.workspace, target, rows=story.writer.expect(story.first), **QUICK)


def test_an_interrupted_target_is_not_taken_for_an_empty_one(story: Story) -> None:
    target = story.lab.place("interrupted")
    assert kill_a_restore(story, target, 0.0)
    code, result, _unused = story.lab.try_restore(target, *side(story, target))
    assert (code, result["error"]["id"]) == (1, "target-not-empty")
    assert "--delta" in result["error"]["hint"]


def test_a_killed_restore_hinders_nobody(story: Story) -> None:
    target = story.lab.place("killed-lease")
    assert kill_a_restore(story, target, 0.0)
    assert story.lab.leases() != []
    # The lease of a dead process is retired by the next backup.
    story.lab.backup("incremental")
    assert story.lab.leases() == []


def test_stopped_by_a_signal(story: Story) -> None:
    """Everything is put in order on the way out, and the next restore goes on."""
    target = story.lab.place("stopped")
    before = story.lab.leases()
    command = [*story.lab.command, "--json", "restore", "main", "--target", str(target), *side(story, target)]
    process = story.lab.workspace.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (target / MARKER).exists():
        time.sleep(0.0005)
    process.terminate()
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, (out, errors)
    assert json.loads(out)["error"]["id"] == "stopped"
    assert story.lab.leases() == before
    start_must_fail(story, target)
    story.lab.restore(target, *side(story, target), "--delta")
    prove_restore(story.lab.workspace, target, rows=story.writer.expect_all(), **QUICK)
