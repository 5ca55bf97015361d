# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rotation and recipients, in directories: who has what afterwards, and what an attacker of the storage gets."""

from __future__ import annotations

import dataclasses
import datetime as dt
import shutil
from pathlib import Path
from typing import Any

import pytest

from cryobackup.config import Config, LocationConfig, RepositoryConfig
from cryobackup.crypto import passphrase
from cryobackup.crypto.key_store import add_keys, changing, writer_keys
from cryobackup.crypto.keys import FILES, KeyRing, new_keys, write_keys
from cryobackup.crypto.recipients import Opener
from cryobackup.crypto.wraps import make_wrap
from cryobackup.errors import BusyError, KeyFileError, LocationError
from cryobackup.events import Silent
from cryobackup.repository import container, model, names, wraps
from cryobackup.repository.catalog import BackupRecord, Catalog
from cryobackup.repository.epochs import behind
from cryobackup.repository.keepers import (
    add_recipient,
    add_recipient_with_passphrase,
    change_passphrase,
    list_recipients,
    remove_recipient,
)
from cryobackup.repository.lease import pruning
from cryobackup.repository.model import Mark
from cryobackup.repository.recovery import recover
from cryobackup.repository.repository import Repository, init
from cryobackup.repository.rotation import STAGE, rotate
from cryobackup.repository.session import BackupSession
from cryobackup.retention_policy import Policy
from cryobackup.storage.base import put
from cryobackup.verify.ladder import verify
from cryobackup.verify.subjects import Which

NOW = dt.datetime(2026, 11, 23, 1, 2, 3, tzinfo=dt.UTC)
PASSPHRASE = "correct horse battery staple"
ALICE, BOB = Opener.generate("alice"), Opener.generate("bob")


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passphrase.lock, "__kwdefaults__", {"cost": passphrase.Cost(15, 1)})
    monkeypatch.setattr("cryobackup.crypto.wraps.lock_opener.__kwdefaults__", {"cost": passphrase.Cost(15, 1)})


