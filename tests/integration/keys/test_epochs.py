# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A repository of two epochs: everything restores with both, and who lacks one hears which, before anything happens."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from cryobackup.crypto.keys import KeyRing
from cryobackup.repository import container, names
from cryobackup.repository.container import BytesSource, ObjectDecoder
from tests.independent import reader, unwrap
from tests.integration.backup.lab import SOURCE
from tests.integration.restore.lab import RestoreLab
from tests.lab import Golden, Installation, Workspace, golden_dump, prove_restore, sample_data
from tests.lab.stores import fetched

from .lab import PASSPHRASE, Host, keeper_of

SEPARATE_KINDS = (("manifests", container.MANIFEST), ("packs", container.PACK), ("wal", container.WAL))


class Rotated:
    """Full in epoch 1, incremental on it in epoch 2, full in epoch 2; the writer got the new keys in between."""

    def __init__(self, lab: RestoreLab) -> None:
        self.lab = lab
        self.keeper = keeper = keeper_of(lab)
        sample_data(lab.cluster, 4)
        keeper.json("key", "recipient", "new", "alice", "--output", keeper.directory / "alice.key")
        added = keeper.json("key", "recipient", "add", "alice", "--key", keeper.directory / "alice.pub")
        self.fingerprint = added["repository_fingerprint"]
        passphrase = keeper.secret("passphrase", PASSPHRASE)
        keeper.json("key", "recipient", "add", "safe", "--passphrase-file", passphrase)
        self.first = lab.backup()["backup_id"]
        self.first_dump: Golden = golden_dump(lab.cluster)
        lab.archive_everything()
        self.position = lab.cluster.value("SELECT pg_current_wal_lsn()::text")

        keeper.json("key", "rotate")
        self.warned = lab.run("--json", "backup", SOURCE, "--type", "incremental").stdout
        self.late = json.loads(self.warned)["backup_id"]
        keeper.json("key", "export", "--writer", keeper.directory / "two")
        done = lab.run("--json", "key", "import", str(keeper.directory / "two"))
        assert json.loads(done.stdout)["changed"], done.stderr

        lab.cluster.execute("CREATE TABLE later AS SELECT n, md5(n::text) FROM generate_series(1, 5000) n")
        lab.settle()
        self.second = lab.backup("incremental")["backup_id"]
        self.third = lab.backup()["backup_id"]
        self.golden: Golden = golden_dump(lab.cluster)
        lab.archive_everything()

    def epoch_of(self, name: str, kind: int) -> int:
        data = (self.lab.locations["local"] / name).read_bytes()
        return ObjectDecoder(KeyRing.load(self.keeper.keys), kind, name, BytesSource(data)).header.epoch

    @property
    def directory(self) -> Path:
        """The location as the independent reader needs it, which reads no buckets."""
        return fetched(self.lab.locations["local"], self.lab.place("fetched"))

    def restore(self, host: Host, backup: str, name: str, *options: str | Path) -> Path:
        target = self.lab.place(name)
        host.json("restore", SOURCE, "--backup", backup, "--target", target, *options)
        return target

    def reader_of(self, name: str, *epochs: int) -> Host:
        """A host with all catalog keys, and the identities of some epochs only."""
        host = Host(self.lab, name)
        self.keeper.copy_keys_to(host)
        path = host.keys / "data.identity"
        lines = path.read_text().splitlines()
        kept = [line for line in lines if line.startswith("#") or int(line.split()[2]) in epochs]
        path.chmod(0o600)
        path.write_text("\n".join([*kept, ""]))
        path.chmod(0o400)
        return host


@pytest.fixture(scope="module")
def rotated(shared_workspace: Workspace, runtime: Path, pg: Installation) -> Rotated:
    return Rotated(RestoreLab(shared_workspace, runtime, shared_workspace.cluster(installation=pg)))


def test_objects_are_of_the_epoch_they_were_written_in(rotated: Rotated) -> None:
    epochs = {
        backup: rotated.epoch_of(names.manifest(SOURCE, backup), container.MANIFEST)
        for backup in (rotated.first, rotated.late, rotated.second, rotated.third)
    }
    assert list(epochs.values()) == [1, 1, 2, 2]
    for backup, epoch in epochs.items():
        assert rotated.epoch_of(names.pack(backup, 0), container.PACK) == epoch


def test_a_manifest_says_which_epochs_a_restore_needs(rotated: Rotated) -> None:
    needed = {
        backup: rotated.keeper.json("info", backup)["epochs_needed"]
        for backup in (rotated.first, rotated.second, rotated.third)
    }
    assert needed == {rotated.first: [1], rotated.second: [1, 2], rotated.third: [2]}


def test_the_incremental_of_the_new_epoch_lies_in_packs_of_both(rotated: Rotated) -> None:
    packs = rotated.keeper.json("info", rotated.second)["packs"]
    assert packs["of_earlier_backups"]["count"] > 0
    made = rotated.keeper.json("info", rotated.second)
    assert (made["type"], made["parent"]) == ("incremental", rotated.late)


