# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The repository of ``golden/`` after a rotation, with recipients: every later version must read and open it.

``golden_epochs/`` was made once of ``golden/`` by running this file; it is never made again for version 1.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import pathlib
import shutil
import sys
import tempfile

import pytest

from cryobackup.crypto.key_store import writer_keys
from cryobackup.crypto.keys import KeyRing, read_keys, write_keys
from cryobackup.crypto.protection import protect, unlock_identity
from cryobackup.crypto.recipients import Opener, read_opener, write_opener
from cryobackup.repository import extents as xt
from cryobackup.repository import model
from cryobackup.repository.catalog import Catalog
from cryobackup.repository.epochs import need_identities
from cryobackup.repository.keepers import add_recipient, add_recipient_with_passphrase, list_recipients
from cryobackup.repository.recovery import recover
from cryobackup.repository.repository import Repository
from cryobackup.repository.rotation import rotate
from cryobackup.repository.session import BackupSession
from tests.independent import reader

from .test_golden import GOLDEN, NOW, SECOND, config, content

EPOCHS = pathlib.Path(__file__).with_name("golden_epochs")
PASSPHRASE = "das längste Wort im Wörterbuch"
THIRD = SECOND | {b"PG_VERSION": b"18\n"}


@pytest.fixture
def root(tmp_path):
    shutil.copytree(EPOCHS, tmp_path / "golden")
    for path in (tmp_path / "golden").rglob("*"):
        if path.is_file() and path.parent.name.startswith(("keys", "locked", "late", "alice")):
            path.chmod(0o400)
    return tmp_path / "golden"


def test_backups_of_both_epochs_read_as_ever(root):
    repository = Repository.open(config(root), need_identity=True)
    catalog = Catalog.load(repository)
    assert not catalog.broken
    assert [backup.epoch for backup in catalog.backups] == [1, 1, 2]
    assert [backup.header.epochs_needed for backup in catalog.backups] == [{1}, {1}, {1, 2}]
    assert content(repository, catalog.backups[1].id) == SECOND
    assert content(repository, catalog.backups[2].id) == THIRD


@pytest.mark.parametrize("who", ["alice", "safe"])
def test_wraps_open_as_ever(root, who):
    keys = {key.line() for key in read_keys(root / "keys")}
    opener = read_opener(root / "alice/alice.key") if who == "alice" else None
    found = recover(config(root), who, opener=opener, passphrase=PASSPHRASE)
    assert {key.line() for key in found.keys} == keys
    assert found.anchored == (who == "safe")
    _epoch, standings, _lost = list_recipients(config(root))
    assert {each.name: each.state for each in standings} == {"alice": "current", "safe": "current"}


def test_a_locked_identity_opens_as_ever(root):
    unlock_identity(root / "locked", PASSPHRASE)
    opened, plain = (KeyRing.load(root / name, need_identity=True) for name in ("locked", "keys"))
    assert opened.keys == plain.keys


def test_a_writer_without_the_first_catalog_key_writes_digests_as_ever(root):
    late = dataclasses.replace(config(root), keys=root / "late")
    ring = KeyRing.load(late.keys)
    assert ring.epochs("catalog") == {2}
    assert ring.digest_key == KeyRing.load(root / "keys").digest_key
    catalog = Catalog.load(Repository.open(late))
    assert ([backup.epoch for backup in catalog.backups], len(catalog.broken)) == ([2], 2)
    with pytest.raises(Exception, match="packs of epoch 1, 2"):
        need_identities(ring, catalog.backups[0])


def test_the_independent_reader_takes_the_digest_key_from_its_line(root):
    lines = (root / "keys/data.identity").read_text().splitlines()
    (root / "late/data.identity").write_text(f"{lines[-1]}\n")
    (root / "late/data.identity").chmod(0o400)
    found = reader.Repository(root / "store", root / "late")
    assert (set(found.catalog), set(found.identity)) == ({2}, {2})
    assert found.digest == KeyRing.load(root / "keys").digest_key


def make(root: pathlib.Path) -> None:
    shutil.copytree(GOLDEN, root, dirs_exist_ok=True)
    for path in (root / "keys").iterdir():
        path.chmod(0o400)
    opener = Opener.generate("alice")
    (root / "alice").mkdir()
    write_opener(opener, root / "alice/alice.key", root / "alice/alice.pub")
    add_recipient(config(root), "alice", opener.recipient, NOW)
    add_recipient_with_passphrase(config(root), "safe", PASSPHRASE, NOW)
    rotate(config(root), NOW + dt.timedelta(days=1))
    shutil.copytree(root / "keys", root / "locked")
    protect(root / "locked", PASSPHRASE)
    write_keys(root / "late", writer_keys(KeyRing.load(root / "keys"), 2))
    back_up(Repository.open(config(root)), NOW + dt.timedelta(days=2))


def back_up(repository: Repository, now: dt.datetime) -> None:
    parent = Catalog.load(repository).backups[-1]
    with (
        tempfile.TemporaryDirectory() as spool,
        BackupSession(repository, source="main", parent=parent, now=now, spool=pathlib.Path(spool)) as session,
    ):
        old = {entry.path: entry for entry in session.parent_manifest().entries()}
        sink = session.packs.sink()
        for path in sorted(THIRD, key=model.sort_key):
            if THIRD[path] == SECOND[path]:
                extents = session.refer(xt.unpack(old[path].extents))
            else:
                extents = xt.build([(0, len(THIRD[path]), *sink.store(THIRD[path]), 0, bytes(16))])
            session.add(model.Entry(path, model.FILE, 0o600, 0, 0, len(THIRD[path])), extents)
        sink.close()
        stamp = now.isoformat()
        words = ("main", "incremental", parent.id, "ok", "drittes Backup", stamp, stamp, "host", "0.2.0")
        header = model.BackupHeader(session.backup_id, *words, None, {}, model.Totals(files=len(THIRD)))
        session.commit(header)


if __name__ == "__main__":
    make(pathlib.Path(sys.argv[1]))
