# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every fault between an S3 location and a real object store: each call tells the truth, or that it cannot.

What is created is whole or not there at all, nothing is ever overwritten, and a lost acknowledgement is a success.
The bucket keeps versions: whatever was overwritten, even with equal bytes, would show.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from cryobackup.config.locations import S3Options
from cryobackup.errors import LocationError, ObjectConflict, RepositoryError
from cryobackup.storage.base import put
from cryobackup.storage.s3 import calls, client
from cryobackup.storage.s3.location import S3Location
from cryobackup.storage.trial import try_location
from tests.lab import s3faults as faults
from tests.lab.ceph import Gateway
from tests.lab.objects import Bucket
from tests.lab.s3proxy import CONNECT, S3Proxy
from tests.lab.swift import WeakStore

SMALL = bytes(range(256)) * 40
LARGE = bytes(range(256)) * (70 << 10)
OTHER = b"another object"
WRITES = ("put", "begin", "part", "complete")

FAULTS: dict[str, faults.Fault] = {
    "slow down": faults.SLOW_DOWN,
    "internal error": faults.INTERNAL_ERROR,
    "too many": faults.Refuse(429, "TooManyRequests"),
    "error after the deed": faults.LOST_BY_ERROR,
    "reset before": faults.Reset("before"),
    "reset in the middle": faults.Reset("middle"),
    "lost acknowledgement": faults.LOST_ACKNOWLEDGEMENT,
    "reset in the answer": faults.Reset("answered"),
    "half an answer": faults.CutAnswer(),
    "half a request": faults.CutRequest(),
    "silence": faults.Silence(),
    "silence after the deed": faults.Silence(carried_out=True),
    "flipped on the way": faults.FlipRequest(at=5000),
}
CARRIED_OUT = ("error after the deed", "lost acknowledgement", "silence after the deed")


class Probe:
    """A location behind the proxy, and the bucket as it is."""

    def __init__(self, gateway: Gateway, proxy: S3Proxy) -> None:
        self.bucket: Bucket = gateway.make_bucket("versioned")
        self.proxy = proxy
        self.gateway = gateway

    def open(self, **more: Any) -> S3Location:
        settings: dict[str, Any] = {
            "bucket": self.bucket.name,
            "prefix": "db1",
            "endpoint_url": self.proxy.url,
            "region": self.gateway.region,
            "ca_file": self.gateway.ca_file,
            "credentials_file": self.gateway.credentials_file(self.bucket.owner),
            "attempts": 3,
            "timeout": 1.0,
            **more,
        }
        return S3Location("cloud", f"s3://{self.bucket.name}", S3Options(**settings))

    def content(self, key: str) -> bytes | None:
        """What the bucket has, asked of the store itself."""
        full = f"db1/{key}"
        return self.bucket.read(full) if full in self.bucket.keys(full) else None

    def never_overwritten(self) -> None:
        versions = [version.key for version in self.bucket.versions() if not version.delete_marker]
        assert len(versions) == len(set(versions)), sorted(versions)


