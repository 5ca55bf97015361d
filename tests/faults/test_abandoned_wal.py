# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""WAL of which there is no backup any more goes, long after the last of it came, and no other WAL does."""

from __future__ import annotations

import dataclasses
import datetime as dt
import os
import time
from pathlib import Path

from cryobackup.events import Silent
from cryobackup.prune import PruneResult, prune
from cryobackup.repository import names
from cryobackup.retention import Policy

from .small_repository import SYSTEM, SmallRepository, two_backups

DEAD = SYSTEM + 1
DAY = 24 * 3600.0


def run_prune(made: SmallRepository, **policy: dt.timedelta) -> PruneResult:
    config = dataclasses.replace(made.config, retention=Policy({}, **policy))
    none = dt.timedelta()
    return prune(config, now=dt.datetime.now(dt.UTC), dry_run=False, yes=True, reporter=Silent(), grace=none)


def dead_wal(made: SmallRepository, age: float, where: str = "here") -> list[Path]:
    """WAL of another system, as a prune sees it: it reads names and times only."""
    paths = []
    for name in ("000000010000000000000001", "000000010000000000000002", "00000002.history"):
        path = made.paths[where] / names.wal(DEAD, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"wal")
        at = time.time() - age
        os.utime(path, (at, at))
        paths.append(path)
    return paths


def test_abandoned_wal_goes_and_other_wal_stays(tmp_path: Path) -> None:
    made = two_backups(tmp_path)
    living = sorted((made.paths["here"] / f"wal/{SYSTEM}").rglob("*"))
    for path in living:
        os.utime(path, (0, 0))
    dead = dead_wal(made, 91 * DAY)
    assert run_prune(made).locations["here"].wal == len(dead)
    assert not any(path.exists() for path in dead)
    assert all(path.exists() for path in living)


def test_wal_that_somebody_still_adds_to_is_not_abandoned(tmp_path: Path) -> None:
    made = two_backups(tmp_path)
    dead = dead_wal(made, 91 * DAY)
    os.utime(dead[1])
    assert run_prune(made).locations["here"].wal == 0
    assert all(path.exists() for path in dead)
    assert run_prune(made, abandoned_wal=dt.timedelta(days=365)).locations["here"].wal == 0


def test_a_backup_in_any_location_speaks_for_its_wal_everywhere(tmp_path: Path) -> None:
    made = SmallRepository(tmp_path, ("here", "there"))
    made.push_wal(5 << 20)
    backup = made.backup({b"PG_VERSION": b"15\n"}, start_lsn=(5 << 20) + 40)
    (made.paths["there"] / names.manifest("main", backup.id)).unlink()
    wal = sorted(path for path in (made.paths["there"] / "wal").rglob("*") if path.is_file())
    for path in wal:
        os.utime(path, (0, 0))
    assert wal
    assert run_prune(made).locations["there"].wal == 0
    assert all(path.exists() for path in wal)


def test_nothing_is_abandoned_while_a_location_is_away(tmp_path: Path) -> None:
    made = SmallRepository(tmp_path, ("here", "there"))
    made.backup({b"PG_VERSION": b"15\n"})
    dead = dead_wal(made, 91 * DAY)
    made.paths["there"].rename(tmp_path / "away")
    result = run_prune(made)
    assert result.errors.keys() == {"there"}
    assert all(path.exists() for path in dead)
