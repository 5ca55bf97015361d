# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of the modules share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab import Cluster, Workspace

from .lab import AnsibleLab


@pytest.fixture
def tasks(workspace: Workspace, runtime: Path, cluster: Cluster) -> AnsibleLab:
    """A running cluster that archives into a repository with a required and an optional location."""
    return AnsibleLab(workspace, runtime, cluster, locations={"near": True, "far": False})