@pytest.mark.parametrize("which", ["second", "third"])
def test_restores_with_both_epochs(rotated: Rotated, which: str) -> None:
    target = rotated.restore(rotated.keeper, getattr(rotated, which), f"both-{which}")
    prove_restore(rotated.lab.workspace, target, golden=rotated.golden)


def test_an_old_backup_restores_after_the_rotation(rotated: Rotated) -> None:
    target = rotated.restore(rotated.keeper, rotated.first, "old", "--to-lsn", rotated.position)
    prove_restore(rotated.lab.workspace, target, golden=rotated.first_dump, amcheck=False)


def test_everything_verifies(rotated: Rotated) -> None:
    assert rotated.keeper.json("verify", "--all", "--level", "content")["result"] == "ok"


def test_a_reader_of_the_new_epoch_reads_what_it_may(rotated: Rotated) -> None:
    host = rotated.reader_of("reader-two", 2)
    assert len(host.json("list")["backups"]) == 4
    target = rotated.restore(host, rotated.third, "only-two")
    prove_restore(rotated.lab.workspace, target, golden=rotated.golden, amcheck=False)


@pytest.mark.parametrize("which", ["first", "second"])
def test_a_reader_of_the_new_epoch_hears_what_it_lacks_before_anything_happens(rotated: Rotated, which: str) -> None:
    host = rotated.reader_of(f"reader-two-{which}", 2)
    target = rotated.lab.place(f"never-{which}")
    backup = getattr(rotated, which)
    error = host.error("restore", SOURCE, "--backup", backup, "--target", target)
    assert error["id"] == "no-identity"
    assert f"backup {backup} lies in packs of epoch 1" in error["message"]
    assert "is of epoch 2" in error["message"]
    assert not target.exists()


def test_a_verification_that_lacks_an_identity_calls_nothing_damaged(rotated: Rotated) -> None:
    host = rotated.reader_of("reader-verify", 2)
    before = {backup["backup_id"]: backup["verified"] for backup in host.json("list")["backups"]}
    result = host.json("verify", "--all", "--level", "content", exit_code=3)
    assert result["result"] == "incomplete"
    results = {backup["backup_id"]: backup["result"] for backup in result["backups"]}
    assert (results[rotated.first], results[rotated.second]) == ("incomplete", "incomplete")
    assert results[rotated.third] == "ok"
    assert "epoch 1" in json.dumps(result)
    verified = {backup["backup_id"]: backup["verified"] for backup in host.json("list")["backups"]}
    assert verified[rotated.first] == before[rotated.first], "what could not be looked at has not failed"
    assert verified[rotated.third] != before[rotated.third]
    assert verified[rotated.third]["result"] == "ok"


def test_a_trial_restore_that_lacks_an_identity_says_so(rotated: Rotated) -> None:
    host = rotated.reader_of("reader-trial", 2)
    result = host.json("verify", rotated.first, "--level", "restore", "--no-record", exit_code=1)
    assert "lies in packs of epoch 1" in json.dumps(result)


def test_a_reader_of_the_old_epoch_hears_what_is_newer(rotated: Rotated) -> None:
    host = Host(rotated.lab, "reader-one")
    rotated.keeper.copy_keys_to(host)
    for path in host.keys.iterdir():
        lines = [line for line in path.read_text().splitlines() if " 2 " not in line[:60]]
        path.chmod(0o600)
        path.write_text("\n".join([*lines, ""]))
        path.chmod(0o400)
    found = host.json("list", exit_code=3)
    assert [backup["backup_id"] for backup in found["backups"]] == [rotated.first, rotated.late]
    assert {item["id"] for item in found["unreadable"]} == {"unknown-epoch"}
    error = host.error("restore", SOURCE, "--backup", rotated.third, "--target", rotated.lab.place("never"))
    assert error["id"] == "unknown-epoch"
    assert "key recover" in error["hint"]
    attention = host.json("status", exit_code=3)["attention"]
    assert any("rotated to epoch 2" in text for text in attention)
    pruned = host.json("prune", exit_code=3)
    assert pruned["errors"]["local"]["id"] == "prune-blocked"
    assert "keys of epoch 2" in pruned["errors"]["local"]["message"]


def test_a_host_with_the_old_keys_is_warned_and_noticed(rotated: Rotated) -> None:
    warnings = json.loads(rotated.warned)["warnings"]
    assert any("rotated to epoch 2" in text and "key import" in text for text in warnings)
    attention = rotated.keeper.json("status")["attention"]
    assert [text for text in attention if rotated.late in text and "after epoch 2 began" in text]
    assert not [text for text in attention if rotated.first in text and "after epoch 2" in text]


