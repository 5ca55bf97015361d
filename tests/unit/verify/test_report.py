# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What findings amount to, in words and as an exit code; and what a sandbox is told."""

from __future__ import annotations

import datetime as dt
import json
import threading
from pathlib import Path

import pytest

from cryobackup.errors import RestoreError
from cryobackup.events import Silent
from cryobackup.postgres.recovery import Recovery, RecoveryTarget
from cryobackup.postgres.sandbox_directory import SandboxDirectory
from cryobackup.postgres.sandbox_process import server_account
from cryobackup.postgres.sandbox_settings import as_text, sandbox_settings
from cryobackup.repository.model import PostgresInfo
from cryobackup.verify.parallel import in_parallel
from cryobackup.verify.result import DAMAGE, NOTICE, PARTLY, BackupResult, Check, Finding, VerifyReport, bare


def backup(*severities: str, ok: bool | None = True, error: RestoreError | None = None) -> BackupResult:
    made = BackupResult("20260101T000000Z-00000000", "main", "full", error=error)
    made.findings = [Finding("damaged", severity, "here", "packs/x", "text") for severity in severities]
    made.checks = [Check("amcheck", ok, "text")]
    return made


def report(*backups: BackupResult, others: str = "") -> VerifyReport:
    made = VerifyReport("content", dt.datetime(2026, 1, 1, tzinfo=dt.UTC), backups=list(backups))
    made.others = [Finding("location", others, "there", "", "text")] if others else []
    json.dumps(made.as_dict())
    return made


FAILED = RestoreError("no room")


@pytest.mark.parametrize(
    ("made", "result", "exit_code"),
    [
        (report(backup()), "ok", 0),
        (report(backup(NOTICE), others=NOTICE), "ok", 0),
        (report(backup(ok=None)), "ok", 0),
        (report(backup(), backup(PARTLY)), "incomplete", 3),
        (report(backup(), others=PARTLY), "incomplete", 3),
        (report(backup(PARTLY, DAMAGE)), "damaged", 4),
        (report(backup(), others=DAMAGE), "damaged", 4),
        (report(backup(ok=False), backup(PARTLY)), "failed", 4),
        (report(backup(error=FAILED)), "unverified", 1),
        (report(backup(error=FAILED), backup()), "unverified", 3),
        (report(backup(error=FAILED), backup(DAMAGE)), "damaged", 4),
    ],
)
def test_the_worst_counts(made: VerifyReport, result: str, exit_code: int) -> None:
    assert (made.result, made.exit_code) == (result, exit_code)


def test_messages_do_not_name_the_object_twice() -> None:
    assert bare("object packs/x is damaged: frame 1 is not what was written", "packs/x").startswith("frame 1")
    assert bare("object packs/y is damaged: it ends early", "packs/x").startswith("object packs/y")


def info(**settings: str) -> PostgresInfo:
    return PostgresInfo(
        system_identifier="1",
        version=150004,
        timeline=1,
        start_lsn="0/1",
        stop_lsn="0/2",
        checkpoint_lsn="0/1",
        wal_start="0" * 24,
        wal_stop="0" * 24,
        wal_segment_size=16 << 20,
        block_size=8192,
        segment_blocks=131072,
        page_checksums=True,
        from_standby=False,
        data_directory="/var/lib/postgresql/15/main",
        next_oid=20000,
        settings=settings,
    )


@pytest.fixture
def place(tmp_path: Path) -> SandboxDirectory:
    return SandboxDirectory(tmp_path, server_account("postgres", None), Silent())


def test_nothing_of_the_source_that_acts_on_the_outside_comes_along(place: SandboxDirectory) -> None:
    source = info(
        archive_mode="always",
        archive_command="cp %p /archive/%f",
        listen_addresses="*",
        port="5432",
        shared_preload_libraries="pg_cron,timescaledb",
        unix_socket_directories="/var/run/postgresql",
        max_prepared_transactions="77",
        max_connections="5000",
    )
    recovery = Recovery("false", RecoveryTarget.immediate())
    settings = sandbox_settings(source, 150004, place, recovery, preload="")
    assert settings["archive_mode"] == "off"
    assert settings["archive_command"] == ""
    assert settings["listen_addresses"] == ""
    assert settings["shared_preload_libraries"] == ""
    assert settings["max_logical_replication_workers"] == "0"
    assert settings["primary_conninfo"] == ""
    assert settings["synchronous_standby_names"] == ""
    assert settings["unix_socket_directories"] == str(place.socket)
    assert settings["max_prepared_transactions"] == "77"
    assert settings["max_connections"] == "20"
    lines = as_text(settings).splitlines()
    assert "recovery_target = 'immediate'" in lines
    assert "restore_command = 'false'" in lines


@pytest.mark.parametrize(
    ("version", "there", "missing"),
    [
        (130007, [], ["allow_in_place_tablespaces", "archive_library", "event_triggers"]),
        (140005, ["allow_in_place_tablespaces"], ["archive_library", "event_triggers"]),
        (150000, ["allow_in_place_tablespaces", "archive_library"], ["event_triggers"]),
        (170000, ["allow_in_place_tablespaces", "archive_library", "event_triggers"], []),
    ],
)
def test_settings_that_a_version_does_not_know(
    place: SandboxDirectory, version: int, there: list[str], missing: list[str]
) -> None:
    settings = sandbox_settings(info(), version, place, Recovery("false"), preload="")
    assert set(there) <= settings.keys()
    assert not set(missing) & settings.keys()


def test_work_in_threads_ends_when_its_reader_does() -> None:
    begun = []

    def work(task: int, stop: threading.Event) -> int:
        begun.append(task)
        if task:
            assert stop.wait(60)
        return task

    def read() -> None:
        with in_parallel(range(1000), work, 2) as results:
            next(results)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read()
    assert len(begun) < 20


def test_all_results_come() -> None:
    with in_parallel(range(100), lambda task, _stop: task * 2, 3) as results:
        assert sorted(results) == [task * 2 for task in range(100)]
