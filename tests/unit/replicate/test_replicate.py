# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What replication brings, what it refuses to bring, and what it mends: three directories, a small repository."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import os
import shutil
from pathlib import Path

import pytest

from cryobackup.config import Config
from cryobackup.errors import ConfigError, RepositoryError
from cryobackup.events import Silent
from cryobackup.postgres.archive_backlog import note_missing, read_backlog
from cryobackup.replicate import backup as backup_module
from cryobackup.replicate.delivery import Options
from cryobackup.replicate.result import ReplicateResult
from cryobackup.replicate.run import replicate
from cryobackup.replicate.wanted import Which
from cryobackup.repository import names
from cryobackup.repository.catalog import Catalog, write_note
from cryobackup.repository.lease import lease_held, new_lease
from cryobackup.repository.model import PIN, PRUNING, REPLICATING, Note, pack_names
from cryobackup.retention_policy import Policy, Rule
from cryobackup.storage.posix import PosixLocation
from tests.faults.small_repository import SEGMENT_SIZE, START, SYSTEM, SmallRepository, sample, two_backups

FIRST, SECOND = 2 * SEGMENT_SIZE + 40, 3 * SEGMENT_SIZE + 40
BOTH = ("here", "there")


class Site:
    """Two backups and their WAL in "here"; "there" and "far" are new, and empty."""

    def __init__(self, directory: Path) -> None:
        self.made: SmallRepository = two_backups(directory, ("here", "there", "far"))
        self.config = self.made.config
        self.lose("there")
        self.lose("far")

    def lose(self, name: str) -> None:
        for part in ("packs", "manifests", "wal", "notes"):
            shutil.rmtree(self.path(name) / part, ignore_errors=True)

    def path(self, name: str) -> Path:
        path = self.made.paths[name]
        assert isinstance(path, Path)
        return path

    def objects(self, name: str) -> dict[str, bytes]:
        root = self.path(name)
        files = [path for path in root.rglob("*") if path.is_file()]
        return {str(path.relative_to(root)): path.read_bytes() for path in files if ".tmp" not in path.parts}

    def run(self, which: Which | None = None, **options: object) -> ReplicateResult:
        return replicate(
            self.config,
            which=which,
            options=Options(**options),  # type: ignore[arg-type]
            reporter=Silent(),
            clock=lambda: START + dt.timedelta(hours=1),
        )

    def restores_from(self, name: str) -> None:
        """Every backup, from that location alone."""
        repository = self.made.open()
        repository.locations[:] = [place for place in repository.locations if place.name == name]
        backups = Catalog.load(repository).backups
        assert [backup.id for backup in backups] == list(self.made.content)
        for backup in backups:
            assert self.made.restored(repository, backup) == self.made.content[backup.id]

    def damage(self, name: str, key: str) -> None:
        path = self.path(name) / key
        path.chmod(0o600)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    @property
    def ids(self) -> list[str]:
        return list(self.made.content)

    def pack(self, backup_id: str) -> str:
        return names.pack(backup_id, 0)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_every_location_gets_everything(site: Site) -> None:
    result = site.run()
    assert (result.exit_code, result.complete, result.changed, result.problems) == (0, True, True, [])
    assert site.objects("there") == site.objects("far") == site.objects("here")
    for name in ("there", "far"):
        brought = result.locations[name]
        assert brought.backups == list(reversed(site.ids)), "the newest comes first"
        assert (brought.packs, brought.wal) == (2, 2)
        site.restores_from(name)
    assert not result.locations["here"].changed
    assert list(result.read) == ["here"]


def test_the_second_time_there_is_nothing_to_do(site: Site) -> None:
    site.run()
    result = site.run()
    assert (result.exit_code, result.changed, result.read) == (0, False, {})


def test_dry_run_says_what_would_be_done(site: Site) -> None:
    before = site.objects("there")
    predicted = site.run(dry_run=True)
    assert site.objects("there") == before
    done = site.run()
    for name in ("there", "far"):
        would, did = predicted.locations[name], done.locations[name]
        assert (would.backups, would.packs, would.wal) == (did.backups, did.packs, did.wal)


def test_from_and_to(site: Site) -> None:
    result = site.run(sources=("here",), destinations=("far",))
    assert list(result.locations) == ["far"]
    assert "manifests" not in {key.split("/")[0] for key in site.objects("there")}
    result = site.run(sources=("far",), destinations=("there",))
    assert list(result.read) == ["far"]
    site.restores_from("there")


