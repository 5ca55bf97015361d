# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading, listing and deleting in a bucket; what is told when that fails."""

from __future__ import annotations

import datetime
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cryobackup.config.locations import LocationConfig, ObjectLock, S3Options
from cryobackup.errors import CryoError, LocationError, ObjectMissing
from cryobackup.storage.base import put
from cryobackup.storage.caught import Caught
from cryobackup.storage.open import open_location
from cryobackup.storage.s3 import calls
from cryobackup.storage.s3.client import addressing
from cryobackup.storage.trial import try_location, winners

from .s3_double import BUCKET, Fault, _Actions


def test_ranges(location):
    data = os.urandom(5000)
    put(location, "packs/a", data)
    for offset, length in ((0, None), (0, 10), (7, 100), (4990, 100), (10, None), (5000, 1), (9999, 5), (3, 0)):
        expected = data[offset:] if length is None else data[offset : offset + length]
        assert location.read("packs/a", offset, length) == expected


def test_an_empty_object(location):
    put(location, "leases/a", b"")
    assert location.read("leases/a") == b""
    assert location.read("leases/a", 0, 10) == b""
    assert location.stat("leases/a").size == 0


@pytest.mark.parametrize(("offset", "length"), [(0, None), (0, 200_000), (1234, 100_000), (5, None)])
def test_an_answer_that_breaks_off_is_gone_on_with(location, double, offset, length):
    data = os.urandom(250_000)
    put(location, "packs/a", data)
    double.faults = [Fault("get", body_bytes=70_000), Fault("get", body_bytes=1), Fault("get", status=500)]
    expected = data[offset:] if length is None else data[offset : offset + length]
    assert location.read("packs/a", offset, length) == expected
    ranges = [seen.headers.get("range") for seen in double.seen if seen.operation == "get"]
    assert ranges[1].startswith(f"bytes={offset + 70_000}-")


def test_answers_that_always_break_off(location, double):
    put(location, "packs/a", bytes(1000))
    double.faults = [Fault("get", times=1000, body_bytes=3)]
    with pytest.raises(LocationError) as caught:
        location.read("packs/a")
    assert caught.value.id == "location-down"
    assert double.operations().count("get") == location.options.attempts


@pytest.mark.parametrize(("offset", "length"), [(100, None), (100, 2000), (0, 10)])
def test_other_bytes_than_those_that_were_asked_for(location, double, offset, length):
    """A cache in between that takes the header Range away."""
    put(location, "packs/a", os.urandom(1000))
    double.ranges = False
    with pytest.raises(LocationError, match="does not read parts") as caught:
        location.read("packs/a", offset, length)
    assert caught.value.id == "location-unfit"


def test_the_rest_of_an_answer_is_not_its_beginning(location, double):
    put(location, "packs/a", os.urandom(1000))
    double.ranges = False
    double.faults = [Fault("get", body_bytes=300)]
    with pytest.raises(LocationError, match="does not read parts"):
        location.read("packs/a")


@pytest.mark.parametrize("action", ["read", "stat"])
def test_answers_without_a_length(location, double, monkeypatch, action):
    """Some servers in between take it away."""
    put(location, "packs/a", b"x")
    real = location.calls.request

    def request(operation, *arguments, **parameters):
        answer = real(operation, *arguments, **parameters)
        answer.pop("ContentLength", None)
        return answer

    monkeypatch.setattr(location.calls, "request", request)
    with pytest.raises(LocationError, match="leaves ContentLength out") as caught:
        getattr(location, action)("packs/a")
    assert caught.value.id == "location-unfit"


def test_what_is_missing(location):
    with pytest.raises(ObjectMissing):
        location.read("packs/a")
    with pytest.raises(ObjectMissing):
        location.confirm("packs/a")
    assert location.stat("packs/a") is None
    location.delete("packs/a")


def test_a_missing_bucket_is_not_an_empty_one(open_s3):
    location = open_s3(bucket="elsewhere")
    for action in (
        lambda: location.stat("packs/a"),
        lambda: location.read("packs/a"),
        lambda: location.confirm("packs/a"),
        lambda: list(location.list("")),
        lambda: put(location, "packs/a", b""),
    ):
        with pytest.raises(LocationError, match="there is no bucket 'elsewhere'") as caught:
            action()
        assert caught.value.id == "location-config"


