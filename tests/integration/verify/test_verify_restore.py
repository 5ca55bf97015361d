# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups of a real cluster, verified on every rung of the ladder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.backup.lab import SOURCE, BackupLab
from tests.lab import Cluster, Installation, Workspace, sample_data


class VerifyLab(BackupLab):
    """A small cluster with a backup, verified as its user does it."""

    def verify(self, *words: str, exit_code: int = 0) -> dict[str, Any]:
        result = self.run("--json", "verify", *words)
        assert result.returncode == exit_code, (result.stdout, result.stderr)
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    def rehearse(self, *words: str, exit_code: int = 0) -> dict[str, Any]:
        """The one backup of the result of a sandbox restore; nothing is left of it."""
        report = self.verify("--level", "restore", *words, exit_code=exit_code)
        assert self.leftovers() == []
        (backup,) = report["backups"]
        return dict(backup)

    def leftovers(self) -> list[Path]:
        return list((self.directory / "state" / "sandbox").glob("pg-*"))


@pytest.fixture(scope="module")
def proven(shared_workspace: Workspace, runtime: Path, pg: Installation) -> VerifyLab:
    cluster = shared_workspace.cluster(installation=pg)
    made = VerifyLab(shared_workspace, runtime, cluster)
    sample_data(cluster, 2)
    cluster.create_tablespace("elsewhere")
    cluster.execute("CREATE TABLE moved TABLESPACE elsewhere AS SELECT generate_series(1, 1000) AS n")
    made.backup()
    return made


def by_name(backup: dict[str, Any]) -> dict[str, Any]:
    return {check["name"]: check["ok"] for check in backup["checks"]}


def test_every_rung(proven: VerifyLab) -> None:
    presence = proven.verify("--level", "presence")
    assert presence["result"] == "ok"
    content = proven.verify()
    assert content["level"] == "content"
    assert content["findings"] == []
    assert content["locations"]["local"]["pages"] > 1000
    backup = proven.rehearse()
    assert backup["result"] == "ok"
    assert by_name(backup) == dict.fromkeys(
        ("restore", "recovery", "databases", "amcheck", "visibility", "stop", "pg_checksums"), True
    )
    figures = backup["figures"]
    assert figures["databases"] == 2
    assert figures["tables"] >= 2
    assert figures["recovery_seconds"] > 0
