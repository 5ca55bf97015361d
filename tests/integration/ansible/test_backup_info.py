# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module backup_info, and what holds for all modules alike."""

from __future__ import annotations

import subprocess
import sys

from .lab import SOURCE, AnsibleLab, assert_failed, task


def test_changes_nothing_and_tells_all(tasks: AnsibleLab) -> None:
    results = tasks.play(*(task("backup_info", check=check) for check in (True, False)))
    for result in results:
        assert not result["changed"]
        assert result["backups"] == []
        assert result["complete"]
        assert result["attention"] == [f"source {SOURCE}: there is no backup yet"]
    ids = [tasks.backup(kind)["backup_id"] for kind in ("full", "incremental", "incremental")]
    everything, again, newest, one, limited = tasks.play(
        task("backup_info", check=True),
        task("backup_info"),
        task("backup_info", latest=SOURCE),
        task("backup_info", backup=ids[1][:-2]),
        task("backup_info", source=SOURCE, limit=2),
    )
    assert everything["backups"] == again["backups"]
    assert [backup["backup_id"] for backup in again["backups"]] == ids
    assert again["sources"][SOURCE]["newest"]["backup_id"] == ids[-1]
    assert newest["backup"]["backup_id"] == ids[-1]
    assert newest["backup"]["postgres"]["system_identifier"] == tasks.cluster.system_identifier
    assert one["backup"]["parent"] == ids[0]
    assert [backup["backup_id"] for backup in limited["backups"]] == ids[1:]
    assert limited["backups_total"] == 3
    assert all(not result["changed"] for result in (everything, again, newest, one, limited))


def test_a_location_that_is_down_is_told(tasks: AnsibleLab) -> None:
    tasks.backup()
    aside = tasks.locations["far"].rename(tasks.locations["far"].with_name("far.away"))
    result = tasks.do("backup_info")
    aside.rename(tasks.locations["far"])
    assert not result["complete"]
    assert not result["locations"]["far"]["ok"]
    assert any("far" in text for text in result["warnings"])
    assert any("far" in text for text in result["attention"])


def test_what_is_not_there(tasks: AnsibleLab) -> None:
    unknown, nothing, no_backup = tasks.play(
        task("backup_info", source="elsewhere"),
        task("backup_info", latest=SOURCE),
        task("backup_info", backup="20000101T000000Z-00000000"),
    )
    for result, error_id in (
        (unknown, "unknown-source"),
        (nothing, "no-such-backup"),
        (no_backup, "no-such-backup"),
    ):
        assert_failed(result)
        assert result["error"]["id"] == error_id


def test_an_interpreter_without_the_packages(tasks: AnsibleLab) -> None:
    """What is missing is named, and the interpreter that lacks it, instead of a traceback."""
    bare = tasks.workspace.directory("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    tasks.workspace.account.own(bare, recursive=True)
    modules = ("pg_backup", "backup_verify", "backup_restore", "retention_prune", "backup_info")
    options = {"pg_backup": {"cluster": SOURCE}, "backup_restore": {"cluster": SOURCE, "target": "/nowhere"}}
    results = tasks.play(
        *(task(module, **options.get(module, {})) for module in modules),
        variables={"ansible_python_interpreter": f"{bare}/bin/python"},
    )
    for result in results:
        assert_failed(result)
        assert result["error"]["id"] == "interpreter"
        assert f"{bare}/bin/python" in result["msg"]
        assert "msgspec" in result["msg"]
        assert "ansible_python_interpreter" in result["msg"]


def test_every_module_is_in_the_action_group(tasks: AnsibleLab) -> None:
    """Or its default for ``config`` would silently be another file."""
    (result,) = tasks.play(task("backup_info", config="/nowhere/config.yml"))
    assert_failed(result)
    tasks.backup()
    target = str(tasks.workspace.path / "restored")
    results = tasks.play(
        task("pg_backup", cluster=SOURCE, check=True),
        task("backup_verify", level="presence", check=True),
        task("backup_restore", cluster=SOURCE, target=target, check=True),
        task("retention_prune", check=True),
        task("backup_info", check=True),
    )
    assert not [result for result in results if result["failed"]]
