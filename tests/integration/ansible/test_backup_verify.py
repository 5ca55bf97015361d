# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module backup_verify: check, do, check again, do again; and what it finds."""

from __future__ import annotations

from tests.lab import flip_byte

from .lab import SOURCE, AnsibleLab, assert_failed, task


def test_check_do_check_again_do_again(tasks: AnsibleLab) -> None:
    backup_id = tasks.backup()["backup_id"]
    for level in ("presence", "content"):
        results = tasks.play(
            *(task("backup_verify", latest=SOURCE, level=level, check=check) for check in (True, False, True, False))
        )
        for result in results:
            assert not result["failed"], result
            assert not result["changed"]
            assert result["result"] == "ok"
            assert result["level"] == level
            assert [backup["backup_id"] for backup in result["backups"]] == [backup_id]
            assert result["backups"][0]["findings_total"] == 0


def test_only_a_real_run_is_noted(tasks: AnsibleLab) -> None:
    tasks.backup()
    _check, before, _do, after = tasks.play(
        task("backup_verify", check=True),
        task("backup_info", latest=SOURCE),
        task("backup_verify"),
        task("backup_info", latest=SOURCE),
    )
    assert before["backup"]["verified"] is None
    assert after["backup"]["verified"]["level"] == "content"
    assert after["backup"]["verified"]["result"] == "ok"


def test_restores_in_a_sandbox(tasks: AnsibleLab) -> None:
    tasks.cluster.execute("CREATE TABLE proof AS SELECT generate_series(1, 100) AS n")
    tasks.set(verify={"assertions": [{"database": "postgres", "query": "SELECT count(*) = 100 FROM proof"}]})
    tasks.backup()
    place = tasks.workspace.directory("sandboxes")
    check, do = tasks.play(
        task("backup_verify", latest=SOURCE, level="restore", check=True),
        task(
            "backup_verify", latest=SOURCE, level="restore", recover_to="latest", work_directory=str(place), workers=1
        ),
    )
    # In check mode no server is started: every byte is read instead.
    assert not check["failed"], check
    assert check["level"] == "content"
    assert not do["failed"], do
    assert do["level"] == "restore"
    (backup,) = do["backups"]
    assert backup["result"] == "ok"
    assert backup["checks"]
    assert backup["figures"]["restore_seconds"] > 0
    assert backup["figures"]["recovery_point"]["goal"] == "latest"
    assert list(place.iterdir()) == []


def test_damage_fails_with_what_was_found(tasks: AnsibleLab) -> None:
    backup_id = tasks.backup()["backup_id"]
    pack = tasks.pack(backup_id, "far")
    flip_byte(pack, pack.stat().st_size // 2)
    check, do, tolerated, elsewhere = tasks.play(
        task("backup_verify", backup=backup_id, check=True),
        task("backup_verify", backup=backup_id),
        task("backup_verify", backup=backup_id, fail_on_damage=False),
        task("backup_verify", backup=backup_id, locations=["near"]),
    )
    for result in (check, do):
        assert_failed(result)
        assert result["exit_code"] == 4
        assert result["result"] == "damaged"
        assert not result["changed"]
        assert result["backups"][0]["locations"] == {"near": "ok", "far": "damaged"}
        (finding, *_more) = result["backups"][0]["findings"]
        assert finding["location"] == "far"
        assert pack.name in finding["object"]
        assert pack.name in result["msg"]
    assert not tolerated["failed"]
    assert tolerated["exit_code"] == 4
    assert any("damaged" in text for text in tolerated["warnings"])
    assert not elsewhere["failed"]


def test_names_of_files_that_are_not_utf_8(tasks: AnsibleLab) -> None:
    """Ansible refuses a result with bytes of another encoding: they come out escaped."""
    odd = tasks.cluster.data_dir / "a-caf\udce9"
    odd.write_bytes(b"x" * 100_000)
    tasks.workspace.account.own(odd)
    backup_id = tasks.backup()["backup_id"]
    for location in tasks.locations:
        for pack in (tasks.locations[location] / "packs" / backup_id).iterdir():
            pack.unlink()
    (result,) = tasks.play(task("backup_verify", backup=backup_id))
    assert_failed(result)
    findings = result["backups"][0]["findings"]
    assert any(r"a-caf\xe9" in finding["files"] for finding in findings), findings
    # Long lists are cut, and say so.
    assert max(len(finding["files"]) for finding in findings) == 100
    assert max(finding["files_total"] for finding in findings) > 100


def test_what_cannot_be_verified(tasks: AnsibleLab) -> None:
    tasks.backup()
    unknown, place, two = tasks.play(
        task("backup_verify", backup="20000101T000000Z-00000000"),
        task("backup_verify", locations=["elsewhere"]),
        task("backup_verify", latest=SOURCE, all=True),
    )
    assert_failed(unknown)
    assert unknown["error"]["id"] == "no-such-backup"
    assert_failed(place)
    assert place["exit_code"] == 2
    assert two["failed"]
    assert "mutually exclusive" in two["msg"]
