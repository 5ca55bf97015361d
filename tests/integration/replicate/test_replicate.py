# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A cluster that archives to a directory and to a bucket of a real object store; restores from what was replicated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.restore.lab import RestoreLab
from tests.lab import Cluster, Golden, LiveWriter, Moment, Workspace, golden_dump, prove_restore, sample_data
from tests.lab.ceph import Gateway
from tests.lab.objects import Bucket

NEAR, CLOUD = "near", "cloud"
TIMES: dict[str, Any] = {"timeout": 3, "attempts": 2}
NOT_IN_BUCKETS = pytest.mark.only_on("posix", "sftp")  # an outage of the store would be one of both locations


class Site(RestoreLab):
    """A required directory; an optional bucket is added by ``add_bucket``."""

    def __init__(self, workspace: Workspace, runtime: Path, cluster: Cluster) -> None:
        super().__init__(workspace, runtime, cluster, locations={NEAR: True})

    def add_bucket(self, bucket: Bucket, name: str = CLOUD, **more: Any) -> None:
        self.settings["repository"]["locations"][name] = bucket.config(required=False, prefix="db1", **TIMES, **more)
        self.write_config()
        self.run("init", "--new", name, check=True)

    def replicate(self, *options: str, exit_code: int = 0) -> dict[str, Any]:
        result = self.run("--json", "replicate", *options)
        assert result.returncode == exit_code, (result.stdout, result.stderr)
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("--json", "status").stdout)
        return found

    def configure(self, name: str, location: dict[str, Any]) -> None:
        self.settings["repository"]["locations"][name] = location
        self.write_config()

    def only(self, name: str) -> None:
        """From now on there is no other location, and no directory of it either."""
        location = self.settings["repository"]["locations"][name]
        self.settings["repository"]["locations"] = {name: {**location, "required": True}}
        self.write_config()


@pytest.fixture
def site(workspace: Workspace, runtime: Path, cluster: Cluster) -> Site:
    made = Site(workspace, runtime, cluster)
    sample_data(cluster, 8)
    return made


class Past:
    """Two backups, a moment between them and one behind; everything archived."""

    def __init__(self, site: Site, *, exit_code: int = 0) -> None:
        with LiveWriter(site.cluster) as self.writer:
            self.writer.wait_rows(30)
            self.full = site.backup(exit_code=exit_code)["backup_id"]
            self.writer.wait_rows(self.writer.count + 30)
            self.moment: Moment = self.writer.moment("between")
            self.incremental = site.backup("incremental", exit_code=exit_code)["backup_id"]
            self.writer.wait_rows(self.writer.count + 30)
        self.golden: Golden = golden_dump(site.cluster)
        site.archive_everything()

    def restores(self, site: Site) -> None:
        """To the moment from the full backup, and to the end from the incremental."""
        site.restore("between", "--backup", self.full, "--to-name", "between")
        prove_restore(site.workspace, site.place("between"), rows=self.writer.expect(self.moment))
        site.restore("end", "--backup", self.incremental)
        prove_restore(site.workspace, site.place("end"), rows=self.writer.expect_all(), golden=self.golden)


def test_a_new_bucket_is_seeded_and_restores_alone(site: Site, s3: Gateway) -> None:
    past = Past(site)
    site.add_bucket(s3.make_bucket("plain"))
    behind = site.status()["locations"][CLOUD]
    assert behind["lag"]["backups"] == [past.incremental, past.full]
    predicted = site.replicate("--dry-run")["locations"][CLOUD]
    done = site.replicate("--to", CLOUD)["locations"][CLOUD]
    assert done["backups"] == predicted["backups"] == [past.incremental, past.full]
    assert done["packs"] == predicted["packs"] > 0
    assert site.replicate()["changed"] is False
    assert site.status()["locations"][CLOUD]["lag"]["backups"] == []
    site.only(CLOUD)
    site.run("verify", "--all", "--level", "content", "--no-record", check=True)
    past.restores(site)


