# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real store that breaks a promise, Swift: it is noticed, and the documented way around works."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator

import pytest

from cryobackup.config.locations import S3Options
from cryobackup.errors import LocationError, ObjectConflict
from cryobackup.storage.base import put
from cryobackup.storage.s3.location import S3Location
from cryobackup.storage.s3.parts import PART_BYTES
from cryobackup.storage.trial import try_location
from tests.lab import Lab
from tests.lab.roots import RootUnavailable
from tests.lab.swift import WeakStore

PACK = "packs/20260101T000000Z-00000000/000000.pack"


@pytest.fixture(scope="module")
def swift(lab: Lab) -> Iterator[WeakStore]:
    try:
        store = WeakStore(lab.path / "swift", lab.account)
    except RootUnavailable as error:
        pytest.skip(str(error))
    yield store
    store.close()


@pytest.fixture
def opened(swift: WeakStore) -> Callable[..., S3Location]:
    bucket = swift.make_bucket()

    def make(**more: object) -> S3Location:
        settings = {
            "bucket": bucket.name,
            "prefix": "db1",
            "endpoint_url": swift.url,
            "region": swift.region,
            "credentials_file": swift.credentials_file(swift.owner),
        }
        return S3Location("weak", f"s3://{bucket.name}/db1", S3Options(**{**settings, **more}))

    return make


def test_that_several_writers_win_is_noticed(opened):
    location = opened()
    errors = []
    for _unused in range(3):  # one trial overlooks it hardly ever, three never
        try:
            try_location(location, secrets.token_hex(4))
        except LocationError as error:
            errors.append(error)
    assert errors
    assert {error.id for error in errors} == {"location-unfit"}
    assert "of 8 writers" in errors[0].message
    assert "create_only: check" in errors[0].hint
    assert list(location.list("")) == []


def test_the_weaker_way_works_there(opened):
    location = opened(create_only="check")
    try_location(location, "trial")
    for size in (10, 2 * PART_BYTES + 5):
        key = f"{PACK}{size}"
        data = os.urandom(size)
        assert put(location, key, data)
        assert not put(location, key, data)
        with pytest.raises(ObjectConflict):
            put(location, key, data + b"x")
        assert location.read(key) == data
        assert location.read(key, 3, 5) == data[3:8]


def test_a_wrong_secret(opened, tmp_path):
    path = tmp_path / "s3.ini"
    path.touch(mode=0o600)
    path.write_text("[default]\naws_access_key_id = laboratory:owner\naws_secret_access_key = wrong\n")
    with pytest.raises(LocationError) as caught:
        opened(credentials_file=path).stat(PACK)
    assert caught.value.id == "location-denied"
