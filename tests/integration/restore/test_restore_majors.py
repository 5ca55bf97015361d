# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The settings of a recovery, and a tablespace that came after the backup, with each major of PostgreSQL."""

from __future__ import annotations

from pathlib import Path

from tests.lab import Installation, LiveWriter, Workspace, prove_restore

from .lab import RestoreLab


def test_each_major(workspace: Workspace, runtime: Path, pg_major: Installation) -> None:
    cluster = workspace.cluster(installation=pg_major)
    lab = RestoreLab(workspace, runtime, cluster)
    with LiveWriter(cluster) as writer:
        writer.wait_rows(50)
        lab.backup()
        cluster.create_tablespace("late")
        cluster.execute("CREATE TABLE late TABLESPACE late AS SELECT n FROM generate_series(1, 1000) n")
        writer.wait_rows(writer.count + 50)
        moment = writer.moment("here")
        writer.wait_rows(writer.count + 50)
        lab.archive_everything()
    goals = {"name": moment.name, "time": moment.time_text, "lsn": moment.lsn, "xid": moment.xid}
    for kind, value in goals.items():
        target = lab.place(f"to-{kind}")
        lab.restore(target, f"--to-{kind}", str(value))
        prove_restore(workspace, target, rows=writer.expect(moment), amcheck=kind == "time")
