# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Replication held up, and crashed, at each of its storage calls in turn, beside everything else that may happen."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest

from .test_protocol_interleavings import (
    BACKUP,
    CHILD_OF_OLDEST,
    COMMIT,
    FINISH,
    FULL,
    MARK,
    PRUNE_NOW,
    SLEEP_AND_PRUNE,
    WRITE,
    check,
    happening,
)
from .test_protocol_machine import CALM, Protocol, Trouble

REPLICATE, ALL = happening("replicate"), happening("replicate", flag=True)
REPAIR = happening("replicate", which=1)
SLEEP_AND_MARK = happening("prune", hours=24 * 8)
CALLS = range(1, 90)  # more than a replication of three backups makes
SOME = range(1, 90, 4)


def prepared() -> Protocol:
    """Three backups in location "one"; "two" was lost and begins anew."""
    machine = Protocol()
    for what in (FULL, FULL, BACKUP):
        machine.do(what, CALM)
    machine.lose("two")
    return machine


@pytest.fixture
def protocol() -> Iterator[Protocol]:
    machine = prepared()
    yield machine
    machine.teardown()


def healed(protocol: Protocol) -> None:
    """In the end each location has what retention keeps, and nothing is left of what was tried before."""
    protocol.do(SLEEP_AND_PRUNE, CALM)
    protocol.do(REPLICATE, CALM)
    check(protocol)
    protocol.do(PRUNE_NOW, CALM)
    check(protocol)
    manifests = [{key for key in objects if key.startswith("manifests/")} for objects in protocol.stores.values()]
    assert manifests[0] == manifests[1] != set()
    for objects in protocol.stores.values():
        assert not [key for key in objects if key.startswith(("leases/", "marks/"))]


def test_everything_is_brought(protocol: Protocol) -> None:
    protocol.do(ALL, CALM)
    check(protocol)
    one, two = (
        {key for key in protocol.stores[name] if key.startswith(("manifests/", "packs/"))} for name in ("one", "two")
    )
    assert one == two
    assert sum(key.startswith("manifests/") for key in two) == 3
    again = protocol.replicate(ALL, CALM)
    assert again is not None
    assert not again.changed


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("call", CALLS)
def test_a_crash_leaves_nothing_false_and_the_next_run_finishes(protocol: Protocol, call: int, after: bool) -> None:
    protocol.do(ALL, Trouble(crash=call, after=after))
    check(protocol)
    assert protocol.replicate(ALL, CALM) is not None
    check(protocol)
    assert sum(key.startswith("manifests/") for key in protocol.stores["two"]) == 3
    healed(protocol)


# What may happen while a replication is held up.
MEANWHILE = {
    "marking": (MARK,),
    "deleting-in-two-phases": (MARK, FINISH),
    "deleting-at-once": (PRUNE_NOW,),
    "deleting-while-it-slept": (SLEEP_AND_PRUNE,),
    "marking-while-it-slept": (SLEEP_AND_MARK, FINISH),
    "another-replication": (ALL,),
    "a-repair": (REPAIR,),
    "a-crashed-backup-and-a-prune": (CHILD_OF_OLDEST, WRITE, PRUNE_NOW),
    "a-backup": (BACKUP,),
}


@pytest.mark.parametrize("replicate", [REPLICATE, ALL], ids=["kept", "all"])
@pytest.mark.parametrize("meanwhile", MEANWHILE.values(), ids=MEANWHILE.keys())
@pytest.mark.parametrize("call", SOME)
def test_held_up(protocol: Protocol, call: int, meanwhile, replicate) -> None:
    protocol.do(replicate, Trouble(pause=call, meanwhile=meanwhile))
    check(protocol)
    protocol.do(FINISH, CALM)
    check(protocol)
    healed(protocol)


# What a replication does while something else is held up: objects that a mark names are brought back.
HELD_UP = {
    "finishing-a-mark": (SLEEP_AND_MARK, FINISH),
    "at-once": (SLEEP_AND_PRUNE,),
}


@functools.cache
def crash_leaving(packs: int) -> int:
    """The call at which a replication crashes that leaves so many packs, and no manifest."""
    for call in CALLS:
        protocol = prepared()
        protocol.do(ALL, Trouble(crash=call))
        left = [key.split("/")[0] for key in protocol.stores["two"]]
        protocol.teardown()
        if left.count("packs") == packs:
            assert "manifests" not in left
            return call
    raise AssertionError("no crash leaves that")


@pytest.mark.parametrize("packs", [1, 2])
@pytest.mark.parametrize("held_up", HELD_UP.values(), ids=HELD_UP.keys())
@pytest.mark.parametrize("call", range(20, 60))
def test_a_replication_in_the_middle_of_a_prune(protocol: Protocol, call: int, held_up, packs: int) -> None:
    """Packs that a crashed replication left, and that no manifest there lists, are just being deleted."""
    protocol.do(ALL, Trouble(crash=crash_leaving(packs)))
    for step in held_up[:-1]:
        protocol.do(step, CALM)
    protocol.do(held_up[-1], Trouble(pause=call, meanwhile=(ALL,)))
    check(protocol)
    healed(protocol)


@pytest.mark.parametrize("step", [CHILD_OF_OLDEST, WRITE, COMMIT], ids=lambda step: step.name)
@pytest.mark.parametrize("call", range(1, 30))
def test_a_replication_in_the_middle_of_a_backup(protocol: Protocol, call: int, step) -> None:
    protocol.do(ALL, CALM)
    for each in (CHILD_OF_OLDEST, WRITE, COMMIT):
        protocol.do(each, Trouble(pause=call, meanwhile=(ALL,)) if each is step else CALM)
        check(protocol)
    healed(protocol)
