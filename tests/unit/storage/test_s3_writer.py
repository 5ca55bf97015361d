# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Objects are created once and whole, whatever becomes of the requests and their answers."""

from __future__ import annotations

import base64
import datetime
import hashlib
import os
import socket
import subprocess
import sys
import threading
import time

import google_crc32c
import pytest

from cryobackup.config.locations import Encryption, ObjectLock
from cryobackup.errors import LocationError, LocationFull, ObjectConflict
from cryobackup.storage.base import put
from cryobackup.storage.s3 import parts, writer
from cryobackup.storage.s3.parts import PartSender

from .s3_double import Fault

KEY = "packs/20260101T000000Z-00000000/000000.pack"
FULL = f"db1/{KEY}"
PART = 64 << 10


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(writer, "PART_BYTES", PART)
    monkeypatch.setattr(writer, "WAL_PART_BYTES", 2 * PART)


def crc32c(data: bytes) -> str:
    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


def write(location, data: bytes, key: str = KEY, piece: int = 10_000) -> None:
    one = location.create(key)
    try:
        for at in range(0, len(data), piece):
            one.write(data[at : at + piece])
        one.commit()
    finally:
        one.abort()


def test_a_small_object_is_one_request_that_creates_only_and_bears_a_checksum(location, double):
    write(location, b"hello")
    (seen,) = double.seen
    assert seen.operation == "put"
    assert seen.headers["if-none-match"] == "*"
    assert seen.headers["x-amz-checksum-crc32c"] == crc32c(b"hello")
    assert "aws-chunked" not in seen.headers.get("content-encoding", "")
    assert seen.headers["x-amz-sdk-checksum-algorithm"] == "CRC32C"  # Ceph looks at it only then
    assert seen.headers["x-amz-content-sha256"] != "UNSIGNED-PAYLOAD"  # no TLS here
    assert double.objects[FULL].data == b"hello"
    assert location.requests() == {"put": 1}


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART])
def test_up_to_one_part_there_are_no_parts(location, double, size):
    data = os.urandom(size)
    write(location, data)
    assert double.operations() == ["put"]
    assert double.objects[FULL].data == data


@pytest.mark.parametrize("size", [PART + 1, 2 * PART, 5 * PART + 7])
@pytest.mark.parametrize("piece", [999, PART, 10 * PART])
def test_a_large_object_goes_in_parts_of_equal_length(location, double, size, piece):
    data = os.urandom(size)
    write(location, data, piece=piece)
    assert double.objects[FULL].data == data
    sent = [len(seen.body) for seen in double.seen if seen.operation == "part"]
    assert sorted(sent, reverse=True)[:-1] == [PART] * (len(sent) - 1)
    assert all(
        seen.headers["x-amz-checksum-crc32c"] == crc32c(seen.body) for seen in double.seen if seen.operation == "part"
    )
    complete = double.seen[-1]
    assert complete.operation == "complete"
    assert complete.headers["if-none-match"] == "*"
    assert complete.headers["x-amz-mp-object-size"] == str(size)
    assert double.uploads == {}


def test_a_whole_wal_segment_is_one_request(location, double):
    write(location, os.urandom(2 * PART), key="wal/7/00000001/000000010000000000000001")
    assert double.operations() == ["put"]


def test_other_buffers_than_bytes(location, double):
    one = location.create(KEY)
    one.write(bytearray(b"ab"))
    one.write(memoryview(b"xcdx")[1:3])
    one.commit()
    assert double.objects[FULL].data == b"abcd"


@pytest.mark.parametrize("size", [10, 3 * PART])
def test_an_object_of_another_writer_is_a_conflict_and_stays(location, double, size):
    write(location, b"first")
    with pytest.raises(ObjectConflict):
        write(location, os.urandom(size))
    assert double.objects[FULL].data == b"first"
    assert double.uploads == {}


def test_an_equal_object_is_success(location):
    assert put(location, KEY, b"same")
    assert not put(location, KEY, b"same")


@pytest.mark.parametrize(("size", "operation"), [(10, "put"), (3 * PART, "complete")])
def test_a_lost_acknowledgement_is_found_out(location, double, size, operation):
    double.faults = [Fault(operation, done=True, cut=True)]
    data = os.urandom(size)
    write(location, data)
    assert double.objects[FULL].data == data
    assert double.operations().count(operation) == 2  # the second was refused because of the first
    assert double.operations()[-1] == "head"


@pytest.mark.parametrize(("size", "operation"), [(10, "put"), (3 * PART, "complete")])
def test_every_acknowledgement_lost(open_s3, double, size, operation):
    location = open_s3(attempts=2)
    double.faults = [Fault(operation, times=2, done=True, cut=True)]
    write(location, os.urandom(size))


