# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Key files and the key ring: section 5 of docs/repository-format.md."""

from __future__ import annotations

import base64
import binascii
import contextlib
import dataclasses
import hashlib
import os
import pathlib
import re
import stat
import typing as t

from ..errors import KeyFileError
from . import suite

ROLES: t.Final = {"catalog": 32, "public": 1216, "identity": 96, "check": 32}
FILES: t.Final = {"catalog": "catalog.key", "public": "data.pub", "identity": "data.identity"}
_LINE = re.compile(r"cryo-([a-z]+)-1 ([0-9a-f]{32}) ([1-9][0-9]{0,8}) ([A-Za-z0-9+/=]+) ([0-9a-f]{8})")


@dataclasses.dataclass(frozen=True, slots=True)
class Key:
    """One key of one epoch of one repository."""

    role: str
    repository: str  # 32 hex digits
    epoch: int
    material: bytes = dataclasses.field(repr=False)

    def line(self) -> str:
        body = f"cryo-{self.role}-1 {self.repository} {self.epoch} {base64.b64encode(self.material).decode()}"
        return f"{body} {_check(body)}"

    def fingerprint(self) -> str:
        """Names the key without telling anything about it."""
        digest = hashlib.sha256(b"cryobackup/1 fingerprint" + self.line().encode()).hexdigest()
        return "-".join(digest[at : at + 4] for at in range(0, 16, 4))


def _check(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:8]


def parse_line(text: str, where: str) -> Key:
    """One key line. Raises KeyFileError naming ``where``; the text itself is never repeated."""
    match = _LINE.fullmatch(" ".join(text.split()))
    if match is None:
        raise KeyFileError(
            f"{where}: this is not a key line", hint="A key line begins with `cryo-` and has five parts."
        )
    role, repository, epoch, encoded, check = match.groups()
    if _check(f"cryo-{role}-1 {repository} {epoch} {encoded}") != check:
        raise KeyFileError(
            f"{where}: the check at the end of the line does not fit",
            hint="A character was lost or mistyped. Compare the line with the recovery kit.",
        )
    try:
        material = base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise KeyFileError(f"{where}: the key is not base64") from error
    if len(material) != ROLES.get(role, -1):
        raise KeyFileError(f"{where}: unknown or incomplete key of role {role!r}")
    return Key(role, repository, int(epoch), material)


def parse_lines(text: str, where: str) -> list[Key]:
    return [
        parse_line(line, f"{where}, line {number}")
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]


class KeyRing:
    """The keys at hand, by role and epoch."""

    def __init__(self, keys: t.Iterable[Key], where: str) -> None:
        self._where = where
        self._keys = {(key.role, key.epoch): key for key in keys}
        repositories = {key.repository for key in self._keys.values()}
        if len(repositories) > 1:
            raise KeyFileError(
                f"{where} holds keys of several repositories: {', '.join(sorted(repositories))}",
                hint="Keep the keys of one repository in one directory.",
            )
        if not any(role == "catalog" for role, _unused in self._keys):
            raise KeyFileError(
                f"{where} has no catalog key", hint="Copy catalog.key there, or import the recovery kit."
            )
        self._check_pairs()
        self.repository_id = next(iter(repositories))
        self.repository = bytes.fromhex(self.repository_id)
        self.digest_key = suite.digest_key(self.catalog(1), self.repository)
        self._header_keys: dict[int, bytes] = {}

    @classmethod
    def load(cls, directory: pathlib.Path, *, need_identity: bool = False) -> KeyRing:
        """Read the key files. Raises KeyFileError: missing, unreadable, too widely readable, damaged."""
        if not _exists(directory):
            raise KeyFileError(
                f"there is no key directory {directory}",
                hint="Run `cryobackup init` for a new repository, or `cryobackup key import` with a recovery kit.",
            )
        ring = cls(read_keys(directory), str(directory))
        if need_identity and not ring.has_identity:
            raise KeyFileError(
                f"{directory / FILES['identity']} is not there, and reading backups needs it",
                hint="Run this where the identity is kept, or bring it here from the recovery kit.",
                id="no-identity",
            )
        return ring

    def _check_pairs(self) -> None:
        for (role, epoch), key in self._keys.items():
            public = self._keys.get(("public", epoch))
            if role == "identity" and public and suite.public_of(key.material) != public.material:
                raise KeyFileError(
                    f"{self._where}: {FILES['identity']} and {FILES['public']} of epoch {epoch} are no pair",
                    hint="One of them is of another key set: such backups could not be read. Nothing was done.",
                )

    def published(self, epoch: int) -> str:
        """The text of ``keys/<epoch>.pub`` in the repository."""
        public = Key("public", self.repository_id, epoch, self.public(epoch))
        proof = suite.keyed_digest(self.header_key(epoch), b"catalog")
        return f"{public.line()}\n{Key('check', self.repository_id, epoch, proof).line()}\n"

    def check_published(self, text: str, where: str) -> None:
        """Raises KeyFileError when the keys at hand are not those that the repository was made with."""
        for key in parse_lines(text, where):
            if key.repository != self.repository_id:
                raise KeyFileError(
                    f"the keys in {self._where} belong to repository {self.repository_id}, {where} to {key.repository}",
                    hint="Use the keys of that repository. Nothing was changed.",
                    id="foreign-repository",
                )
            mine = self._keys.get((key.role, key.epoch))
            role = "catalog" if key.role == "check" else key.role
            if key.role == "public" and mine is None and ("identity", key.epoch) in self._keys:
                # Who only reads needs no public key: the identity must fit all the same.
                mine = Key("public", self.repository_id, key.epoch, suite.public_of(self.identity(key.epoch)))
                role = "identity"
            if key.role == "check" and ("catalog", key.epoch) in self._keys:
                proof = suite.keyed_digest(self.header_key(key.epoch), b"catalog")
                mine = Key("check", self.repository_id, key.epoch, proof)
            if mine is not None and mine.material != key.material:
                raise KeyFileError(
                    f"{FILES[role]} in {self._where} is not the key that {where} was made with",
                    hint="Use the key files of this repository, or its recovery kit. Nothing was changed.",
                    id="wrong-key",
                )

    @property
    def has_identity(self) -> bool:
        return any(role == "identity" for role, _unused in self._keys)

    @property
    def keys(self) -> list[Key]:
        return [self._keys[at] for at in sorted(self._keys)]

    @property
    def epoch(self) -> int:
        """The epoch that writers use: the highest of the public keys, or else of the catalog keys."""
        public = [epoch for role, epoch in self._keys if role == "public"]
        return max(public or [epoch for role, epoch in self._keys if role == "catalog"])

    def catalog(self, epoch: int) -> bytes:
        return self._material("catalog", epoch)

    def public(self, epoch: int) -> bytes:
        return self._material("public", epoch)

    def identity(self, epoch: int) -> bytes:
        return self._material("identity", epoch)

    def header_key(self, epoch: int) -> bytes:
        if epoch not in self._header_keys:
            self._header_keys[epoch] = suite.header_key(self.catalog(epoch), self.repository)
        return self._header_keys[epoch]

    def _material(self, role: str, epoch: int) -> bytes:
        key = self._keys.get((role, epoch))
        if key is None:
            raise KeyFileError(
                f"{self._where}: {FILES[role]} has no key of epoch {epoch}",
                hint="Bring the line of that epoch from the recovery kit or from a host that has it.",
            )
        return key.material


