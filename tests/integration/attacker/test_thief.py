# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The database host is stolen: files, keys, credentials, configuration. Yesterday's backup is restored all the same.

The tests of this file belong together, in their order: one thief, who does all that he can, and what is left then.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.lab import Golden, Installation, LiveWriter, Workspace, golden_dump, prove_restore, sample_data
from tests.lab.ceph import Gateway

from .forger import Forger
from .lab import SOURCE, LockedLab

DAY = dt.timedelta(days=1)
SACRED = ("packs/", "manifests/", "wal/", "keys/", "repository.json")


@dataclasses.dataclass
class Past:
    """What there was before the thief came."""

    lab: LockedLab
    rows: LiveWriter
    golden: Golden
    full: str
    incremental: str
    objects: dict[tuple[str, str], tuple[str, dt.datetime]]
    """By key and version: digest of the content, end of the lock."""
    before: str
    """The last moment."""


@pytest.fixture(scope="module", params=["governance", "compliance"])
def past(
    request: pytest.FixtureRequest, shared_workspace: Workspace, runtime: Any, pg: Installation, s3: Gateway
) -> Iterator[Past]:
    cluster = shared_workspace.cluster(request.param, installation=pg)
    sample_data(cluster, 4)
    retention = {
        "full": {"keep_last": 1, "keep_daily": 2},
        "incremental": {"keep_last": 1},
        "minimum": 0,
        "trash": 0,
        "max_delete_share": 1,
    }
    lab = LockedLab(shared_workspace, runtime, cluster, s3, mode=request.param, retention=retention, name=request.param)
    with LiveWriter(cluster) as rows:
        rows.wait_rows(50)
        full = lab.backup()
        rows.wait_rows(rows.count + 50)
        incremental = lab.backup("incremental")
        rows.wait_rows(rows.count + 50)
    golden = golden_dump(cluster)
    lab.archive_everything()
    lab.verifier.run("verify", "--all", "--level", "content")
    objects = sacred_objects(lab)
    time.sleep(1.1)  # versions are told apart by seconds
    before = dt.datetime.now(dt.UTC).isoformat()
    time.sleep(1.1)
    yield Past(lab, rows, golden, full, incremental, objects, before)
    cluster.stop()


def sacred_objects(lab: LockedLab) -> dict[tuple[str, str], tuple[str, dt.datetime]]:
    found = {}
    # At Ceph not even the owner of the bucket reads what others have put there.
    client = lab.gateway.client(lab.verifier.user)
    for version in lab.bucket.versions():
        if not version.delete_marker and version.key.removeprefix("db1/").startswith(SACRED):
            which = {"Bucket": lab.bucket.name, "Key": version.key, "VersionId": version.version_id}
            data = client.get_object(**which)["Body"].read()
            found[version.key, version.version_id] = hashlib.sha256(data).hexdigest(), locked_until(client, which)
    return found


def locked_until(client: Any, which: dict[str, str]) -> dt.datetime:
    """What the thief creates may have no lock."""
    try:
        until: dt.datetime = client.get_object_retention(**which)["Retention"]["RetainUntilDate"]
    except ClientError as error:
        if error.response["Error"]["Code"] != "ObjectLockConfigurationNotFoundError":
            raise
        return dt.datetime.fromtimestamp(0, dt.UTC)
    return until


def nothing_is_lost(past: Past) -> None:
    """Every version of before is there, unchanged, visible, and locked for as long as it was."""
    now = sacred_objects(past.lab)
    assert past.objects.keys() <= now.keys()
    for version, (digest, until) in past.objects.items():
        assert now[version][0] == digest
        assert now[version][1] >= until
    visible = set(past.lab.bucket.keys())
    assert {key for key, _unused in past.objects} <= visible


def refused(attempt: Callable[[], Any]) -> bool:
    try:
        answer = attempt()
    except ClientError as error:
        return error.response["Error"]["Code"] in (
            "AccessDenied",
            "MethodNotAllowed",
            "InvalidBucketState",
            "InvalidRequest",
        )
    return bool(isinstance(answer, dict) and answer.get("Errors") and not answer.get("Deleted"))


