# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module pg_backup: check, do, check again, do again; and what must fail."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.lab import flip_byte, wait_until
from tests.lab.cleanup import LabProcess, lab_processes

from .lab import SOURCE, AnsibleLab, assert_failed, task


def test_check_do_check_again_do_again(tasks: AnsibleLab) -> None:
    options = {"cluster": SOURCE, "max_age": "1h", "label": "the first"}
    check, do, check_again, do_again = tasks.play(
        task("pg_backup", check=True, **options),
        task("pg_backup", **options),
        task("pg_backup", check=True, **options),
        task("pg_backup", **options),
    )
    assert [check["changed"], do["changed"], check_again["changed"], do_again["changed"]] == [True, True, False, False]
    (backup_id,) = tasks.backup_ids()
    for predicted in ("source", "requested", "type", "parent", "label", "locations"):
        assert check["backup"][predicted] == do["backup"][predicted], predicted
    assert "backup_id" not in check["backup"]
    assert do["backup"]["backup_id"] == backup_id
    assert do["backup"]["status"] == "ok"
    assert do["exit_code"] == 0
    # What is there is shown as when it was made.
    assert check_again["backup"] == do_again["backup"]
    assert do_again["backup"] | {"seconds": 0} == do["backup"] | {"seconds": 0}
    assert backup_id in do_again["msg"]


def test_an_incremental_is_predicted_with_its_parent(tasks: AnsibleLab) -> None:
    first, check, do = tasks.play(
        # There is nothing that an incremental could be based on.
        task("pg_backup", cluster=SOURCE, type="incremental"),
        task("pg_backup", cluster=SOURCE, type="incremental", check=True),
        task("pg_backup", cluster=SOURCE, type="incremental"),
    )
    assert (first["backup"]["requested"], first["backup"]["type"]) == ("incremental", "full")
    assert check["changed"]
    assert do["changed"]
    for result in (check, do):
        assert result["backup"]["type"] == "incremental"
        assert result["backup"]["parent"] == first["backup"]["backup_id"]
    assert len(tasks.backup_ids()) == 2


def test_every_run_takes_one_without_max_age_and_with_force(tasks: AnsibleLab) -> None:
    results = tasks.play(
        task("pg_backup", cluster=SOURCE),
        task("pg_backup", cluster=SOURCE),
        task("pg_backup", cluster=SOURCE, max_age="1h", force=True, check=True),
        task("pg_backup", cluster=SOURCE, max_age="1h", force=True),
    )
    assert [result["changed"] for result in results] == [True] * 4
    assert len(tasks.backup_ids()) == 3


def test_a_full_backup_does_for_an_incremental_and_not_the_other_way_round(tasks: AnsibleLab) -> None:
    full, nothing, incremental, again = tasks.play(
        task("pg_backup", cluster=SOURCE),
        task("pg_backup", cluster=SOURCE, type="incremental", max_age="1h"),
        task("pg_backup", cluster=SOURCE, type="incremental"),
        task("pg_backup", cluster=SOURCE, type="full", max_age="1h"),
    )
    assert not nothing["changed"]
    assert nothing["backup"]["backup_id"] == full["backup"]["backup_id"]
    # The newest full one is still young enough, although an incremental is newer.
    assert not again["changed"]
    assert again["backup"]["backup_id"] == full["backup"]["backup_id"] != incremental["backup"]["backup_id"]


def test_a_backup_of_another_cluster_of_that_name_does_not_do(tasks: AnsibleLab) -> None:
    tasks.do("pg_backup", cluster=SOURCE)
    other = tasks.workspace.cluster("made-anew")
    other.enable_archiving(tasks.archive_command)
    tasks.set(data_directory=str(other.data_dir), connection=other.conninfo)
    check, do = tasks.play(
        task("pg_backup", cluster=SOURCE, max_age="1h", check=True),
        task("pg_backup", cluster=SOURCE, max_age="1h"),
    )
    assert check["changed"]
    assert do["changed"]


def test_a_backup_that_was_found_damaged_does_not_do(tasks: AnsibleLab) -> None:
    backup_id = tasks.do("pg_backup", cluster=SOURCE)["backup"]["backup_id"]
    for location in tasks.locations:
        tasks.pack(backup_id, location).unlink()
    verified, taken = tasks.play(
        task("backup_verify", backup=backup_id),
        task("pg_backup", cluster=SOURCE, max_age="1h"),
    )
    assert verified["failed"]
    assert taken["changed"]
    assert taken["backup"]["backup_id"] != backup_id


