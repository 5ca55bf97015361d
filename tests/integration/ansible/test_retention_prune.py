# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module retention_prune: check, do, check again, do again; the diff; the brake."""

from __future__ import annotations

import pytest

from .lab import AnsibleLab, assert_failed, task


def keep_last(tasks: AnsibleLab, count: int, **more: object) -> None:
    tasks.settings["retention"] = {"full": {"keep_last": count}, "minimum": 1, **more}
    tasks.write_config()


def lines(result: dict[str, dict[str, str]], side: str) -> list[str]:
    return [line.split()[-1] for line in result["diff"][side].splitlines()]


def test_check_do_check_again_do_again(tasks: AnsibleLab) -> None:
    old, new = [tasks.backup()["backup_id"] for _number in range(2)]
    keep_last(tasks, 1)
    check, do, check_again, do_again = tasks.play(
        *(task("retention_prune", check=check, diff=True) for check in (True, False, True, False))
    )
    assert [check["changed"], do["changed"], check_again["changed"], do_again["changed"]] == [True, True, False, False]
    for result in (check, do):
        assert result["keep"] == [new]
        assert result["delete"] == [old]
        assert lines(result, "before") == [new, old]
        assert lines(result, "after") == [new]
    # Marked is as good as gone: nothing changes any more.
    for result in (check_again, do_again):
        assert lines(result, "before") == lines(result, "after") == [new]
    # The grace of the configuration has not passed.
    assert tasks.backup_ids() == [old, new]
    assert do_again["locations"]["near"]["waiting"] > 0


def test_deletes_at_once_without_grace(tasks: AnsibleLab) -> None:
    _old, new = [tasks.backup()["backup_id"] for _number in range(2)]
    keep_last(tasks, 1)
    check, do, again = tasks.play(
        task("retention_prune", grace=0, check=True),
        task("retention_prune", grace=0),
        task("retention_prune", grace=0),
    )
    assert check["changed"]
    assert do["changed"]
    assert not again["changed"]
    for location in tasks.locations:
        assert tasks.manifests(location) == [new]
    assert do["locations"]["far"]["bytes_freed"] > 0
    verified = tasks.do("backup_verify", all=True)
    assert verified["result"] == "ok"


def test_the_brake_needs_a_yes(tasks: AnsibleLab) -> None:
    everything = [tasks.backup()["backup_id"] for _number in range(4)]
    keep_last(tasks, 1)
    check, refused, confirmed_check, confirmed = tasks.play(
        task("retention_prune", check=True),
        task("retention_prune"),
        task("retention_prune", confirm=True, check=True),
        task("retention_prune", confirm=True),
    )
    # Check mode foretells it.
    for result in (check, refused):
        assert_failed(result)
        assert result["error"]["id"] == "refused"
        assert "confirm: true" in result["msg"]
        assert not result["changed"]
    assert confirmed_check["changed"]
    assert confirmed["changed"]
    assert confirmed["delete"] == everything[:3][::-1]
    assert confirmed["brake"]


@pytest.mark.parametrize("fails", [True, False])
def test_a_location_that_is_down(tasks: AnsibleLab, fails: bool) -> None:
    for _number in range(2):
        tasks.backup()
    keep_last(tasks, 1)
    aside = tasks.locations["far"].rename(tasks.locations["far"].with_name("far.away"))
    (result,) = tasks.play(task("retention_prune", fail_on_partial=fails))
    aside.rename(tasks.locations["far"])
    assert result["failed"] is fails
    assert result["exit_code"] == 3
    assert result["changed"]
    assert set(result["locations"]) == {"near"}
    assert "far" in result["errors"]
    assert "far" in result["msg"]


def test_nothing_to_do(tasks: AnsibleLab) -> None:
    tasks.backup()
    # The WAL from before the first backup is of no use to anybody: that is a change, and none of the backups.
    first = tasks.do("retention_prune", diff=True)
    assert first["changed"]
    assert first["diff"]["before"] == first["diff"]["after"]
    check, do = tasks.play(*(task("retention_prune", check=check, diff=True) for check in (True, False)))
    for result in (check, do):
        assert not result["failed"], result
        assert not result["changed"]
        assert result["diff"]["before"] == result["diff"]["after"]


def test_a_grace_that_makes_no_sense(tasks: AnsibleLab) -> None:
    result = tasks.failure("retention_prune", grace="soon")
    assert result["exit_code"] == 2
