# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``make test-locations`` leaves out no test of the engine that has a repository."""

from __future__ import annotations

import subprocess
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
# Not on every kind, and why.
LEFT_OUT = {
    "ansible": "modules, which only call the engine",
    "attacker": "on locked buckets, always",
    "benchmarks": "measures on a directory and on S3, always",
    "lab": "of the laboratory itself",
    "test_collection_build.py": "has no repository",
}


def test_every_directory_is_taken_or_left_out_for_a_reason() -> None:
    there = {
        path.name
        for path in (CHECKOUT / "tests/integration").iterdir()
        if path.name.startswith("test_") or (path / "__init__.py").exists()
    }
    # As make itself reads them; the last line is the value.
    shown = subprocess.run(
        ["make", "--no-print-directory", "--eval", "shown: ; @echo $(LOCATION_TESTS)", "shown"],
        cwd=CHECKOUT,
        check=True,
        capture_output=True,
        text=True,
    )
    taken = shown.stdout.split()
    assert all((CHECKOUT / path).exists() for path in taken)
    assert "tests/faults" in taken
    names = {path.removeprefix("tests/integration/") for path in taken if path.startswith("tests/integration/")}
    assert names | set(LEFT_OUT) == there
    assert not names & set(LEFT_OUT)
