# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A cluster whose repository lies in a bucket behind the proxy, alone or beside a directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cryobackup.repository import model
from cryobackup.repository.catalog import Catalog
from cryobackup.repository.repository import Repository
from tests.integration.restore.lab import RestoreLab
from tests.lab import Cluster, Workspace, wait_until
from tests.lab.ceph import Gateway
from tests.lab.s3proxy import S3Proxy

NEAR = "near"
CLOUD = "cloud"
TIMES: dict[str, Any] = {"timeout": 2, "attempts": 3}
"""Of the location: in a test nobody wants to wait for a minute until silence counts as an outage."""


class CloudLab(RestoreLab):
    """``cryobackup`` with a location in the cloud, which is required only where it is the only one.

    Everything the engine does in the cloud goes through ``proxy``. The bucket keeps versions, so that whatever was
    overwritten would show.
    """

    def __init__(
        self, workspace: Workspace, runtime: Path, cluster: Cluster, gateway: Gateway, proxy: S3Proxy, *, alone: bool
    ) -> None:
        super().__init__(workspace, runtime, cluster, locations={NEAR: True}, archive=False)
        self.gateway = gateway
        self.proxy = proxy
        self.alone = alone
        self.bucket = gateway.make_bucket("versioned")
        # What the parent class has made is left alone: another repository, with keys of its own.
        self.locations = {NEAR: self.directory / "beside-the-cloud"}
        self.settings["repository"]["keys"] = str(self.directory / "keys-of-both")
        self.through(proxy)
        self.run("init", check=True)
        self.cluster.enable_archiving(self.archive_command)

    def through(self, proxy: S3Proxy | None) -> None:
        """Reach the cloud by this proxy; None: directly."""
        url = self.gateway.url if proxy is None else proxy.url
        cloud = self.bucket.config(url=url, prefix="db1", required=self.alone, **TIMES)
        near = {} if self.alone else {NEAR: {"type": "posix", "path": str(self.locations[NEAR])}}
        self.settings["repository"]["locations"] = {**near, CLOUD: cloud}
        self.write_config()

    def only_the_cloud(self) -> None:
        """From now on the configuration knows no other location: the host's own disks are gone."""
        cloud = self.settings["repository"]["locations"][CLOUD]
        self.settings["repository"]["locations"] = {CLOUD: {**cloud, "required": True}}
        self.write_config()

    # What is true of the bucket, asked without the proxy

    def in_the_cloud(self, prefix: str) -> list[str]:
        start = f"db1/{prefix}"
        return [key.removeprefix("db1/") for key in self.bucket.keys(start)]

    def cloud_is_consistent(self) -> None:
        """Every manifest there has all its packs, and no object was ever overwritten."""
        proxied, self.settings["repository"]["locations"] = self.settings["repository"]["locations"], {}
        try:
            cloud = {**proxied[CLOUD], "endpoint_url": self.gateway.url, "required": True}
            self.settings["repository"]["locations"] = {CLOUD: cloud}
            self.write_config()
            catalog = Catalog.load(Repository.open(self.config().repository))
        finally:
            self.settings["repository"]["locations"] = proxied
            self.write_config()
        assert catalog.broken == []
        there = set(self.in_the_cloud("packs/"))
        for backup in catalog.backups:
            assert set(model.pack_names(backup.header)) <= there, backup.id
        versions = [version.key for version in self.bucket.versions() if not version.delete_marker]
        assert len(versions) == len(set(versions)), sorted(versions)

    # WAL

    def archived(self) -> int:
        return int(self.cluster.value("SELECT archived_count FROM pg_stat_archiver"))

    def failures(self) -> int:
        return int(self.cluster.value("SELECT failed_count FROM pg_stat_archiver"))

    def make_wal(self, segments: int = 3) -> list[str]:
        """Finish some segments, and say which."""
        return [self.cluster.switch_wal() for _unused in range(segments)]

    def wal_path(self, segment: str) -> Path:
        return self.cluster.data_dir / "pg_wal" / segment

    def fails_again(self) -> None:
        """PostgreSQL's archiver has heard of a failure more."""
        before = self.failures()
        wait_until(lambda: self.failures() > before, "an attempt that fails")
