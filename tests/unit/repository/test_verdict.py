# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which verification counts: a failure stands until it is refuted by one that looked as deep, and at the same place."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cryobackup.repository import verdict
from cryobackup.repository.model import PIN, VERIFIED, Note

BOTH = ("near", "far")


def note(number: int, level: str, result: str = "ok", **locations: str) -> Note:
    data = {"level": level, "result": result, "locations": locations or dict.fromkeys(BOTH, "ok")}
    return Note("b", "main", VERIFIED, f"2026-11-23T00:{number:02d}:00+00:00", data)


def test_none() -> None:
    assert verdict.standing([], BOTH) is None
    assert verdict.standing([Note("b", "main", PIN, "2026-11-23T00:00:00+00:00")], BOTH) is None
    assert verdict.restored([], BOTH) is None


def test_the_newest_success_counts_and_the_restore_is_remembered() -> None:
    notes = [note(1, "restore"), note(2, "content")]
    assert verdict.standing(notes, BOTH) is notes[1]
    assert verdict.restored(notes, BOTH) is notes[0]


def test_a_failure_stands_against_a_lighter_success() -> None:
    failed = note(1, "restore", "failed", near="ok")
    assert verdict.standing([failed, note(2, "content")], BOTH) is failed
    mended = note(3, "restore", near="ok")
    assert verdict.standing([failed, note(2, "content"), mended], BOTH) is mended
    assert verdict.restored([failed, note(2, "content"), mended], BOTH) is mended


def test_damage_in_one_place_is_not_refuted_in_another() -> None:
    damaged = note(1, "content", "damaged", near="ok", far="damaged")
    elsewhere = note(2, "content", near="ok")
    assert verdict.standing([damaged, elsewhere], BOTH) is damaged
    there = note(3, "content", far="ok")
    assert verdict.standing([damaged, elsewhere, there], BOTH) is there
    assert verdict.standing([damaged, elsewhere], ("near",)) is elsewhere, "the other place has no backup any more"


def test_a_success_before_a_failure_says_nothing() -> None:
    notes = [note(1, "restore"), note(2, "content", "damaged", near="damaged", far="ok")]
    assert verdict.standing(notes, BOTH) is notes[1]
    assert verdict.restored(notes, BOTH) is None


NOTES = st.lists(
    st.tuples(
        st.sampled_from(["presence", "content", "restore"]),
        st.fixed_dictionaries({}, optional=dict.fromkeys(BOTH, st.sampled_from(["ok", "damaged"]))).filter(bool),
    ),
    max_size=8,
)


@given(NOTES)
def test_what_counts(made: list[tuple[str, dict[str, str]]]) -> None:
    notes = [
        note(number, level, "damaged" if "damaged" in states.values() else "ok", **states)
        for number, (level, states) in enumerate(made)
    ]
    found = verdict.standing(notes, BOTH)
    assert (found is None) == (not notes)
    if found is None:
        return
    assert found in notes
    if notes[-1].data["result"] != "ok":
        assert found is notes[-1], "a new failure always counts"
    if all(each.data["result"] == "ok" for each in notes):
        assert found is notes[-1]
    if notes[-1].data == note(0, "restore", near="ok", far="ok").data:
        assert found is notes[-1], "a restore from everywhere refutes everything"
