# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``--json`` prints is what docs/command-line.md says: every field of the first level, and no other."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.integration.restore.lab import RestoreLab
from tests.lab import Cluster, Workspace

PAGE = Path(__file__).parents[2] / "docs/command-line.md"
# Those that need not be there; `warnings` stands in the chapter that holds for all commands.
OPTIONAL = {"warnings", "location", "bytes", "output", "locked_epochs"}

COMMANDS = [
    ["config", "check"],
    ["init"],
    ["check"],
    ["backup", "main", "--type", "incremental"],
    ["list"],
    ["info", "--latest", "main"],
    ["status"],
    ["capacity"],
    ["verify", "--level", "presence"],
    ["verify", "--level", "restore"],
    ["restore", "main", "--dry-run", "--target"],
    ["pin", "--reason", "why not"],
    ["unpin"],
    ["prune", "--dry-run"],
    ["key", "show"],
    ["key", "kit", "--output"],
    ["wal-get", "--cluster", "main"],
    ["wal-push"],
]


def documented(command: str) -> set[str]:
    """The fields in the table of that command's chapter."""
    text = PAGE.read_text()
    chapter = re.search(rf"^## {command}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert chapter is not None
    table = re.search(r"^\| field \| meaning \|\n(.*?)(?=\n\n|\Z)", chapter[1], re.MULTILINE | re.DOTALL)
    assert table is not None
    cells = re.findall(r"^\| ([^|]+?) \|", table[1], re.MULTILINE)
    return {code for cell in cells for code in re.findall("`([^`]+)`", cell)}


@pytest.fixture(scope="module")
def subject(shared_workspace: Workspace, runtime: Path) -> RestoreLab:
    """A cluster with a backup and archived WAL."""
    cluster: Cluster = shared_workspace.cluster()
    lab = RestoreLab(shared_workspace, runtime, cluster)
    lab.backup()
    lab.archive_everything()
    return lab


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_fields_of_a_result(words: list[str], subject: RestoreLab) -> None:
    (segment, *_unused) = sorted((subject.cluster.data_dir / "pg_wal").glob("00000001" + "[0-9A-F]" * 16))
    more = {
        "restore": [str(subject.place("restored"))],
        "key": [str(subject.place("kit.txt"))] if "--output" in words else [],
        "wal-get": [segment.name, str(subject.place("fetched"))],
        "wal-push": [f"pg_wal/{segment.name}"],
        "pin": [subject.manifests()[0]],
        "unpin": [subject.manifests()[0]],
    }
    command = [*subject.command, "--json", *words, *more.get(words[0], [])]
    result = subject.workspace.run(command, check=False, cwd=subject.cluster.data_dir)
    printed: dict[str, Any] = json.loads(result.stdout)
    assert "error" not in printed, printed
    assert result.returncode == 0, printed
    fields = documented(words[0])
    assert set(printed) - {"warnings"} <= fields
    assert fields - OPTIONAL <= set(printed)
