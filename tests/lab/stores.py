# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The places that test repositories lie in, of each kind that the engine knows, with an administrator's hands on them.

Tests look at objects, take them away and damage them through paths: those of the file system, or of a bucket, which
behave alike as far as tests need.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import json
import os
import shutil
import stat
import typing as t
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from .objects import Bucket, User
from .sshd import SshServer

if t.TYPE_CHECKING:
    from cryobackup.config import LocationConfig
    from cryobackup.storage.base import Location

    from .ceph import Gateway
    from .workspace import Workspace

Kind: t.TypeAlias = t.Literal["posix", "s3", "sftp"]
KINDS: t.Final[tuple[Kind, ...]] = ("posix", "s3", "sftp")


class Status(t.NamedTuple):
    """As much of ``os.stat_result`` as a bucket has."""

    st_size: int
    st_mtime: float
    st_ino: str
    """Another one for each object that ever bore the name."""


class ObjectPath:
    """An object of a bucket, or all below a prefix of it, in the words of ``pathlib.Path``.

    As in all object stores there are no empty directories, and a directory is nothing but what lies in it.
    """

    def __init__(self, store: BucketStore, key: str = "") -> None:
        self.store = store
        self.key = key

    @property
    def name(self) -> str:
        return PurePosixPath(self.key).name

    @property
    def parent(self) -> ObjectPath:
        return ObjectPath(self.store, self.key.rpartition("/")[0])

    @property
    def parts(self) -> tuple[str, ...]:
        return PurePosixPath(self.key).parts

    def __truediv__(self, below: str | Path) -> ObjectPath:
        return ObjectPath(self.store, f"{self.key}/{below}" if self.key else str(below))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectPath) and (self.store, self.key) == (other.store, other.key)

    def __lt__(self, other: ObjectPath) -> bool:
        return self.key < other.key

    def __hash__(self) -> int:
        return hash((id(self.store), self.key))

    def __str__(self) -> str:
        return f"s3://{self.store.bucket.name}/{self.key}".rstrip("/")

    __repr__ = __str__

    def relative_to(self, above: ObjectPath) -> PurePosixPath:
        return PurePosixPath(self.key).relative_to(above.key)

    def is_file(self) -> bool:
        return self.key in self.store.bucket.keys(self.key)

    def is_dir(self) -> bool:
        return not self.key or bool(self._below())

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def _below(self) -> list[str]:
        return self.store.bucket.keys(f"{self.key}/" if self.key else "")

    def iterdir(self) -> Iterator[ObjectPath]:
        start = len(self.key) + 1 if self.key else 0
        for name in sorted({key[start:].partition("/")[0] for key in self._below()}):
            yield self / name

    def rglob(self, pattern: str) -> Iterator[ObjectPath]:
        """Objects only: there are no directories."""
        for key in self._below():
            if fnmatch.fnmatch(key.rpartition("/")[2], pattern):
                yield ObjectPath(self.store, key)

    def glob(self, pattern: str) -> Iterator[ObjectPath]:
        wanted = pattern.split("/")
        for path in self.rglob("*"):
            found = path.relative_to(self).parts
            if len(found) == len(wanted) and all(map(fnmatch.fnmatch, found, wanted)):
                yield path

    def read_bytes(self) -> bytes:
        return self.store.bucket.read(self.key)

    def write_bytes(self, data: bytes) -> None:
        self.store.bucket.write(self.key, data)

    def write_text(self, text: str) -> None:
        self.write_bytes(text.encode())

    def touch(self) -> None:
        self.write_bytes(b"")

    def unlink(self, *, missing_ok: bool = False) -> None:
        if not missing_ok and not self.is_file():
            raise FileNotFoundError(str(self))
        self.store.bucket.delete(self.key)

    def rename(self, other: ObjectPath) -> ObjectPath:
        """Of an object, not of what lies below a prefix."""
        other.write_bytes(self.read_bytes())
        self.unlink()
        return other

    def stat(self) -> Status:
        bucket = self.store.bucket
        head = bucket.client.head_object(Bucket=bucket.name, Key=self.key)
        found = f"{head['ETag']} {head['LastModified']} {head['Metadata']}"
        return Status(head["ContentLength"], head["LastModified"].timestamp(), found)

    def remove_below(self) -> None:
        for key in self._below():
            self.store.bucket.delete(key)


StoredPath: t.TypeAlias = Path | ObjectPath


class Store(t.Protocol):
    """What a location of a test lies in."""

    kind: Kind

    @property
    def root(self) -> StoredPath: ...

    def settings(self, **more: t.Any) -> dict[str, t.Any]:
        """The location as ``config.yml`` has it; ``more`` keys in addition."""

    def left_overs(self) -> list[str]:
        """Names of what writers began and did not finish."""

    def away(self) -> contextlib.AbstractContextManager[None]:
        """While inside, the location does not answer, or only with refusals."""


class DirectoryStore:
    """A directory of this machine, as a ``posix`` location or behind an SFTP server."""

    def __init__(self, path: Path, server: SshServer | None = None) -> None:
        self.kind: Kind = "posix" if server is None else "sftp"
        self._path = path
        self._server = server

    @property
    def root(self) -> Path:
        return self._path

    def settings(self, **more: t.Any) -> dict[str, t.Any]:
        if self._server is None:
            return {"type": "posix", "path": str(self._path), **more}
        return {**self._server.settings(), "path": str(self._path), **more}

    def left_overs(self) -> list[str]:
        folder = self._path / ".tmp"
        return sorted(os.listdir(folder)) if folder.is_dir() else []

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        with _renamed(self._path):
            yield


