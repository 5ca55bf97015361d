# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Frames against what backups need of them; and what a manifest lists, collected."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cryobackup.crypto import suite
from cryobackup.repository import extents as xt
from cryobackup.repository.model import FILE, Entry
from cryobackup.verify.frames import bad_extents, bad_pages
from cryobackup.verify.needs import NO_PAGES, Claim, PackNeeds, flatten, row_type, uncovered
from tests.faults.small_repository import BLOCK, relation_page

if TYPE_CHECKING:
    from cryobackup.verify.needs import Rows

KEY = b"k" * 32


def rows(*values: tuple[int, int, int, int, int, bytes]) -> Rows:
    """(frame, offset, length, has checksums, first block, digest)"""
    return np.array([(*value[:5], np.void(value[5])) for value in values], row_type())


def digest(data: bytes) -> bytes:
    return suite.keyed_digest(KEY, data)[:16]


def test_extents() -> None:
    plain = bytes(range(200))
    fine = (0, 10, 20, 0, NO_PAGES, digest(plain[10:30]))
    wrong = (0, 10, 20, 0, NO_PAGES, digest(b"other"))
    unknown = (0, 190, 10, 0, NO_PAGES, xt.UNKNOWN_DIGEST)
    beyond = (0, 190, 11, 0, NO_PAGES, xt.UNKNOWN_DIGEST)
    found = bad_extents(0, plain, rows(fine, wrong, unknown, beyond), KEY)
    assert [(bad.offset, bad.length) for bad in found] == [(10, 20), (190, 11)]


def test_every_page_is_looked_at_once_however_many_extents_share_it() -> None:
    plain = b"".join(relation_page(block, 100, b"x") for block in range(8))
    whole = (0, 0, 8 * BLOCK, 1, 0, xt.UNKNOWN_DIGEST)
    parts = [(0, at * BLOCK, 3 * BLOCK, 1, at, xt.UNKNOWN_DIGEST) for at in range(6)]
    bad, pages = bad_pages(0, plain, rows(whole, *parts), BLOCK, 10**6)
    assert (bad, pages) == ([], 8)


def test_the_same_bytes_as_other_blocks() -> None:
    """One frame may serve two files only when the pages are no pages, or by mistake: then one of both is wrong."""
    plain = relation_page(3, 100, b"x")
    right, wrong = (0, 0, BLOCK, 1, 3, xt.UNKNOWN_DIGEST), (0, 0, BLOCK, 1, 4, xt.UNKNOWN_DIGEST)
    bad, pages = bad_pages(7, plain, rows(right, wrong), BLOCK, 10**6)
    assert pages == 2
    assert [(page.frame, page.offset, page.lsn, page.is_new) for page in bad] == [(7, 0, 100, False)]


def test_pages_with_a_later_lsn_are_not_judged() -> None:
    page = relation_page(0, 5000, b"x")[:-1] + b"?"
    row = (0, 0, BLOCK, 1, 0, xt.UNKNOWN_DIGEST)
    assert bad_pages(0, page, rows(row), BLOCK, 5000)[0] == []
    assert len(bad_pages(0, page, rows(row), BLOCK, 5001)[0]) == 1


def test_a_cluster_without_checksums() -> None:
    page = relation_page(0, 5000, b"x")[:-1] + b"?"
    row = (0, 0, BLOCK, 0, 0, xt.UNKNOWN_DIGEST)
    assert bad_pages(0, page, rows(row), BLOCK, 9000)[0] == []
    nonsense = bytes(14) + b"\0\0" + b"x" * (BLOCK - 16)
    (found,) = bad_pages(0, nonsense, rows(row), BLOCK, 0)[0]
    assert found.is_new, "a page that says that it is new, and is not empty, is wrong whatever its LSN"


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(1, 3), st.sampled_from([b"a", b"b"]))))
def test_needs_are_kept_once_and_sorted(values: list[tuple[int, int, int, bytes]]) -> None:
    needs = PackNeeds(Claim("packs/x/000000.pack", 1, b""))
    all_rows = [(frame, offset, length, 0, NO_PAGES, text * 16) for frame, offset, length, text in values]
    for row in all_rows:
        needs.add(rows(row))
        if row[0] % 2:
            needs.settle()
    needs.settle()
    found = [tuple(row) for row in needs.rows.tolist()]
    assert len(found) == len(set(all_rows))
    assert [row[0] for row in found] == sorted(row[0] for row in found)


def entry(path: bytes, size: int, *pieces: tuple[int, int]) -> Entry:
    built = xt.build([(offset, length, 0, 0, 0, xt.UNKNOWN_DIGEST) for offset, length in pieces])
    return Entry(path, FILE, 0o600, 0, 0, size, extents=xt.pack(built) if pieces else b"")


def test_files_that_their_extents_do_not_cover() -> None:
    batch = [
        entry(b"whole", 30, (0, 10), (10, 20)),
        entry(b"empty", 0),
        entry(b"gap", 30, (0, 10), (11, 19)),
        entry(b"short", 31, (0, 10), (10, 20)),
        entry(b"long", 29, (0, 10), (10, 20)),
        entry(b"overlap", 30, (0, 11), (10, 20)),
        entry(b"late", 30, (1, 29)),
        entry(b"nothing", 5),
        entry(b"one", 5, (0, 5)),
    ]
    extents, owner = flatten(batch)
    assert uncovered(batch, extents, owner) == ["gap", "short", "long", "overlap", "late", "nothing"]
