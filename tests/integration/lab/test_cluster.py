# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The laboratory's clusters, workspaces and PostgreSQL majors."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from pathlib import Path

import psycopg2
import pytest

from tests.lab import (
    Cluster,
    Installation,
    Lab,
    LeftoverError,
    MajorUnavailable,
    Workspace,
    sample_data,
    wait_until,
)
from tests.lab.cleanup import is_alive, lab_processes
from tests.lab.cluster import ServerFailed
from tests.lab.majors import provide_version
from tests.lab.workspace import CHECKOUT


def test_a_cluster_of_each_major_lives_archives_and_crashes(workspace: Workspace, pg_major: Installation) -> None:
    cluster = workspace.cluster(installation=pg_major)
    assert cluster.value("SHOW server_version").startswith(f"{pg_major.major}.")
    assert cluster.value("SHOW listen_addresses") == ""
    assert cluster.psql("SELECT 1;\n\\echo two") == "1\ntwo\n"
    assert len(f"{cluster.socket_dir}/.s.PGSQL.{cluster.port}") < 100

    # What the server starts is the machine's own program, also when the server is another release's.
    archive = workspace.directory("archive")
    python = f"import shutil, sys, ssl; shutil.copy(sys.argv[1], '{archive}')"
    cluster.enable_archiving(f'{Path(sys.executable)} -c "{python}" %p')
    cluster.create_database("one")
    path = cluster.create_tablespace("far")
    cluster.execute("CREATE TABLE t TABLESPACE far AS SELECT generate_series(1, 100) AS n", dbname="one")
    assert any(path.rglob("*"))
    segment = cluster.switch_wal()
    cluster.wait_archived(segment)
    assert (archive / segment).stat().st_size == 16 * 1024 * 1024

    identifier = cluster.system_identifier
    children = [process.pid for process in lab_processes(workspace.path)]
    assert len(children) > 3
    cluster.kill()
    assert not cluster.running
    assert not any(is_alive(pid) for pid in children)
    cluster.start()
    assert cluster.value("SELECT count(*) FROM t", dbname="one") == 100
    assert cluster.system_identifier == identifier

    cluster.execute("DROP TABLE t", dbname="one")
    cluster.drop_tablespace("far")
    cluster.drop_database("one")
    assert not path.exists()
    cluster.stop()
    assert cluster.control()["Database cluster state"] == "shut down"


def test_segment_size_checksums_and_settings_are_as_asked(workspace: Workspace, pg: Installation) -> None:
    cluster = workspace.cluster(installation=pg, checksums=False, wal_segment_mb=1, settings={"work_mem": "5MB"})
    assert cluster.checksums is False
    assert cluster.value("SHOW wal_segment_size") == "1MB"
    assert cluster.value("SHOW work_mem") == "5MB"
    cluster.configure(work_mem="6MB", log_line_prefix="it's %m ")
    assert cluster.query("SELECT current_setting('work_mem'), current_setting('log_line_prefix')") == [
        ("6MB", "it's %m ")
    ]
    cluster.configure(work_mem=None)
    assert cluster.value("SHOW work_mem") == "4MB"
    other = workspace.cluster("other", installation=pg)
    assert other.checksums is True
    assert other.system_identifier != cluster.system_identifier


def test_every_switch_finishes_a_segment(cluster: Cluster) -> None:
    assert cluster.switch_wal() < cluster.switch_wal() < cluster.switch_wal()


def test_a_server_that_does_not_start_says_why(cluster: Cluster) -> None:
    cluster.stop()
    cluster.configure(shared_buffers="nonsense")
    with pytest.raises(ServerFailed, match="shared_buffers"):
        cluster.start()
    cluster.configure(shared_buffers="16MB")
    cluster.start()
    with pytest.raises(psycopg2.errors.UndefinedTable):
        cluster.query("SELECT * FROM nothing")
    with pytest.raises(ServerFailed, match="nothing"):
        cluster.psql("SELECT * FROM nothing")


def test_sample_data_is_repeatable_and_compresses_like_an_applications(cluster: Cluster) -> None:
    count = sample_data(cluster, 4)
    sample_data(cluster, 4, table="again")
    digest = "SELECT count(*), md5(string_agg(t::text, '' ORDER BY id)) FROM {} t"
    assert cluster.query(digest.format("orders")) == cluster.query(digest.format("again"))
    assert cluster.value("SELECT count(*) FROM orders") == count
    assert 3.5 < cluster.value("SELECT pg_relation_size('orders')") / 2**20 < 5
    cluster.checkpoint()
    heap = cluster.relation_path("orders")
    stored = heap.read_bytes()
    assert 2 < len(stored) / len(zlib.compress(stored, 3)) < 5


def test_a_process_left_behind_fails_the_test_that_left_it(lab: Lab) -> None:
    workspace = lab.workspace("careless")
    process = subprocess.Popen(["sleep", "600"], env=workspace.environment)
    try:
        with pytest.raises(LeftoverError, match="sleep 600"):
            workspace.close()
        assert process.wait(10) != 0
    finally:
        process.kill()
        process.wait()
    assert not workspace.path.exists()
    assert not any("careless" in words for words in lab.leftovers())


def test_a_known_process_is_ended_with_its_children(lab: Lab) -> None:
    with lab.workspace("known") as workspace:
        process = workspace.popen(["sh", "-c", "sleep 600 & wait"], stdout=subprocess.PIPE)
        assert process.poll() is None
    assert process.returncode is not None
    assert lab_processes(workspace.path) == []


SESSION = """
import sys, time
from tests.lab import Lab
lab = Lab()
workspace = lab.workspace("doomed")
cluster = workspace.cluster()
print(lab.path, lab.sockets, cluster.pid, lab.guard_pid, flush=True)
time.sleep(600)
"""


def test_the_guard_cleans_up_after_a_killed_session(workspace: Workspace) -> None:
    process = workspace.popen(
        [sys.executable, "-c", SESSION], as_server=False, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    root, sockets, postmaster, guard = process.stdout.readline().split()
    assert is_alive(int(postmaster))
    assert is_alive(int(guard))
    process.kill()
    process.wait()
    wait_until(lambda: not is_alive(int(guard)), "the guard's end")
    assert not is_alive(int(postmaster))
    assert not Path(root).exists()
    assert not Path(sockets).exists()


def test_an_unknown_major_is_unavailable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CRYOBACKUP_LAB_CACHE", str(tmp_path))
    with pytest.raises(MajorUnavailable, match="no source is known"):
        provide_version("9.6")


def test_two_builds_at_once_make_one_root(workspace: Workspace) -> None:
    cache = workspace.directory("cache", mode=0o755)
    build = [sys.executable, "-m", "tests.lab.majors", "17.10"]
    processes = [
        workspace.popen(
            build,
            as_server=False,
            cwd=CHECKOUT,
            env={"CRYOBACKUP_LAB_CACHE": str(cache), "HOME": os.environ.get("HOME", "/")},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _unused in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert all("17.10" in output for output in outputs)
    assert sorted(path.name for path in cache.iterdir()) == [".17.10.lock", "17.10"]
