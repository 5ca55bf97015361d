# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of the WAL archive share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import Installation, Lab, Workspace

from .lab import FinishedWal, WalLab


@pytest.fixture(scope="module")
def finished(lab: Lab, request: pytest.FixtureRequest, pg: Installation) -> Iterator[FinishedWal]:
    """For tests that only read it: what they change they put back."""
    with lab.workspace(Path(request.node.name).stem) as workspace:
        cluster = workspace.cluster(installation=pg, settings={"wal_keep_size": "1GB"})
        cluster.execute("CREATE TABLE rows AS SELECT n, md5(n::text) AS text FROM generate_series(1, 20000) n")
        segments = [cluster.switch_wal() for _unused in range(4)]
        cluster.stop()
        yield FinishedWal(cluster, segments, int(cluster.system_identifier))


@pytest.fixture
def archive(workspace: Workspace, runtime: Path, finished: FinishedWal) -> WalLab:
    """An empty repository in one location, configured for the finished cluster."""
    return WalLab(workspace, runtime, {"main": finished.data_dir})


@pytest.fixture
def twofold(workspace: Workspace, runtime: Path, finished: FinishedWal) -> WalLab:
    """An empty repository in a required location ``near`` and an optional one, ``far``."""
    return WalLab(workspace, runtime, {"main": finished.data_dir}, locations={"near": True, "far": False})
