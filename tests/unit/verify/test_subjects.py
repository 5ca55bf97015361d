# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""In which order backups are verified."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from cryobackup.repository import names
from cryobackup.verify.opening import open_repository
from cryobackup.verify.subjects import Which, select
from tests.faults.small_repository import SmallRepository, sample


class Hasty(SmallRepository):
    """One backup each millisecond."""

    def now(self) -> dt.datetime:
        self._clock += dt.timedelta(milliseconds=1)
        return self._clock


def test_backups_of_one_second_are_taken_oldest_first(tmp_path: Path) -> None:
    """An id counts seconds, and then comes chance: its order has to be another in one of so many."""
    made = Hasty(tmp_path)
    for _number in range(6):
        made.backup(sample())
    ids = list(made.content)
    assert len({backup_id[:16] for backup_id in ids}) == 1
    opened = open_repository(made.config.repository, None, need_identity=True)
    assert [subject.result.backup_id for subject in select(opened, Which(all=True)).subjects] == ids
    broken = made.paths["here"] / names.manifest("main", ids[-1])
    broken.write_bytes(b"")
    opened = open_repository(made.config.repository, None, need_identity=True)
    assert {subject.result.backup_id for subject in select(opened, Which(all=True)).subjects} == set(ids)
