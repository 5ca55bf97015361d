# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The test laboratory: real PostgreSQL clusters, load, faults, and the oracle that proves a restore.

Used by ``tests/conftest.py``, the fault suite and the benchmarks. Everything a laboratory makes lies below
one directory, every process it starts can be recognised, and a guard process removes both even when the
test run itself is killed.
"""

from __future__ import annotations

from .account import ServerAccount
from .cluster import Cluster
from .data import sample_data
from .faults import FullDisk, Killed, flip_byte, flip_bytes_sampled, run_and_kill
from .installation import Installation, MajorUnavailable, default_majors, distribution, installation
from .load import DdlStorm, Pgbench, pgbench_consistent
from .oracle import Golden, RestoreProof, golden_dump, prove_restore
from .runtime import Runtime, executable_by
from .waiting import wait_until
from .workload import Expectation, LiveWriter, Moment
from .workspace import Lab, LeftoverError, Workspace

__all__ = [
    "Cluster",
    "DdlStorm",
    "Expectation",
    "FullDisk",
    "Golden",
    "Installation",
    "Killed",
    "Lab",
    "LeftoverError",
    "LiveWriter",
    "MajorUnavailable",
    "Moment",
    "Pgbench",
    "RestoreProof",
    "Runtime",
    "ServerAccount",
    "Workspace",
    "default_majors",
    "distribution",
    "executable_by",
    "flip_byte",
    "flip_bytes_sampled",
    "golden_dump",
    "installation",
    "pgbench_consistent",
    "prove_restore",
    "run_and_kill",
    "sample_data",
    "wait_until",
]
