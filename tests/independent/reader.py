# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads a repository by docs/repository-format.md alone, and shares no code with the engine."""

from __future__ import annotations

import argparse
import base64
import functools
import hashlib
import json
import os
import struct
import sys
from pathlib import Path

import msgspec
import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, hpke
from cryptography.hazmat.primitives.asymmetric import mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

PACK, WAL, MANIFEST = 1, 2, 3
DATA, TABLE, MANIFEST_HEADER, MANIFEST_ENTRIES = 1, 2, 16, 17
DIRECTORY, LINK = 2, 3
FOREIGN, ZEROS = 1 << 31, 0xFFFFFFFF
SUITE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


def need(condition: object, message: str) -> None:
    if not condition:
        raise ValueError(message)


def hkdf(key: bytes, salt: bytes, use: str, place: bytes) -> bytes:
    return HKDF(hashes.SHA256(), 32, salt, f"cryobackup/1 {use}".encode() + place).derive(key)


def keys_of(path: Path, role: str, repository: str) -> dict[int, bytes]:
    """The keys of one role in a file, by epoch (section 5)."""
    need(path.suffix == ".pub" or not path.stat().st_mode & 0o077, f"{path} can be read by others")
    found = {}
    for line in path.read_text().splitlines():
        if line.startswith(f"cryo-{role}-1 "):
            words, check = line.rsplit(" ", 1)
            need(hashlib.sha256(words.encode()).hexdigest()[:8] == check, f"{path}: a mistyped key")
            owner, epoch, key = words.split(" ")[1:]
            need(owner == repository, f"{path}: a key of the repository {owner}, not of {repository}")
            found[int(epoch)] = base64.b64decode(key, validate=True)
    return found


class Repository:
    def __init__(self, location: Path, keys: Path) -> None:
        about = json.loads((location / "repository.json").read_text())
        need(about["format"] == "cryoprotect-backup" and about["version"] == about["suite"] == 1, "an unknown format")
        need(not about["features"]["read"], f"unknown features: {about['features']['read']}")
        self.location, self.id = location, bytes.fromhex(about["id"])
        self.catalog = keys_of(keys / "catalog.key", "catalog", about["id"])
        given = keys_of(keys / "catalog.key", "digest", about["id"])
        identity = keys_of(keys / "data.identity", "identity", about["id"])
        self.identity = {}
        for epoch, both in identity.items():
            seed, scalar = mlkem.MLKEM768PrivateKey.from_seed_bytes(both[:64]), both[64:]
            pair = (seed, x25519.X25519PrivateKey.from_private_bytes(scalar))
            self.identity[epoch] = hpke.MLKEM768X25519PrivateKey(*pair)
            known = keys_of(location / f"keys/{epoch}.pub", "public", about["id"])
            need(known[epoch] == b"".join(key.public_key().public_bytes_raw() for key in pair), "a wrong identity")
        for epoch in self.catalog:
            known = keys_of(location / f"keys/{epoch}.pub", "check", about["id"])
            need(known[epoch] == blake3(b"catalog", key=self.key("header", epoch)).digest(), "a wrong catalog key")

        self.digest = self.key("digest", 1) if 1 in self.catalog else given.get(1, b"")

    def key(self, use: str, epoch: int) -> bytes:
        need(epoch in self.catalog, f"the catalog key of epoch {epoch} is missing")
        return hkdf(self.catalog[epoch], b"", use, self.id)


class Object:
    """One container (section 6): opened, its header and frame table are authenticated."""

    def __init__(self, repository: Repository, name: str, kind: int) -> None:
        self.name, self.last = name, (-1, b"")
        self.data = data = (repository.location / name).read_bytes()
        need(len(data) > 80 and data[:12] == b"\x89CRYOBK\n\0\1\1" + bytes([kind]), f"{name} is no such object")
        start = 16 + int.from_bytes(data[12:16])
        self.tag = data[start : start + 32]
        self.header = header = msgspec.msgpack.decode(data[16:start])
        epoch, place = header["epoch"], repository.id + name.encode()
        tag = blake3(data[:start], key=repository.key("header", epoch)).digest()
        need(tag == self.tag, f"{name}: the header is damaged")
        need(header["repo"] == repository.id and header["name"] == name, f"{name} is another object")
        material, salt = repository.catalog[epoch], header.get("salt")
        if kind in (PACK, WAL):
            need(epoch in repository.identity, f"the identity of epoch {epoch} is missing")
            salt, info = material, b"cryobackup/1 seal" + place
            material = SUITE.decrypt(header["sealed"], repository.identity[epoch], info)
            need(header["commit"] == hkdf(material, salt, "commit", place), f"{name}: another key")
        self.aead = AESGCM(hkdf(material, salt, "object", place))
        table, length, self.count, magic = struct.unpack(">QII16s", data[-32:])
        need(magic == bytes(8) + b"CRYOEND\n" and table + 16 + length == len(data) - 32, f"{name}: the end is damaged")
        self.rows = list(struct.iter_unpack(">QII", self.open(table, self.count, TABLE)))
        need(len(self.rows) == self.count, f"{name}: frames are missing")
        ends = [start + 32, *(row[0] + 16 + row[1] for row in self.rows)]
        need(ends == [*(row[0] for row in self.rows), table], f"{name}: frames are not where they were")

    def open(self, offset: int, number: int, kind: int) -> bytes:
        head = self.data[offset : offset + 16]
        n, size, found, codec, zero, counted = struct.unpack(">IIBBHI", head)
        right = (found, counted, zero) == (kind, number, 0) and codec in (0, 1) and size <= 16 << 20
        need(right, f"{self.name}: frame {number} is another one")
        nonce = bytes([kind]) + bytes(7) + number.to_bytes(4)
        try:
            plain = self.aead.decrypt(nonce, self.data[offset + 16 : offset + 16 + n], self.tag + head)
        except InvalidTag:
            raise ValueError(f"{self.name}: frame {number} is damaged") from None
        if codec == 1:
            plain = zstandard.ZstdDecompressor().stream_reader(plain).read(size + 1)
        need(len(plain) == size, f"{self.name}: frame {number} has another length")
        return plain

    def frame(self, number: int, kind: int) -> bytes:
        need(number < self.count, f"{self.name} has no frame {number}")
        if self.last[0] != number:
            self.last = number, self.open(self.rows[number][0], number, kind)
        return self.last[1]


