# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every interleaving of a few that matter: one action is held up before each of its storage calls in turn.

The state machine next door looks for what nobody thought of; this looks everywhere in what somebody did.
"""

from __future__ import annotations

import itertools

import pytest

from .test_protocol_machine import CALM, PATHS, Happening, Protocol, Trouble

CALLS = 30  # more than any action makes on one backup of this size
MORE_CALLS = 60  # more than a prune makes that deletes


def happening(name: str, *, which: int = 0, flag: bool = False, hours: int = 0) -> Happening:
    return Happening(name, which, flag, frozenset(PATHS[:1]), hours)


BACKUP = happening("backup")
FULL = happening("backup", flag=True)
CHILD_OF_OLDEST = happening("begin", which=1)
WRITE, COMMIT = happening("write"), happening("commit")
PRUNE_NOW, MARK, FINISH = happening("prune", flag=True), happening("prune"), happening("prune", hours=2)
SLEEP_AND_PRUNE = happening("prune", flag=True, hours=24 * 8)
PRUNE_AGAIN = MARK  # what was due a moment ago still is


@pytest.fixture
def protocol():
    machine = Protocol()
    for what in (FULL, FULL, BACKUP):
        machine.do(what, CALM)
    assert len(machine.acknowledged) == 3
    yield machine
    machine.teardown()


def check(protocol: Protocol) -> None:
    protocol.every_backup_restores()
    protocol.acknowledged_backups_stay()
    protocol.objects_never_change()


# What may happen to the oldest backup while a child of it begins, is written, is committed.
DELETIONS = {
    "marked": (MARK,),
    "marked-then-deleted": (MARK, FINISH),
    "deleted-at-once": (PRUNE_NOW,),
    "deleted-while-its-child-slept": (SLEEP_AND_PRUNE,),
    "deleted-while-its-child-slept-in-two-phases": (happening("prune", hours=24 * 8), FINISH),
}


@pytest.mark.parametrize("meanwhile", DELETIONS.values(), ids=DELETIONS.keys())
@pytest.mark.parametrize("held_up", ["begin", "write", "commit"])
@pytest.mark.parametrize("call", range(1, CALLS))
def test_a_parent_is_deleted_under_a_backup(
    protocol: Protocol, held_up: str, call: int, meanwhile: tuple[Happening, ...]
) -> None:
    for step in (CHILD_OF_OLDEST, WRITE, COMMIT):
        protocol.do(step, Trouble(pause=call, meanwhile=meanwhile) if step.name == held_up else CALM)
        check(protocol)
    protocol.do(PRUNE_NOW, CALM)
    check(protocol)


# What a backup may do while a prune goes on.
STEPS = {
    "begins": (CHILD_OF_OLDEST,),
    "begins-and-writes": (CHILD_OF_OLDEST, WRITE),
    "is-made-whole": (CHILD_OF_OLDEST, WRITE, COMMIT),
}
PRUNES = {"at-once": ((), PRUNE_NOW), "marking": ((), MARK), "finishing-a-mark": ((MARK,), FINISH)}


@pytest.mark.parametrize("meanwhile", STEPS.values(), ids=STEPS.keys())
@pytest.mark.parametrize(("before", "prune"), PRUNES.values(), ids=PRUNES.keys())
@pytest.mark.parametrize("call", range(1, CALLS))
def test_a_backup_comes_in_the_middle_of_a_prune(
    protocol: Protocol,
    call: int,
    before: tuple[Happening, ...],
    prune: Happening,
    meanwhile: tuple[Happening, ...],
) -> None:
    for step in before:
        protocol.do(step, CALM)
    protocol.do(prune, Trouble(pause=call, meanwhile=meanwhile))
    check(protocol)
    for step in (WRITE, COMMIT, FINISH, PRUNE_NOW):
        protocol.do(step, CALM)
        check(protocol)


# Another prune finishes the mark as well, but keeps what a backup's lease holds; the backup ends.
OVERTAKEN = (CHILD_OF_OLDEST, PRUNE_AGAIN, WRITE, COMMIT)


@pytest.mark.parametrize("meanwhile", STEPS.values(), ids=STEPS.keys())
@pytest.mark.parametrize("call", range(1, MORE_CALLS))
def test_a_backup_begins_while_one_of_two_prunes_is_slow(
    protocol: Protocol, call: int, meanwhile: tuple[Happening, ...]
) -> None:
    """The slow one may have looked before any lease was there: what it deletes then stands in no mark any more."""
    protocol.do(MARK, CALM)
    protocol.do(FINISH, Trouble(pause=call, meanwhile=(*OVERTAKEN, *meanwhile)))
    check(protocol)
    for step in (WRITE, COMMIT, FINISH, PRUNE_NOW):
        protocol.do(step, CALM)
        check(protocol)


@pytest.mark.parametrize("prune", [SLEEP_AND_PRUNE, happening("prune", hours=24 * 8)], ids=["at-once", "marking"])
@pytest.mark.parametrize("call", range(1, CALLS))
def test_a_backup_wakes_up_in_the_middle_of_the_prune_that_took_it_for_dead(
    protocol: Protocol, call: int, prune: Happening
) -> None:
    protocol.do(CHILD_OF_OLDEST, CALM)
    protocol.do(WRITE, CALM)
    protocol.do(prune, Trouble(pause=call, meanwhile=(COMMIT,)))
    check(protocol)
    protocol.do(FINISH, CALM)
    check(protocol)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("crashing", [BACKUP, PRUNE_NOW], ids=["backup", "prune"])
@pytest.mark.parametrize("call", range(1, CALLS))
def test_a_crash_leaves_nothing_that_hinders(protocol: Protocol, crashing: Happening, call: int, after: bool) -> None:
    before = set(protocol.acknowledged)
    protocol.do(crashing, Trouble(crash=call, after=after))
    check(protocol)
    protocol.do(BACKUP, CALM)
    assert len(set(protocol.acknowledged) - before) >= 1, "the next backup did not succeed"
    for step in (PRUNE_NOW, SLEEP_AND_PRUNE):
        protocol.do(step, CALM)
        check(protocol)


def test_nothing_is_left_of_crashed_backups_in_the_end(protocol: Protocol) -> None:
    for call, after in itertools.product(range(1, CALLS), (False, True)):
        protocol.do(FULL, Trouble(crash=call, after=after))
    protocol.do(SLEEP_AND_PRUNE, CALM)
    protocol.do(PRUNE_NOW, CALM)
    check(protocol)
    for objects in protocol.stores.values():
        alive = {key.rsplit("/", 1)[1] for key in objects if key.startswith("manifests/")}
        used = {key.split("/")[1] for key in objects if key.startswith("packs/")}
        assert used <= {*alive, *parents_of(protocol, alive)}
        assert not [key for key in objects if key.startswith(("leases/", "marks/"))]


def parents_of(protocol: Protocol, alive: set[str]) -> set[str]:
    """Backups whose packs the living ones may still use: here, every backup that was ever acknowledged."""
    return set(protocol.acknowledged) if alive else set()