@pytest.mark.parametrize("options", [{"sources": ("nowhere",)}, {"destinations": ("nowhere",)}])
def test_an_unknown_location(site: Site, options: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as raised:
        site.run(**options)
    assert raised.value.id == "unknown-location"


def test_nothing_to_itself(site: Site) -> None:
    with pytest.raises(ConfigError):
        site.run(sources=("here",), destinations=("here",))


def test_one_backup_with_what_it_needs(site: Site) -> None:
    """An incremental brings the packs of its parent along, and not the parent."""
    result = site.run(Which((site.ids[1],)), destinations=("there",))
    assert result.locations["there"].backups == [site.ids[1]]
    keys = site.objects("there")
    assert [key for key in keys if key.startswith("manifests/")] == [names.manifest("main", site.ids[1])]
    assert {site.pack(each) for each in site.ids} <= set(keys)
    assert sum(key.startswith("wal/") for key in keys) == 1


def test_one_backup_and_all_later_wal(site: Site) -> None:
    site.made.push_wal(9 * SEGMENT_SIZE)
    site.lose("there")
    site.run(Which((site.ids[0],), wal="all"), destinations=("there",))
    assert sum(key.startswith("wal/") for key in site.objects("there")) == 3


def test_the_latest_of_a_source(site: Site) -> None:
    result = site.run(Which(latest="main"), destinations=("there",))
    assert result.locations["there"].backups == [site.ids[1]]
    with pytest.raises(RepositoryError) as raised:
        site.run(Which(latest="nobody"))
    assert raised.value.id == "no-such-backup"


def test_wal_only(site: Site) -> None:
    result = site.run(Which(wal="only"), destinations=("there",))
    brought = result.locations["there"]
    assert (brought.backups, brought.packs, brought.wal) == ([], 0, 2)


@pytest.mark.parametrize(
    "which", [{"backups": ("x",), "latest": "main"}, {"latest": "main", "all": True}, {"latest": "main", "wal": "only"}]
)
def test_requests_that_make_no_sense(which: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Which(**which)  # type: ignore[arg-type]


def test_what_retention_drops_is_not_brought_back(tmp_path: Path) -> None:
    made = SmallRepository(tmp_path, BOTH)
    policy = Policy({"full": Rule(keep_last=1)}, minimum=1)
    made.config = _with(made, policy)
    for number in range(3):
        made.push_wal(FIRST + number * SEGMENT_SIZE)
        made.backup(sample(), start_lsn=FIRST + number * SEGMENT_SIZE)
    shutil.rmtree(tmp_path / "there" / "manifests")
    shutil.rmtree(tmp_path / "there" / "wal")
    result = replicate(made.config, reporter=Silent(), clock=made.now)
    assert result.locations["there"].backups == [list(made.content)[2]]
    assert result.locations["there"].wal == 1
    everything = replicate(made.config, which=Which(all=True), reporter=Silent(), clock=made.now)
    assert len(everything.locations["there"].backups) == 2
    assert everything.locations["there"].wal == 2


def _with(made: SmallRepository, policy: Policy) -> Config:
    return dataclasses.replace(made.config, retention=policy)


def test_notes_and_keys_come_along(site: Site) -> None:
    repository = site.made.open()
    repository.locations[:] = [place for place in repository.locations if place.name == "here"]
    write_note(
        repository, Note(site.ids[0], "main", PIN, START.isoformat(), {"reason": "x"}), names.new_id(START, b"abcd")
    )
    (site.path("there") / "keys/1.pub").unlink()
    site.run()
    assert site.objects("there") == site.objects("here")
    write_note(repository, Note(site.ids[1], "main", PIN, START.isoformat(), {}), names.new_id(START, b"efgh"))
    result = site.run()
    assert [brought.notes for brought in result.locations.values()] == [0, 1, 1]


def test_a_damaged_pack_at_the_source_is_taken_from_the_next(site: Site) -> None:
    site.run(destinations=("there",))
    site.damage("here", site.pack(site.ids[0]))
    result = site.run(destinations=("far",))
    assert result.exit_code == 3
    [problem] = result.problems
    assert (problem.location, problem.object) == ("here", site.pack(site.ids[0]))
    assert "--repair" in problem.error.hint
    site.restores_from("far")


def test_what_nobody_has_undamaged_is_named_and_the_rest_goes_on(site: Site) -> None:
    other = site.made.backup(sample(), start_lsn=SECOND)
    site.lose("there")
    site.lose("far")
    site.damage("here", site.pack(site.ids[0]))
    result = site.run()
    assert result.exit_code == 3
    for name in ("there", "far"):
        assert result.locations[name].backups == [other.id]
        named = {(problem.object, problem.backup) for problem in result.problems if problem.location == name}
        # The incremental lies in the damaged pack, too.
        assert named == {(site.pack(site.ids[0]), site.ids[0]), (site.pack(site.ids[0]), site.ids[1])}
    assert {problem.error.id for problem in result.problems if problem.location != "here"} == {"replicate-no-source"}


@pytest.mark.parametrize("kind", ["manifests/", "wal/"])
def test_a_damaged_manifest_or_segment_is_not_passed_on(site: Site, kind: str) -> None:
    key = next(key for key in sorted(site.objects("here")) if key.startswith(kind))
    site.damage("here", key)
    result = site.run()
    assert result.exit_code == 3
    assert key not in site.objects("there")
    assert site.ids[0] not in result.locations["there"].backups


def test_without_the_identity(site: Site) -> None:
    (site.config.repository.keys / "data.identity").unlink()
    assert site.run().exit_code == 0
    assert site.objects("there") == site.objects("here")


@pytest.mark.parametrize("kind", ["packs/", "manifests/", "wal/"])
def test_repair(site: Site, kind: str) -> None:
    site.run()
    good = site.objects("there")
    for key in good:
        if key.startswith(kind):
            site.damage("there", key)
    assert site.run(destinations=("there",)).changed is False, "the size is right"
    result = site.run(repair=True)
    assert (result.exit_code, result.problems) == (0, [])
    assert sorted(result.locations["there"].repaired) == sorted(key for key in good if key.startswith(kind))
    assert site.objects("there") == good
    site.restores_from("there")


def test_what_was_cut_off_is_shown_and_repaired(site: Site) -> None:
    site.run()
    key = site.pack(site.ids[0])
    path = site.path("there") / key
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1])
    result = site.run()
    assert result.exit_code == 3
    assert {problem.object for problem in result.problems} == {key}
    assert site.run(repair=True).exit_code == 0
    site.restores_from("there")