@functools.lru_cache(maxsize=4)
def pack(repository: Repository, backup: str, number: int, size: int, digest: bytes) -> Object:
    found = Object(repository, f"packs/{backup}/{number:06}.pack", PACK)
    need(len(found.data) == size and blake3(found.data).digest() == digest, f"{found.name} is another pack")
    return found


class Backup(Object):
    def __init__(self, repository: Repository, name: str) -> None:
        super().__init__(repository, name, MANIFEST)
        self.repository, self.about = repository, msgspec.msgpack.decode(self.frame(0, MANIFEST_HEADER))
        need(f"manifests/{self.about['source']}/{self.about['backup_id']}" == name, f"{name} is of another backup")
        self.own = {row[0]: (self.about["backup_id"], *row[:3]) for row in self.about["packs"]}
        frames = (self.frame(number, MANIFEST_ENTRIES) for number in range(1, self.count))
        self.entries = (entry for frame in frames for entry in msgspec.msgpack.decode(frame))

    def write(self, path: Path, size: int, extents: bytes) -> None:
        done, digest_key = 0, self.repository.digest
        with open(path, "xb") as file:
            for offset, length, place, number, start, digest in struct.iter_unpack(">QIIII16s", extents):
                need(offset == done, f"{path}: a gap at {done}")
                done += length
                if place != ZEROS:
                    row = self.own[place] if place < FOREIGN else self.about["foreign"][place - FOREIGN][:4]
                    data = pack(self.repository, *row).frame(number, DATA)[start : start + length]
                    right = digest in (bytes(16), blake3(data, key=digest_key).digest()[:16])
                    need(right and len(data) == length, f"{path}: wrong bytes at {offset}")
                    file.seek(offset)
                    file.write(data)
            need(done == size, f"{path}: ends at {done}, not at {size}")
            file.truncate(size)


def empty(directory: Path) -> Path:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    need(not os.listdir(directory), f"{directory} is not empty")
    return directory


def restore(backup: Backup, target: Path, tablespaces: dict[str, Path]) -> None:
    modes = []
    empty(target)
    for entry in backup.entries:
        (name, kind, mode, uid, gid, size), (link, extents) = entry[:6], entry[11:13]
        need(not {b"", b".", b".."} & set(name.split(b"/")), f"a path that leads elsewhere: {name!r}")
        path = target / os.fsdecode(name)
        if kind == DIRECTORY:
            path.mkdir(mode=0o700)
        elif kind == LINK and name.startswith(b"pg_tblspc/"):
            path.symlink_to(empty(tablespaces.get(path.name, Path(os.fsdecode(link)))))
        elif kind == LINK:
            path.symlink_to(os.fsdecode(link))
            continue
        elif name in (b"tablespace_map", b"standby.signal"):  # PostgreSQL is to leave the links as they are
            continue
        else:
            backup.write(path, size, extents)
        modes.append((path, mode, uid, gid))
    modes.append((target, 0o700, *modes[-1][2:]))
    for path, mode, uid, gid in reversed(modes):
        if os.geteuid() == 0:
            os.chown(path, uid, gid)
        path.chmod(mode)


def fetch_wal(repository: Repository, system: str, name: str, destination: Path) -> int:
    key = f"wal/{system}/{name[:8]}/{name}"
    if not (repository.location / key).exists():
        return 1
    found = Object(repository, key, WAL)
    data = b"".join(found.frame(number, DATA) for number in range(found.count))
    digest = blake3(data, key=repository.digest).digest()
    need((len(data), digest) == (found.header["size"], found.header["digest"]), f"{key}: wrong bytes")
    destination.write_bytes(data)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--location", type=Path, required=True, help="directory that holds the repository")
    parser.add_argument("--keys", type=Path, required=True, help="directory with catalog.key and data.identity")
    parser.add_argument("--source", default="*", help="only backups of this cluster")
    parser.add_argument("--backup", default="*", help="only the backup with this id; restore takes the newest")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="list the backups, the newest last")
    command = commands.add_parser("restore", help="write a backup's files into an empty directory")
    command.add_argument("--tablespace", nargs=2, action="append", default=[], metavar=("OID", "DIRECTORY"))
    command.add_argument("target", type=Path)
    command = commands.add_parser("wal", help="for restore_command: fetch a file of the WAL archive")
    for word, kind in (("system_identifier", str), ("name", str), ("destination", Path)):
        command.add_argument(word, type=kind)
    words = parser.parse_args()
    repository = Repository(words.location, words.keys)
    if words.command == "wal":
        return fetch_wal(repository, words.system_identifier, words.name, words.destination)
    found = sorted(words.location.glob(f"manifests/{words.source}/{words.backup}"), key=lambda path: path.name)
    need(found, "there is no such backup")
    for path in found if words.command == "list" else found[-1:]:
        backup = Backup(repository, str(path.relative_to(words.location)))
        print(*(backup.about[key] for key in ("backup_id", "source", "kind", "status", "started_at")))
        if words.command == "restore":
            restore(backup, words.target, {oid: Path(place) for oid, place in words.tablespace})
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(200)  # PostgreSQL takes codes below 126 for the end of the archive
