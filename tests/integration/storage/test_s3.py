# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What only S3 has, at a real gateway: who may come in, TLS, permissions, locks, parts, encryption, quotas."""

from __future__ import annotations

import datetime
import http.server
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from cryobackup.config.locations import Encryption, ObjectLock, S3Options
from cryobackup.errors import LocationError, LocationFull, ObjectConflict
from cryobackup.storage.base import put
from cryobackup.storage.hidden import sweep_hidden
from cryobackup.storage.s3.location import S3Location
from cryobackup.storage.s3.parts import PART_BYTES
from cryobackup.storage.s3.writer import WRITTEN_BY
from cryobackup.storage.trial import PREFIX, race, try_location
from tests.lab.ceph import KMS_KEY, Gateway
from tests.lab.objects import Bucket, User

PACK = "packs/20260101T000000Z-00000000/000000.pack"
HOST_RIGHTS = ("s3:PutObject", "s3:GetObject", "s3:ListBucket", "s3:AbortMultipartUpload")


@pytest.fixture
def bucket(s3: Gateway) -> Bucket:
    return s3.make_bucket()


@pytest.fixture
def opened(s3: Gateway, bucket: Bucket) -> Callable[..., S3Location]:
    def make(which: Bucket = bucket, user: User | None = None, **more: object) -> S3Location:
        settings = {
            "bucket": which.name,
            "prefix": "db1",
            "endpoint_url": s3.url,
            "region": s3.region,
            "ca_file": s3.ca_file,
            "credentials_file": s3.credentials_file(user or which.owner),
            "attempts": 3,
        }
        options = S3Options(**{**settings, **more})
        return S3Location("cloud", f"s3://{options.bucket}", options)

    return make


def refused(action: Callable[[], object]) -> LocationError:
    with pytest.raises(LocationError) as caught:
        action()
    assert caught.value.hint
    return caught.value


def ini(folder: Path, access_key: str, secret_key: str) -> Path:
    path = folder / "s3.ini"
    path.touch(mode=0o600)
    path.write_text(f"[default]\naws_access_key_id = {access_key}\naws_secret_access_key = {secret_key}\n")
    return path


# Who comes in


@pytest.mark.parametrize("action", ["stat", "read", "put", "list", "delete"])
def test_a_wrong_secret_is_one_clear_error_at_once(opened, bucket, tmp_path, action):
    location = opened(credentials_file=ini(tmp_path, bucket.owner.access_key, "wrong-secret-of-ours"), attempts=6)
    actions = {
        "stat": lambda: location.stat(PACK),
        "read": lambda: location.read(PACK),
        "put": lambda: put(location, PACK, b"x"),
        "list": lambda: list(location.list("")),
        "delete": lambda: location.delete(PACK),
    }
    error = refused(actions[action])
    assert error.id == "location-denied"
    assert "SignatureDoesNotMatch" in error.message
    assert "wrong-secret-of-ours" not in f"{error.message} {error.hint}"
    assert sum(location.requests().values()) <= 2


def test_an_unknown_key(opened, tmp_path):
    error = refused(lambda: opened(credentials_file=ini(tmp_path, "nobody", "x")).stat(PACK))
    assert error.id == "location-denied"
    assert "InvalidAccessKeyId" in error.message


def test_a_bucket_of_somebody_else(s3, opened, bucket):
    location = opened(user=s3.user())
    for action in (lambda: location.stat(PACK), lambda: put(location, PACK, b"x"), lambda: list(location.list(""))):
        assert refused(action).id == "location-denied"


def test_a_bucket_that_is_not_there(s3, opened):
    location = opened(bucket="surely-not-there")
    for action in (
        lambda: location.stat(PACK),
        lambda: location.read(PACK),
        lambda: put(location, PACK, b"x"),
        lambda: list(location.list("")),
        location.prepare,
    ):
        if action == location.prepare:
            action()
            continue
        error = refused(action)
        assert "there is no bucket" in error.message
        assert error.id == "location-config"
    with pytest.raises(ClientError):
        s3.client().head_bucket(Bucket="surely-not-there")


# TLS


def test_a_private_authority_has_to_be_named(opened):
    error = refused(lambda: opened(ca_file=None, attempts=6).stat(PACK))
    assert error.id == "location-untrusted"
    assert "ca_file" in error.hint
    assert opened().stat(PACK) is None