def test_who_may_not_list_does_not_learn_that_an_object_is_missing(location, double):
    double.faults = [Fault("head", status=403), Fault("get", status=403, code="AccessDenied")]
    with pytest.raises(LocationError) as caught:
        location.stat("packs/a")
    assert caught.value.id == "location-denied"
    assert "s3:ListBucket" in caught.value.hint


def test_lists_have_pages_and_only_our_objects(location, double):
    keys = [f"wal/7/00000001/{number:024X}" for number in range(25)]
    for key in reversed(keys):
        put(location, key, b"x")
    double.put("db1/wal/7/", b"")  # what browsers make for a directory
    double.put("db1/wal/.hidden", b"")
    double.put("db10/wal/other", b"")
    double.put("wal/other", b"")
    double.page = 4
    assert [info.key for info in location.list("wal/")] == keys
    assert [info.key for info in location.list("")] == keys
    assert list(location.list("nothing/")) == []
    assert next(location.list("wal/")).size == 1


def test_deleting_what_is_not_there_where_the_store_tells(location, double):
    double.faults = [Fault("delete", status=404, code="NoSuchKey")]
    location.delete("packs/a")
    double.faults = [Fault("delete", status=404, code="NoSuchBucket")]
    with pytest.raises(LocationError, match="there is no bucket"):
        location.delete("packs/a")


def test_a_page_begins_where_the_last_one_says_and_nowhere_else(location, monkeypatch):
    pages = [
        {"IsTruncated": True, "NextKeyMarker": "a", "NextVersionIdMarker": "1"},
        {"IsTruncated": True, "NextKeyMarker": "b"},
        {"IsTruncated": False},
    ]
    asked = []
    monkeypatch.setattr(
        location.calls, "_try", lambda _client, _operation, parameters: asked.append(parameters) or pages.pop(0)
    )
    list(location.calls.pages("list_object_versions", Prefix="p"))
    assert asked == [
        {"Prefix": "p"},
        {"Prefix": "p", "KeyMarker": "a", "VersionIdMarker": "1"},
        {"Prefix": "p", "KeyMarker": "b"},
    ]


def test_a_list_that_goes_in_circles_ends(location, double, monkeypatch):
    put(location, "wal/a", b"x")
    answer = {"IsTruncated": True, "Contents": []}
    monkeypatch.setattr(location.calls, "_try", lambda *_arguments: dict(answer))
    with pytest.raises(LocationError, match="goes on, but not where"):
        list(location.list(""))


def test_a_list_out_of_order_is_refused(location, double, monkeypatch):
    found = [{"Key": f"db1/{key}", "Size": 1, "LastModified": datetime.datetime.now(datetime.UTC)} for key in "ba"]
    monkeypatch.setattr(location.calls, "_try", lambda *_arguments: {"Contents": found, "IsTruncated": False})
    with pytest.raises(LocationError, match="in order"):
        list(location.list(""))


def test_without_a_prefix(open_s3, double):
    location = open_s3(prefix="")
    put(location, "packs/a", b"x")
    assert list(double.objects) == ["packs/a"]
    assert [info.key for info in location.list("packs/")] == ["packs/a"]


def test_the_clock_is_the_stores(location, double):
    assert abs(location.now() - time.time()) < 5
    double.faults = [Fault("head", status=403, code="AccessDenied", headers={"Date": "Mon, 01 Jan 2024 00:00:00 GMT"})]
    location.now()  # a refusal tells the time, too


def test_sweep_ends_uploads_of_crashed_writers(location, double):
    for number in range(5):
        double.uploads[f"upload{number}"] = f"db1/packs/{number}", {}, {}
    double.page = 2
    assert location.sweep(3600) == 5
    assert double.uploads == {}


def test_requests_are_counted_by_kind(location):
    put(location, "packs/a", b"x")
    location.read("packs/a")
    location.stat("packs/a")
    list(location.list(""))
    location.delete("packs/a")
    assert location.requests() == {"put": 1, "get": 1, "head": 1, "list": 1, "delete": 1}