def test_old_backups_cannot_be_read_with_what_lies_on_the_host(past: Past) -> None:
    writer = past.lab.writer
    assert sorted(file.name for file in writer.directory.joinpath("keys").iterdir()) == ["catalog.key", "data.pub"]
    target = past.lab.workspace.path / f"stolen-{past.full}"
    code, result, _errors = writer.try_run("restore", SOURCE, "--target", target)
    assert code == 1
    assert result["error"]["id"] == "no-identity"
    assert not target.exists()


def test_nothing_can_be_deleted_altered_or_unlocked(past: Past) -> None:
    lab = past.lab
    bucket = lab.bucket.name
    client = lab.gateway.client(lab.writer.user)
    soon = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=5)
    got_through = []
    for key, version in past.objects:
        of_version = {"Bucket": bucket, "Key": key, "VersionId": version}
        of_object = {"Bucket": bucket, "Key": key}
        short = {"Mode": "GOVERNANCE", "RetainUntilDate": soon}
        attempts: dict[str, Callable[[], Any]] = {
            "delete": lambda w=of_object: client.delete_object(**w),
            "delete a version": lambda w=of_version: client.delete_object(**w),
            "delete a version around its lock": lambda w=of_version: client.delete_object(
                **w, BypassGovernanceRetention=True
            ),
            "delete many": lambda k=key, v=version: client.delete_objects(
                Bucket=bucket,
                Delete={"Objects": [{"Key": k}, {"Key": k, "VersionId": v}]},
                BypassGovernanceRetention=True,
            ),
            "shorten the lock": lambda w=of_version, s=short: client.put_object_retention(**w, Retention=s),
            "shorten the lock by force": lambda w=of_version, s=short: client.put_object_retention(
                **w, Retention=s, BypassGovernanceRetention=True
            ),
            "take the lock away": lambda w=of_version: client.put_object_retention(
                **w, Retention={}, BypassGovernanceRetention=True
            ),
            "hold": lambda w=of_version: client.put_object_legal_hold(**w, LegalHold={"Status": "ON"}),
            "share": lambda w=of_object: client.put_object_acl(**w, ACL="public-read-write"),
            "tag": lambda w=of_object: client.put_object_tagging(**w, Tagging={"TagSet": []}),
        }
        got_through += [(name, key) for name, attempt in attempts.items() if not refused(attempt)]
    assert got_through == []
    nothing_is_lost(past)


