# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A database host that cannot read what it writes: everything that it needs works, nothing that it must not do."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cryobackup.crypto import suite
from cryobackup.crypto.keys import KeyRing
from cryobackup.errors import DamageError, KeyFileError
from cryobackup.repository import container
from cryobackup.repository.container import BytesSource, ObjectDecoder
from cryobackup.repository.manifest import open_manifest
from cryobackup.repository.repository import Repository
from tests.integration.backup.lab import SOURCE
from tests.integration.restore.lab import RestoreLab
from tests.lab import Golden, Installation, Workspace, golden_dump, prove_restore, sample_data
from tests.lab.stores import objects_below

from .lab import Host, keeper_of

MARKER = "the-patient-is-called-Sebastian-Frost"


class WriteOnly:
    """The laboratory's own host only writes; ``keeper`` has all keys, elsewhere."""

    def __init__(self, lab: RestoreLab) -> None:
        self.lab = lab
        self.keeper = keeper_of(lab)
        sample_data(lab.cluster, 4)
        lab.cluster.execute("CREATE TABLE patients AS SELECT n, %s || n AS name FROM generate_series(1, 500) n", MARKER)
        self.full = lab.backup()["backup_id"]
        lab.cluster.execute("INSERT INTO patients SELECT n, %s FROM generate_series(501, 900) n", MARKER)
        lab.settle()
        self.incremental = lab.backup("incremental")["backup_id"]
        self.golden: Golden = golden_dump(lab.cluster)
        lab.archive_everything()

    @property
    def ring(self) -> KeyRing:
        return KeyRing.load(self.lab.directory / "keys")

    def result(self, *words: str, exit_code: int = 0) -> dict[str, Any]:
        done = self.lab.run("--json", *words)
        assert done.returncode == exit_code, (words, done.stdout, done.stderr)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def objects(self, prefix: str) -> list[str]:
        return [name for name in objects_below(self.lab.locations["local"]) if name.startswith(f"{prefix}/")]

    def read(self, name: str) -> bytes:
        return (self.lab.locations["local"] / name).read_bytes()


@pytest.fixture(scope="module")
def host(shared_workspace: Workspace, runtime: Path, pg: Installation) -> WriteOnly:
    return WriteOnly(RestoreLab(shared_workspace, runtime, shared_workspace.cluster(installation=pg)))


def test_it_has_what_writers_have(host: WriteOnly) -> None:
    assert sorted(os.listdir(host.lab.directory / "keys")) == ["catalog.key", "data.pub"]
    assert host.result("key", "show")["has_identity"] is False


@pytest.mark.parametrize(
    "words",
    [
        ("check",),
        ("list",),
        ("info", "--latest", SOURCE),
        ("status",),
        ("verify", "--all", "--level", "presence"),
        ("prune", "--dry-run"),
        ("prune",),
        ("init",),
        ("key", "recipient", "list"),
        ("backup", SOURCE, "--type", "incremental"),
        ("backup", SOURCE),
    ],
    ids=" ".join,
)
def test_what_works_there(host: WriteOnly, words: tuple[str, ...]) -> None:
    result = host.result(*words)
    if words[0] == "list":
        backups = {backup["backup_id"]: backup for backup in result["backups"]}
        assert {host.full, host.incremental} <= set(backups)
        assert backups[host.incremental]["parent"] == host.full
    if words[0] == "check":
        assert "read back in full" not in json.dumps(result)
        assert "no identity: this host can only write" in json.dumps(result)


@pytest.mark.parametrize(
    ("words", "exit_code"),
    [
        (("restore", SOURCE, "--target", "{place}/stolen"), 1),
        (("restore", SOURCE, "--target", "{place}/stolen", "--dry-run"), 1),
        (("wal-get", "--cluster", SOURCE, "{segment}", "{place}/stolen"), 200),
        (("verify", "--all", "--level", "content"), 1),
        (("verify", "--latest", SOURCE, "--level", "restore"), 1),
        (("key", "kit", "--output", "{place}/stolen"), 1),
        (("key", "rotate"), 1),
        (("key", "recipient", "add", "mallory", "--passphrase-file", "{passphrase}"), 1),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, tuple) else str(value),
)
def test_what_must_not_work_there(host: WriteOnly, words: tuple[str, ...], exit_code: int) -> None:
    segment = host.objects("wal")[0].rpartition("/")[2]
    secret = host.lab.directory / "passphrase"
    secret.write_text("correct horse battery staple\n")
    secret.chmod(0o600)
    host.lab.workspace.account.own(secret)
    place = host.lab.workspace.path
    filled = [word.format(place=place, segment=segment, passphrase=secret) for word in words]
    error = host.result(*filled, exit_code=exit_code)["error"]
    secret.unlink()
    assert error["id"] == "no-identity"
    assert "where the identity is kept" in error["hint"]
    assert not (place / "stolen").exists()


def test_a_restore_elsewhere(host: WriteOnly) -> None:
    target = host.lab.place("elsewhere")
    host.keeper.json("restore", SOURCE, "--backup", host.incremental, "--target", target)
    prove_restore(host.lab.workspace, target, golden=host.golden)


def test_a_verification_elsewhere(host: WriteOnly) -> None:
    assert host.keeper.json("verify", "--all", "--level", "content")["result"] == "ok"


# What a thief of the whole host can try