def test_done_but_answered_with_an_error(open_s3, double):
    double.faults = [Fault("put", done=True, cut=True)]
    write(open_s3(attempts=1), b"hello")
    assert double.operations() == ["put", "head"]


@pytest.mark.parametrize("size", [10, 3 * PART])
def test_a_conflict_right_before_the_own_request_that_lost_its_answer(location, double, size):
    def other() -> None:
        double.put(FULL, b"other")

    operation = "put" if size == 10 else "complete"
    double.faults = [Fault(operation, cut=True, meanwhile=other)]
    with pytest.raises(ObjectConflict):
        write(location, os.urandom(size))
    assert double.objects[FULL].data == b"other"


@pytest.mark.parametrize("operation", ["create_upload", "part", "complete"])
@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 503, "code": "SlowDown"}, {"cut": True}])
def test_what_fails_once_is_done_again(location, double, operation, fault):
    double.faults = [Fault(operation, **fault)]
    data = os.urandom(3 * PART)
    write(location, data)
    assert double.objects[FULL].data == data


def test_another_request_for_the_same_name_at_once(location, double):
    double.faults = [Fault("put", times=3, status=409, code="ConditionalRequestConflict")]
    write(location, b"hello")
    assert double.operations() == ["put"] * 4


@pytest.mark.parametrize("operation", ["create_upload", "part", "complete"])
def test_a_large_object_that_fails_leaves_no_upload_behind(open_s3, double, operation):
    double.faults = [Fault(operation, times=100, status=500)]
    with pytest.raises(LocationError):
        write(open_s3(attempts=2), os.urandom(5 * PART))
    assert double.objects == {}
    assert double.uploads == {}


@pytest.mark.parametrize(("operation", "missing"), [("create_multipart_upload", "UploadId"), ("upload_part", "ETag")])
def test_an_answer_that_lacks_what_parts_need(location, monkeypatch, operation, missing):
    real = location.calls.request

    def request(asked, *arguments, **parameters):
        answer = real(asked, *arguments, **parameters)
        return {name: value for name, value in answer.items() if asked != operation or name != missing}

    monkeypatch.setattr(location.calls, "request", request)
    with pytest.raises(LocationError, match=f"leaves {missing} out") as caught:
        write(location, os.urandom(3 * PART))
    assert caught.value.id == "location-unfit"


def test_a_failed_part_shows_at_a_later_write(open_s3, double):
    double.faults = [Fault("part", times=100, status=403, code="AccessDenied")]
    one = open_s3().create(KEY)

    def go_on() -> None:
        while True:
            one.write(bytes(PART))
            time.sleep(0.01)

    with pytest.raises(LocationError) as caught:
        go_on()
    assert caught.value.id == "location-denied"
    one.abort()
    assert double.uploads == {}
    assert double.operations().count("part") < 50


def test_an_abort_gives_everything_back(location, double):
    one = location.create(KEY)
    for _unused in range(5):
        one.write(bytes(PART))
    one.abort()
    one.abort()
    assert double.uploads == {}
    assert double.objects == {}
    assert location.sender._taken == 0
    write(location, b"after")


def test_nothing_is_taken_after_a_commit(location):
    write(location, os.urandom(5 * PART))
    write(location, b"", key="leases/x")
    assert location.sender._taken == 0


def test_a_full_store(open_s3, double):
    double.faults = [Fault("put", status=403, code="QuotaExceeded")]
    with pytest.raises(LocationFull):
        write(open_s3(), b"hello")


@pytest.mark.parametrize("size", [10, 3 * PART])
def test_a_store_that_acknowledges_other_bytes(location, double, size):
    double.echo = lambda _checksum: crc32c(b"something else")
    with pytest.raises(LocationError) as caught:
        write(location, bytes(size))
    assert caught.value.id == "location-unfit"


def test_a_store_that_says_nothing_of_checksums(location, double):
    double.echo = lambda _checksum: None
    write(location, bytes(3 * PART))


def test_an_object_cut_short_by_the_store_is_not_taken_for_ours(location, double):
    def shorten() -> None:
        double.objects[FULL].data = b"hel"

    refusal = Fault("put", status=412, code="PreconditionFailed", meanwhile=shorten)
    double.faults = [Fault("put", done=True, cut=True), refusal]
    with pytest.raises(LocationError) as caught:
        write(location, b"hello")
    assert caught.value.id == "location-unfit"


