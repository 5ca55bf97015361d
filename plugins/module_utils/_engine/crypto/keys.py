# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Key files and the key ring: section 5 of docs/repository-format.md."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import re
import stat
import typing as t

from ..errors import KeyFileError
from ..private_files import readable_by_others
from . import suite
from .lines import check_of, from_base64, make_line, to_base64

ROLES: t.Final = {"catalog": 32, "digest": 32, "public": 1216, "identity": 96, "check": 32}
FILES: t.Final = {"catalog": "catalog.key", "public": "data.pub", "identity": "data.identity"}
FILE_OF: t.Final = {**FILES, "digest": FILES["catalog"]}
"""The file in which a key of that role stands."""
LOCKED_IDENTITY: t.Final = "data.identity.locked"
FINGERPRINT_CONTEXT: t.Final = b"cryobackup/1 fingerprint"
MAX_EPOCH: t.Final = 10**9 - 1
_LINE = re.compile(r"cryo-([a-z]+)-1 ([0-9a-f]{32}) ([1-9][0-9]{0,8}) ([A-Za-z0-9+/=]+) ([0-9a-f]{8})")


@dataclasses.dataclass(frozen=True, slots=True)
class Key:
    """One key of one epoch of one repository."""

    role: str
    repository: str  # 32 hex digits
    epoch: int
    material: bytes = dataclasses.field(repr=False)

    def line(self) -> str:
        return make_line(self.role, self.repository, str(self.epoch), to_base64(self.material))

    def fingerprint(self) -> str:
        """Names the key without telling anything about it."""
        return fingerprint_of(self.line())


def line_digest(line: str) -> bytes:
    """What fingerprints are the beginning of, 32 bytes."""
    return hashlib.sha256(FINGERPRINT_CONTEXT + line.encode()).digest()


def fingerprint_of(line: str, digits: int = 16) -> str:
    """Groups of four hex digits."""
    digest = line_digest(line).hex()
    return "-".join(digest[at : at + 4] for at in range(0, digits, 4))


def parse_line(text: str, where: str) -> Key:
    """One key line. Raises KeyFileError naming ``where``; the text itself is never repeated."""
    match = _LINE.fullmatch(" ".join(text.split()))
    if match is None:
        raise KeyFileError(
            f"{where}: this is not a key line", hint="A key line begins with `cryo-` and has five parts."
        )
    role, repository, epoch, encoded, check = match.groups()
    if check_of(f"cryo-{role}-1 {repository} {epoch} {encoded}") != check:
        raise KeyFileError(
            f"{where}: the check at the end of the line does not fit",
            hint="A character was lost or mistyped. Compare the line with the recovery kit.",
        )
    material = from_base64(encoded, where)
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
        self.digest_key = self._digest_key()
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
            if _exists(directory / LOCKED_IDENTITY):
                raise KeyFileError(
                    f"the identity is locked with a passphrase ({directory / LOCKED_IDENTITY}), and reading needs it",
                    hint="Run `cryobackup key unlock` first, and `cryobackup key protect` when the work is done.",
                    id="identity-locked",
                )
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

    def _digest_key(self) -> bytes:
        given = self._keys.get(("digest", 1))
        if ("catalog", 1) not in self._keys and given is not None:
            return given.material
        derived = suite.digest_key(self.catalog(1), self.repository)
        if given is not None and given.material != derived:
            raise KeyFileError(f"{self._where}: the digest line in {FILES['catalog']} is of another repository")
        return derived

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
        """The epoch that writers use: the highest with public and catalog key, or else of the catalog keys."""
        catalog, public = self.epochs("catalog"), self.epochs("public")
        return max(catalog & public or catalog)

    def epochs(self, role: str) -> set[int]:
        """The epochs of which there is a key of that role."""
        return {epoch for of_role, epoch in self._keys if of_role == role}

    def key(self, role: str, epoch: int) -> Key:
        """Raises KeyFileError when it is not there."""
        return Key(role, self.repository_id, epoch, self._material(role, epoch))

    def digest_line(self) -> Key:
        """The digest key as a key of its own, for who shall not have the catalog key of epoch 1."""
        return Key("digest", self.repository_id, 1, self.digest_key)

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
                hint="Bring the line of that epoch: `cryobackup key import` (a recovery kit, or what `cryobackup key "
                "export` wrote) or `cryobackup key recover`.",
                id="no-epoch-key",
            )
        return key.material


def read_keys(directory: pathlib.Path) -> list[Key]:
    """What the key files hold, whichever of them are there. Raises KeyFileError like ``KeyRing.load``."""
    keys: list[Key] = []
    for role, name in FILES.items():
        path = directory / name
        text = read_file(path, secret=role != "public")
        for key in parse_lines(text, str(path)) if text is not None else []:
            if FILE_OF.get(key.role) != name:
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
    by_file = {name: [key for key in sorted_keys(keys) if FILE_OF.get(key.role) == name] for name in FILES.values()}
    texts = {
        directory / name: "\n".join([COMMENTS[name], *(key.line() for key in of_file), ""])
        for name, of_file in by_file.items()
        if of_file
    }
    try:
        for path in key_files(directory):
            if path in texts:
                raise FileExistsError(None, None, str(path))
        _make_directory(directory)
        for path, text in texts.items():
            write_new(path, text, file_mode(path.name))
        sync_directory(directory)
    except FileExistsError as error:
        raise KeyFileError(
            f"{error.filename} exists already",
            hint="Keys are never overwritten: backups made with them would be lost. Move the old directory away first.",
        ) from error
    except OSError as error:
        raise KeyFileError(f"cannot write {error.filename}: {error.strerror}") from error
    return list(texts)


def sorted_keys(keys: t.Iterable[Key]) -> list[Key]:
    """In the order in which they stand in files: by epoch; the digest line, if there is one, last."""
    return sorted(keys, key=lambda key: (key.role == "digest", key.epoch))


def file_mode(name: str) -> int:
    return 0o444 if name == FILES["public"] else 0o400


COMMENTS: t.Final = {
    "catalog.key": "# CryoProtect Backup: catalog key. Secret. Needed to write and to read backups.",
    "data.pub": "# CryoProtect Backup: data public key. Not secret. Needed to write backups.",
    "data.identity": "# CryoProtect Backup: data identity. Secret. With the catalog key it reads every backup.",
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
        sync_directory(path.parent)


def sync_directory(directory: pathlib.Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_new(path: pathlib.Path, text: str, mode: int) -> None:
    """A new file, its content durable on return, its name after ``sync_directory``. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with open(descriptor, "w", encoding="utf-8", closefd=False) as file:
            file.write(text)
        os.fsync(descriptor)
        os.link(temporary, path)
    finally:
        os.close(descriptor)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def read_file(path: pathlib.Path, *, secret: bool) -> str | None:
    """None when there is no such file. Secrets must not be readable by group or others."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _cannot_read(path, error) from error
    with os.fdopen(descriptor, encoding="utf-8", errors="surrogateescape") as file:
        if secret and readable_by_others(descriptor):
            mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
            raise KeyFileError(
                f"{path} can be read by others (mode {mode:04o})",
                hint=f"chmod 0400 {path}, and think about whom it may have been read by.",
                id="key-file-mode",
            )
        return file.read()
