# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of restores share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab import Cluster, Installation, Workspace

from .lab import RestoreLab, Story, tell


@pytest.fixture(scope="module")
def story(shared_workspace: Workspace, runtime: Path, pg: Installation) -> Story:
    """One past for all tests of a module, which must leave the cluster and the repository as they are."""
    return tell(RestoreLab(shared_workspace, runtime, shared_workspace.cluster(installation=pg)))


@pytest.fixture
def restores(workspace: Workspace, runtime: Path, cluster: Cluster) -> RestoreLab:
    """A running cluster that archives into a repository with one location, for a test that changes things."""
    return RestoreLab(workspace, runtime, cluster)
