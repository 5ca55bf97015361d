# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which version of an object counts, from what a store lists, however it cuts its pages."""

from __future__ import annotations

import datetime as dt
import typing as t

from hypothesis import given, settings
from hypothesis import strategies as st

from cryobackup.config.locations import S3Options
from cryobackup.storage.s3.versions import FirstS3Location, PastS3Location, Version, first_written, histories

START = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
KEYS = ("manifests/a/1", "manifests/a/10", "manifests/b/1", "packs/1/2", "repository.json")


class Event(t.NamedTuple):
    key: str
    marker: bool
    second: int


class Listing:
    """Answers as ``list_object_versions`` does: each page has versions and markers apart, and ends anywhere."""

    def __init__(self, events: list[Event], page: int) -> None:
        self.name = "cloud"
        self.asked: list[str] = []
        self._page = page
        made = [
            {
                "Key": f"db1/{event.key}",
                "VersionId": f"v{number}",
                "Size": number,
                "LastModified": START + dt.timedelta(seconds=event.second),
                "marker": event.marker,
                "number": number,
            }
            for number, event in enumerate(events)
        ]
        newest = {each["Key"]: each["number"] for each in made}
        for each in made:
            each["IsLatest"] = newest[each["Key"]] == each["number"]
        self._all = sorted(made, key=lambda each: (each["Key"], -each["number"]))

    def full(self, key: str) -> str:
        return f"db1/{key}"

    def short(self, key: str) -> str:
        return key.removeprefix("db1/")

    def request(self, operation: str, **_unused: t.Any) -> dict[str, t.Any]:
        assert operation == "get_bucket_versioning"
        return {"Status": "Enabled"}

    def pages(self, operation: str, **parameters: str) -> t.Iterator[dict[str, t.Any]]:
        assert operation == "list_object_versions"
        self.asked.append(parameters["Prefix"])
        found = [each for each in self._all if each["Key"].startswith(parameters["Prefix"])]
        for at in range(0, max(len(found), 1), self._page):
            part = found[at : at + self._page]
            more = at + self._page < len(found)
            yield {
                "Versions": [each for each in part if not each["marker"]],
                "DeleteMarkers": [each for each in part if each["marker"]],
                "IsTruncated": more,
                **({"NextKeyMarker": part[-1]["Key"], "NextVersionIdMarker": part[-1]["VersionId"]} if more else {}),
            }


@st.composite
def pasts(draw: st.DrawFn) -> list[Event]:
    """In the order in which they happened; a second may see several."""
    steps = draw(st.lists(st.tuples(st.sampled_from(KEYS), st.booleans(), st.integers(0, 2)), max_size=20))
    second = 0
    events = []
    for key, marker, pause in steps:
        second += pause
        events.append(Event(key, marker, second))
    return events


def spread(events: list[Event]) -> list[Event]:
    """One event a second, so that the order can be told from the times."""
    return [event._replace(second=number) for number, event in enumerate(events)]


@settings(deadline=None, database=None)
@given(pasts(), st.integers(1, 7))
def test_pages_cut_anywhere_give_whole_histories(events: list[Event], page: int) -> None:
    events = spread(events)
    calls: t.Any = Listing(events, page)
    found = list(histories(calls, ""))
    assert [history[0].key for history in found] == sorted({event.key for event in events})
    for history in found:
        numbers = [number for number, event in enumerate(events) if event.key == history[0].key]
        assert [version.id for version in history] == [f"v{number}" for number in reversed(numbers)]


def location(kind: t.Any, events: list[Event], page: int, *more: t.Any) -> t.Any:
    made = kind("cloud", "s3://bucket/db1", S3Options("bucket", prefix="db1"), *more)
    made.calls = Listing(events, page)
    return made


@settings(deadline=None, database=None)
@given(pasts(), st.integers(1, 7), st.integers(-1, 21))
def test_the_past_is_what_had_happened_until_then(events: list[Event], page: int, second: int) -> None:
    events = spread(events)
    there: dict[str, int] = {}
    for number, event in enumerate(events[: second + 1]):
        if event.marker:
            there.pop(event.key, None)
        else:
            there[event.key] = number
    past = location(PastS3Location, events, page, START + dt.timedelta(seconds=second, milliseconds=500))
    for key in KEYS:
        info = past.stat(key)
        assert (None if info is None else info.size) == there.get(key)
    assert {info.key: info.size for info in past.list("")} == there
    past.calls.asked.clear()
    assert [info.key for info in past.list("manifests/a/")] == sorted(k for k in there if k.startswith("manifests/a/"))
    assert past.stat("packs/1/9") is None
    assert past.calls.asked == []  # it was listed already


@settings(deadline=None, database=None)
@given(pasts(), st.integers(1, 7))
def test_the_first_since_the_last_deletion_counts(events: list[Event], page: int) -> None:
    events = spread(events)
    there: dict[str, int] = {}
    for number, event in enumerate(events):
        if event.marker:
            there.pop(event.key, None)
        else:
            there.setdefault(event.key, number)
    first = location(FirstS3Location, events, page)
    assert {info.key: info.size for info in first.list("")} == there
    for key in KEYS:
        info = first.stat(key)
        assert (None if info is None else info.size) == there.get(key)


def test_in_one_second_an_object_is_created_and_then_deleted() -> None:
    calls: t.Any = Listing([Event("a", False, 5), Event("a", True, 5)], 10)
    (history,) = histories(calls, "")
    assert [version.marker for version in history] == [True, False]
    assert first_written(history) is None
    past = location(PastS3Location, [Event("a", False, 5), Event("a", True, 5)], 10, START + dt.timedelta(seconds=9))
    assert past.stat("a") is None


def test_a_version_is_known_by_its_id() -> None:
    assert first_written([Version("a", "2", 1, 2.0, False, True), Version("a", "1", 1, 1.0, False, False)]) == (
        Version("a", "1", 1, 1.0, False, False)
    )