def test_a_new_host_that_must_not_list_what_is_old(rotated: Rotated) -> None:
    host = Host(rotated.lab, "late-writer")
    exported = rotated.keeper.directory / "late"
    rotated.keeper.json("key", "export", "--writer", exported, "--from-epoch", "2")
    host.json("key", "import", exported)
    found = host.json("list", exit_code=3)
    assert [backup["backup_id"] for backup in found["backups"]][:2] == [rotated.second, rotated.third]
    assert len(found["unreadable"]) == 2
    assert host.json("prune", exit_code=3)["errors"]["local"]["id"] == "prune-blocked"
    made = host.json("backup", SOURCE, "--type", "incremental")
    assert (made["type"], made["parent"]) == ("incremental", rotated.third)
    target = rotated.restore(rotated.keeper, made["backup_id"], "of-late-writer")
    prove_restore(rotated.lab.workspace, target, golden=rotated.golden, amcheck=False)


# A blank machine


@pytest.mark.parametrize("how", ["passphrase", "key"])
def test_a_blank_machine_with_a_location_and_one_recipient(rotated: Rotated, how: str) -> None:
    host = Host(rotated.lab, f"blank-{how}")
    if how == "key":
        shutil.copy(rotated.keeper.directory / "alice.key", host.directory)
        rotated.lab.workspace.account.own(host.directory, recursive=True)
        words = ("alice", "--key", host.directory / "alice.key", "--fingerprint", rotated.fingerprint)
    else:
        words = ("safe", "--passphrase-file", host.secret("typed", PASSPHRASE))
    found = host.json("key", "recover", *words)
    assert found["fingerprint_compared"] is True
    assert found["repository_fingerprint"] == rotated.fingerprint
    for name in ("catalog.key", "data.identity", "data.pub"):
        assert (host.keys / name).read_text() == (rotated.keeper.keys / name).read_text()
    if how == "passphrase":
        target = rotated.restore(host, rotated.second, "from-nothing")
        prove_restore(rotated.lab.workspace, target, golden=rotated.golden, amcheck=False)


def test_a_protected_identity(rotated: Rotated) -> None:
    host = Host(rotated.lab, "protected")
    rotated.keeper.copy_keys_to(host)
    passphrase = host.secret("typed", PASSPHRASE)
    host.json("key", "protect", "--passphrase-file", passphrase)
    assert host.error("restore", SOURCE, "--target", rotated.lab.place("never"))["id"] == "identity-locked"
    assert host.error("verify", "--level", "content")["id"] == "identity-locked"
    segment = max((rotated.lab.locations["local"] / "wal").rglob("0*")).name
    fetched = host.directory / "fetched"
    error = host.error("wal-get", "--cluster", SOURCE, segment, fetched, exit_code=200)
    assert error["id"] == "identity-locked"
    assert len(host.json("list")["backups"]) >= 4
    host.json("key", "unlock", "--passphrase-file", passphrase)
    host.json("wal-get", "--cluster", SOURCE, segment, fetched)
    host.json("key", "protect", "--passphrase-file", passphrase)
    assert not (host.keys / "data.identity").exists()


# Without the program


def independent(rotated: Rotated, *words: str | Path, host: Host | None = None) -> list[str]:
    program = rotated.lab.workspace.path / "reader.py"  # the server's user may not be able to enter the checkout
    shutil.copyfile(reader.__file__, program)
    program.chmod(0o644)
    keys = (host or rotated.keeper).keys
    python = rotated.lab.runtime.parent / "python"
    places = ["--location", rotated.directory, "--keys", keys]
    return [str(word) for word in (python, "-I", program, *places, *words)]


def run_reader(rotated: Rotated, *words: str | Path, host: Host | None = None) -> Any:
    return rotated.lab.workspace.run(independent(rotated, *words, host=host), check=False)


def test_the_independent_reader_restores_from_two_epochs(rotated: Rotated) -> None:
    target = rotated.lab.place("by-reader")
    done = run_reader(rotated, "--backup", rotated.second, "restore", target)
    assert done.returncode == 0, done.stderr
    fetch = shlex.join(independent(rotated, "wal", rotated.lab.cluster.system_identifier))
    with (target / "postgresql.auto.conf").open("a") as file:
        file.write(f"restore_command = '{fetch} %f %p'\narchive_mode = off\n")
    (target / "recovery.signal").touch()
    rotated.lab.workspace.account.own(target / "recovery.signal")
    prove_restore(rotated.lab.workspace, target, golden=rotated.golden, amcheck=False)


def test_the_independent_reader_says_which_identity_it_lacks(rotated: Rotated) -> None:
    host = rotated.reader_of("reader-independent", 2)
    done = run_reader(rotated, "--backup", rotated.first, "restore", rotated.lab.place("never"), host=host)
    assert done.returncode != 0
    assert "the identity of epoch 1 is missing" in done.stderr


def test_the_independent_reader_opens_a_wrap(rotated: Rotated) -> None:
    """From the document alone: a location, a passphrase, and what is in no way of the engine."""
    wrap = max((rotated.directory / "wraps/safe").iterdir(), key=lambda path: path.name)
    keys = unwrap.keys_in_wrap(wrap, PASSPHRASE)
    catalog = (rotated.keeper.keys / "catalog.key").read_text().splitlines()
    identity = (rotated.keeper.keys / "data.identity").read_text().splitlines()
    assert set(keys) == {line for line in [*catalog, *identity] if not line.startswith("#")}