def test_repair_deletes_nothing_when_there_is_nothing_better(site: Site) -> None:
    site.run()
    key = site.pack(site.ids[1])
    for name in ("here", "there", "far"):
        site.damage(name, key)
    before = {name: site.objects(name)[key] for name in ("here", "there", "far")}
    result = site.run(repair=True)
    assert result.exit_code == 3
    assert {name: site.objects(name)[key] for name in before} == before


@pytest.mark.parametrize("others", [(), ("there", "far")], ids=["no-other-location", "others-lack-the-backup"])
def test_damage_that_no_other_location_can_mend_is_told(site: Site, others: tuple[str, ...]) -> None:
    locations = site.config.repository.locations
    only = {name: locations[name] for name in ("here", *others)}
    site.config = dataclasses.replace(
        site.config, repository=dataclasses.replace(site.config.repository, locations=only)
    )
    site.damage("here", site.pack(site.ids[1]))
    result = site.run(repair=True, destinations=("here",))
    assert result.exit_code == 3
    assert [(problem.object, problem.backup) for problem in result.problems] == [(site.pack(site.ids[1]), site.ids[1])]


def test_a_quota_holds_back_backups_and_no_wal(site: Site) -> None:
    def limit(quota: int) -> None:
        locations = site.config.repository.locations
        limited = {**locations, "there": dataclasses.replace(locations["there"], quota=quota)}
        repository = dataclasses.replace(site.config.repository, locations=limited)
        site.config = dataclasses.replace(site.config, repository=repository)

    limit(100)
    result = site.run()
    assert result.exit_code == 3
    there = result.locations["there"]
    assert (there.backups, there.packs, there.wal) == ([], 0, 2)
    assert {(problem.location, problem.error.id) for problem in result.problems} == {("there", "location-full")}
    assert result.locations["far"].backups == list(reversed(site.ids))
    limit(1 << 30)
    assert site.run().exit_code == 0
    site.restores_from("there")


