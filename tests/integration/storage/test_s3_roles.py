# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Credentials of roles: asked for where the store is, used, and taken anew before they expire.

The store is an imitation: what is shown is which requests the client makes, not what a real one grants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cryobackup.config.locations import S3Options
from cryobackup.errors import LocationError
from cryobackup.storage.base import put
from cryobackup.storage.s3.location import S3Location
from tests.lab import Lab
from tests.lab.moto import MotoServer

ROLE = "arn:aws:iam::123456789012:role/backup"


@pytest.fixture(scope="module")
def moto(lab: Lab) -> Iterator[MotoServer]:
    server = MotoServer(lab.path / "moto-roles", lab.account)
    yield server
    server.close()


@pytest.fixture
def opened(moto: MotoServer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., S3Location]:
    bucket = moto.make_bucket()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    def make(**more: object) -> S3Location:
        settings = {"bucket": bucket.name, "endpoint_url": moto.url, "region": moto.region, "attempts": 2}
        return S3Location("cloud", bucket.name, S3Options(**{**settings, **more}))

    return make


def key_in_use(location: S3Location) -> str:
    credentials = location.calls.client()._request_signer._credentials
    return str(credentials.get_frozen_credentials().access_key)


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("a token of the platform")
    return path


def test_a_role_is_taken_with_the_credentials(opened, moto):
    location = opened(credentials_file=moto.credentials_file(moto.owner), role_arn=ROLE)
    assert put(location, "packs/a", b"x")
    assert location.read("packs/a") == b"x"
    assert key_in_use(location).startswith("ASIA")


def test_a_role_is_taken_with_a_token(opened, token):
    location = opened(web_identity_token_file=token, role_arn=ROLE)
    assert put(location, "packs/a", b"x")
    assert key_in_use(location).startswith("ASIA")


def test_it_is_taken_again_before_it_expires(opened, moto):
    location = opened(credentials_file=moto.credentials_file(moto.owner), role_arn=ROLE)
    put(location, "packs/a", b"x")
    before = key_in_use(location)
    credentials = location.calls.client()._request_signer._credentials
    credentials._expiry_time = credentials._time_fetcher()
    credentials._refresh_using.__self__._cache.clear()
    put(location, "packs/b", b"x")
    assert key_in_use(location) != before


def test_a_token_that_is_not_there(opened, tmp_path):
    location = opened(web_identity_token_file=tmp_path / "none", role_arn=ROLE)
    with pytest.raises(LocationError) as caught:
        location.stat("packs/a")
    assert str(tmp_path / "none") in caught.value.message
    assert caught.value.id == "secret-file"


def test_a_service_for_roles_that_does_not_answer(opened, moto):
    location = opened(
        credentials_file=moto.credentials_file(moto.owner), role_arn=ROLE, endpoint_url="http://127.0.0.1:1", attempts=1
    )
    with pytest.raises(LocationError, match="cannot be reached") as caught:
        location.stat("packs/a")
    assert caught.value.id == "location-down"


def test_those_of_the_environment(opened, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAENVIRONMENT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    location = opened()
    assert put(location, "packs/a", b"x")
    assert key_in_use(location) == "AKIAENVIRONMENT"


def test_none_at_all(opened, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(LocationError, match="there are no credentials") as caught:
        opened().stat("packs/a")
    assert caught.value.id == "location-denied"
    with pytest.raises(LocationError, match="to take the role") as caught:
        opened(role_arn=ROLE).stat("packs/a")
    assert caught.value.id == "location-denied"
