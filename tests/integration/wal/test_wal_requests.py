# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What archiving asks of a bucket, counted by the server, is what `capacity` reckons with."""

from __future__ import annotations

import collections
import re
from pathlib import Path

import pytest

from cryobackup.report import cost
from tests.lab import Workspace
from tests.lab.moto import MotoServer
from tests.lab.objects import Bucket

from .lab import FinishedWal, WalLab
from .test_archiver import Service

WRITES, LOOKS = "writes and lists", "reads"


class Counting:
    """A bucket, and what its server was asked since it was asked last."""

    def __init__(self, server: MotoServer, bucket: Bucket) -> None:
        self._log = server.folder / "log"
        self._bucket = bucket.name
        self.asked()

    def asked(self) -> dict[str, int]:
        lines = re.findall(rf'"(?:\x1b\[\d+m)*(\w+) /{self._bucket}([/?]\S*)? HTTP', self._log.read_text())
        new, self._seen = lines[getattr(self, "_seen", 0) :], len(lines)
        found = collections.Counter(
            LOOKS if verb == "HEAD" or (verb == "GET" and "list-type" not in path) else WRITES for verb, path in new
        )
        return dict(found)


Cloud = tuple[WalLab, Counting]


@pytest.fixture
def cloud(
    workspace: Workspace, runtime: Path, finished: FinishedWal, moto_server: MotoServer
) -> tuple[WalLab, Counting]:
    """A repository in a bucket and nowhere else."""
    archive = WalLab(workspace, runtime, {"main": finished.data_dir}, init=False)
    bucket = moto_server.make_bucket()
    archive.settings["repository"]["locations"] = {
        "cloud": {
            "type": "s3",
            "bucket": bucket.name,
            "region": moto_server.region,
            "endpoint_url": moto_server.url,
            "credentials_file": str(moto_server.credentials_file(moto_server.owner)),
        }
    }
    settings = archive.settings["repository"]["locations"]["cloud"]
    settings["create_only"] = "check"  # this server has several winners where writers race, and init sees that
    archive.write_config()
    archive.run("init", check=True)
    del settings["create_only"]
    archive.write_config()
    return archive, Counting(moto_server, bucket)


def estimated(files: int, epochs: int = 1) -> dict[str, int]:
    found = cost.of_wal(files, epochs)
    return {WRITES: int(found.puts), LOOKS: int(found.gets)}


def test_each_segment_by_a_process_of_its_own(cloud: Cloud, finished: FinishedWal) -> None:
    archive, counting = cloud
    for name in finished.segments[:2]:
        assert archive.push(finished.data_dir, name).returncode == 0
    assert counting.asked() == estimated(2)
    archive.run("key", "rotate", check=True)
    counting.asked()
    assert archive.push(finished.data_dir, finished.segments[2]).returncode == 0
    assert counting.asked() == estimated(1, epochs=2)


def test_by_the_archiver(cloud: Cloud, workspace: Workspace, finished: FinishedWal) -> None:
    archive, counting = cloud
    service = Service(archive)
    workspace.account.own(workspace.path)
    service.start()
    assert service.push(finished.data_dir, finished.segments[0]).returncode == 0
    assert counting.asked() == estimated(1)
    for name in finished.segments[1:4]:
        assert service.push(finished.data_dir, name).returncode == 0
    assert counting.asked() == {WRITES: 3, LOOKS: 3}
    assert service.end() == 0
