# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups, WAL archive and restores of a real cluster while the cloud misbehaves: the promises hold.

The cloud is Ceph behind a proxy that breaks requests. Beside a required directory it is optional: then the database
must not notice it. Where it is the only location, nothing is acknowledged that it does not have.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.lab import Cluster, Installation, Workspace, golden_dump, prove_restore, sample_data
from tests.lab import s3faults as faults
from tests.lab.ceph import Gateway
from tests.lab.s3proxy import CONNECT, S3Proxy

from .cloud import CLOUD, NEAR, CloudLab

WRITES = ("put", "begin", "part", "complete")


@pytest.fixture(scope="module")
def proxy(s3: Gateway) -> Iterator[S3Proxy]:
    made = S3Proxy(s3)
    yield made
    made.close()


@pytest.fixture
def beside(workspace: Workspace, runtime: Path, pg: Installation, s3: Gateway, proxy: S3Proxy) -> CloudLab:
    """A cluster with a required directory and the optional cloud."""
    return CloudLab(workspace, runtime, made_cluster(workspace, pg), s3, proxy, alone=False)


@pytest.fixture
def alone(workspace: Workspace, runtime: Path, pg: Installation, s3: Gateway, proxy: S3Proxy) -> CloudLab:
    """A cluster with the cloud only."""
    return CloudLab(workspace, runtime, made_cluster(workspace, pg), s3, proxy, alone=True)


def made_cluster(workspace: Workspace, pg: Installation) -> Cluster:
    # What is archived stays in pg_wal, to be compared.
    cluster = workspace.cluster(installation=pg, settings={"wal_keep_size": "1GB"})
    sample_data(cluster, 8)
    return cluster


@contextmanager
def storm(proxy: S3Proxy, probability: float, seed: int) -> Iterator[None]:
    """Every kind of trouble now and then, none of it for long; and ETags that are never true."""
    troubles = (
        (faults.SLOW_DOWN, ()),
        (faults.LOST_BY_ERROR, ()),
        (faults.LOST_ACKNOWLEDGEMENT, ()),
        (faults.Reset("before"), ()),
        (faults.Reset("middle"), WRITES),
        (faults.Reset("answered"), ()),
        (faults.CutRequest(), WRITES),
        (faults.CutAnswer(), ()),
        (faults.flip(100), ("get",)),
        (faults.Slow(2 << 20), ()),
    )
    with ExitStack() as stack:
        stack.enter_context(proxy.fault(faults.LYING_ETAG, ("put", "complete", "get", "head")))
        for number, (fault, kinds) in enumerate(troubles):
            share = probability / len(troubles)
            stack.enter_context(proxy.fault(fault, kinds, probability=share, seed=seed * 100 + number))
        yield


# By kinds of requests, all where none is named.
OUTAGES: dict[str, tuple[faults.Fault, str | tuple[str, ...]]] = {
    "refused": (faults.Reset("before"), CONNECT),
    "black hole": (faults.Silence(), ()),
    "writes": (faults.SLOW_DOWN, WRITES),
}


@pytest.mark.parametrize("name", OUTAGES)
def test_the_database_does_not_notice_an_optional_cloud(beside: CloudLab, name: str) -> None:
    """WAL is archived without one failure, and backups are made, and said to be partial."""
    fault, kinds = OUTAGES[name]
    with beside.proxy.fault(fault, kinds) as rule:
        before = beside.archived()
        for segment in beside.make_wal():
            beside.cluster.wait_archived(segment)
        assert beside.archived() >= before + 3
        assert beside.failures() == 0
        made = beside.backup(exit_code=3)
        assert rule.hits > 0
    assert made["status"] != "ok"
    assert beside.manifests(NEAR) == [made["backup_id"]]
    beside.cloud_is_consistent()
    # It comes back: what it lacks is brought, and then it can do without the directory.
    beside.run("replicate", check=True)
    beside.only_the_cloud()
    beside.run("verify", "--all", "--level", "content", "--no-record", check=True)
    beside.cloud_is_consistent()


@pytest.mark.parametrize("fault", [faults.Silence(), faults.Slow(20)], ids=["silence", "slow bodies"])
def test_wal_never_waits_long_for_an_optional_cloud(beside: CloudLab, fault: faults.Fault) -> None:
    """Even where the location itself would wait for ten minutes, or gets on by a few bytes in each second."""
    cloud = beside.settings["repository"]["locations"][CLOUD]
    cloud["timeout"] = 600
    beside.write_config()
    with beside.proxy.fault(fault) as rule:
        for segment in beside.make_wal():
            beside.cluster.wait_archived(segment)
        assert beside.failures() == 0
        assert rule.hits > 0
    beside.cloud_is_consistent()


