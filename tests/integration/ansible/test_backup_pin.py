# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module backup_pin: check, do, check again, do again; what is pinned outlives the rules."""

from __future__ import annotations

from .lab import AnsibleLab, assert_failed, task


def test_pin_and_unpin(tasks: AnsibleLab) -> None:
    old, new = [tasks.backup()["backup_id"] for _number in range(2)]
    tasks.settings["retention"] = {"full": {"keep_last": 1}, "minimum": 1}
    tasks.write_config()
    options = {"backup": old, "reason": "before release 4"}
    results = tasks.play(
        *(task("backup_pin", check=check, **options) for check in (True, False, True, False)),
        task("backup_pin", latest="main", reason="the newest", until="2999-01-01T00:00:00Z"),
        task("backup_pin", latest="main", state="absent"),
        task("backup_info", backup=old),
        task("retention_prune", grace=0),
    )
    check, do, check_again, do_again, newest, newest_off, info, prune = results
    assert [each["changed"] for each in (check, do, check_again, do_again)] == [True, True, False, False]
    assert (do["pinned"], do["reason"], do["source"], do["backup_id"]) == (True, "before release 4", "main", old)
    assert do["locations"]["near"]["ok"]
    assert (newest["backup_id"], newest_off["changed"], newest_off["pinned"]) == (new, True, False)
    assert (newest["until"], do["until"]) == ("2999-01-01T00:00:00+00:00", None)
    assert (info["backup"]["pinned"], info["backup"]["pin_reason"]) == (True, "before release 4")
    assert sorted(prune["keep"]) == [old, new]
    check, do, again, prune = tasks.play(
        task("backup_pin", backup=old, state="absent", check=True),
        task("backup_pin", backup=old, state="absent"),
        task("backup_pin", backup=old, state="absent"),
        task("retention_prune", grace=0),
    )
    assert [each["changed"] for each in (check, do, again)] == [True, True, False]
    assert prune["keep"] == [new]


def test_what_cannot_be_pinned(tasks: AnsibleLab) -> None:
    none, nothing, no_reason = tasks.play(
        task("backup_pin", backup="20200101", reason="x"),
        task("backup_pin", latest="main", reason="x"),
        task("backup_pin", latest="main"),
    )
    for result in (none, nothing):
        assert_failed(result)
        assert result["error"]["id"] == "no-such-backup"
    assert no_reason["failed"]
    assert "reason" in no_reason["msg"]