def test_a_page_of_somebody_else_is_no_empty_bucket(location, double, monkeypatch):
    monkeypatch.setattr(location.calls, "_try", lambda *_arguments: {"ResponseMetadata": {}})
    with pytest.raises(LocationError, match="is no list"):
        list(location.list(""))


def test_an_answer_that_is_cut_short_is_asked_for_again(location, double):
    put(location, "packs/a", b"x")
    double.faults = [Fault("list", body_bytes=20), Fault("list", body_bytes=70)]
    assert [info.key for info in location.list("")] == ["packs/a"]
    assert double.operations().count("list") == 3


def test_through_a_proxy(open_s3, endpoint, double):
    location = open_s3(endpoint_url="http://store.invalid", proxy=endpoint)
    put(location, "packs/a", b"x")
    assert location.read("packs/a") == b"x"


def test_through_the_proxy_of_the_environment(open_s3, endpoint, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", endpoint)
    monkeypatch.delenv("NO_PROXY", raising=False)
    location = open_s3(endpoint_url="http://store.invalid", attempts=1)
    put(location, "packs/a", b"x")
    monkeypatch.setenv("NO_PROXY", "store.invalid")
    with pytest.raises(LocationError, match="cannot be reached"):
        open_s3(endpoint_url="http://store.invalid", attempts=1).read("packs/a")
    # An own one counts, whatever the environment says.
    assert open_s3(endpoint_url="http://store.invalid", proxy=endpoint).read("packs/a") == b"x"


def test_the_bucket_in_the_name_of_the_host(open_s3, endpoint, double):
    location = open_s3(endpoint_url="http://store.invalid", addressing="virtual", proxy=endpoint)
    put(location, "packs/a", b"x")
    assert location.read("packs/a") == b"x"
    assert list(double.objects) == ["db1/packs/a"]
    assert {seen.headers["host"] for seen in double.seen} == {f"{BUCKET}.store.invalid"}


def test_a_proxy_that_does_not_answer(open_s3):
    location = open_s3(endpoint_url="https://store.invalid", proxy="http://127.0.0.1:1", attempts=1)
    with pytest.raises(LocationError, match="proxy does not answer") as caught:
        location.stat("packs/a")
    assert caught.value.id == "location-down"


class TestErrors:
    """One clear error each, without useless attempts, never with a secret in it."""

    def caught(self, location, double, fault: Fault) -> tuple[LocationError, int]:
        double.faults = [fault]
        before = double.operations().count("get")
        with pytest.raises(LocationError) as caught:
            location.read("packs/a")
        error = caught.value
        assert "very-secret" not in f"{error} {error.hint}"
        return error, double.operations().count("get") - before

    @pytest.mark.parametrize(
        ("code", "id", "words"),
        [
            ("AccessDenied", "location-denied", "may not do that"),
            ("InvalidAccessKeyId", "location-denied", "are not accepted: InvalidAccessKeyId"),
            ("SignatureDoesNotMatch", "location-denied", "are not accepted"),
            ("ExpiredToken", "location-denied", "have expired"),
            ("RequestTimeTooSkewed", "location-clock", "clocks"),
            ("InvalidObjectState", "location", "archive"),
        ],
    )
    def test_refusals_are_not_repeated(self, location, double, code, id, words):
        error, attempts = self.caught(location, double, Fault("get", times=100, status=403, code=code))
        assert (error.id, attempts) == (id, 1)
        assert words in error.message
        assert error.hint

    @pytest.mark.parametrize("status", [500, 502, 503, 504, 429, 408])
    def test_outages_are(self, location, double, status):
        error, attempts = self.caught(location, double, Fault("get", times=100, status=status))
        assert (error.id, attempts) == ("location-down", location.options.attempts)

    def test_pauses_grow_are_drawn_and_heed_the_store(self, open_s3, double, monkeypatch):
        monkeypatch.setattr(calls, "_LONGEST_PAUSE_SECONDS", 20.0)
        paused: list[float] = []
        monkeypatch.setattr(calls.time, "sleep", paused.append)
        limits: list[float] = []
        monkeypatch.setattr(calls._RANDOM, "uniform", lambda _least, most: limits.append(most) or most / 2)
        location = open_s3(attempts=9)
        self.caught(location, double, Fault("get", times=99, status=500))
        assert limits == [0.5, 1, 2, 4, 8, 16, 20, 20]
        assert paused == [limit / 2 for limit in limits]
        limits.clear()
        self.caught(location, double, Fault("get", times=99, status=503, code="SlowDown"))
        assert limits == [2, 4, 8, 16, 20, 20, 20, 20]
        paused.clear()
        self.caught(location, double, Fault("get", times=99, status=503, headers={"Retry-After": "7"}))
        assert paused == [7, 7, 7, 8, 10, 10, 10, 10]
        paused.clear()
        self.caught(location, double, Fault("get", times=99, status=503, headers={"Retry-After": "99999"}))
        assert paused == [20] * 8

    def test_attempts_as_configured(self, open_s3, double):
        _error, attempts = self.caught(open_s3(attempts=3), double, Fault("get", times=100, cut=True))
        assert attempts == 3

    def heard_again(self, location, double) -> None:
        """After any answer, a request of a store of three attempts has all of them."""
        with pytest.raises(ObjectMissing):
            location.read("packs/a")
        _error, attempts = self.caught(location, double, Fault("get", times=3, cut=True))
        assert attempts == 3

    def test_what_was_silent_is_asked_once(self, open_s3, double):
        """Until it is heard again: a store that does not answer must not cost its time-outs for every question."""
        location = open_s3(attempts=3)
        _error, attempts = self.caught(location, double, Fault("get", times=3, cut=True))
        assert attempts == 3
        _error, attempts = self.caught(location, double, Fault("get", times=1, cut=True))
        assert attempts == 1
        self.heard_again(location, double)

    @pytest.mark.parametrize("status", [500, 503])
    def test_a_store_that_says_no_is_not_silent(self, open_s3, double, status):
        location = open_s3(attempts=3)
        for _unused in range(2):
            _error, attempts = self.caught(location, double, Fault("get", times=3, status=status))
            assert attempts == 3

    def test_a_first_answer_is_not_waited_for_so_long(self, open_s3, double, monkeypatch):
        monkeypatch.setattr(calls, "_FIRST_ANSWER_SECONDS", -1.0)
        location = open_s3(attempts=3)
        _error, attempts = self.caught(location, double, Fault("get", times=1, cut=True))
        assert attempts == 1
        self.heard_again(location, double)

    def test_another_region(self, open_s3, double):
        fault = Fault("get", times=9, status=400, code="AuthorizationHeaderMalformed")
        fault.headers = {"x-amz-bucket-region": "eu-west-7"}
        error, _attempts = self.caught(open_s3(region="eu-west-1"), double, fault)
        assert error.id == "location-config"
        assert "not in eu-west-1" in error.message

    @pytest.mark.parametrize("operation", ["get", "head", "list"])
    def test_a_redirection_to_nobody_knows_where(self, location, double, operation):
        double.faults = [Fault(operation, times=99, status=301, headers={"Location": "https://elsewhere.invalid"})]
        actions = {
            "get": lambda: location.read("packs/a"),
            "head": lambda: location.stat("packs/a"),
            "list": lambda: list(location.list("")),
        }
        with pytest.raises(LocationError) as caught:
            actions[operation]()
        assert caught.value.id == "location-config"
        assert "https://elsewhere.invalid" in caught.value.message
        assert len(double.seen) <= 2

    @pytest.mark.parametrize("code", ["ExpiredToken", "InvalidRequest"])
    def test_the_reason_of_a_refused_look(self, location, double, code):
        double.faults = [Fault("head", times=99, status=400), Fault("get", times=99, status=400, code=code)]
        with pytest.raises(LocationError, match=code):
            location.stat("packs/a")
        assert len(double.seen) <= 4

    def test_nobody_there(self, open_s3):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            location = open_s3(endpoint_url=f"http://127.0.0.1:{taken.getsockname()[1]}", attempts=2)
            with pytest.raises(LocationError, match="cannot be reached") as caught:
                location.stat("packs/a")
        assert caught.value.id == "location-down"

    def test_no_such_host(self, open_s3):
        with pytest.raises(LocationError, match="cannot be reached") as caught:
            open_s3(endpoint_url="http://nowhere.invalid", attempts=1).stat("packs/a")
        assert caught.value.id == "location-down"

    def test_tls_to_a_port_without(self, open_s3, endpoint, double):
        with pytest.raises(LocationError, match="does not speak TLS") as caught:
            open_s3(endpoint_url=endpoint.replace("http:", "https:")).stat("packs/a")
        assert caught.value.id == "location-config"

    def test_a_store_that_stops_answering(self, open_s3, double):
        go = threading.Event()
        double.faults = [Fault("get", meanwhile=lambda: go.wait(10))]
        location = open_s3(timeout=0.2, attempts=1)
        with pytest.raises(LocationError, match="stopped answering"):
            location.read("packs/a")
        go.set()

    def test_an_answer_in_another_language(self, location, double):
        double.faults = [Fault("list", times=9, status=200, code="<html>Please log in<br>")]
        with pytest.raises(LocationError) as caught:
            list(location.list(""))
        assert caught.value.id == "location-down"

    def test_the_clock_survives_an_outage(self, location, double):
        double.faults = [Fault("head", times=3, status=503, headers={"Date": "Mon, 01 Jan 2024 00:00:00 GMT"})]
        assert abs(location.now() - time.time()) < 5


@contextmanager
def metadata_service(access_key: str) -> Iterator[str]:
    """What an instance asks for the credentials of its role (IMDSv2)."""
    answers = {
        "PUT /latest/api/token": "session",
        "GET /latest/meta-data/iam/security-credentials/": "backup",
        "GET /latest/meta-data/iam/security-credentials/backup": json.dumps(
            {
                "Code": "Success",
                "AccessKeyId": access_key,
                "SecretAccessKey": "x",
                "Token": "token of the role",
                "Expiration": (datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=6)).isoformat(),
            }
        ),
    }

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = answers[f"{self.command} {self.path}"].encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_PUT(self) -> None:
            self.do_GET()

        def log_message(self, *_arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


class TestCredentials:
    def test_readable_by_others(self, location, credentials):
        credentials.chmod(0o640)
        with pytest.raises(LocationError, match="can be read by others") as caught:
            location.stat("packs/a")
        assert caught.value.id == "secret-file-mode"

    def test_not_there(self, location, credentials):
        credentials.unlink()
        with pytest.raises(LocationError, match="cannot read"):
            location.stat("packs/a")

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "very-secret\n",
            "[other]\naws_access_key_id=a\n",
            "[default]\naws_access_key_id = a\n",
            "[default\nvery-secret",
        ],
    )
    def test_no_such_section_and_no_secret_in_the_error(self, location, credentials, text):
        credentials.chmod(0o600)
        credentials.write_text(text)
        with pytest.raises(LocationError) as caught:
            location.stat("packs/a")
        assert "very-secret" not in f"{caught.value} {caught.value.hint} {caught.value.__cause__}"
        assert str(credentials) in caught.value.message

    @pytest.mark.parametrize("key", ["aws_access_key_id", "aws_secret_access_key", "aws_session_token"])
    @pytest.mark.parametrize("value", ["very-secret\n  very-secret", "very secret", "very-secret\u201d"])
    def test_no_secret_that_cannot_be_sent_in_the_error(self, location, credentials, double, key, value):
        found = dict.fromkeys(("aws_access_key_id", "aws_secret_access_key", "aws_session_token"), "a") | {key: value}
        credentials.chmod(0o600)
        credentials.write_text("[default]\n" + "".join(f"{name} = {text}\n" for name, text in found.items()))
        with pytest.raises(LocationError, match=f"no {key} in ") as caught:
            location.stat("packs/a")
        assert "very" not in f"{caught.value} {caught.value.hint}"
        assert double.seen == []

    def test_nor_one_of_the_environment(self, open_s3, double, monkeypatch):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAHOST")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
        monkeypatch.setenv("AWS_SESSION_TOKEN", "very-secret\ntoken")
        location = open_s3(credentials_file=None)
        with pytest.raises(LocationError, match="cannot be sent") as caught:
            location.stat("packs/a")
        assert "very-secret" not in f"{caught.value} {caught.value.hint}"
        assert caught.value.id == "location-denied"
        assert location.requests() == {"head": 1}

    def test_those_of_the_machine(self, open_s3, double, monkeypatch, tmp_path):
        """The role of an instance: asked of the service that every machine of a cloud has."""
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
            monkeypatch.delenv(name, raising=False)
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            monkeypatch.setenv(name, str(tmp_path / "none"))
        with metadata_service("AKIAROLE") as url:
            monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)
            put(open_s3(credentials_file=None), "packs/a", b"x")
        assert "AKIAROLE" in double.seen[0].headers["authorization"]
        assert double.seen[0].headers["x-amz-security-token"] == "token of the role"

    def test_another_profile(self, open_s3, credentials, double):
        credentials.chmod(0o600)
        credentials.write_text(
            "[ours]\naws_access_key_id = AKIAOURS\naws_secret_access_key = x\naws_session_token = t\n"
        )
        open_s3(profile="ours").stat("packs/a")
        assert "AKIAOURS" in double.seen[0].headers["authorization"]
        assert double.seen[0].headers["x-amz-security-token"] == "t"

    def test_those_of_the_user_do_not_matter(self, location, double, monkeypatch):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAUSER")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
        monkeypatch.setenv("AWS_PROFILE", "nowhere")
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
        location.stat("packs/a")
        assert "AKIAME" in double.seen[0].headers["authorization"]

    def test_a_role_that_is_not_given(self, open_s3, double):
        double.faults = [Fault("role", times=9, status=403, code="AccessDenied")]
        location = open_s3(role_arn="arn:aws:iam::1:role/backup")
        with pytest.raises(
            LocationError, match="the role arn:aws:iam::1:role/backup is refused: AccessDenied"
        ) as caught:
            location.stat("packs/a")
        assert caught.value.id == "location-denied"
        assert "trust" in caught.value.hint

    @pytest.mark.parametrize("hours", [-3, 1])
    def test_a_role_that_has_ended_by_the_hosts_clock(self, open_s3, double, monkeypatch, hours):
        ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=hours)
        answer = (
            "<AssumeRoleResponse><AssumeRoleResult><Credentials><AccessKeyId>AKIAROLE</AccessKeyId>"
            "<SecretAccessKey>x</SecretAccessKey><SessionToken>t</SessionToken>"
            f"<Expiration>{ends.isoformat()}</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"
        )
        monkeypatch.setattr(_Actions, "role", lambda _self, _seen: (200, answer.encode(), {}), raising=False)
        location = open_s3(role_arn="arn:aws:iam::1:role/backup")
        if hours > 0:
            assert location.stat("packs/a") is None
            return
        with pytest.raises(LocationError) as caught:
            location.stat("packs/a")
        assert caught.value.id == "location-clock"

    def test_a_token_is_sent_without_the_end_of_its_line(self, open_s3, double, tmp_path):
        double.faults = [Fault("role", times=9, status=403, code="AccessDenied")]
        token = tmp_path / "token"
        token.write_text("platform.token\n")
        location = open_s3(credentials_file=None, role_arn="arn:aws:iam::1:role/backup", web_identity_token_file=token)
        with pytest.raises(LocationError, match="is refused") as caught:
            location.stat("packs/a")
        sent = urllib.parse.parse_qs(double.seen[0].body.decode())
        assert sent["WebIdentityToken"] == ["platform.token"]
        assert "platform.token" not in f"{caught.value} {caught.value.hint}"

    def test_new_ones_are_taken_up(self, location, double, credentials):
        put(location, "packs/a", b"x")

        def renew() -> None:
            credentials.chmod(0o600)
            credentials.write_text("[default]\naws_access_key_id = AKIANEW\naws_secret_access_key = x\n")

        double.faults = [Fault("get", status=400, code="ExpiredToken", meanwhile=renew)]
        assert location.read("packs/a") == b"x"
        assert "AKIANEW" in double.seen[-1].headers["authorization"]