def test_the_rules_of_the_bucket_cannot_be_changed(past: Past) -> None:
    lab = past.lab
    where = {"Bucket": lab.bucket.name}
    client = lab.gateway.client(lab.writer.user)
    expire = {"ID": "x", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 1}}
    weak = {"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 1}}}
    attempts: dict[str, Callable[[], Any]] = {
        "policy": lambda: client.put_bucket_policy(**where, Policy='{"Version": "2012-10-17", "Statement": []}'),
        "no policy": lambda: client.delete_bucket_policy(**where),
        "lifecycle": lambda: client.put_bucket_lifecycle_configuration(
            **where, LifecycleConfiguration={"Rules": [expire]}
        ),
        "versioning": lambda: client.put_bucket_versioning(**where, VersioningConfiguration={"Status": "Suspended"}),
        "lock": lambda: client.put_object_lock_configuration(**where, ObjectLockConfiguration=weak),
        "acl": lambda: client.put_bucket_acl(**where, ACL="public-read-write"),
        "delete": lambda: client.delete_bucket(**where),
    }
    assert [name for name, attempt in attempts.items() if not refused(attempt)] == []


def test_marks_notes_and_keys_cannot_be_written(past: Past) -> None:
    lab = past.lab
    forger = Forger(lab.writer)
    client = lab.gateway.client(lab.writer.user)
    objects = [key.removeprefix("db1/") for key, _unused in past.objects]
    false = [
        forger.mark(*objects),
        forger.note(past.full, "verified", level="content", result="damaged", locations={"cloud": "damaged"}),
        forger.note(past.full, "unpin", reason="x"),
        ("keys/2.pub", b"nonsense"),
        ("repository.json", b"{}"),
        ("elsewhere/x", b"x"),
    ]
    for name, data in false:
        put = {"Bucket": lab.bucket.name, "Key": lab.full(name), "Body": data}
        assert refused(lambda put=put: client.put_object(**put)), name


def test_what_he_may_write_pushes_out_nothing(past: Past) -> None:
    """False backups of every date, false content on top of true objects, a flood of leases; then the keeper prunes."""
    lab = past.lab
    forger = Forger(lab.writer)
    client = lab.gateway.client(lab.writer.user)
    now = dt.datetime.now(dt.UTC)
    start = "0000000100000FFF00000001"
    late_wal = dataclasses.replace(forger.header(past.full).postgres, wal_start=start, wal_stop=start)
    false = [forger.backup(past.full, now - number * DAY / 2) for number in range(8)]
    false += [forger.backup(past.full, now + 400 * DAY), forger.backup(past.incremental, now + DAY)]
    false += [forger.backup(past.full, now, postgres=late_wal) for _unused in range(3)]
    false += [forger.emptied(past.full), forger.emptied(past.incremental)]
    false += [forger.lease(past.full), forger.lease(None)]
    pack = next(key for key, _unused in past.objects if "/packs/" in key)
    false += [(pack.removeprefix("db1/"), os.urandom(1000))]
    for name, data in false:
        client.put_object(Bucket=lab.bucket.name, Key=lab.full(name), Body=data)

    for options in ((), ("--grace", "0"), ("--grace", "0", "--yes")):
        pruned = lab.keeper.run("prune", *options)
        assert {past.full, past.incremental} <= set(pruned["keep"])
    hidden = pruned["locations"]["cloud"]["hidden"]
    assert hidden["overwritten"] == 3
    assert any("written over" in text for text in pruned["warnings"])
    assert any("says that it ended" in text for text in pruned["warnings"])
    nothing_is_lost(past)


def test_the_keeper_goes_on_locking_and_tells(past: Past) -> None:
    report = past.lab.keeper.run("lock", "extend", exit_code=3)
    assert any("written over" in text for text in report["attention"])
    assert report["locations"]["cloud"]["missing"] == report["locations"]["cloud"]["hidden"] == 0
    nothing_is_lost(past)


def test_yesterdays_backup_is_restored(past: Past) -> None:
    lab = past.lab
    verified = lab.verifier.run("verify", past.incremental, "--level", "content")
    assert verified["result"] == "ok"
    target = lab.workspace.path / f"after-{past.full}"
    lab.verifier.run("restore", SOURCE, "--target", target, "--backup", past.incremental)
    prove_restore(lab.workspace, target, golden=past.golden, rows=past.rows.expect_all())


def test_false_wal_behind_the_true_one_is_passed_over_by_looking_at_the_time_before(past: Past) -> None:
    """Under new names he may write: more WAL, of another timeline too. It leads a recovery to the end astray."""
    lab = past.lab
    client = lab.gateway.client(lab.writer.user)
    segments = sorted(key for key, _unused in past.objects if len(key.rpartition("/")[2]) == 24 and "/wal/" in key)
    folder, _slash, last = segments[-1].rpartition("/")
    behind = f"{folder}/{last[:16]}{int(last[16:], 16) + 1:08X}"
    for key in (behind, f"{folder.rpartition('/')[0]}/00000002/00000002.history"):
        client.put_object(Bucket=lab.bucket.name, Key=key, Body=b"nonsense")
    target = lab.workspace.path / f"as-of-{past.full}"
    options = "--target", target, "--as-of", past.before
    restored = lab.verifier.run("restore", SOURCE, *options)
    assert restored["backup_id"] == past.incremental
    prove_restore(lab.workspace, target, golden=past.golden, rows=past.rows.expect_all())
