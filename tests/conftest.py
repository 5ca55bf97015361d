# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures: real PostgreSQL clusters, the engine's command, faults. See ``tests/lab``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab import (
    Cluster,
    FullDisk,
    Installation,
    Lab,
    LeftoverError,
    MajorUnavailable,
    Runtime,
    Workspace,
    default_majors,
    distribution,
    installation,
)
from tests.lab.ceph import Gateway, start_gateway
from tests.lab.roots import RootUnavailable
from tests.lab.sshd import SshServer
from tests.lab.stores import KINDS, Kind, Stores

CHOSEN_KINDS = "LOCATION_KINDS"
"""Environment variable: the kinds of locations that all tests with a repository run on; see CONTRIBUTING.md."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests with a repository run on a directory; those marked ``every_location``, or all if wanted, on other kinds."""
    if "store_kind" not in metafunc.fixturenames:
        return
    chosen = os.environ.get(CHOSEN_KINDS, "").split()
    if not chosen and not any(metafunc.definition.iter_markers("every_location")):
        return
    possible = {kind for mark in metafunc.definition.iter_markers("only_on") for kind in mark.args} or set(KINDS)
    kinds = [kind for kind in chosen or KINDS if kind in possible]
    metafunc.parametrize("store_kind", kinds, indirect=True, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what makes no sense on any of the chosen kinds."""
    chosen = set(os.environ.get(CHOSEN_KINDS, "").split())
    if not chosen:
        return
    elsewhere = [
        item
        for item in items
        if (marks := list(item.iter_markers("only_on"))) and not chosen & {kind for mark in marks for kind in mark.args}
    ]
    config.hook.pytest_deselected(items=elsewhere)
    items[:] = [item for item in items if item not in elsewhere]


@pytest.fixture(scope="session")
def store_kind(request: pytest.FixtureRequest) -> Kind:
    """The kind of location that the repositories of this test lie in."""
    kind: Kind = getattr(request, "param", "posix")
    return kind


def _stores(workspace: Workspace, kind: Kind, request: pytest.FixtureRequest) -> Stores:
    return Stores(workspace, kind, lambda: request.getfixturevalue("s3"))


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """The laboratory of this session. The session fails when something is left in it at the end."""
    made = Lab()
    try:
        yield made
    finally:
        found = made.close()
    if found:
        raise LeftoverError("left behind by this session: " + "; ".join(found))


@pytest.fixture
def workspace(lab: Lab, store_kind: Kind, request: pytest.FixtureRequest) -> Iterator[Workspace]:
    """Directory, clusters and processes of this test. The test fails when it leaves processes behind."""
    made = lab.workspace(request.node.name)
    made.stores = _stores(made, store_kind, request)
    yield made
    made.close()


@pytest.fixture(scope="module")
def shared_workspace(lab: Lab, store_kind: Kind, request: pytest.FixtureRequest) -> Iterator[Workspace]:
    """A workspace that lives as long as the test module."""
    made = lab.workspace(Path(request.node.name).stem)
    made.stores = _stores(made, store_kind, request)
    yield made
    made.close()


@pytest.fixture(scope="session")
def pg() -> Installation:
    """The distribution's PostgreSQL."""
    try:
        return distribution()
    except MajorUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session", params=default_majors(), ids=lambda major: f"pg{major}")
def pg_major(request: pytest.FixtureRequest) -> Installation:
    """Each major of ``PG_MAJORS`` (by default the distribution's, 17 and 18), built when it is missing."""
    try:
        return installation(request.param)
    except MajorUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def cluster(workspace: Workspace, pg: Installation) -> Cluster:
    """A running cluster of the distribution's major, with checksums, not archiving."""
    return workspace.cluster(installation=pg)


@pytest.fixture(scope="session")
def runtime(lab: Lab) -> Path:
    """A command ``cryobackup`` that root and the server's user can execute."""
    return Runtime(lab).command()


@pytest.fixture
def full_disk(workspace: Workspace) -> Callable[..., FullDisk]:
    """Makes small file systems that can be full: ``full_disk(megabytes=16, inodes=None)``. Needs root."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")

    def make(megabytes: int = 16, inodes: int | None = None) -> FullDisk:
        number = sum(1 for _unused in workspace.path.glob("disk-*")) + 1
        disk = FullDisk(workspace.directory(f"disk-{number}"), workspace.account).mount(megabytes, inodes)
        workspace.at_end(disk.close)
        return disk

    return make


@pytest.fixture(scope="session")
def s3(lab: Lab) -> Iterator[Gateway]:
    """A real object store with TLS, users, versions and Object Lock; shared by this session. See its class."""
    try:
        gateway = start_gateway(lab.path / "s3", lab.account)
    except RootUnavailable as error:
        pytest.skip(str(error))
    yield gateway
    gateway.close()


@pytest.fixture
def sftp_server(workspace: Workspace) -> SshServer:
    """A real OpenSSH server that offers SFTP to the laboratory's account, and ways to break it."""
    return SshServer(workspace).start()