class TestTrial:
    """What init and check try."""

    def test_a_good_store(self, location, double):
        warnings = try_location(location, "trial")
        assert warnings == ["the bucket keeps no versions: what somebody deletes with these credentials is gone"]
        assert double.objects == {}
        assert double.uploads == {}
        assert {"put", "part", "complete"} <= set(double.operations())

    def test_a_writer_that_breaks_does_not_keep_the_others_waiting(self, location):
        begun: list[str] = []

        def way(key: str):
            begun.append(key)
            if len(begun) == 3:
                raise RuntimeError("a defect")
            return location.create(key)

        ended: list[BaseException | None] = []

        def trial() -> None:
            with Caught() as caught:
                winners("probe/a", way)
            ended.append(caught.error)

        thread = threading.Thread(target=trial, daemon=True)
        thread.start()
        thread.join(20)
        assert [str(error) for error in ended] == ["a defect"]

    def test_a_store_that_overwrites(self, location, double):
        double.conditional = False
        with pytest.raises(LocationError) as caught:
            try_location(location, "trial")
        assert caught.value.id == "location-unfit"
        assert "create_only: check" in caught.value.hint
        assert double.objects == {}

    def test_with_the_weaker_way_it_passes(self, open_s3, double):
        double.conditional = False
        try_location(open_s3(create_only="check"), "trial")

    def test_a_store_that_refuses_conditions(self, location, double):
        double.faults = [Fault("put", times=100, status=501, code="NotImplemented")]
        with pytest.raises(LocationError) as caught:
            try_location(location, "trial")
        assert caught.value.id == "location-unfit"
        assert "create_only: check" in caught.value.hint

    def test_object_lock_that_the_bucket_does_not_have(self, open_s3, double):
        location = open_s3(object_lock=ObjectLock("compliance", datetime.timedelta(days=1)))
        with pytest.raises(LocationError, match="has no Object Lock") as caught:
            try_location(location, "trial")
        assert caught.value.id == "location-unfit"
        assert "put" not in double.operations()

    @pytest.mark.parametrize(
        ("status", "code", "id"),
        [(403, "RequestTimeTooSkewed", "location-clock"), (400, "AuthorizationHeaderMalformed", "location-config")],
    )
    def test_a_refusal_that_says_nothing_of_the_bucket(self, open_s3, double, status, code, id):
        double.faults = [
            Fault(operation, times=9, status=status, code=code) for operation in ("versioning", "lock", "put")
        ]
        for lock in (None, ObjectLock("compliance", datetime.timedelta(days=1))):
            with pytest.raises(LocationError) as caught:
                try_location(open_s3(object_lock=lock), "trial")
            assert caught.value.id == id


def test_opening_imports_and_reads_nothing(tmp_path):
    options = S3Options("b", "p", credentials_file=tmp_path / "missing")
    location = open_location(LocationConfig("cloud", "s3", required=False, s3=options))
    assert (location.name, location.required, location.describe()) == ("cloud", False, "s3://b/p")
    assert location.requests() == {}
    assert location.capacity().free is None
    with pytest.raises(CryoError):
        location.stat("x")


def test_the_sdk_is_imported_by_the_first_request_only():
    program = (
        "import sys; from cryobackup.config.locations import *; from cryobackup.storage.open import open_location; "
        "open_location(LocationConfig('c', 's3', s3=S3Options('b'))).requests(); "
        "sys.exit(any(name in sys.modules for name in ('botocore', 'boto3', 'concurrent.futures')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    ("options", "style"),
    [
        ({}, "auto"),
        ({"endpoint_url": "https://s3.eu-west-1.amazonaws.com"}, "auto"),
        ({"endpoint_url": "https://store.example"}, "path"),
        ({"endpoint_url": "https://store.example", "addressing": "virtual"}, "virtual"),
        ({"addressing": "path"}, "path"),
    ],
)
def test_addressing(options, style):
    assert addressing(S3Options("b", **options)) == style
