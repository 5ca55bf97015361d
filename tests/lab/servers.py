# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures: what stands beside the real object store of ``tests/conftest.py``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .ceph import Gateway
from .moto import MotoServer
from .roots import RootUnavailable
from .s3proxy import S3Proxy
from .swift import WeakStore
from .workspace import Lab


@pytest.fixture(scope="session")
def moto_server(lab: Lab) -> Iterator[MotoServer]:
    """A quick imitation of S3 that checks neither secrets nor integrity; shared by this session."""
    server = MotoServer(lab.path / "moto", lab.account)
    yield server
    server.close()


@pytest.fixture
def s3_proxy(s3: Gateway) -> Iterator[S3Proxy]:
    """A proxy in front of the real object store that breaks what the test wants broken."""
    proxy = S3Proxy(s3)
    yield proxy
    proxy.close()


@pytest.fixture(scope="session")
def weak_s3(lab: Lab) -> Iterator[WeakStore]:
    """An object store where several writers of one name at once may win; shared by this session."""
    try:
        store = WeakStore(lab.path / "weak-s3", lab.account)
    except RootUnavailable as error:
        pytest.skip(str(error))
    yield store
    store.close()
