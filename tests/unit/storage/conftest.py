# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A location in a bucket that misbehaves when told to."""

from __future__ import annotations

import pytest

from cryobackup.config.locations import S3Options
from cryobackup.storage.s3 import calls
from cryobackup.storage.s3.location import S3Location

from .s3_double import BUCKET, Double, serve


@pytest.fixture
def double():
    return Double()


@pytest.fixture
def endpoint(double, monkeypatch):
    monkeypatch.setattr(calls, "_LONGEST_PAUSE_SECONDS", 0.0)
    with serve(double) as url:
        yield url


@pytest.fixture
def credentials(tmp_path):
    path = tmp_path / "s3.ini"
    path.write_text("[default]\naws_access_key_id = AKIAME\naws_secret_access_key = very-secret\n")
    path.chmod(0o400)
    return path


@pytest.fixture
def open_s3(endpoint, credentials):
    def make(**options) -> S3Location:
        settings = {"endpoint_url": endpoint, "credentials_file": credentials, "prefix": "db1", "timeout": 10.0}
        found = S3Options(**{"bucket": BUCKET, **settings, **options})
        return S3Location("cloud", f"s3://{found.bucket}/{found.prefix}", found)

    return make


@pytest.fixture
def location(open_s3):
    return open_s3()
