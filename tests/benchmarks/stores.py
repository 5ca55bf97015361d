# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the programs keep their repositories: each in a place of its own, all of one kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, Self

from tests.lab import Workspace
from tests.lab.ceph import Gateway
from tests.lab.objects import Bucket

from .measure import tree_bytes


class Store(Protocol):
    """The place of one program's repository."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Directories that a restore reads."""

    @property
    def directory(self) -> Path:
        """Where it is a directory, which is there. Raises ValueError where it is not."""

    def location(self) -> dict[str, Any]:
        """As cryobackup's configuration has it."""

    def pgbackrest(self) -> dict[str, Any]:
        """As pgBackRest's configuration has it."""

    def stored_bytes(self) -> int:
        """What lies there."""

    def requests(self) -> int:
        """Requests so far, as the server counted them; 0 where there is no server."""


class Directory:
    """A directory of the file system that the cluster is on."""

    def __init__(self, path: Path, workspace: Workspace) -> None:
        self._path = path
        self._workspace = workspace

    @property
    def files(self) -> tuple[Path, ...]:
        return (self._path,)

    @property
    def directory(self) -> Path:
        if not self._path.exists():
            self._path.mkdir(mode=0o700)
            self._workspace.account.own(self._path)
        return self._path

    def location(self) -> dict[str, Any]:
        return {"type": "posix", "path": str(self._path)}

    def pgbackrest(self) -> dict[str, Any]:
        return {"repo1-path": self._path}

    def stored_bytes(self) -> int:
        return tree_bytes(self._path)

    def requests(self) -> int:
        return 0


class GatewayBucket:
    """A bucket of a real object store on this machine, by TLS."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._bucket: Bucket = gateway.make_bucket()

    @property
    def files(self) -> tuple[Path, ...]:
        return ()

    @property
    def directory(self) -> Path:
        raise ValueError("a bucket is no directory")

    def location(self) -> dict[str, Any]:
        return self._bucket.config(required=True)

    def pgbackrest(self) -> dict[str, Any]:
        endpoint, _unused, port = self._gateway.url.removeprefix("https://").partition(":")
        return {
            "repo1-type": "s3",
            "repo1-path": "/pgbackrest",
            "repo1-s3-bucket": self._bucket.name,
            "repo1-s3-endpoint": endpoint,
            "repo1-storage-port": port,
            "repo1-storage-ca-file": self._gateway.ca_file,
            "repo1-s3-region": self._gateway.region,
            "repo1-s3-uri-style": "path",
            "repo1-s3-key": self._bucket.owner.access_key,
            "repo1-s3-key-secret": self._bucket.owner.secret_key,
        }

    def stored_bytes(self) -> int:
        return self._bucket.size()

    def requests(self) -> int:
        return self._gateway.requests()


class Stores:
    """Makes them. Use as a context manager."""

    def __init__(self, workspace: Workspace, kind: str) -> None:
        self._workspace = workspace
        self._gateway: Gateway | None = None
        if kind == "s3":
            from tests.lab.ceph import start_gateway

            self._gateway = start_gateway(workspace.path / "gateway", workspace.account)

    def store(self, name: str) -> Store:
        if self._gateway is not None:
            return GatewayBucket(self._gateway)
        return Directory(self._workspace.directory(f"{name}-repository") / "repository", self._workspace)

    @property
    def description(self) -> str:
        return "Ceph's gateway on this machine, in memory, by TLS" if self._gateway else "a directory"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_unused: object) -> None:
        if self._gateway is not None:
            self._gateway.close()