class BucketStore:
    """A bucket of the session's object store, of a user of its own."""

    kind: Kind = "s3"

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.user: User = gateway.user()
        self.bucket: Bucket = gateway.make_bucket(owner=self.user)

    @property
    def root(self) -> ObjectPath:
        return ObjectPath(self)

    def settings(self, **more: t.Any) -> dict[str, t.Any]:
        return self.bucket.config(self.user, **more)

    def left_overs(self) -> list[str]:
        answer = self.bucket.client.list_multipart_uploads(Bucket=self.bucket.name)
        return [upload["UploadId"] for upload in answer.get("Uploads", [])]

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        self._gateway.suspend(self.user)
        try:
            yield
        finally:
            self._gateway.suspend(self.user, suspended=False)


class Stores:
    """Makes stores of one kind for a workspace. ``gateway`` is asked for the object store when one is needed."""

    def __init__(
        self, workspace: Workspace, kind: Kind = "posix", gateway: Callable[[], Gateway] | None = None
    ) -> None:
        self.kind = kind
        self._workspace = workspace
        self._gateway = gateway
        self._server: SshServer | None = None

    def make(self, path: Path, kind: Kind | None = None) -> Store:
        """A new store, empty and not initialised; ``path`` is where it lies if it is a directory."""
        chosen = kind or self.kind
        if chosen == "posix":
            return DirectoryStore(path)
        if chosen == "sftp":
            return DirectoryStore(path, self.server())
        if self._gateway is None:
            raise LookupError("no fixture of this test leads to an object store")
        return BucketStore(self._gateway())

    def server(self) -> SshServer:
        """The SFTP server of this workspace."""
        if self._server is None:
            self._server = SshServer(self._workspace).start()
        return self._server


def open_store(store: Store, folder: Path, name: str = "place", **more: t.Any) -> Location:
    """The engine's view of a store."""
    from cryobackup.storage.open import open_location

    return open_location(store_config(store, folder, name, **more))


def store_config(store: Store, folder: Path, name: str, *, required: bool = True, **more: t.Any) -> LocationConfig:
    """A store as the engine's configuration, by way of a file that is written to ``folder``."""
    from cryobackup.config import load_config

    path = folder / f"{name}.yml"
    repository = {"locations": {name: store.settings(**more)}, "keys": str(folder / "keys")}
    path.write_text(json.dumps({"repository": repository}))
    path.chmod(0o600)
    return dataclasses.replace(load_config(path).repository.locations[name], required=required)


@contextlib.contextmanager
def away(path: StoredPath) -> Iterator[None]:
    """While inside, a location (its root), a directory or an object is not there."""
    if isinstance(path, Path):
        with _renamed(path):
            yield
    elif not path.key:
        with path.store.away():
            yield
    else:
        keys = [path] if path.is_file() else list(path.rglob("*"))
        kept = {each: each.read_bytes() for each in keys}
        for each in kept:
            each.unlink()
        try:
            yield
        finally:
            for each, data in kept.items():
                each.write_bytes(data)


@contextlib.contextmanager
def _renamed(path: Path) -> Iterator[None]:
    aside = path.with_name(path.name + ".away")
    path.rename(aside)
    try:
        yield
    finally:
        aside.rename(path)


def replace(path: StoredPath, data: bytes) -> None:
    """Put bytes in an object's place, or where there was none; owner and mode of a file stay, or are as usual."""
    if not isinstance(path, Path):
        path.write_bytes(data)
        return
    mode = 0o400
    if path.exists():
        mode = stat.S_IMODE(path.stat().st_mode)
        path.unlink()
    _make_folder(path.parent)
    path.write_bytes(data)
    _give(path)
    path.chmod(mode)


def _make_folder(path: Path) -> None:
    if not path.is_dir():
        _make_folder(path.parent)
        path.mkdir(mode=0o700)
        _give(path)


def _give(path: Path) -> None:
    above = path.parent.stat()
    os.chown(path, above.st_uid, above.st_gid)


def remove_all(path: StoredPath) -> None:
    """Remove everything at and below a place."""
    if isinstance(path, Path):
        shutil.rmtree(path)
    else:
        path.remove_below()


def fetched(path: StoredPath, folder: Path) -> Path:
    """A location as a directory of this machine: itself, or what lies in the bucket now, fetched to ``folder``."""
    if isinstance(path, Path):
        return path
    for each in path.rglob("*"):
        copy = folder / each.relative_to(path)
        if not copy.exists():
            replace(copy, each.read_bytes())
    return folder


def objects_below(path: StoredPath) -> list[str]:
    """The keys of all objects, sorted; ``path`` is the root of a location or a directory in it.

    Others may be adding and removing some meanwhile, and directories with them.
    """
    if isinstance(path, Path):
        found = [os.path.join(folder, name) for folder, _unused, names in os.walk(path) for name in names]
    else:
        found = [str(each) for each in path.rglob("*")]
    keys = [each.removeprefix(f"{path}/") for each in found]
    return sorted(key for key in keys if not key.startswith(".tmp/"))
