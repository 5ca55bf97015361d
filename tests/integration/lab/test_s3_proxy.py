# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each fault of the proxy happens as it is described, to a client that retries nothing."""

from __future__ import annotations

import datetime
import threading
from typing import Any

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    HTTPClientError,
    IncompleteReadError,
    ReadTimeoutError,
    SSLError,
)
from urllib3.exceptions import ProtocolError

from tests.lab import s3faults as faults
from tests.lab.ceph import Gateway
from tests.lab.objects import Bucket
from tests.lab.s3proxy import CONNECT, S3Proxy

BODY = bytes(range(256)) * 400


@pytest.fixture
def bucket(s3: Gateway) -> Bucket:
    made = s3.make_bucket()
    made.write("there", BODY)
    return made


@pytest.fixture
def client(s3: Gateway, s3_proxy: S3Proxy) -> Any:
    return s3.client(url=s3_proxy.url, read_timeout=3, connect_timeout=3)


def put(client: Any, bucket: Bucket, key: str = "new", **options: Any) -> Any:
    return client.put_object(Bucket=bucket.name, Key=key, Body=BODY, **options)


def get(client: Any, bucket: Bucket) -> bytes:
    with client.get_object(Bucket=bucket.name, Key="there")["Body"] as body:
        return bytes(body.read())


def code(error: pytest.ExceptionInfo[ClientError]) -> str:
    return str(error.value.response["Error"]["Code"])


def test_without_rules_everything_passes(s3_proxy: S3Proxy, bucket: Bucket, client: Any) -> None:
    put(client, bucket)
    assert get(client, bucket) == BODY
    assert client.head_object(Bucket=bucket.name, Key="new")["ContentLength"] == len(BODY)
    names = [item["Key"] for item in client.list_objects_v2(Bucket=bucket.name)["Contents"]]
    assert names == ["new", "there"]
    begun = client.create_multipart_upload(Bucket=bucket.name, Key="parts/ä b")["UploadId"]
    at = {"Bucket": bucket.name, "Key": "parts/ä b", "UploadId": begun}
    part = client.upload_part(**at, PartNumber=1, Body=BODY)
    client.complete_multipart_upload(**at, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]})
    client.delete_object(Bucket=bucket.name, Key="new")
    kinds = ("put", "get", "head", "list", "begin", "part", "complete", "delete")
    assert s3_proxy.requests == dict.fromkeys(kinds, 1)
    assert [(kind, key) for kind, key, _unused in s3_proxy.log][-4:-1] == [
        (kind, "parts/ä b") for kind in ("begin", "part", "complete")
    ]
    assert bucket.keys() == ["parts/ä b", "there"]


@pytest.mark.parametrize("fault", [faults.SLOW_DOWN, faults.INTERNAL_ERROR, faults.TOO_MANY, faults.SKEWED], ids=str)
def test_refusals(s3_proxy: S3Proxy, bucket: Bucket, client: Any, fault: faults.Refuse) -> None:
    with s3_proxy.fault(fault, "put", count=2) as rule:
        for _unused in range(2):
            with pytest.raises(ClientError) as refused:
                put(client, bucket)
            assert code(refused) == fault.code
            assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == fault.status
        put(client, bucket)
    assert rule.hits == 2
    assert bucket.keys() == ["new", "there"]


def test_rules_choose_by_kind_key_number_and_chance(s3_proxy: S3Proxy, bucket: Bucket, client: Any) -> None:
    with s3_proxy.fault(faults.SLOW_DOWN, ["put", "get"], key="^bad/", skip=1, count=1):
        put(client, bucket, "good/1")
        put(client, bucket, "bad/1")
        with pytest.raises(ClientError):
            put(client, bucket, "bad/2")
        put(client, bucket, "bad/3")
    drawn = []
    for _unused in range(2):
        with s3_proxy.fault(faults.SLOW_DOWN, "head", probability=0.5, seed=7):
            drawn.append([refused(client, bucket) for _also in range(20)])
    assert drawn[0] == drawn[1]
    assert 4 < sum(drawn[0]) < 16


def refused(client: Any, bucket: Bucket) -> bool:
    try:
        client.head_object(Bucket=bucket.name, Key="there")
    except ClientError:
        return True
    return False


@pytest.mark.parametrize(
    ("fault", "there"),
    [
        (faults.Reset("before"), False),
        (faults.Reset("middle"), False),
        (faults.CutRequest(), False),
        (faults.LOST_ACKNOWLEDGEMENT, True),
    ],
    ids=str,
)
def test_broken_connections(
    s3_proxy: S3Proxy, bucket: Bucket, client: Any, fault: faults.Fault, *, there: bool
) -> None:
    with s3_proxy.fault(fault, "put"), pytest.raises((ConnectionClosedError, HTTPClientError, SSLError)):
        put(client, bucket)
    assert bucket.keys() == (["new", "there"] if there else ["there"])