def test_a_named_backup_that_is_not_where_it_is_read_from(site: Site) -> None:
    which = Which((site.ids[1],))
    assert site.run(which, sources=("far",), destinations=("here",)).problems == [], "it is there already"
    result = site.run(which, sources=("far",), destinations=("there",))
    assert result.exit_code == 3
    [problem] = result.problems
    assert (problem.location, problem.backup, problem.error.id) == ("there", site.ids[1], "replicate-no-source")
    assert "it is in here" in problem.error.message


def test_an_object_that_is_missing_comes_back(site: Site) -> None:
    site.run()
    (site.path("there") / site.pack(site.ids[0])).unlink()
    result = site.run()
    assert result.exit_code == 0
    assert result.locations["there"].packs == 1
    assert set(result.locations["there"].completed) <= set(site.ids)
    site.restores_from("there")


def test_two_uploads_of_one_segment_are_the_same(site: Site) -> None:
    """Each has a key of its own, so that the objects differ."""
    site.run()
    keys = [key for key in site.objects("there") if key.startswith("wal/")]
    shutil.rmtree(site.path("here") / "wal")
    shutil.rmtree(site.path("far") / "wal")
    moved = site.path("there") / "wal"
    moved.rename(site.path("there") / ".aside")
    site.made.push_wal(FIRST)
    site.made.push_wal(SECOND)
    shutil.rmtree(moved)
    (site.path("there") / ".aside").rename(moved)
    assert any(site.objects("there")[key] != site.objects("here")[key] for key in keys)
    result = site.run(repair=True)
    assert (result.exit_code, result.changed) == (0, False)


def test_two_histories_are_reported_and_left_alone(site: Site) -> None:
    site.run()
    key = min(key for key in site.objects("there") if key.startswith("wal/"))
    shutil.rmtree(site.path("there") / "wal")
    for name in ("here", "far"):
        (site.path(name) / "wal").rename(site.path(name) / ".aside")
    site.made.push_wal(FIRST, b"another history" * 70000)
    for name in ("here", "far"):
        shutil.rmtree(site.path(name) / "wal")
        (site.path(name) / ".aside").rename(site.path(name) / "wal")
    before = site.objects("there")[key]
    result = site.run(repair=True, destinations=("there",))
    assert result.exit_code == 3
    assert [problem.error.id for problem in result.problems if problem.object == key][:1] == ["object-conflict"]
    assert site.objects("there")[key] == before


def test_a_location_that_is_away(site: Site) -> None:
    site.path("far").rename(site.path("far").with_name("away"))
    result = site.run()
    assert result.exit_code == 3
    assert result.locations["far"].error is not None
    assert result.locations["there"].error is None
    site.restores_from("there")


