# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What stands between Ansible and the engine: results, failures, signals."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import enum
import io
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.cryoprotect.backup.plugins.module_utils import _module
from ansible_collections.cryoprotect.backup.plugins.module_utils._engine.errors import CryoError
from ansible_collections.cryoprotect.backup.plugins.module_utils._module import (
    Outcome,
    Task,
    capped,
    config_option,
    in_options,
    partial_option,
    plain,
    run,
)


class Colour(enum.StrEnum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int
    where: Path


def test_results_are_json_and_utf_8() -> None:
    moment = dt.datetime(2026, 3, 1, 14, 3, tzinfo=dt.UTC)
    value = {
        "text": "Käse",
        "broken": os.fsdecode(b"caf\xe9"),
        b"key": b"caf\xe9",
        7: Colour.RED,
        "point": Point(1, Path("/srv")),
        "times": (moment, moment.date()),
        "set": {1},
        "nothing": [None, True, 1.5, 1 << 63],
    }
    text = json.dumps(plain(value)).encode("utf-8")
    assert json.loads(text) == {
        "text": "Käse",
        "broken": r"caf\xe9",
        "key": r"caf\xe9",
        "7": "red",
        "point": {"x": 1, "where": "/srv"},
        "times": ["2026-03-01T14:03:00+00:00", "2026-03-01"],
        "set": [1],
        "nothing": [None, True, 1.5, 1 << 63],
    }


def test_refuses_what_no_result_can_hold() -> None:
    with pytest.raises(TypeError, match="object"):
        plain(object())


def test_long_lists_are_cut() -> None:
    assert capped(range(3)) == [0, 1, 2]
    assert len(capped(range(1000))) == 100


def outcome_of(work: Callable[[Task], Outcome], **options: Any) -> dict[str, Any]:
    """What a module that does this work would print."""
    spec = {**config_option(), **partial_option(), "fail_on_damage": {"type": "bool", "default": True}}
    printed = io.StringIO()
    with patch_module_args(options), contextlib.redirect_stdout(printed), pytest.raises(SystemExit):
        run(work, spec)
    result: dict[str, Any] = json.loads(printed.getvalue())
    return result


def failing(error: BaseException) -> Callable[[Task], Outcome]:
    def work(task: Task) -> Outcome:
        task.reporter.warn("look out")
        raise error

    return work


def ending(exit_code: int) -> Callable[[Task], Outcome]:
    return lambda _task: Outcome("it is done", changed=True, result={"backup": {"id": 1}}, exit_code=exit_code)


def test_an_error_becomes_words_and_fields() -> None:
    result = outcome_of(failing(CryoError("It broke", hint="Mend it.", id="broken")))
    assert result["failed"]
    assert result["msg"] == "It broke. Mend it."
    assert result["error"] == {"id": "broken", "message": "It broke", "hint": "Mend it."}
    assert result["exit_code"] == 1
    assert "look out" in str(result["warnings"])


@pytest.mark.parametrize(
    ("exit_code", "option", "failed"),
    [
        (0, {}, False),
        (3, {}, True),
        (3, {"fail_on_partial": False}, False),
        (3, {"fail_on_damage": False}, True),
        (4, {}, True),
        (4, {"fail_on_partial": False}, True),
        (4, {"fail_on_damage": False}, False),
        (1, {"fail_on_partial": False, "fail_on_damage": False}, True),
    ],
)
def test_a_partial_result_is_a_failure_unless_said_otherwise(
    exit_code: int, option: dict[str, bool], failed: bool
) -> None:
    result = outcome_of(ending(exit_code), **option)
    assert result.get("failed", False) is failed
    # The result is there in any case.
    assert result["backup"] == {"id": 1}
    assert result["changed"]
    assert result["exit_code"] == exit_code
    assert "rc" not in result
    if exit_code and not failed:
        assert "it is done" in str(result["warnings"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_puts_things_in_order_and_is_told(number: signal.Signals) -> None:
    cleaned = []

    def work(_task: Task) -> Outcome:
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        finally:
            cleaned.append(True)
        raise AssertionError("not stopped")

    before = signal.getsignal(number)
    result = outcome_of(work)
    assert cleaned == [True]
    assert result["failed"]
    assert result["error"]["id"] == "stopped"
    assert number.name in result["msg"]
    assert signal.getsignal(number) == before


def test_a_defect_is_no_polite_failure() -> None:
    """It keeps its traceback, for whoever has to mend it."""
    with patch_module_args({}), pytest.raises(ZeroDivisionError):
        run(lambda _task: Outcome("", changed=bool(1 // 0), result={}), {**config_option()})


def test_names_the_packages_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_module.LIBRARIES, "no_such_module", "no-such-package")
    result = outcome_of(ending(0))
    assert result["failed"]
    assert result["error"]["id"] == "interpreter"
    assert "no-such-package" in result["msg"]
    assert "numpy" not in result["msg"]


def test_says_that_a_python_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_module, "OLDEST_PYTHON", (99, 0))
    result = outcome_of(ending(0))
    assert result["failed"]
    assert "is Python 3." in result["msg"]


SPEC = {
    "bin_directory": {"type": "path"},
    "delta": {"type": "bool"},
    "tablespaces": {"type": "dict"},
    "timeline": {"type": "str"},
    "without": {"type": "list"},
    "backup": {"type": "str"},
}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("or name it with --bin-directory.", "or name it with `bin_directory`."),
        ("Say which: --timeline 2 or --timeline 3.", "Say which: `timeline: 2` or `timeline: 3`."),
        ("--timeline current for its own", "`timeline: current` for its own"),
        ("if it may be overwritten, --delta. Nothing", "if it may be overwritten, `delta: true`. Nothing"),
        ("restore once more with --delta before", "restore once more with `delta: true` before"),
        ("Another one: --tablespace /a=/new/directory. Nothing", "Another one: `tablespaces`. Nothing"),
        ("is only found with --backup ID. Nothing", "is only found with `backup`. Nothing"),
        ("state with `--without nas` that", "state with `without: nas` that"),
        ("WAL; --without nas if it is lost", "WAL; `without` nas if it is lost"),
        ("Run `cryobackup verify --all --level presence`.", "Run `cryobackup verify --all --level presence`."),
        ("`cryobackup restore main --delta` does it", "`cryobackup restore main --delta` does it"),
        ("pg_checksums --enable turns them on", "pg_checksums --enable turns them on"),
        ("(--yes, or `confirm: true`)", "(--yes, or `confirm: true`)"),
        ("nothing of the kind", "nothing of the kind"),
    ],
)
def test_hints_speak_of_the_options_of_the_module(text: str, words: str) -> None:
    assert in_options(text, SPEC) == words
