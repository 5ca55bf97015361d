# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The object store of the laboratory is a real one, and leaves nothing behind."""

from __future__ import annotations

import datetime
import os
import secrets
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from tests.lab import Lab, wait_until
from tests.lab.ceph import KMS_KEY, Gateway
from tests.lab.cleanup import lab_processes
from tests.lab.moto import MotoServer
from tests.lab.objects import READ, Bucket, ObjectStore, User
from tests.lab.swift import WeakStore
from tests.lab.workspace import CHECKOUT


def code(error: pytest.ExceptionInfo[ClientError]) -> str:
    return str(error.value.response["Error"]["Code"])


def test_objects_come_back_by_both_endpoints(s3: Gateway) -> None:
    bucket = s3.make_bucket()
    bucket.write("a/b", b"content", metadata={"cryo-write": "1"})
    for url in (s3.url, s3.http_url):
        assert s3.client(url=url).get_object(Bucket=bucket.name, Key="a/b")["Body"].read() == b"content"
    assert bucket.keys() == ["a/b"]
    assert bucket.metadata("a/b") == {"cryo-write": "1"}
    bucket.tamper("a/b", at=0)
    assert bucket.read("a/b") == b"bontent"
    assert bucket.metadata("a/b") == {"cryo-write": "1"}


def test_wrong_secrets_and_strangers_are_refused(s3: Gateway) -> None:
    bucket = s3.make_bucket()
    bucket.write("key", b"")
    forged = User(s3.owner.name, s3.owner.access_key, "wrong")
    with pytest.raises(ClientError) as refused:
        s3.client(forged).get_object(Bucket=bucket.name, Key="key")
    assert code(refused) == "SignatureDoesNotMatch"
    stranger = s3.user()
    with pytest.raises(ClientError) as refused:
        s3.client(stranger).get_object(Bucket=bucket.name, Key="key")
    assert code(refused) == "AccessDenied"
    bucket.allow(stranger, READ)
    assert s3.client(stranger).get_object(Bucket=bucket.name, Key="key")["Body"].read() == b""
    with pytest.raises(ClientError) as refused:
        s3.client(stranger).put_object(Bucket=bucket.name, Key="other", Body=b"")
    assert code(refused) == "AccessDenied"
    s3.suspend(stranger)
    with pytest.raises(ClientError) as refused:
        s3.client(stranger).get_object(Bucket=bucket.name, Key="key")
    assert code(refused) == "UserSuspended"


def race(store: ObjectStore, bucket: Bucket, key: str) -> list[str]:
    """What each of several writers of one name at once is told."""

    def create(number: int) -> str:
        try:
            store.client().put_object(Bucket=bucket.name, Key=key, Body=str(number).encode(), IfNoneMatch="*")
        except ClientError as error:
            return str(error.response["Error"]["Code"])
        return "created"

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(create, range(8)))


def test_one_of_many_writers_creates(s3: Gateway) -> None:
    bucket = s3.make_bucket()
    results = race(s3, bucket, "race")
    assert results.count("created") == 1
    assert set(results) <= {"created", "PreconditionFailed", "ConditionalRequestConflict"}
    assert bucket.read("race") == str(results.index("created")).encode()


def test_several_writers_create_at_the_weak_store(weak_s3: WeakStore) -> None:
    bucket = weak_s3.make_bucket()
    forged = User("owner", weak_s3.owner.access_key, "wrong")
    with pytest.raises(ClientError) as refused:
        weak_s3.client(forged).list_objects_v2(Bucket=bucket.name)
    assert code(refused) == "SignatureDoesNotMatch"
    # By chance one may be alone now and then.
    wait_until(lambda: race(weak_s3, bucket, secrets.token_hex(8)).count("created") > 1, "a race with two winners")
    # One after the other, it does as it should.
    bucket.write("key", b"first")
    with pytest.raises(ClientError) as refused:
        bucket.client.put_object(Bucket=bucket.name, Key="key", Body=b"second", IfNoneMatch="*")
    assert code(refused) == "PreconditionFailed"