def test_a_cloud_that_loses_packs_gets_no_manifest(beside: CloudLab) -> None:
    with beside.proxy.fault(faults.INTERNAL_ERROR, WRITES, key="/packs/", skip=1):
        made = beside.backup(exit_code=3)
    assert beside.manifests(NEAR) == [made["backup_id"]]
    assert beside.in_the_cloud("manifests/") == []
    beside.cloud_is_consistent()
    # Until it has what an incremental builds on, that goes on without it; a full backup is complete by itself.
    late = beside.backup("incremental", exit_code=3)
    assert late["locations"][CLOUD]["error"]["id"] == "location-lags"
    again = beside.backup()
    assert [key.rpartition("/")[2] for key in beside.in_the_cloud("manifests/")] == [again["backup_id"]]
    beside.cloud_is_consistent()
    beside.only_the_cloud()
    beside.run("verify", "--latest", "main", "--level", "content", "--no-record", check=True)


def test_a_backup_tells_what_it_has_asked_for(alone: CloudLab) -> None:
    begin = len(alone.proxy.log)
    told = alone.backup()["locations"][CLOUD]["requests"]
    # WAL is another process's.
    seen = [kind for kind, key, _status in alone.proxy.log[begin:] if "/wal/" not in key]
    assert told["put"] == sum(kind in WRITES for kind in seen)
    assert told["delete"] == seen.count("delete")
    assert {"get", "list"} <= set(told)


def test_lost_acknowledgements_are_successes(alone: CloudLab) -> None:
    """Every creation is carried out, and none of them is heard of at once."""
    with (
        alone.proxy.fault(faults.LOST_ACKNOWLEDGEMENT, ("put", "complete"), key="/(packs|manifests|wal)/") as rule,
        alone.proxy.fault(faults.LOST_BY_ERROR, ("put", "delete"), key="/leases/", count=2) as leases,
        alone.proxy.fault(faults.Silence(carried_out=True), ("put", "complete"), key="/wal/", count=1),
    ):
        made = alone.backup()
        for segment in alone.make_wal(2):
            alone.cluster.wait_archived(segment)
    assert rule.hits > 3
    assert leases.hits == 2
    assert made["status"] == "ok"
    assert alone.failures() == 0
    alone.cloud_is_consistent()
    assert alone.in_the_cloud("leases/") == []
    alone.run("verify", "--all", "--level", "content", "--no-record", check=True)


def test_a_storm_is_weathered_and_restores(alone: CloudLab) -> None:
    with storm(alone.proxy, 0.2, seed=11):
        full = alone.backup()
        alone.cluster.execute("CREATE TABLE later AS SELECT n FROM generate_series(1, 1000) n")
        alone.backup("incremental")
        golden = golden_dump(alone.cluster)
        alone.archive_everything()
        assert full["status"] == "ok"
        alone.cloud_is_consistent()
        alone.restore("restored")
        prove_restore(alone.workspace, alone.place("restored"), golden=golden)


@pytest.mark.parametrize("days", [40, -40])
def test_a_wrong_clock_of_the_store_costs_nothing(alone: CloudLab, days: int) -> None:
    """It says when something may be deleted, never whether: what is kept stays, and is built on."""
    kept = alone.backup()["backup_id"]
    with alone.proxy.fault(faults.shift_date(days * 86400)) as rule:
        made = alone.backup("incremental")
        for segment in alone.make_wal(2):
            alone.cluster.wait_archived(segment)
        for _unused in range(2):
            alone.run("prune", check=True)
    assert rule.hits > 0
    assert made["status"] == "ok"
    assert alone.failures() == 0
    assert {key.rpartition("/")[2] for key in alone.in_the_cloud("manifests/")} == {kept, made["backup_id"]}
    alone.cloud_is_consistent()
    alone.run("verify", "--all", "--level", "content", "--no-record", check=True)
    assert alone.backup("incremental")["status"] == "ok"


def test_a_wrong_clock_of_the_host_is_named_and_loses_no_wal(alone: CloudLab) -> None:
    with alone.proxy.fault(faults.SKEWED):
        (segment,) = alone.make_wal(1)
        alone.fails_again()
        assert alone.wal_path(segment).exists()
        code, result, _unused = alone.try_backup()
        assert code == 1, result
        assert result["error"]["id"] == "location-clock", result
    alone.cluster.wait_archived(segment)
    assert alone.backup()["status"] == "ok"
    alone.cloud_is_consistent()


@pytest.mark.parametrize("name", ["black hole", "writes"])
def test_nothing_is_acknowledged_that_the_only_location_lacks(alone: CloudLab, name: str) -> None:
    fault, kinds = OUTAGES[name]
    kept = alone.backup()["backup_id"]
    segments = []
    with alone.proxy.fault(fault, kinds):
        segments = alone.make_wal(2)
        alone.fails_again()
        for segment in segments:
            assert alone.wal_path(segment).exists()
        code, result, _unused = alone.try_backup("incremental")
        assert code == 1, result
        assert result["error"]["id"] == "location-down", result
        assert "untouched" in result["error"]["hint"], result
    for segment in segments:
        alone.cluster.wait_archived(segment)
    alone.cloud_is_consistent()
    assert [key.rpartition("/")[2] for key in alone.in_the_cloud("manifests/")] == [kept]
    for segment in segments:
        fetched = alone.directory / f"fetched-{segment}"
        alone.run("wal-get", segment, str(fetched), check=True)
        assert fetched.read_bytes() == alone.wal_path(segment).read_bytes()
    assert alone.backup("incremental")["status"] == "ok"
