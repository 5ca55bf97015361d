# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command lines PostgreSQL runs: through its own placeholders, then through a shell."""

from __future__ import annotations

import datetime as dt
import re
import shlex
from pathlib import Path

import pytest

from cryobackup.postgres.archive_commands import archive_command, restore_command


def as_postgres_runs_it(command: str, **placeholders: str) -> list[str]:
    """The words that the program gets: replace_percent_placeholders() in percentrepl.c, then /bin/sh."""

    def replaced(match: re.Match[str]) -> str:
        return "%" if match[1] == "%" else placeholders[match[1]]

    return shlex.split(re.sub(r"%(.)", replaced, command))


@pytest.mark.parametrize("config", ["/etc/cryobackup/config.yml", "/srv/my files/50%p/it's.yml", "/a/$(reboot)/`x`"])
def test_both_survive_any_path(config: str) -> None:
    words = as_postgres_runs_it(archive_command(["/opt/a b/cryobackup"], Path(config)), p="pg_wal/X")
    assert words == ["/opt/a b/cryobackup", "--config", config, "wal-push", "pg_wal/X"]
    command = restore_command(["/opt/a b/cryobackup"], Path(config), 7, without=["cloud"])
    words = as_postgres_runs_it(command, f="X", p="pg_wal/RECOVERYXLOG")
    assert words[:3] == ["/opt/a b/cryobackup", "--config", config]
    assert words[3:] == [
        "--quiet",
        "wal-get",
        "--system-identifier",
        "7",
        "--without",
        "cloud",
        "X",
        "pg_wal/RECOVERYXLOG",
    ]


def test_the_cluster_can_be_named() -> None:
    command = archive_command(["cryobackup"], Path("/c.yml"), cluster="main")
    assert command == "cryobackup --config /c.yml wal-push --cluster main %p"


def test_a_recovery_as_of_a_time_fetches_wal_as_of_that_time() -> None:
    moment = dt.datetime.fromisoformat("2026-11-22T12:00:00.250000+01:00")
    words = as_postgres_runs_it(restore_command(["cryobackup"], Path("/c"), 7, as_of=moment), f="X", p="Y")
    assert words[words.index("--as-of") + 1] == "2026-11-22T12:00:00.250000+01:00"
