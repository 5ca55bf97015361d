# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``cryobackup wal-stream`` of a laboratory's cluster, started, waited for and ended."""

from __future__ import annotations

import signal
import subprocess
from typing import Any, Self

from cryobackup.repository import names
from cryobackup.repository.names import StreamedPart
from tests.integration.restore.lab import RestoreLab
from tests.lab import Cluster, wait_until
from tests.lab.stores import StoredPath
from tests.lab.workload import lsn_number

INTERVAL = "0.2"


class Stream:
    """The service as the server's user. A context manager: running inside."""

    def __init__(self, lab: RestoreLab, *options: str) -> None:
        self.lab = lab
        self.log = lab.directory / "stream.log"
        self._options = options
        self._process: subprocess.Popen[Any] | None = None

    def __enter__(self) -> Self:
        with self.log.open("ab") as log:
            self._process = self.lab.workspace.popen(
                [*self.lab.command, "wal-stream", "main", "--interval", INTERVAL, *self._options],
                stderr=log,
                stdout=log,
            )
        return self

    def __exit__(self, *_error: object) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            assert self.end() == 0, self.log.read_text()

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(30)

    def wait_stored(self, cluster: Cluster | None = None) -> None:
        """All that the server has flushed up to now is stored on return."""
        server = cluster or self.lab.cluster
        wanted = lsn_number(str(server.value("SELECT pg_current_wal_flush_lsn()")))
        told = "SELECT max(write_lsn)::text FROM pg_stat_replication WHERE application_name = 'cryobackup wal-stream'"

        def stored() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, self.log.read_text()
            found = server.value(told)
            return found is not None and lsn_number(str(found)) >= wanted

        wait_until(stored, "the stream has stored everything")


def parts(lab: RestoreLab, location: str | None = None) -> dict[StreamedPart, StoredPath]:
    """What was streamed, and where it lies."""
    system = str(lab.cluster.system_identifier)
    area = lab.locations[location or next(iter(lab.locations))] / names.STREAMED.rstrip("/") / system
    found = {}
    for timeline in area.iterdir() if area.is_dir() else ():
        for segment in timeline.iterdir():
            for path in segment.iterdir():
                parsed = names.parse_streamed_part(
                    f"{names.STREAMED}{system}/{timeline.name}/{segment.name}/{path.name}"
                )
                assert parsed is not None, path
                found[parsed[1]] = path
    return found