def everything_on(host: WriteOnly) -> Iterator[bytes]:
    """All that the host has of its own: keys, configuration, state."""
    for directory in (host.lab.directory / "keys", host.lab.directory / "state"):
        for path in sorted(directory.rglob("*")):
            if path.is_file():
                yield path.read_bytes()
    yield host.lab.config_path.read_bytes()


def secrets_in(data: bytes) -> Iterator[bytes]:
    """Every 32 bytes that stand anywhere, as they are or as base64 or hex."""
    base64s = re.findall(rb"[A-Za-z0-9+/]{43,}={0,2}", data)
    hexes = re.findall(rb"[0-9a-f]{64,}", data)
    texts = [
        data,
        *(base64.b64decode(match + b"=" * (-len(match) % 4), validate=False) for match in base64s),
        *(bytes.fromhex(match[: len(match) // 2 * 2].decode()) for match in hexes),
    ]
    for text in texts:
        for at in range(len(text) - 31):
            yield text[at : at + 32]


@pytest.mark.parametrize(("prefix", "kind"), [("packs", container.PACK), ("wal", container.WAL)])
def test_the_library_opens_no_data_object(host: WriteOnly, prefix: str, kind: int) -> None:
    ring = host.ring
    names = host.objects(prefix)
    assert names
    for name in names:
        data = host.read(name)
        decoder = ObjectDecoder(ring, kind, name, BytesSource(data))
        assert decoder.header.sealed is not None, "the header is his to read: it is authenticated by the catalog key"
        with pytest.raises(KeyFileError, match=r"data\.identity has no key"):
            decoder.table()
        with pytest.raises(KeyFileError):
            decoder.first_frame(container.DATA)


def test_no_secret_on_the_host_opens_a_data_key(host: WriteOnly) -> None:
    """Neither as the private key, nor as the data key itself: the commitment in the header tells."""
    ring = host.ring
    found = {secret for data in everything_on(host) for secret in secrets_in(data)}
    assert ring.catalog(1) in found, "the search finds what there is"
    name = host.objects("packs")[0]
    header = ObjectDecoder(ring, container.PACK, name, BytesSource(host.read(name))).header
    assert header.sealed is not None
    opened = [
        secret
        for secret in found
        if suite.commitment(secret, ring.catalog(1), ring.repository, name.encode()) == header.commit
    ]
    assert opened == []
    for private in (ring.catalog(1) * 3, ring.public(1)[:96], ring.digest_key * 3):
        with pytest.raises(DamageError):
            suite.unseal(header.sealed, private, ring.repository, name.encode())
    # With the identity it is what the header commits to: the test would notice.
    identity = KeyRing.load(host.keeper.keys).identity(1)
    data_key = suite.unseal(header.sealed, identity, ring.repository, name.encode())
    assert suite.commitment(data_key, ring.catalog(1), ring.repository, name.encode()) == header.commit
    assert data_key not in found


def test_every_object_has_a_data_key_of_its_own(host: WriteOnly) -> None:
    """What a running process leaks opens what it is writing, nothing else."""
    ring, identity = host.ring, KeyRing.load(host.keeper.keys).identity(1)
    seen = set()
    names = [
        *((name, container.PACK) for name in host.objects("packs")),
        *((n, container.WAL) for n in host.objects("wal")),
    ]
    for name, kind in names:
        header = ObjectDecoder(ring, kind, name, BytesSource(host.read(name))).header
        assert header.sealed is not None
        seen.add(suite.unseal(header.sealed, identity, ring.repository, name.encode()))
    assert len(seen) == len(names)


def test_nothing_readable_is_left_on_the_way(host: WriteOnly) -> None:
    """Spool, state, caches, temporary files of locations: neither rows nor names of files of the cluster."""
    places = [host.lab.directory, host.lab.workspace.path / "tmp"]
    files = [path for place in places for path in place.rglob("*") if path.is_file()]
    assert any("state" in str(path) for path in files)
    for path in files:
        data = path.read_bytes()
        assert MARKER.encode() not in data, path
        assert b"global/pg_control" not in data, path
        assert b"pg_filenode.map" not in data, path
    live = host.lab.cluster.data_dir
    assert any(MARKER.encode() in path.read_bytes() for path in (live / "base").rglob("*") if path.is_file())


def test_what_it_does_learn(host: WriteOnly) -> None:
    """docs/security.md says so: of old backups it reads names of files, sizes and times, not their content."""
    repository = Repository.open(host.lab.config().repository)
    manifest = open_manifest(repository.keys, repository.locations, SOURCE, host.full)
    entries = {entry.path: entry for entry in manifest.entries()}
    assert entries[b"global/pg_control"].size == 8192
    assert manifest.header.postgres is not None
    assert manifest.header.postgres.databases


def test_what_it_writes_the_keeper_trusts_as_far_as_any_writer(host: WriteOnly) -> None:
    """Its own backups are listed by the keeper with the epoch they were made in."""
    listed = host.keeper.json("list")["backups"]
    assert {backup["epoch"] for backup in listed} == {1}


def test_the_state_directory_may_be_lost(host: WriteOnly) -> None:
    """An incremental needs nothing that only this host has."""
    other = Host(host.lab, "rebuilt")
    exported = host.keeper.directory / "again"
    host.keeper.json("key", "export", "--writer", exported)
    other.json("key", "import", exported)
    made = other.json("backup", SOURCE, "--type", "incremental")
    assert made["type"] == "incremental"
    assert not (other.keys / "data.identity").exists()