class TestLeaseOfABackup:
    """``there`` has a lease of the run that makes, or made, the newest backup; ``here`` has its manifest."""

    @pytest.fixture(autouse=True)
    def _prepare(self, site: Site) -> None:
        self.repository = site.made.open()
        lease = new_lease("main", site.ids[1], None, START)
        self.lease = dataclasses.replace(lease, host="another", boot_id="its boot")
        self.held = contextlib.ExitStack()

    def hold(self, *places: str) -> None:
        for place in self.repository.locations:
            if place.name in places:
                self.held.enter_context(lease_held(self.repository.keys, place, self.lease))

    def test_while_it_is_made_it_is_left_to_its_run(self, site: Site) -> None:
        self.hold("here", "there")
        result = site.run(destinations=("there",), patience=0.0)
        assert result.locations["there"].backups == [site.ids[0]]
        assert result.exit_code == 3, "it is not there"
        [problem] = result.problems
        assert (problem.backup, problem.error.id) == (site.ids[1], "replicate-being-made")
        self.held.close()
        assert site.run(destinations=("there",)).locations["there"].backups == [site.ids[1]]

    def test_it_is_waited_for_a_little(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hold("here", "there")
        monkeypatch.setattr(backup_module, "_PAUSE_SECONDS", 0.01)
        monkeypatch.setattr(backup_module.time, "sleep", lambda _seconds: self.held.close())
        result = site.run(destinations=("there",))
        assert (result.exit_code, result.locations["there"].backups) == (0, list(reversed(site.ids)))

    def test_one_that_the_location_kept_when_it_failed_in_that_run(self, site: Site) -> None:
        """From another host, which cannot see whether that process is gone."""
        self.hold("there")
        result = site.run(destinations=("there",))
        assert (result.exit_code, result.locations["there"].backups) == (0, list(reversed(site.ids)))

    def test_those_of_a_host_that_may_not_delete(self, site: Site) -> None:
        self.hold("here", "there")
        path = site.path("here") / names.manifest("main", site.ids[1])
        old = path.stat().st_mtime - 3700
        os.utime(path, (old, old))
        result = site.run(destinations=("there",))
        assert (result.exit_code, result.locations["there"].backups) == (0, list(reversed(site.ids)))

    def test_a_damaged_lease_of_another_backup_stops_nothing(self, site: Site) -> None:
        path = site.path("there") / "leases/main/20260101T000000Z-00000000"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no lease at all")
        assert site.run(destinations=("there",)).exit_code == 0
        site.restores_from("there")


def test_while_a_prune_deletes_nothing_is_brought(site: Site) -> None:
    repository = site.made.open()
    there = next(place for place in repository.locations if place.name == "there")
    lease = new_lease("prune", names.new_id(START, b"abcd"), None, START, purpose=PRUNING)
    with lease_held(repository.keys, there, lease):
        result = site.run(patience=0.0)
    error = result.locations["there"].error
    assert error is not None
    assert error.id == "replicate-pruning"
    assert result.locations["far"].error is None
    assert result.exit_code == 3


def test_leases_name_what_they_hold_and_are_given_back(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from cryobackup.replicate import backup

    seen = []

    def held(keys, location, lease):
        seen.append((location.name, lease))
        return lease_held(keys, location, lease)

    monkeypatch.setattr(backup, "lease_held", held)
    site.run(Which((site.ids[1],)), destinations=("there",))
    assert [name for name, _unused in seen] == ["there", "here"]
    lease = seen[0][1]
    assert (lease.purpose, lease.parent, lease.packs, lease.wal) == (
        REPLICATING, site.ids[1], sorted(site.ids), [str(SYSTEM)],
    )  # fmt: skip
    for name in BOTH:
        assert not [key for key in site.objects(name) if key.startswith("leases/")]


def test_what_wal_push_noted_as_owed_is_settled(site: Site) -> None:
    name = next(key for key in site.objects("here") if key.startswith("wal/")).rsplit("/", 1)[1]
    note_missing(site.config.state_directory, "there", SYSTEM, name)
    site.run()
    assert read_backlog(site.config.state_directory) == {}


def test_what_is_nowhere_any_more_is_not_owed(site: Site) -> None:
    """Retention removed it everywhere before the location came back."""
    state = site.config.state_directory
    note_missing(state, "there", SYSTEM, "0" * 7 + "1" + "0" * 16)
    site.path("far").rename(site.path("far").with_name("away"))
    site.run()
    assert "there" in read_backlog(state), "far may have it"
    site.path("far").with_name("away").rename(site.path("far"))
    site.run()
    assert read_backlog(state) == {}


def test_what_a_killed_run_left_is_durable_before_a_manifest_relies_on_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been killed between giving a name and making the name durable."""
    confirmed = []
    monkeypatch.setattr(PosixLocation, "confirm", lambda self, key: confirmed.append((self.name, key)))
    site.run(destinations=("there",))
    assert confirmed == []
    shutil.rmtree(site.path("there") / "manifests")
    site.run(destinations=("there",))
    left = [key for key in site.objects("there") if key.startswith(("packs/", "wal/"))]
    assert sorted(confirmed) == sorted(("there", key) for key in left)


def test_large_objects_wait_in_a_file(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from cryobackup.replicate import objects

    monkeypatch.setattr(objects, "_IN_MEMORY_BYTES", 100)
    monkeypatch.setattr(objects, "CHUNK_BYTES", 1000)
    assert site.run().exit_code == 0
    assert site.objects("there") == site.objects("here")
    assert site.run(repair=True).exit_code == 0


def test_pieces_end_with_a_byte_too_many() -> None:
    from cryobackup.replicate.objects import CHUNK_BYTES, pieces

    assert list(pieces(0)) == [(0, 1)]
    assert list(pieces(5)) == [(0, 6)]
    assert list(pieces(CHUNK_BYTES)) == [(0, CHUNK_BYTES + 1)]
    assert list(pieces(CHUNK_BYTES + 1)) == [(0, CHUNK_BYTES), (CHUNK_BYTES, 2)]


def test_packs_of_a_backup_are_counted_by_its_header(site: Site) -> None:
    backup = Catalog.load(site.made.open()).find(site.ids[1])
    assert set(pack_names(backup.header)) == {site.pack(each) for each in site.ids}