def test_a_location_that_is_down_makes_a_partial_result(tasks: AnsibleLab) -> None:
    complete = tasks.do("pg_backup", cluster=SOURCE)
    with away(tasks.locations["far"]):
        found, check, do, tolerated = tasks.play(
            # The backup that is there cannot be seen in the other location: not taken anew, and no success.
            task("pg_backup", cluster=SOURCE, max_age="1h"),
            task("pg_backup", cluster=SOURCE, check=True),
            task("pg_backup", cluster=SOURCE),
            task("pg_backup", cluster=SOURCE, fail_on_partial=False),
        )
    for result in (found, check, do):
        assert_failed(result)
        assert result["exit_code"] == 3
        assert result["backup"]["locations"]["near"] == {"status": "ok"}
        assert result["backup"]["locations"]["far"]["status"] == "failed"
    assert not found["changed"]
    assert found["backup"]["backup_id"] == complete["backup"]["backup_id"]
    assert do["changed"]
    assert do["backup"]["status"] == "degraded"
    assert do["backup"]["backup_id"] in tasks.backup_ids()
    assert not tolerated["failed"]
    assert tolerated["exit_code"] == 3
    assert any("far" in text for text in tolerated["warnings"])
    # Back again: what is only in one location is not good enough.
    again = tasks.do("pg_backup", cluster=SOURCE, max_age="1h")
    assert not again["changed"]
    assert again["backup"]["backup_id"] == complete["backup"]["backup_id"]


def test_a_cluster_with_broken_pages_makes_a_partial_result(tasks: AnsibleLab) -> None:
    tasks.cluster.execute("CREATE TABLE broken AS SELECT generate_series(1, 5000) AS n")
    file = tasks.cluster.data_dir / tasks.cluster.relation_path("broken")
    tasks.cluster.stop()
    flip_byte(file, 2 * 8192 + 4000)
    tasks.cluster.start()
    failed, tolerated, not_good_enough = tasks.play(
        task("pg_backup", cluster=SOURCE),
        task("pg_backup", cluster=SOURCE, fail_on_partial=False),
        task("pg_backup", cluster=SOURCE, max_age="1h", check=True),
    )
    assert_failed(failed)
    for result in (failed, tolerated):
        assert result["exit_code"] == 3
        assert result["changed"]
        assert result["backup"]["status"] == "damaged"
        (damage,) = result["backup"]["damage"]
        assert damage["path"].endswith(file.name)
        assert damage["blocks"] == [2]
    assert not tolerated["failed"]
    assert not_good_enough["changed"]


def test_what_stops_a_backup_stops_the_check_too(tasks: AnsibleLab) -> None:
    tasks.do("pg_backup", cluster=SOURCE)
    before = tasks.backup_ids()
    usual = {"cluster": SOURCE}
    cases: list[tuple[dict[str, str], str]] = [
        ({"cluster": "elsewhere"}, "unknown-cluster"),
        (usual | {"config": "/nowhere/config.yml"}, "config-missing"),
        (usual | {"max_age": "30m"}, "usage"),
        (usual | {"label": "two\nlines"}, "usage"),
    ]
    results = tasks.play(
        *(task("pg_backup", check=check, **options) for options, _id in cases for check in (True, False))
    )
    for result, (_options, error_id) in zip(results, [case for case in cases for _check in range(2)], strict=True):
        assert_failed(result)
        assert result["error"]["id"] == error_id, result
        assert result["exit_code"] == 2
    assert tasks.backup_ids() == before


def test_a_cluster_that_is_down(tasks: AnsibleLab) -> None:
    taken = tasks.do("pg_backup", cluster=SOURCE)
    tasks.cluster.stop()
    check, do, enough = tasks.play(
        task("pg_backup", cluster=SOURCE, check=True),
        task("pg_backup", cluster=SOURCE),
        task("pg_backup", cluster=SOURCE, max_age="1h"),
    )
    for result in (check, do):
        assert_failed(result)
        assert result["error"]["id"] == "cluster-unreachable"
        assert result["exit_code"] == 1
    # Nothing has to be asked of it to know that there is a backup.
    assert not enough["failed"]
    assert enough["backup"]["backup_id"] == taken["backup"]["backup_id"]


def test_a_cluster_that_does_not_archive(tasks: AnsibleLab) -> None:
    tasks.cluster.configure(reload=False, archive_mode=False)
    tasks.cluster.restart()
    for result in tasks.play(*(task("pg_backup", cluster=SOURCE, check=check) for check in (True, False))):
        assert_failed(result)
        assert result["error"]["id"] == "archive-off"
        assert "archive_mode" in result["msg"]
    assert tasks.backup_ids() == []


def test_keys_that_others_may_read(tasks: AnsibleLab) -> None:
    (key,) = (tasks.directory / "keys").glob("catalog*")
    key.chmod(0o644)
    for result in tasks.play(*(task("pg_backup", cluster=SOURCE, check=check) for check in (True, False))):
        assert_failed(result)
        assert result["error"]["id"] == "key-file-mode"
        assert str(key) in result["msg"]


def test_runs_as_an_async_task(tasks: AnsibleLab) -> None:
    (result,) = tasks.play({**task("pg_backup", cluster=SOURCE), "async": 120, "poll": 1})
    assert result["changed"], result
    assert result["finished"]
    assert [result["backup"]["backup_id"]] == tasks.backup_ids()
    # Ansible's own supervisor of the job looks every five seconds only.
    wait_until(lambda: not supervisors(tasks), "the end of async_wrapper")


def supervisors(tasks: AnsibleLab) -> list[LabProcess]:
    return [process for process in lab_processes(tasks.workspace.path) if "async_wrapper" in process.command]


@contextlib.contextmanager
def away(path: Path) -> Iterator[None]:
    """Inside, what was there is not."""
    aside = path.with_name(f"{path.name}.away")
    path.rename(aside)
    try:
        yield
    finally:
        aside.rename(path)