@pytest.mark.parametrize(
    "content", [None, "", "junk", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_an_authority_file_of_no_use(opened, tmp_path, content):
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    error = refused(lambda: opened(ca_file=path).stat(PACK))
    assert error.id == "location-config"
    assert str(path) in error.message


@pytest.fixture
def tunnel() -> Iterator[tuple[str, list[str]]]:
    """A proxy that passes connections on (CONNECT): its URL, and to where it was asked for them."""
    asked: list[str] = []

    def copy(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            asked.append(self.path)
            host, _colon, port = self.path.rpartition(":")
            with socket.create_connection((host, int(port))) as there:
                self.send_response(200)
                self.end_headers()
                back = threading.Thread(target=copy, args=(there, self.connection), daemon=True)
                back.start()
                copy(self.connection, there)
                back.join()
            self.close_connection = True

        def log_message(self, *_arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()
        thread.join()


def test_through_a_proxy_the_stores_certificate_counts(opened, s3, tunnel):
    proxy, asked = tunnel
    location = opened(proxy=proxy)
    data = os.urandom(PART_BYTES + 1000)
    put(location, PACK, data)
    assert location.read(PACK) == data
    assert set(asked) == {s3.url.removeprefix("https://")}
    assert refused(lambda: opened(proxy=proxy, ca_file=None).stat(PACK)).id == "location-untrusted"


def test_no_tls_at_a_port_with_tls(opened, s3):
    location = opened(endpoint_url=s3.url.replace("https:", "http:"), attempts=6)
    error = refused(lambda: location.stat(PACK))
    assert error.id == "location-config"
    assert "https://" in error.hint
    assert location.requests() == {"head": 1}


def test_tls_at_a_port_without(opened, s3):
    error = refused(lambda: opened(endpoint_url=s3.http_url.replace("http:", "https:")).stat(PACK))
    assert error.id == "location-config"
    assert "does not speak TLS" in error.message


@pytest.fixture
def other_name(s3: Gateway) -> Iterator[str]:
    """A server with TLS at an address that its certificate does not name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*s3.authority.issue("other"))
    with socket.create_server(("127.0.0.2", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _address = listener.accept()
                except OSError:
                    return
                with connection:
                    try:
                        context.wrap_socket(connection, server_side=True).close()
                    except OSError:
                        continue

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"https://127.0.0.2:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_certificate_of_another_name(opened, other_name):
    error = refused(lambda: opened(endpoint_url=other_name, attempts=6).stat(PACK))
    assert error.id == "location-untrusted"
    assert "of another name" in error.message


def test_without_tls_bodies_are_signed(opened, s3):
    location = opened(endpoint_url=s3.http_url, ca_file=None)
    data = os.urandom(PART_BYTES + 1000)
    put(location, PACK, data)
    assert location.read(PACK) == data


# Permissions


def test_the_rights_of_a_host_are_enough_to_back_up(s3, opened, bucket):
    host = s3.user()
    bucket.allow(host, HOST_RIGHTS)
    location = opened(user=host)
    assert put(location, PACK, b"x")
    assert not put(location, PACK, b"x")
    with pytest.raises(ObjectConflict):
        put(location, PACK, b"y")
    big = os.urandom(2 * PART_BYTES + 5)
    assert put(location, "packs/b/000001.pack", big)
    with pytest.raises(ObjectConflict):
        put(location, "packs/b/000001.pack", big[1:])
    assert location.stat("packs/none") is None
    assert refused(lambda: location.delete(PACK)).id == "location-denied"
    warnings = try_location(location, "trial")
    assert any("prune has to run elsewhere" in warning for warning in warnings)
    assert location.read(PACK) == b"x"


def test_without_the_right_to_list_nothing_is_known_to_be_missing(s3, opened, bucket):
    host = s3.user()
    bucket.allow(host, ["s3:PutObject", "s3:GetObject"])
    location = opened(user=host)
    put(location, PACK, b"x")
    assert location.stat(PACK).size == 1
    error = refused(lambda: location.stat("packs/none"))
    assert error.id == "location-denied"
    assert "s3:ListBucket" in error.hint


def test_the_clock_needs_no_rights(s3, opened):
    assert abs(opened(user=s3.user()).now() - time.time()) < 5


# Creation


def test_objects_bear_writer_and_checksum(opened, bucket):
    location = opened()
    put(location, PACK, b"hello")
    put(location, "packs/b/000001.pack", bytes(2 * PART_BYTES + 5))
    for key in (PACK, "packs/b/000001.pack"):
        head = bucket.client.head_object(Bucket=bucket.name, Key=f"db1/{key}", ChecksumMode="ENABLED")
        assert len(head["Metadata"][WRITTEN_BY]) == 32
        assert head["ChecksumCRC32C"]


@pytest.mark.parametrize("size", [10, 3 * PART_BYTES])
def test_the_store_refuses_bytes_that_changed_on_the_way(opened, bucket, size):
    """What was damaged between checksum and wire is sent again, and given up when it stays so."""
    location = opened(attempts=2)
    one = location.create(PACK)
    one.write(bytes(size))
    one._buffer[0] ^= 1
    error = refused(one.commit)
    one.abort()
    assert "BadDigest" in error.message
    assert location.stat(PACK) is None
    assert "Uploads" not in bucket.client.list_multipart_uploads(Bucket=bucket.name)


@pytest.mark.parametrize("kind", ["plain", "versioned", "locked"])
def test_one_of_several_writers_wins(s3, opened, kind):
    """With versions, this gateway lets all of them win: each writer looks itself who was first."""
    location = opened(s3.make_bucket(kind))
    for number in range(3):
        for which, way in enumerate(location.ways()):
            key = f"{PREFIX}{number}-{which}"
            content = race(location, key, way)
            assert location.read(key) == content


def test_one_of_several_writers_wins_where_none_of_them_may_delete(s3, opened):
    bucket = s3.make_bucket("locked")
    host = s3.user()
    bucket.allow(host, [*HOST_RIGHTS, "s3:ListBucketVersions", "s3:GetObjectVersion", "s3:PutObjectRetention"])
    location = opened(bucket, user=host, object_lock=ObjectLock("compliance", datetime.timedelta(days=1)))
    for number in range(3):
        key = f"wal/7/00000001/{number:024X}"
        content = race(location, key, location.create)
        assert location.read(key) == content


def test_one_of_several_large_objects_wins(opened, bucket):
    location = opened()
    contents = [os.urandom(PART_BYTES + 1000) for _unused in range(4)]
    barrier = threading.Barrier(4)
    winners: list[bytes] = []

    def run(content: bytes) -> None:
        one = location.create(PACK)
        try:
            one.write(content)
            barrier.wait()
            one.commit()
            winners.append(content)
        except ObjectConflict:
            pass
        finally:
            one.abort()

    threads = [threading.Thread(target=run, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [location.read(PACK)] == winners
    assert location.sweep(-60) == 0


def test_the_weaker_way_does_not_overwrite_either(opened):
    location = opened(create_only="check")
    put(location, PACK, b"x")
    with pytest.raises(ObjectConflict):
        put(location, PACK, b"y")
    assert "put" in location.requests()
    try_location(location, "trial")


def test_a_deleted_name_can_be_used_again_in_a_versioned_bucket(s3, opened):
    location = opened(s3.make_bucket("versioned"))
    put(location, PACK, b"x")
    location.delete(PACK)
    assert location.stat(PACK) is None
    put(location, PACK, b"y")
    assert location.read(PACK) == b"y"


def test_sweep_ends_what_a_killed_writer_began(opened, bucket):
    location = opened()
    one = location.create(PACK)
    one.write(bytes(3 * PART_BYTES))
    for future in one._parts:
        future.result()
    assert location.sweep(3600) == 0
    assert location.sweep(-60) == 1
    assert "Uploads" not in bucket.client.list_multipart_uploads(Bucket=bucket.name)
    refused(one.commit)
    one.abort()
    assert location.stat(PACK) is None


def test_what_others_have_in_the_bucket_is_left_alone(s3, opened):
    """A location without a prefix beside other programs, or beside another repository's prefix."""
    bucket = s3.make_bucket("versioned")
    location = opened(bucket, prefix="")
    theirs = ["films/one", f"db2/{PACK}"]
    for key in (PACK, *theirs):
        bucket.client.create_multipart_upload(Bucket=bucket.name, Key=key)
        bucket.write(key, b"x")
        bucket.client.delete_object(Bucket=bucket.name, Key=key)
    assert location.sweep(-60) == 1
    hidden = sweep_hidden(location, -60, dry_run=False)
    assert hidden is not None
    assert (hidden.objects, hidden.removed) == (1, 1)
    assert {version.key for version in bucket.versions()} == set(theirs)
    uploads = bucket.client.list_multipart_uploads(Bucket=bucket.name)["Uploads"]
    assert {upload["Key"] for upload in uploads} == set(theirs)


def test_a_full_bucket(s3):
    user = s3.user()
    bucket = s3.make_bucket(owner=user)
    s3.bucket_quota(user, bytes_at_most=1 << 20)
    options = S3Options(
        bucket.name,
        endpoint_url=s3.url,
        region=s3.region,
        ca_file=s3.ca_file,
        credentials_file=s3.credentials_file(user),
    )
    location = S3Location("cloud", bucket.name, options)
    for size in (2 << 20, 3 * PART_BYTES):
        with pytest.raises(LocationFull):
            put(location, PACK, bytes(size))
    assert location.stat(PACK) is None


# What the options want of objects


def test_locked_objects_stay_until_their_day(s3, opened):
    bucket = s3.make_bucket("locked")
    location = opened(bucket, object_lock=ObjectLock("compliance", datetime.timedelta(days=2)))
    put(location, PACK, b"x")
    put(location, "packs/b/000001.pack", bytes(2 * PART_BYTES))
    put(location, "leases/main/x", b"x")
    for key in (PACK, "packs/b/000001.pack"):
        (version,) = bucket.versions(f"db1/{key}")
        answer = bucket.client.get_object_retention(Bucket=bucket.name, Key=f"db1/{key}")["Retention"]
        assert answer["Mode"] == "COMPLIANCE"
        left = answer["RetainUntilDate"] - datetime.datetime.now(datetime.UTC)
        assert abs(left - datetime.timedelta(days=2)) < datetime.timedelta(minutes=5)
        with pytest.raises(ClientError):
            bucket.delete(f"db1/{key}", version.version_id)
    location.delete(PACK)  # only a marker
    assert [version.delete_marker for version in bucket.versions(f"db1/{PACK}")] == [True, False]
    (lease,) = bucket.versions("db1/leases/")
    bucket.delete(lease.key, lease.version_id)
    assert try_location(location, "trial") == []


def test_a_bucket_without_the_lock_that_is_wanted(opened):
    location = opened(object_lock=ObjectLock("governance", datetime.timedelta(days=1)))
    error = refused(lambda: try_location(location, "trial"))
    assert error.id == "location-unfit"
    assert "has no Object Lock" in error.message
    assert list(location.list("")) == []


def test_a_lock_that_the_bucket_has_by_itself_is_told(s3, opened):
    location = opened(s3.make_bucket("locked", lock=("GOVERNANCE", 3)))
    (warning,) = try_location(location, "trial")
    assert "3 days (governance)" in warning


def test_a_bucket_without_versions_is_told(opened):
    (warning,) = try_location(opened(), "trial")
    assert "keeps no versions" in warning


def test_encryption_by_the_store(opened, bucket):
    location = opened(encryption=Encryption(kms=True, key_id=KMS_KEY))
    put(location, PACK, b"x")
    put(location, "packs/b/000001.pack", bytes(PART_BYTES + 5))
    for key in (PACK, "packs/b/000001.pack"):
        head = bucket.client.head_object(Bucket=bucket.name, Key=f"db1/{key}")
        assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", KMS_KEY)
    assert location.read(PACK) == b"x"
    assert location.read("packs/b/000001.pack", PART_BYTES, 100) == bytes(5)


# An outage


def test_an_outage_in_the_middle_of_an_object_is_got_over(s3, opened):
    location = opened(attempts=8)
    data = os.urandom(4 * PART_BYTES)
    one = location.create(PACK)
    try:
        one.write(data[: 3 * PART_BYTES])
        with s3.outage():
            one.write(data[3 * PART_BYTES :])
        one.commit()
    finally:
        one.abort()
    assert location.read(PACK) == data


def test_a_store_that_is_down(s3, opened):
    location = opened(attempts=2)
    with s3.outage():
        error = refused(lambda: put(location, PACK, b"x"))
    assert error.id == "location-down"
    assert "cannot be reached" in error.message
    assert put(location, PACK, b"x")
