# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Starting the restored cluster: what went wrong is said where it is looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryobackup.errors import RestoreError
from cryobackup.postgres.restore_start import IN_PRODUCTION, pg_ctl_command, start_server

from .lab import RestoreLab


@pytest.mark.only_on("posix")
@pytest.mark.parametrize("collector", ["off", "on"])
def test_a_start_that_fails_because_of_wal_get_says_what_wal_get_says(restores: RestoreLab, collector: str) -> None:
    """PostgreSQL itself only says that some command ended with 200, and the logging collector hides even that."""
    lab = restores
    sockets = lab.workspace.directory("sockets")
    lab.cluster.configure(unix_socket_directories=str(sockets), listen_addresses="", logging_collector=collector)
    lab.backup()
    lab.archive_everything()
    target = lab.place("restored")
    result = lab.restore(target, "--port", "5436")
    location = lab.locations["local"]
    location.rename(location.with_name("away"))
    try:
        command = pg_ctl_command(Path(lab.cluster.installation.program("pg_ctl")).parent, target, [])
        with pytest.raises(RestoreError) as caught:
            start_server(command, target, result["owner"], until={IN_PRODUCTION}, timeout=30)
    finally:
        location.with_name("away").rename(location)
    error = caught.value
    assert error.id == "start-failed"
    assert "exit code 200" in error.message
    assert f"location 'local': {location} is not there" in error.message.rpartition("; wal-get: ")[2]
    assert "restore itself is complete" in error.hint
    assert "Mount it" in error.hint


def test_the_port_of_a_copy_is_remembered_and_told(restores: RestoreLab) -> None:
    lab = restores
    lab.backup()
    lab.archive_everything()
    target = lab.place("restored")
    result = lab.restore(target, "--port", "5437")
    assert "port = 5437" in (target / "postgresql.auto.conf").read_text().replace("'", "")
    assert any("ALTER SYSTEM RESET port" in step for step in result["next_steps"])
    assert not any("RESET port" in step for step in lab.restore("other")["next_steps"])