@pytest.mark.parametrize("size", [10, 3 * PART])
def test_a_store_that_refuses_checksums_gets_md5(location, double, size):
    double.checksums = False
    data = os.urandom(size)
    write(location, data)
    write(location, data, key="packs/y/000001.pack")
    assert double.objects[FULL].data == double.objects["db1/packs/y/000001.pack"].data == data
    for seen in double.seen:
        if seen.operation in ("put", "part") and "x-amz-checksum-crc32c" not in seen.headers:
            md5 = hashlib.md5(seen.body, usedforsecurity=False).digest()
            assert seen.headers["content-md5"] == base64.b64encode(md5).decode()
    assert len([seen for seen in double.seen if "x-amz-checksum-crc32c" in seen.headers]) <= 1
    assert not any(b"ChecksumCRC32C" in seen.body for seen in double.seen)


class TestStoreWithVersions:
    """Versions hide one another instead of overwriting; some stores then let several writers create."""

    @pytest.fixture
    def location(self, open_s3, double):
        double.versions = {}
        return open_s3()

    @pytest.mark.parametrize("size", [10, 3 * PART])
    def test_the_first_one_wins(self, location, double, size):
        write(location, os.urandom(size))
        assert double.operations()[-1] == "list_versions"

    @pytest.mark.parametrize("size", [10, 3 * PART])
    def test_who_is_later_gives_way(self, location, double, size):
        double.conditional = False
        write(location, b"first")
        with pytest.raises(ObjectConflict):
            write(location, os.urandom(size))
        assert double.objects[FULL].data == b"first"
        assert len(double.versions[FULL]) == 1

    def test_who_may_not_delete_lays_the_first_one_on_top(self, location, double):
        double.conditional = False
        write(location, b"first")
        double.faults = [Fault("delete", status=403, code="AccessDenied")]
        with pytest.raises(ObjectConflict):
            write(location, b"second")
        assert double.objects[FULL].data == b"first"
        assert [stored.data for _id, stored in double.versions[FULL]] == [b"first", b"second", b"first"]

    @pytest.mark.parametrize("create_only", ["check", "conditional"])
    def test_a_request_that_was_sent_twice_is_no_other_writer(self, open_s3, double, create_only):
        """The store has done both: the first whose answer was lost, and the one that was sent again."""
        double.versions = {}
        double.conditional = False
        double.faults = [Fault("put", done=True, cut=True)]
        write(open_s3(create_only=create_only), b"mine")
        assert [stored.data for _id, stored in double.versions[FULL]] == [b"mine"]

    def test_nor_does_it_matter_where_nothing_may_be_deleted(self, location, double):
        double.conditional = False
        double.faults = [Fault("put", done=True, cut=True), Fault("delete", status=403, code="AccessDenied")]
        write(location, b"mine")
        assert [stored.data for _id, stored in double.versions[FULL]] == [b"mine", b"mine"]

    def test_both_give_way_to_another_writer(self, location, double):
        double.conditional = False
        write(location, b"first")
        double.faults = [Fault("put", done=True, cut=True)]
        with pytest.raises(ObjectConflict):
            write(location, b"second")
        assert [stored.data for _id, stored in double.versions[FULL]] == [b"first"]
        assert double.objects[FULL].data == b"first"

    def test_a_name_that_was_deleted_is_free(self, location, double):
        write(location, b"first")
        location.delete(KEY)
        write(location, b"second")
        assert double.objects[FULL].data == b"second"

    def test_who_may_not_look_believes_the_store(self, location, double):
        double.faults = [Fault("list_versions", times=9, status=403, code="AccessDenied")]
        write(location, b"first")

    def test_a_store_that_is_known_to_be_right_is_not_asked(self, location, double):
        double.server = "AmazonS3"
        write(location, b"first")
        assert double.operations() == ["put"]

    def test_the_weaker_way_is_no_longer_weak(self, open_s3, double):
        double.versions = {}
        double.conditional = False
        double.server = "AmazonS3"
        location = open_s3(create_only="check")
        one = location.create(KEY)
        one.write(b"mine")
        double.faults = [Fault("put", done=True, meanwhile=lambda: double.put(FULL, b"other"))]
        with pytest.raises(ObjectConflict):
            one.commit()
        one.abort()
        assert double.objects[FULL].data == b"other"


class TestStoreWithoutConditions:
    @pytest.fixture
    def location(self, open_s3, double):
        double.conditional = False
        return open_s3(create_only="check")

    def test_it_looks_before_and_after(self, location, double):
        write(location, b"hello")
        assert double.operations()[0] == "head"
        assert double.operations()[-2:] == ["put", "head"]
        assert "if-none-match" not in double.seen[-2].headers

    @pytest.mark.parametrize("size", [10, 3 * PART])
    def test_it_does_not_overwrite(self, location, double, size):
        write(location, b"first")
        with pytest.raises(ObjectConflict):
            write(location, os.urandom(size))
        assert double.objects[FULL].data == b"first"

    def test_it_sees_when_another_writer_was_later(self, location, double):
        one = location.create(KEY)
        one.write(b"mine")
        seen = []

        def overwrite() -> None:
            if seen:
                double.put(FULL, b"other")
            seen.append(1)

        double.faults = [Fault("head", times=2, status=0, done=True, meanwhile=overwrite)]
        with pytest.raises(ObjectConflict):
            one.commit()
        one.abort()