def test_versions_outlive_a_deletion(s3: Gateway) -> None:
    bucket = s3.make_bucket("versioned")
    first = bucket.write("key", b"first")
    second = bucket.write("key", b"second")
    bucket.delete("key")
    assert bucket.keys() == []
    assert [(version.version_id, version.delete_marker) for version in bucket.versions()][1:] == [
        (second, False),
        (first, False),
    ]
    assert bucket.read("key", first) == b"first"
    bucket.empty()
    assert bucket.versions() == []


def test_a_compliance_lock_holds_against_the_owner(s3: Gateway) -> None:
    bucket = s3.make_bucket("locked", lock=("COMPLIANCE", 1))
    version = bucket.write("key", b"kept")
    with pytest.raises(ClientError) as refused:
        bucket.delete("key", version, bypass_governance=True)
    assert code(refused) == "AccessDenied"
    sooner = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
    with pytest.raises(ClientError) as refused:
        bucket.client.put_object_retention(
            Bucket=bucket.name, Key="key", Retention={"Mode": "COMPLIANCE", "RetainUntilDate": sooner}
        )
    assert code(refused) == "AccessDenied"
    assert bucket.read("key") == b"kept"


def test_a_lifecycle_acts_when_asked(s3: Gateway) -> None:
    bucket = s3.make_bucket()
    bucket.write("kept/key", b"")
    bucket.write("old/key", b"")
    rule = {"ID": "old", "Status": "Enabled", "Filter": {"Prefix": "old/"}, "Expiration": {"Days": 1}}
    bucket.set_lifecycle([rule])

    def expired() -> bool:
        s3.run_lifecycles()
        return bucket.keys() == ["kept/key"]

    wait_until(expired, "the lifecycle")


def test_a_quota_is_kept(s3: Gateway) -> None:
    user = s3.user()
    bucket = s3.make_bucket(owner=user)
    s3.bucket_quota(user, bytes_at_most=100_000)
    bucket.write("small", bytes(50_000))
    with pytest.raises(ClientError) as refused:
        bucket.write("large", bytes(200_000))
    assert code(refused) == "QuotaExceeded"


def test_objects_can_be_encrypted_by_the_store(s3: Gateway) -> None:
    bucket = s3.make_bucket()
    options = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": KMS_KEY}
    bucket.client.put_object(Bucket=bucket.name, Key="key", Body=b"secret", **options)
    assert bucket.client.head_object(Bucket=bucket.name, Key="key")["ServerSideEncryption"] == "aws:kms"
    assert bucket.read("key") == b"secret"


def test_what_is_stored_outlives_an_outage(s3: Gateway) -> None:
    bucket = s3.make_bucket()
    bucket.write("key", b"content")
    with s3.outage(), pytest.raises(EndpointConnectionError):
        bucket.read("key")
    assert bucket.read("key") == b"content"


def test_credentials_are_for_the_server_only(s3: Gateway) -> None:
    path = s3.credentials_file(s3.owner)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_uid == s3.account.uid
    assert s3.owner.secret_key in path.read_text()


OWNER = """
import sys, time
from pathlib import Path
from tests.lab.ceph import start_gateway
gateway = start_gateway(Path(sys.argv[1]))
print(gateway.url, flush=True)
time.sleep(600)
"""


def test_nothing_is_left_when_the_owner_is_killed(lab: Lab, s3: Gateway) -> None:
    with lab.workspace("killed") as workspace:
        process = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(workspace.path / "s3")],
            stdout=subprocess.PIPE,
            text=True,
            cwd=CHECKOUT,
            env={**os.environ, **workspace.environment},
        )
        with process:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("https://")
            assert len(lab_processes(workspace.path)) > 3
            process.send_signal(signal.SIGKILL)
            process.wait()
        wait_until(lambda: not lab_processes(workspace.path), "the end of the gateway")


def test_the_imitation_creates_once(moto_server: MotoServer) -> None:
    bucket = moto_server.make_bucket("versioned")
    bucket.write("key", b"content")
    with pytest.raises(ClientError) as refused:
        bucket.client.put_object(Bucket=bucket.name, Key="key", Body=b"other", IfNoneMatch="*")
    assert code(refused) == "PreconditionFailed"
    assert bucket.read("key") == b"content"