@pytest.fixture
def probe(s3: Gateway, s3_proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch) -> Probe:
    # How long it waits between attempts is no matter here.
    monkeypatch.setattr(calls, "_FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(calls, "_FIRST_PAUSE_THROTTLED_SECONDS", 0.01)
    monkeypatch.setattr(client, "CONNECT_SECONDS", 1.0)
    return Probe(s3, s3_proxy)


def create(location: S3Location, key: str, data: bytes, *, in_parts: bool = False) -> None:
    writer = location.ways()[1](key) if in_parts else location.create(key)
    try:
        writer.write(data)
        writer.commit()
    finally:
        writer.abort()


def attempt(action: Callable[[], object]) -> RepositoryError | None:
    """What a fault may lead to: an error of the location, or that the name is taken."""
    try:
        action()
    except (LocationError, ObjectConflict) as error:
        return error
    return None


def at_once(*actions: Callable[[], object]) -> None:
    """Silence takes a second: one for all. Raises what the first that fails raises."""
    with ThreadPoolExecutor(len(actions)) as pool:
        for each in [pool.submit(action) for action in actions]:
            each.result()


@pytest.mark.parametrize("name", FAULTS)
def test_one_fault_is_overcome(probe: Probe, name: str) -> None:
    """It happens once, to each kind of request in turn: the location tries again, and finds what it has done."""
    location = probe.open()

    def write(kind: str) -> None:
        key = f"packs/{kind}"
        with probe.proxy.fault(FAULTS[name], kind, key=key, count=1) as rule:
            create(location, key, SMALL, in_parts=kind != "put")
        assert rule.hits == 1, kind
        assert probe.content(key) == SMALL

    def read(kind: str, action: Callable[[], object]) -> None:
        truth = action() if kind != "delete" else None
        with probe.proxy.fault(FAULTS[name], kind, key=f"{kind}/there$" if kind != "list" else "", count=1) as rule:
            assert action() == truth, kind
        assert rule.hits == 1, kind

    reads: dict[str, Callable[[], object]] = {
        "get": lambda: location.read("get/there"),
        "head": lambda: location.stat("head/there"),
        "list": lambda: [info.key for info in location.list("list/")],
        "delete": lambda: location.delete("delete/there"),
    }
    for kind in reads:
        put(location, f"{kind}/there", SMALL)
    at_once(
        *(partial(write, kind) for kind in WRITES),
        *(partial(read, kind, action) for kind, action in reads.items()),
    )
    assert probe.content("delete/there") is None
    probe.never_overwritten()


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_stays_is_told(probe: Probe, name: str) -> None:
    """Every write fails, or was carried out; nothing half-made has a name, and the next attempt succeeds."""
    location = probe.open(attempts=2)
    failures: dict[str, RepositoryError | None] = {}

    def write(key: str, *, in_parts: bool) -> None:
        failures[key] = attempt(lambda: create(location, key, SMALL, in_parts=in_parts))

    def read(action: Callable[[], object], truth: object) -> None:
        answers: list[object] = []
        error = attempt(lambda: answers.append(action()))
        assert error is not None or answers == [truth]

    with probe.proxy.fault(FAULTS[name], WRITES):
        at_once(partial(write, "packs/small", in_parts=False), partial(write, "packs/large", in_parts=True))
    for key, failure in failures.items():
        assert probe.content(key) in (None, SMALL)
        if failure is None:
            assert probe.content(key) == SMALL
        else:
            assert isinstance(failure, LocationError)
            assert failure.hint
        put(location, key, SMALL)
        assert probe.content(key) == SMALL
    if name in CARRIED_OUT:
        assert failures["packs/small"] is None
    with probe.proxy.fault(FAULTS[name], ("get", "head", "list")):
        at_once(
            lambda: read(lambda: location.read("packs/small"), SMALL),
            lambda: read(lambda: size_of(location, "packs/small"), len(SMALL)),
            lambda: read(lambda: [info.key for info in location.list("packs/")], ["packs/large", "packs/small"]),
        )
    probe.never_overwritten()


def size_of(location: S3Location, key: str) -> int | None:
    found = location.stat(key)
    return None if found is None else found.size


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_never_lets_another_object_pass(probe: Probe, name: str) -> None:
    """Whoever comes second is told so, whatever happens to the requests that tell."""
    first, second = probe.open(), probe.open(attempts=2)

    def pretend(key: str, kinds: tuple[str, ...], *, in_parts: bool) -> None:
        create(first, key, SMALL)
        with probe.proxy.fault(FAULTS[name], kinds, key=key):
            error = attempt(lambda: create(second, key, OTHER, in_parts=in_parts))
        assert error is not None
        assert probe.content(key) == SMALL
        with pytest.raises(ObjectConflict):
            create(second, key, OTHER)

    at_once(
        partial(pretend, "packs/1", WRITES, in_parts=False),
        partial(pretend, "packs/2", WRITES, in_parts=True),
        partial(pretend, "packs/3", (*WRITES, "head"), in_parts=False),
        partial(pretend, "packs/4", (*WRITES, "head"), in_parts=True),
    )
    probe.never_overwritten()


def test_large_objects_survive_a_storm(probe: Probe) -> None:
    location = probe.open(attempts=10)
    with (
        probe.proxy.fault(faults.LOST_ACKNOWLEDGEMENT, probability=0.2, seed=1),
        probe.proxy.fault(faults.Reset("middle"), WRITES, probability=0.2, seed=2),
        probe.proxy.fault(faults.INTERNAL_ERROR, probability=0.2, seed=3),
        probe.proxy.fault(faults.CutAnswer(), "get", probability=0.5, seed=4),
    ):
        create(location, "packs/large", LARGE)
        assert location.read("packs/large") == LARGE
        assert location.read("packs/large", 1000, 5000) == LARGE[1000:6000]
    assert probe.content("packs/large") == LARGE
    probe.never_overwritten()


# A handshake that fails leaves its socket to Python's collector: urllib3 does not close it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("fault", [faults.Reset("before"), faults.Silence()], ids=["refused", "silent"])
def test_no_connection_is_an_outage(probe: Probe, fault: faults.Fault) -> None:
    with probe.proxy.fault(fault, CONNECT):
        error = attempt(lambda: create(probe.open(attempts=2), "packs/name", SMALL))
        assert error is not None
        assert error.id == "location-down", error
    with probe.gateway.outage():
        error = attempt(lambda: create(probe.open(attempts=2), "packs/name", SMALL))
        assert error is not None
        assert error.id == "location-down", error
    create(probe.open(), "packs/name", SMALL)


def test_a_wrong_clock_is_named(probe: Probe) -> None:
    location = probe.open()
    with probe.proxy.fault(faults.SKEWED) as rule:
        error = attempt(lambda: create(location, "packs/name", SMALL))
    assert error is not None
    assert error.id == "location-clock"
    assert "timedatectl" in error.hint
    assert rule.hits <= 2, "a wrong clock does not mend itself"
    with probe.proxy.fault(faults.shift_date(7200)):
        assert location.now() - probe.open(endpoint_url=probe.gateway.url).now() > 7000


def test_lies_about_what_was_stored_are_noticed(probe: Probe) -> None:
    location = probe.open()
    with probe.proxy.fault(faults.LYING_CHECKSUM, WRITES):
        error = attempt(lambda: create(location, "packs/name", SMALL))
    assert error is not None
    assert error.id == "location-unfit"
    # What an ETag is, every store decides by itself: nothing depends on it.
    with probe.proxy.fault(faults.LYING_ETAG, ("put", "complete", "get", "head")):
        create(location, "packs/small", SMALL)
        create(location, "packs/large", SMALL, in_parts=True)
        assert location.read("packs/large") == SMALL
    # But for parts: the store puts them together by what it called them, and refuses when that was a lie.
    with probe.proxy.fault(faults.LYING_ETAG, "part"):
        error = attempt(lambda: create(location, "packs/parts", SMALL, in_parts=True))
    assert isinstance(error, LocationError)
    assert "InvalidPart" in error.message
    assert probe.content("packs/parts") is None
    assert location.sweep(-10) == 0, "the upload was aborted"
    create(location, "packs/parts", SMALL, in_parts=True)


def test_a_slow_store_is_not_a_dead_one(probe: Probe) -> None:
    """Each byte that comes is a sign of life: only a second without any would be too long."""
    location = probe.open(attempts=1)
    with probe.proxy.fault(faults.Slow(len(SMALL) // 2), "get"):
        put(location, "packs/name", SMALL)
        assert location.read("packs/name") == SMALL


def test_the_trial_notices_a_store_without_conditions(probe: Probe) -> None:
    # Versions would tell who was first.
    probe.bucket = probe.gateway.make_bucket("plain")
    location = probe.open()
    with probe.proxy.fault(faults.Strip()), pytest.raises(RepositoryError) as caught:
        try_location(location, "20260101T000000Z-00000001")
    assert caught.value.id == "location-unfit"
    assert "create_only: check" in caught.value.hint
    try_location(location, "20260101T000000Z-00000002")
    with probe.proxy.fault(faults.Strip()):
        try_location(probe.open(create_only="check"), "20260101T000000Z-00000003")


def test_the_trial_notices_lists_that_lag_behind(probe: Probe) -> None:
    with probe.proxy.fault(faults.hide("probe/"), "list"), pytest.raises(RepositoryError) as caught:
        try_location(probe.open(), "20260101T000000Z-00000001")
    assert caught.value.id == "location-unfit"
    assert "list" in caught.value.message


def test_the_trial_notices_a_store_where_several_writers_win(weak_s3: WeakStore) -> None:
    bucket = weak_s3.make_bucket()
    options = S3Options(
        bucket=bucket.name,
        endpoint_url=weak_s3.url,
        region=weak_s3.region,
        credentials_file=weak_s3.credentials_file(bucket.owner),
    )
    outcomes = set()
    # A race has one winner by chance now and then; the trial has two of them, and is made again and again.
    for number in range(10):
        location = S3Location("weak", "weak", options)
        try:
            try_location(location, f"20260101T000000Z-0000000{number}")
        except RepositoryError as error:
            outcomes.add(error.id)
            break
    assert outcomes == {"location-unfit"}