def test_an_error_after_the_deed(s3_proxy: S3Proxy, bucket: Bucket, client: Any) -> None:
    with s3_proxy.fault(faults.LOST_BY_ERROR, "put"), pytest.raises(ClientError):
        put(client, bucket)
    assert bucket.read("new") == BODY


@pytest.mark.parametrize("fault", [faults.CutAnswer(), faults.Reset("answered")], ids=str)
def test_half_an_answer(s3_proxy: S3Proxy, bucket: Bucket, client: Any, fault: faults.Fault) -> None:
    with s3_proxy.fault(fault, "get"), pytest.raises((IncompleteReadError, ProtocolError, HTTPClientError)):
        get(client, bucket)
    assert get(client, bucket) == BODY


@pytest.mark.parametrize("carried_out", [False, True])
def test_a_black_hole(s3_proxy: S3Proxy, bucket: Bucket, client: Any, *, carried_out: bool) -> None:
    with s3_proxy.fault(faults.Silence(carried_out), "put"), pytest.raises(ReadTimeoutError):
        put(client, bucket)
    assert (bucket.keys() == ["new", "there"]) is carried_out


def test_a_black_hole_for_connections(s3: Gateway, s3_proxy: S3Proxy, bucket: Bucket) -> None:
    fresh = s3.client(url=s3_proxy.url, read_timeout=1, connect_timeout=1)
    with s3_proxy.fault(faults.Silence(), CONNECT), pytest.raises((ConnectTimeoutError, ReadTimeoutError)):
        put(fresh, bucket)
    put(fresh, bucket)


def test_slow_bodies_are_whole(s3_proxy: S3Proxy, bucket: Bucket, client: Any) -> None:
    with s3_proxy.fault(faults.Slow(len(BODY) * 4)):
        put(client, bucket)
        assert get(client, bucket) == BODY


def test_without_the_header_the_last_writer_wins(s3_proxy: S3Proxy, bucket: Bucket, client: Any) -> None:
    with pytest.raises(ClientError) as refusal:
        put(client, bucket, "there", IfNoneMatch="*")
    assert code(refusal) == "PreconditionFailed"
    with s3_proxy.fault(faults.Strip()) as rule:
        put(client, bucket, "there", IfNoneMatch="*", Metadata={"by": "me  too"})
    assert rule.hits == 1
    assert bucket.metadata("there") == {"by": "me  too"}


def test_flipped_bits(s3_proxy: S3Proxy, bucket: Bucket, client: Any) -> None:
    with s3_proxy.fault(faults.flip(5), "get"):
        assert get(client, bucket) == BODY[:5] + b"\x04" + BODY[6:]
    with s3_proxy.fault(faults.FlipRequest(100), "put"), pytest.raises(ClientError) as refusal:
        put(client, bucket, ChecksumAlgorithm="CRC32")
    assert code(refusal) in ("BadDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch")
    assert bucket.keys() == ["there"]


def test_lies(s3_proxy: S3Proxy, bucket: Bucket, client: Any) -> None:
    true = client.head_object(Bucket=bucket.name, Key="there")["ETag"]
    with s3_proxy.fault(faults.LYING_ETAG):
        assert client.head_object(Bucket=bucket.name, Key="there")["ETag"] != true
    with s3_proxy.fault(faults.lie("x-amz-checksum-crc32", "AAAAAA==")):
        assert put(client, bucket, ChecksumAlgorithm="CRC32")["ChecksumCRC32"] == "AAAAAA=="
    with s3_proxy.fault(faults.shift_date(86400)):
        headers = client.head_object(Bucket=bucket.name, Key="there")["ResponseMetadata"]["HTTPHeaders"]
    told = datetime.datetime.strptime(headers["date"], "%a, %d %b %Y %H:%M:%S %Z").replace(tzinfo=datetime.UTC)
    assert told - datetime.datetime.now(datetime.UTC) > datetime.timedelta(hours=23)
    with s3_proxy.fault(faults.hide("^there$"), "list"):
        assert [item["Key"] for item in client.list_objects_v2(Bucket=bucket.name)["Contents"]] == ["new"]


def test_closing_ends_what_hangs(s3: Gateway, bucket: Bucket) -> None:
    proxy = S3Proxy(s3)
    client = s3.client(url=proxy.url, read_timeout=60)
    held = threading.Event()
    failures: list[BaseException] = []

    def ask() -> None:
        held.set()
        try:
            put(client, bucket)
        except Exception as error:
            failures.append(error)

    with proxy.fault(faults.Silence(), "put") as rule:
        asking = threading.Thread(target=ask)
        asking.start()
        held.wait()
        while not rule.hits:
            pass
        proxy.close()
        asking.join(30)
    assert len(failures) == 1