@NOT_IN_BUCKETS
def test_an_outage_is_healed(site: Site, s3: Gateway) -> None:
    """Backups and WAL that were made while the bucket was away; later incrementals go on there."""
    site.add_bucket(s3.make_bucket("versioned"))
    site.backup()
    with s3.outage():
        past = Past(site, exit_code=3)
    told = site.status()
    assert any("cryobackup replicate" in text for text in told["attention"])
    done = site.replicate()["locations"][CLOUD]
    assert set(done["backups"]) == {past.full, past.incremental}
    assert site.status()["locations"][CLOUD]["lag"]["backups"] == []
    late = site.backup("incremental")
    assert (late["parent"], late["status"]) == (past.incremental, "ok")
    site.only(CLOUD)
    past.restores(site)


@NOT_IN_BUCKETS
def test_an_outage_in_the_middle_of_a_replication(site: Site, s3: Gateway) -> None:
    """The location that fails is told of; the next run goes on."""
    past = Past(site)
    bucket = s3.make_bucket("plain")
    site.add_bucket(bucket)
    with s3.outage():
        failed = site.replicate(exit_code=3)
    assert failed["locations"][CLOUD]["error"] is not None
    assert failed["locations"][NEAR]["error"] is None
    assert not bucket.keys("db1/manifests/")
    site.replicate()
    site.only(CLOUD)
    past.restores(site)


def test_a_host_that_may_not_delete(site: Site, s3: Gateway) -> None:
    """Creating is enough. The lease stays until somebody else prunes; a repair is refused with nothing changed."""
    past = Past(site)
    bucket = s3.make_bucket("plain")
    site.add_bucket(bucket)
    keeper = site.settings["repository"]["locations"][CLOUD]
    site.replicate()
    user = s3.user()
    bucket.allow(user, ["s3:GetObject", "s3:PutObject", "s3:ListBucket"])
    writer = bucket.config(user, required=False, prefix="db1", **TIMES)
    pack = bucket.keys("db1/packs/")[0]
    bucket.tamper(pack)
    damaged = bucket.read(pack)
    site.configure(CLOUD, writer)
    refused = site.replicate("--repair", "--to", CLOUD, exit_code=3)
    assert refused["locations"][CLOUD]["repaired"] == []
    assert bucket.read(pack) == damaged
    for key in bucket.keys("db1/leases/"):  # here, what one user writes the others cannot read
        bucket.delete(key)
    site.configure(CLOUD, keeper)
    assert site.replicate("--repair", "--to", CLOUD)["locations"][CLOUD]["repaired"] == [pack.removeprefix("db1/")]
    for key in (pack, *bucket.keys("db1/manifests/")):
        bucket.delete(key)
    site.configure(CLOUD, writer)
    assert len(site.replicate()["locations"][CLOUD]["backups"]) == 2
    assert bucket.keys("db1/leases/")
    site.only(CLOUD)
    past.restores(site)


@pytest.mark.only_on("posix", "sftp")
def test_the_directory_is_lost_and_comes_back_from_the_bucket(site: Site, s3: Gateway) -> None:
    """Also the other way round: without the identity, as a database host has it."""
    site.add_bucket(s3.make_bucket("plain"))
    past = Past(site)
    identity = site.directory / "keys/data.identity"
    aside = identity.rename(identity.with_name("aside"))
    near = site.locations[NEAR]
    assert isinstance(near, Path)
    near.rename(near.with_name("broken-disk"))
    assert site.run("init").returncode == 1, "it is not mounted"
    site.run("init", "--new", NEAR, check=True)
    done = site.replicate("--from", CLOUD, "--to", NEAR)["locations"][NEAR]
    assert set(done["backups"]) == {past.full, past.incremental}
    aside.rename(identity)
    site.only(NEAR)
    site.run("verify", "--all", "--level", "content", "--no-record", check=True)
    past.restores(site)