def test_what_the_options_want_of_an_object(open_s3, double):
    location = open_s3(
        object_lock=ObjectLock("governance", datetime.timedelta(days=3)),
        storage_class="STANDARD_IA",
        encryption=Encryption(kms=True, key_id="key7"),
    )
    for key in (KEY, "wal/7/00000001/x", "manifests/m/x", "keys/1.pub", "repository.json", "leases/a/b", "marks/x"):
        write(location, b"x", key=key)
    write(location, os.urandom(3 * PART), key="packs/y/000001.pack")
    by_key = {key.removeprefix("db1/"): stored.headers for key, stored in double.objects.items()}
    locked = {key for key, headers in by_key.items() if headers.get("x-amz-object-lock-mode") == "GOVERNANCE"}
    assert locked == set(by_key) - {"leases/a/b", "marks/x"}
    cheap = {key for key, headers in by_key.items() if headers.get("x-amz-storage-class") == "STANDARD_IA"}
    assert cheap == {KEY, "wal/7/00000001/x", "packs/y/000001.pack"}
    assert {headers["x-amz-server-side-encryption"] for headers in by_key.values()} == {"aws:kms"}
    until = datetime.datetime.fromisoformat(by_key[KEY]["x-amz-object-lock-retain-until-date"])
    assert abs(until - datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=3)) < datetime.timedelta(hours=1)


class TestMemory:
    def test_full_buffers_wait_for_what_is_being_sent(self):
        sender = PartSender("cloud", memory=100)
        go = threading.Event()
        sender.take(80)
        future = sender.send(80, go.wait)
        waited = threading.Event()

        def more() -> None:
            sender.take(50)
            waited.set()

        thread = threading.Thread(target=more)
        thread.start()
        assert not waited.wait(0.1)
        go.set()
        thread.join()
        assert future.result()
        assert waited.is_set()

    def test_nobody_waits_for_what_is_only_being_filled(self):
        sender = PartSender("cloud", memory=100)
        for _unused in range(5):
            sender.take(60)
        assert sender._taken == 300

    def test_many_writers_at_once_stay_within_the_memory(self, location, double, monkeypatch):
        memory = 12 * PART
        location.sender = PartSender("cloud", memory=memory)
        most = []

        def run(number: int) -> None:
            one = location.create(f"packs/x/{number:06}.pack")
            for _unused in range(40):
                one.write(bytes(PART // 4))
                most.append(location.sender._taken)
            one.commit()

        threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert max(most) <= memory
        assert len(double.objects) == 6
        assert {len(stored.data) for stored in double.objects.values()} == {10 * PART}


def test_an_object_of_too_many_parts(location, monkeypatch):
    monkeypatch.setattr(writer, "MOST_PARTS", 3)
    with pytest.raises(LocationError, match="too large"):
        write(location, bytes(10 * PART))


def test_parts_are_long_enough_for_every_store():
    assert parts.PART_BYTES >= 5 << 20


ENDS_WHILE_A_STORE_IS_SILENT = """
import pathlib, sys, threading
from cryobackup.config.locations import S3Options
from cryobackup.storage.s3.location import S3Location
url, credentials = sys.argv[1:]
options = S3Options("bucket", endpoint_url=url, credentials_file=pathlib.Path(credentials), timeout=3600.0)
location = S3Location("cloud", "s3://bucket", options)
def write():
    writer = location.create("packs/20260101T000000Z-00000000/000000.pack")
    for _unused in range(3):
        writer.write(bytes(8 << 20))
    writer.commit()
threading.Thread(target=write, daemon=True).start()
sys.stdin.read(1)
print("ended", flush=True)
"""


def test_a_store_that_says_nothing_does_not_keep_the_process(tmp_path):
    """Parts on their way to it are given up with the process: wal-push must return to PostgreSQL."""
    credentials = tmp_path / "s3.ini"
    credentials.write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    credentials.chmod(0o600)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        command = [sys.executable, "-c", ENDS_WHILE_A_STORE_IS_SILENT, url, str(credentials)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            connection, _unused = listening.accept()  # the upload has begun
            with connection:
                output, _unused = process.communicate(b"x", timeout=60)  # far less than the location's own
        finally:
            process.kill()
            process.wait()
    assert (process.returncode, output) == (0, b"ended\n")
