# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Drafts of interrupted backups: whatever is left of the file, nothing is taken for more than it was."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from cryobackup.repository import extents as xt
from cryobackup.repository import model
from cryobackup.repository.draft import Draft, DraftWriter, read_drafts
from cryobackup.repository.model import BackupHeader, Entry, ForeignPackRow, PackRow, Totals

KEY = bytes(range(32))
HEADER = BackupHeader(
    "20261128T100000Z-00000001", "main", model.FULL, None, model.OK, "", "2026-11-28T10:00:00+00:00",
    "2026-11-28T10:00:00+00:00", "host", "1", None, {}, Totals(),
)  # fmt: skip


def entry(path: str, *packs: int) -> Entry:
    rows = [(number * 10, 10, pack, 0, 0, bytes(16)) for number, pack in enumerate(packs)]
    return Entry(
        path.encode(), model.FILE, 0o600, 0, 0, 10 * len(packs), 1, 1, 1, 1, 0, b"",
        extents=xt.pack(xt.build(rows) if rows else xt.empty()),
    )  # fmt: skip


def written(directory: Path, header: BackupHeader = HEADER) -> Path:
    draft = DraftWriter(directory, KEY, header)
    draft.entry(entry("a", 0))
    draft.entry(entry("b", 0, 1))
    draft.pack(PackRow(0, 100, b"d", 90))
    draft.mark("0/1000")
    draft.foreign(ForeignPackRow("20261127T100000Z-00000001", 4, 50, b"f", 40))
    draft.entry(entry("c", xt.FOREIGN))
    draft.entry(entry("d", 0, 0))
    draft.entry(entry("e", 2))
    draft.mark("0/2000")
    draft.entry(entry("f", 0))
    draft.pack(PackRow(1, 100, b"d", 90))
    draft.close()
    return next(directory.glob(f"{header.backup_id}.*"))


def paths(draft: Draft) -> list[bytes]:
    return [each.path for each in draft.entries()]


def test_what_counts(tmp_path: Path) -> None:
    """Entries before the last mark, whose packs are finished."""
    draft = Draft(written(tmp_path), KEY)
    assert paths(draft) == [b"a", b"b", b"c", b"d"]
    assert draft.position == "0/2000"
    assert draft.bytes == 60
    assert [row.number for row in draft.header.packs] == [0, 1]
    assert draft.backups == ["20261127T100000Z-00000001", HEADER.backup_id]


def test_private(tmp_path: Path) -> None:
    path = written(tmp_path / "new")
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_cut_off_anywhere(tmp_path: Path) -> None:
    """What is left says less, never something else."""
    path = written(tmp_path)
    whole = path.read_bytes()
    told = set[tuple[bytes, ...]]()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        try:
            told.add(tuple(paths(Draft(path, KEY))))
        except ValueError:
            told.add(())
    assert told == {(), (b"a",), (b"a", b"c", b"d")}


def test_flipped_anywhere(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x41]) + whole[position + 1 :])
        try:
            found = paths(Draft(path, KEY))
        except ValueError:
            continue
        assert found in ([b"a"], [b"a", b"c", b"d"]), position


def test_the_best_comes_first_and_the_useless_go(tmp_path: Path) -> None:
    path = written(tmp_path)
    less = tmp_path / "20261128T110000Z-00000001.draft"
    data = path.read_bytes()
    less.write_bytes(data[:-300])
    (tmp_path / "20261128T120000Z-00000001.draft").write_bytes(b"")
    (tmp_path / "20261128T130000Z-00000001.draft").write_bytes(os.urandom(1000))
    found = read_drafts(tmp_path, KEY, model.FULL)
    assert [draft.path for draft in found] == [path, less]
    assert sorted(tmp_path.iterdir()) == sorted([path, less])
    assert read_drafts(tmp_path, bytes(32), model.FULL) == []
    assert list(tmp_path.iterdir()) == []


def test_kinds_are_kept_apart(tmp_path: Path) -> None:
    """An incremental's draft has not everything: it never passes for that of a full backup, whatever its name."""
    full = written(tmp_path)
    parent = "20261127T100000Z-00000001"
    incremental = written(
        tmp_path,
        dataclasses.replace(HEADER, kind=model.INCREMENTAL, parent=parent, backup_id="20261128T110000Z-00000001"),
    )
    found = read_drafts(tmp_path, KEY, model.INCREMENTAL)
    assert [(draft.path, draft.header.parent) for draft in found] == [(incremental, parent)]
    assert [draft.path for draft in read_drafts(tmp_path, KEY, model.FULL)] == [full]
    incremental.rename(full)
    assert read_drafts(tmp_path, KEY, model.FULL) == []


def test_what_a_run_has_brought() -> None:
    """Packs of the runs that it went on from count as its own, those of its parent do not."""
    rows = [ForeignPackRow("20261127T100000Z-00000001", 0, 500, b"p", 500), ForeignPackRow("dead", 0, 70, b"d", 70)]
    header = dataclasses.replace(
        HEADER, kind=model.INCREMENTAL, packs=[PackRow(0, 4, b"o", 4)], foreign=rows,
        change_detection={"interrupted": ["dead"]},
    )  # fmt: skip
    assert header.stored_bytes_own == 74
    assert dataclasses.replace(header, change_detection={}).stored_bytes_own == 4
    assert dataclasses.replace(header, kind=model.FULL, change_detection={}).stored_bytes_own == 574


def test_a_full_disk_ends_the_draft_and_nothing_else() -> None:
    draft = DraftWriter(Path("/dev/null/nowhere"), KEY, HEADER)
    draft.entry(entry("a", 0))
    draft.mark("0/1000")
    draft.close()