class Keeper:
    """A host with all keys, two locations, and a clock."""

    def __init__(self, root: Path, keys: str = "keys") -> None:
        self.root = root
        self.config = RepositoryConfig(
            {
                "one": LocationConfig("one", "posix", path=root / "one"),
                "two": LocationConfig("two", "posix", required=False, path=root / "two"),
            },
            root / keys,
        )
        self.clock = NOW
        init(self.config, NOW)

    def now(self) -> dt.datetime:
        self.clock += dt.timedelta(seconds=1)
        return self.clock

    def rotate(self, *without: str) -> int:
        return rotate(self.config, self.now(), without=without).epoch

    def add(self, opener: Opener, **options: int) -> None:
        add_recipient(self.config, opener.name, opener.recipient, self.now(), **options)

    def states(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        _epoch, standings, _lost = list_recipients(self.config)
        return {each.name: (each.state, each.wrap.epochs if each.wrap else ()) for each in standings}

    def ring(self) -> KeyRing:
        return KeyRing.load(self.config.keys)

    def recovered(self, opener: Opener) -> KeyRing:
        return KeyRing(recover(self.config, opener.name, opener=opener).keys, "recovered")

    def objects(self, prefix: str, location: str = "one") -> list[str]:
        place = self.root / location
        return sorted(str(path.relative_to(place)) for path in (place / prefix).rglob("*") if path.is_file())


@pytest.fixture
def keeper(tmp_path: Path) -> Keeper:
    return Keeper(tmp_path)


def lines(ring: KeyRing) -> set[str]:
    return {key.line() for key in ring.keys}


def test_a_rotation_is_everywhere_before_it_is_used(keeper: Keeper) -> None:
    keeper.add(ALICE)
    assert keeper.rotate() == 2
    ring = keeper.ring()
    assert (ring.epoch, ring.epochs("identity"), ring.epochs("catalog")) == (2, {1, 2}, {1, 2})
    for location in ("one", "two"):
        assert keeper.objects("keys", location) == ["keys/1.pub", "keys/2.pub"]
        assert len(keeper.objects("wraps", location)) == 2
        ring.check_published((keeper.root / location / "keys/2.pub").read_text(), location)
    assert not (keeper.config.keys / STAGE).exists()
    assert lines(keeper.recovered(ALICE)) == lines(ring)
    assert ring.digest_key == KeyRing([key for key in ring.keys if key.epoch == 1], "old").digest_key
    assert keeper.rotate() == 3
    assert keeper.states() == {"alice": ("current", (1, 2, 3))}


def test_a_recipient_with_a_passphrase_needs_it_for_no_rotation(keeper: Keeper) -> None:
    added = add_recipient_with_passphrase(keeper.config, "safe", PASSPHRASE, keeper.now())
    keeper.rotate()
    found = recover(keeper.config, "safe", passphrase=PASSPHRASE)
    assert {key.line() for key in found.keys} == lines(keeper.ring())
    assert found.anchored
    assert found.fingerprint == added.repository_fingerprint
    with pytest.raises(KeyFileError) as caught:
        recover(keeper.config, "safe", passphrase="correct horse battery stable")
    assert caught.value.id == "wrong-passphrase"


def test_another_passphrase(keeper: Keeper) -> None:
    add_recipient_with_passphrase(keeper.config, "safe", PASSPHRASE, keeper.now())
    keeper.rotate()
    change_passphrase(keeper.config, "safe", "another passphrase altogether", keeper.now())
    assert len(keeper.objects("wraps")) == 1
    assert recover(keeper.config, "safe", passphrase="another passphrase altogether").keys
    with pytest.raises(KeyFileError) as caught:
        recover(keeper.config, "safe", passphrase=PASSPHRASE)
    assert caught.value.id == "wrong-passphrase"


def test_a_fingerprint_tells_a_false_repository(keeper: Keeper, tmp_path: Path) -> None:
    """Who writes the storage can put a whole repository of his own there, with the same id and a wrap that opens."""
    added = add_recipient(keeper.config, "alice", ALICE.recipient, keeper.now())
    mark = added.repository_fingerprint
    assert recover(keeper.config, "alice", opener=ALICE, fingerprint=mark).anchored
    assert recover(keeper.config, "alice", opener=ALICE, fingerprint=mark[:19].upper().replace("-", "")).anchored
    repository = keeper.ring().repository_id
    (tmp_path / "false").mkdir()
    write_keys(tmp_path / "false/keys", new_keys(repository))
    false = Keeper(tmp_path / "false")
    false.add(ALICE)
    assert not recover(false.config, "alice", opener=ALICE).anchored
    with pytest.raises(KeyFileError) as caught:
        recover(false.config, "alice", opener=ALICE, fingerprint=mark)
    assert caught.value.id == "wrong-key"
    for wrong in ("", "12", mark[:10], "x" * 16):
        with pytest.raises(KeyFileError, match="hex digits"):
            recover(false.config, "alice", opener=ALICE, fingerprint=wrong)


def test_left_out_and_brought_back(keeper: Keeper) -> None:
    keeper.add(ALICE)
    keeper.add(BOB)
    keeper.rotate("bob")
    assert keeper.states() == {"alice": ("current", (1, 2)), "bob": ("older", (1,))}
    assert keeper.recovered(BOB).epochs("identity") == {1}
    assert any("epoch 2 is published" in text for text in recover(keeper.config, "bob", opener=BOB).warnings)
    keeper.rotate()
    assert keeper.states()["bob"] == ("older", (1,)), "who was left out once stays out"
    keeper.add(BOB)
    assert keeper.states()["bob"] == ("current", (1, 2, 3))
    before = keeper.objects("wraps")
    keeper.add(BOB)
    assert keeper.objects("wraps") == before


def test_a_recipient_of_later_epochs_only(keeper: Keeper) -> None:
    keeper.rotate()
    keeper.add(ALICE, from_epoch=2)
    keeper.rotate()
    ring = keeper.recovered(ALICE)
    assert ring.epochs("identity") == ring.epochs("catalog") == {2, 3}
    assert ring.digest_key == keeper.ring().digest_key


def test_a_removed_recipient_put_back_by_the_storage_gets_no_new_epoch(keeper: Keeper, tmp_path: Path) -> None:
    keeper.add(ALICE)
    keeper.add(BOB)
    shutil.copytree(tmp_path / "one/wraps/bob", tmp_path / "kept")
    assert remove_recipient(keeper.config, "bob")[1] == {}
    assert "bob" not in keeper.states()
    keeper.rotate()
    shutil.copytree(tmp_path / "kept", tmp_path / "one/wraps/bob", dirs_exist_ok=True)
    assert keeper.states()["bob"] == ("older", (1,))
    keeper.rotate()
    assert keeper.states()["bob"] == ("older", (1,))
    assert keeper.recovered(BOB).epochs("identity") == {1}


def test_a_recipient_who_could_not_be_removed_everywhere(keeper: Keeper) -> None:
    """A location that was away still has his wrap: he is left out by name, and for good."""
    keeper.add(BOB)
    (keeper.root / "two").rename(keeper.root / "away")
    names, errors = remove_recipient(keeper.config, "bob")
    assert (len(names), list(errors)) == (1, ["two"])
    (keeper.root / "away").rename(keeper.root / "two")
    assert keeper.states() == {"bob": ("current", (1,))}
    keeper.rotate("bob")
    keeper.rotate()
    assert keeper.states() == {"bob": ("older", (1,))}


def test_a_thief_of_a_writer_gets_no_new_epoch(keeper: Keeper) -> None:
    """Catalog keys, public keys, and the right to write to the storage: he names himself as a recipient."""
    keeper.add(ALICE)
    mallory = Opener.generate("mallory")
    stolen = writer_keys(keeper.ring())
    invented = [key for key in new_keys(keeper.ring().repository_id) if key.role == "identity"]
    name = "wraps/mallory/20261123T010203Z-00000000"
    keys = [*(key for key in stolen if key.role == "catalog"), *invented]
    data = make_wrap(KeyRing(keys, "stolen"), name, mallory.recipient, (1,))
    for location in ("one", "two"):
        path = keeper.root / location / name
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
    assert keeper.states()["mallory"] == ("false", ())
    done = rotate(keeper.config, keeper.now())
    assert [each.name for each in done.recipients] == ["alice"]
    assert [each.name for each in done.left_out] == ["mallory"]
    assert keeper.objects("wraps/mallory") == [name]


@pytest.mark.parametrize("damage", ["empty", "large", "flipped", "foreign"])
def test_a_damaged_newest_wrap_leaves_the_older_one(keeper: Keeper, damage: str) -> None:
    keeper.add(ALICE)
    keeper.rotate()
    for location in ("one", "two"):
        path = keeper.root / location / keeper.objects("wraps")[-1]
        data = path.read_bytes()
        path.chmod(0o600)
        path.write_bytes(
            {"empty": b"", "large": data * 200, "flipped": data[:3000] + b"A" + data[3001:], "foreign": b"x" * 99}[
                damage
            ]
        )
    found = recover(keeper.config, "alice", opener=ALICE)
    assert KeyRing(found.keys, "x").epochs("identity") == {1}
    assert len(found.warnings) == 2
    assert keeper.states()["alice"] == ("older", (1,)), "the keeper sees it too"


def test_locations_complete_each_other(keeper: Keeper) -> None:
    """Each is to be complete by itself, also one that was away or is new."""
    keeper.add(ALICE)
    keeper.rotate()
    shutil.rmtree(keeper.root / "two")
    init(keeper.config, keeper.now(), new=["two"])
    for prefix in ("keys", "wraps"):
        assert keeper.objects(prefix, "two") == keeper.objects(prefix, "one")


def test_an_optional_location_that_is_away(keeper: Keeper) -> None:
    keeper.add(ALICE)
    (keeper.root / "two").rename(keeper.root / "away")
    done = rotate(keeper.config, keeper.now())
    assert list(done.errors) == ["two"]
    (keeper.root / "away").rename(keeper.root / "two")
    assert keeper.objects("keys", "two") == ["keys/1.pub"]
    init(keeper.config, keeper.now())
    for prefix in ("keys", "wraps"):
        assert keeper.objects(prefix, "two") == keeper.objects(prefix, "one")


def test_a_required_location_that_is_away(keeper: Keeper) -> None:
    before = lines(keeper.ring())
    (keeper.root / "one").rename(keeper.root / "away")
    with pytest.raises(LocationError) as caught:
        keeper.rotate()
    assert "required" not in caught.value.hint
    assert lines(keeper.ring()) == before
    assert not (keeper.config.keys / STAGE).exists()
    assert keeper.objects("keys", "two") == ["keys/1.pub"]
    (keeper.root / "away").rename(keeper.root / "one")
    assert keeper.rotate() == 2


def other_keeper(keeper: Keeper) -> Keeper:
    shutil.copytree(keeper.config.keys, keeper.root / "keys2")
    return Keeper(keeper.root, "keys2")


def test_two_keepers_one_after_the_other(keeper: Keeper) -> None:
    other = other_keeper(keeper)
    keeper.rotate()
    before = lines(other.ring())
    with pytest.raises(KeyFileError) as caught:
        other.rotate()
    assert caught.value.id == "older-epoch"
    assert lines(other.ring()) == before
    add_keys(other.config.keys, keeper.ring().keys)
    assert other.rotate() == 3


def test_two_keepers_at_once(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both see epoch 1 published, and one is faster."""
    other = other_keeper(keeper)
    real = wraps.read_wraps

    def rotated_meanwhile(*places: Any, **options: Any) -> Any:
        monkeypatch.setattr("cryobackup.repository.rotation.read_wraps", real)
        keeper.rotate()
        return real(*places, **options)

    monkeypatch.setattr("cryobackup.repository.rotation.read_wraps", rotated_meanwhile)
    with pytest.raises(KeyFileError) as caught:
        other.rotate()
    assert caught.value.id == "rotation-conflict"
    assert other.ring().epoch == 1
    assert not (other.config.keys / STAGE).exists()
    keeper.ring().check_published((keeper.root / "two/keys/2.pub").read_text(), "two")


def test_one_at_a_time_on_a_host(keeper: Keeper) -> None:
    with changing(keeper.config.keys), pytest.raises(BusyError):
        keeper.rotate()
    assert keeper.objects("keys") == ["keys/1.pub"]


def test_the_identity_is_needed(keeper: Keeper) -> None:
    (keeper.config.keys / FILES["identity"]).unlink()
    for action in (keeper.rotate, lambda: keeper.add(ALICE)):
        with pytest.raises(KeyFileError) as caught:
            action()
        assert caught.value.id == "no-identity"
    assert keeper.objects("keys") == ["keys/1.pub"]


def test_a_left_over_that_does_not_fit_is_told(keeper: Keeper) -> None:
    for keys in (new_keys("f" * 32, 2), new_keys(keeper.ring().repository_id, 7), new_keys("f" * 32)[:2]):
        (keeper.config.keys / STAGE).write_text("".join(f"{key.line()}\n" for key in keys))
        (keeper.config.keys / STAGE).chmod(0o400)
        with pytest.raises(KeyFileError, match=STAGE):
            keeper.rotate()
        (keeper.config.keys / STAGE).unlink()
    assert keeper.objects("keys") == ["keys/1.pub"]


def test_a_writer_that_has_not_heard_of_it(keeper: Keeper) -> None:
    writer = dataclasses.replace(keeper.config, keys=keeper.root / "writer")
    write_keys(writer.keys, writer_keys(keeper.ring()))
    assert behind(Repository.open(writer)) is None
    keeper.rotate()
    error = behind(Repository.open(writer))
    assert error is not None
    assert "key export" in error.hint
    add_keys(writer.keys, writer_keys(keeper.ring()))
    assert behind(Repository.open(writer)) is None


def test_a_writer_publishes_what_a_rotation_could_not(keeper: Keeper) -> None:
    keeper.rotate()
    (keeper.root / "two/keys/2.pub").unlink()
    repository = Repository.open(keeper.config)
    with BackupSession(repository, source="main", parent=None, now=keeper.now(), spool=keeper.root):
        pass
    assert keeper.objects("keys", "two") == ["keys/1.pub", "keys/2.pub"]


def test_hosts_with_newer_keys_do_not_hinder_one_with_old_keys(keeper: Keeper) -> None:
    """Their leases and marks cannot be read here: no parent is taken then, and nothing of theirs is touched."""
    old = dataclasses.replace(keeper.config, keys=keeper.root / "old")
    write_keys(old.keys, writer_keys(keeper.ring()))
    first = back_up(Repository.open(old), keeper)
    keeper.rotate()
    repository = Repository.open(keeper.config)
    mark = Mark(names.new_id(keeper.now(), b"mark"), NOW.isoformat(), manifests=[names.manifest("main", first.id)])
    data = container.encode_record(repository.keys, container.MARK, names.mark(mark.mark_id), mark)
    put(repository.locations[0], names.mark(mark.mark_id), data)
    with BackupSession(repository, source="main", parent=None, now=keeper.now(), spool=keeper.root):
        other = Repository.open(old)
        session = BackupSession(other, source="main", parent=first, now=keeper.now(), spool=keeper.root)
        with session:
            assert session.parent is None
            assert "cannot be read with the keys here" in str(session.parent_refused)
            assert len(keeper.objects("leases/main")) == 2


def test_only_prunes_with_newer_keys_hinder_one_with_old_keys(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease of theirs for a backup says nothing about the parent; one that may announce a deletion does."""
    monkeypatch.setattr("cryobackup.repository.session.PRUNE_PATIENCE_SECONDS", 0)
    old = dataclasses.replace(keeper.config, keys=keeper.root / "old")
    write_keys(old.keys, writer_keys(keeper.ring()))
    first = back_up(Repository.open(old), keeper)
    keeper.rotate()
    repository = Repository.open(keeper.config)

    def refusal() -> str | None:
        other = Repository.open(old)
        with BackupSession(other, source="main", parent=first, now=keeper.now(), spool=keeper.root) as session:
            return session.parent_refused

    with BackupSession(repository, source="main", parent=None, now=keeper.now(), spool=keeper.root):
        assert refusal() is None
        with pruning(repository.keys, repository.locations[0]):
            assert "cannot be read with the keys here" in str(refusal())


def back_up(repository: Repository, keeper: Keeper) -> BackupRecord:
    now = keeper.now()
    with BackupSession(repository, source="main", parent=None, now=now, spool=keeper.root) as session:
        words = ("main", "full", None, "ok", "", now.isoformat(), now.isoformat(), "host", "0.1.0", None)
        session.commit(model.BackupHeader(session.backup_id, *words, {}, model.Totals()))
    (record,) = Catalog.load(repository).backups
    return record


def test_who_takes_no_part(keeper: Keeper) -> None:
    with pytest.raises(KeyFileError) as caught:
        keeper.rotate("nobody")
    assert caught.value.id == "unknown-recipient"
    with pytest.raises(KeyFileError) as caught:
        remove_recipient(keeper.config, "nobody")
    assert caught.value.id == "unknown-recipient"
    with pytest.raises(KeyFileError) as caught:
        recover(keeper.config, "nobody", opener=ALICE)
    assert caught.value.id == "unknown-recipient"
    keeper.add(ALICE)
    with pytest.raises(KeyFileError) as caught:
        keeper.add(Opener.generate("alice"))
    assert caught.value.id == "recipient-exists"
    with pytest.raises(KeyFileError) as caught:
        add_recipient_with_passphrase(keeper.config, "alice", PASSPHRASE, keeper.now())
    assert caught.value.id == "recipient-exists"
    with pytest.raises(KeyFileError) as caught:
        add_recipient(keeper.config, "carol", ALICE.recipient, keeper.now())
    assert caught.value.id == "recipient-name"
    with pytest.raises(KeyFileError) as caught:
        recover(keeper.config, "alice", opener=Opener.generate("alice"))
    assert caught.value.id == "wrong-recipient-key"


@pytest.mark.parametrize("identity", [True, False])
def test_a_verification_looks_at_wraps(keeper: Keeper, identity: bool) -> None:
    """They may be all that brings the keys back: damage is found while there are others."""
    keeper.add(ALICE)
    back_up(Repository.open(keeper.config), keeper)
    config = Config(keeper.root / "config.yml", keeper.config, Policy({}), state_directory=keeper.root / "state")
    if not identity:
        (keeper.config.keys / FILES["identity"]).unlink()

    def findings() -> list[tuple[str, str]]:
        report = verify(config, which=Which(all=True), level="presence", reporter=Silent(), record=False)
        return [(finding.severity, finding.object) for finding in report.others]

    assert findings() == []
    (name,) = keeper.objects("wraps")
    path = keeper.root / "two" / name
    data = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(data[:-60] + data[-60:-50].swapcase() + data[-50:])
    assert findings() == [("damage", name)]
    path.write_bytes(make_wrap(KeyRing(new_keys(keeper.ring().repository_id), "other"), name, ALICE.recipient, (1,)))
    assert findings() == ([("damage", name)] if identity else []), "a proof takes the identity to check"
