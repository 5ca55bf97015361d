# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A copy beside the living cluster never writes to the living cluster's tablespaces."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tests.lab import DdlStorm, LiveWriter, golden_dump, prove_restore

from .lab import RestoreLab, snapshot

COUNTED = "SELECT count(*), sum(n) FROM late"


def test_a_tablespace_that_was_created_after_the_backup(restores: RestoreLab) -> None:
    """Replaying its creation would make PostgreSQL use, or empty, the directory of the living cluster."""
    lab = restores
    lab.backup()
    living = lab.cluster.create_tablespace("late")
    lab.cluster.execute("CREATE TABLE late TABLESPACE late AS SELECT n FROM generate_series(1, 30000) n")
    lab.cluster.execute("CREATE TABLE dropped TABLESPACE late AS SELECT 1 AS a")
    lab.archive_everything()
    lab.cluster.execute("DROP TABLE dropped")
    lab.cluster.execute("DELETE FROM late WHERE n % 2 = 0")
    lab.cluster.execute("VACUUM late")
    lab.archive_everything()
    expected = lab.cluster.query(COUNTED)
    golden = golden_dump(lab.cluster)
    lab.cluster.checkpoint()
    before = snapshot(living)

    target = lab.place("copy")
    result = lab.restore(target)
    assert any("inside of the copy" in step for step in result["next_steps"])

    def look(session: Any) -> None:
        with session.cursor() as cursor:
            cursor.execute(COUNTED)
            assert cursor.fetchall() == expected
            cursor.execute("UPDATE late SET n = 0")

    prove_restore(lab.workspace, target, sql=look)
    assert snapshot(living) == before
    assert lab.cluster.query(COUNTED) == expected
    assert golden_dump(lab.cluster) == golden
    assert [path for path in target.rglob("*") if path.is_symlink()] == []
    # The copy can be backed up and started again like any other.
    again = lab.workspace.adopt(target, name="again")
    again.start()
    assert again.query("SELECT count(*) FROM late") == [(expected[0][0],)]
    again.stop()


def test_under_a_storm_of_tablespaces(restores: RestoreLab) -> None:
    """They come and go before, during and after the backup; the living cluster does not notice the copies."""
    lab = restores
    with LiveWriter(lab.cluster) as writer, DdlStorm(lab.workspace, lab.cluster, tablespaces="directory"):
        writer.wait_rows(100)
        lab.backup()
        writer.wait_rows(writer.count + 300)
        moment = writer.moment("storm")
        writer.wait_rows(writer.count + 50)
        lab.archive_everything()
        oids = [
            str(space.oid)
            for space in lab.manifest(lab.manifests()[-1]).header.postgres.tablespaces  # type: ignore[union-attr]
        ]
        target = lab.place("copy")
        mapping = [word for oid in oids for word in ("--tablespace", f"{oid}={lab.place('space-' + oid)}")]
        lab.restore(target, *mapping, "--to-name", "storm")
        prove_restore(lab.workspace, target, rows=writer.expect(moment))
    lab.cluster.checkpoint()
    allowed = [str(target), *(str(lab.place(f"space-{oid}")) for oid in oids)]
    for link in (path for path in target.rglob("*") if path.is_symlink()):
        assert str(Path(os.readlink(link))).startswith(tuple(allowed)), link
    # The living cluster is whole.
    lab.cluster.run("pg_amcheck", "--all", "--install-missing", "--no-strict-names")


def test_a_tablespace_in_place(restores: RestoreLab) -> None:
    """A developer's kind: a directory of the data directory itself. There is nothing to map."""
    lab = restores
    with lab.cluster.session() as session, session.cursor() as cursor:
        cursor.execute("SET allow_in_place_tablespaces = on")
        cursor.execute("CREATE TABLESPACE inside LOCATION ''")
    lab.cluster.execute("CREATE TABLE late TABLESPACE inside AS SELECT n FROM generate_series(1, 10000) n")
    lab.backup()
    lab.archive_everything()
    target = lab.place("copy")
    result = lab.restore(target)
    assert result["tablespaces"] == {}
    prove_restore(lab.workspace, target, golden=golden_dump(lab.cluster))