def read_keys(directory: pathlib.Path) -> list[Key]:
    """What the key files hold, whichever of them are there. Raises KeyFileError like ``KeyRing.load``."""
    keys: list[Key] = []
    for role, name in FILES.items():
        path = directory / name
        text = _read(path, secret=role != "public")
        for key in parse_lines(text, str(path)) if text is not None else []:
            if key.role != role:
                raise KeyFileError(f"{path} holds a key of role {key.role!r}, expected {role!r}")
            keys.append(key)
    return keys


def key_files(directory: pathlib.Path) -> list[pathlib.Path]:
    """The key files there are. Raises KeyFileError when that cannot be found out."""
    return [directory / name for name in FILES.values() if _exists(directory / name)]


def new_keys(repository_id: str, epoch: int = 1) -> list[Key]:
    identity, public = suite.generate_identity()
    return [
        Key("catalog", repository_id, epoch, suite.random_key()),
        Key("public", repository_id, epoch, public),
        Key("identity", repository_id, epoch, identity),
    ]


def write_keys(directory: pathlib.Path, keys: t.Iterable[Key]) -> list[pathlib.Path]:
    """Write key files, durable on return. Never overwrites one: raises KeyFileError, with nothing written."""
    by_role = {role: sorted((key for key in keys if key.role == role), key=lambda key: key.epoch) for role in FILES}
    texts = {
        directory / FILES[role]: "\n".join([_COMMENT[role], *(key.line() for key in of_role), ""])
        for role, of_role in by_role.items()
        if of_role
    }
    try:
        for path in key_files(directory):
            if path in texts:
                raise FileExistsError(None, None, str(path))
        _make_directory(directory)
        for path, text in texts.items():
            _write_new(path, text, 0o444 if path.name == FILES["public"] else 0o400)
        _sync_directory(directory)
    except FileExistsError as error:
        raise KeyFileError(
            f"{error.filename} exists already",
            hint="Keys are never overwritten: backups made with them would be lost. Move the old directory away first.",
        ) from error
    except OSError as error:
        raise KeyFileError(f"cannot write {error.filename}: {error.strerror}") from error
    return list(texts)


_COMMENT = {
    "catalog": "# CryoProtect Backup: catalog key. Secret. Needed to write and to read backups.",
    "public": "# CryoProtect Backup: data public key. Not secret. Needed to write backups.",
    "identity": "# CryoProtect Backup: data identity. Secret. Whoever has it and the catalog key reads every backup.",
}


def _exists(path: pathlib.Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise _cannot_read(path, error) from error


def _cannot_read(path: pathlib.Path, error: OSError) -> KeyFileError:
    return KeyFileError(f"cannot read {path}: {error.strerror}", hint="Run as the user that owns the key files.")


def _make_directory(directory: pathlib.Path) -> None:
    """For the owner alone, and lasting: keys that vanish with a power failure take every backup with them."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700 if path == directory else 0o755)
        _sync_directory(path.parent)


def _sync_directory(directory: pathlib.Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_new(path: pathlib.Path, text: str, mode: int) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        os.write(descriptor, text.encode())
        os.fsync(descriptor)
        os.link(temporary, path)
    finally:
        os.close(descriptor)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _read(path: pathlib.Path, *, secret: bool) -> str | None:
    """None when there is no such file. Secrets must not be readable by group or others."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _cannot_read(path, error) from error
    with os.fdopen(descriptor, encoding="ascii", errors="replace") as file:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        if secret and mode & 0o077:
            raise KeyFileError(
                f"{path} can be read by others (mode {mode:04o})",
                hint=f"chmod 0400 {path}, and think about whom it may have been read by.",
                id="key-file-mode",
            )
        return file.read()
