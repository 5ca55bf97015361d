# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading files that change under our hands, and pages that are broken or look so."""

from __future__ import annotations

import dataclasses
import datetime as dt
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cryobackup.config import LocationConfig, RepositoryConfig
from cryobackup.errors import SourceError
from cryobackup.postgres import page
from cryobackup.postgres.changes import Method
from cryobackup.postgres.frames import FrameWriter
from cryobackup.postgres.reader import CHUNK_BYTES, Abandoned, FileReader, PageRules, Piece, PieceResult
from cryobackup.postgres.throttle import Throttle
from cryobackup.repository import extents as xt
from cryobackup.repository import names
from cryobackup.repository.packs import PackReader, PackSet
from cryobackup.repository.repository import Repository, init

START = 0x5000028
BLOCK = 8192


def make_page(number: int, lsn: int = 0x1000028, fill: bytes = b"x") -> bytes:
    """A sound page of block ``number``."""
    header = (lsn >> 32).to_bytes(4, "little") + (lsn & 0xFFFFFFFF).to_bytes(4, "little") + bytes(4)
    header += (100).to_bytes(2, "little") + (200).to_bytes(2, "little") + BLOCK.to_bytes(2, "little")
    header += (BLOCK | 4).to_bytes(2, "little") + bytes(4)
    body = bytearray(header + fill * (BLOCK - len(header)))
    body[8:10] = int(page.page_checksums(body, number)[0]).to_bytes(2, "little")
    return bytes(body)


def broken(sound: bytes) -> bytes:
    return sound[:5000] + bytes([sound[5000] ^ 1]) + sound[5001:]


class Bench:
    """A reader with a repository behind it."""

    def __init__(self, directory: Path, *, checksums: bool = True, stop: threading.Event | None = None) -> None:
        config = RepositoryConfig(
            {"here": LocationConfig("here", "posix", path=directory / "here")}, directory / "keys"
        )
        init(config, dt.datetime.now(dt.UTC))
        self.repository = Repository.open(config, need_identity=True)
        self.packs = PackSet(self.repository.fanout(), self.repository.keys, "20261102T110000Z-0000000a", level=1)
        self.stop = stop or threading.Event()
        self.key = self.repository.keys.digest_key
        self.reader = FileReader(
            FrameWriter(self.packs.sink(), self.key),
            PageRules(BLOCK, START, checksums),
            Throttle(None),
            self.stop,
            self.key,
        )
        self.file = directory / "16384"

    def piece(self, *, first_block: int | None = 0, size: int | None = None, **options: Any) -> Piece:
        status = self.file.stat()
        stop = status.st_size if size is None else size
        return Piece(os.fsencode(self.file), 0, stop, status.st_dev, status.st_ino, first_block, **options)

    def read(self, **options: Any) -> PieceResult:
        return self.reader.read(self.piece(**options))

    def stored(self, result: PieceResult) -> dict[int, bytes]:
        """Offset → bytes of what was stored."""
        self.reader.writer.finish()
        found = {}
        for offset, length, pack, frame, start, _unused in result.extents.tolist():
            if pack == xt.ZEROS:
                found[offset] = bytes(length)
            else:
                name = names.pack(self.packs.backup_id, pack)
                frames = PackReader(self.repository.locations, self.repository.keys, name)
                found[offset] = frames.frame(frame)[start : start + length]
        return found


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.reader.writer.abort()


def test_growth_is_ignored_and_loss_is_zeros(bench: Bench) -> None:
    pages = [make_page(number) for number in range(4)]
    bench.file.write_bytes(b"".join(pages))
    assert bench.read(size=2 * BLOCK).extents["length"].sum() == 2 * BLOCK
    result = bench.read(size=6 * BLOCK)
    assert result.bytes_read == 4 * BLOCK
    assert (result.damaged, result.unsettled) == ([], [])
    assert bench.stored(result) == {0: b"".join(pages), 4 * BLOCK: bytes(2 * BLOCK)}


def test_small_file_is_as_large_as_when_it_is_opened(bench: Bench) -> None:
    bench.file.write_bytes(b"12345")
    piece = bench.piece(first_block=None, whole=True)
    bench.file.write_bytes(b"1234567890")
    result = bench.reader.read(piece)
    assert result.size == 10
    assert result.status is not None
    assert result.status.st_size == 10
    assert bench.stored(result) == {0: b"1234567890"}


def test_file_that_vanished(bench: Bench) -> None:
    bench.file.write_bytes(b"12345")
    piece = bench.piece()
    bench.file.unlink()
    assert bench.reader.read(piece).vanished


def test_file_that_was_replaced(bench: Bench) -> None:
    def replace() -> None:
        other = bench.file.with_name("other")
        other.write_bytes(b"other")
        other.rename(bench.file)

    bench.file.write_bytes(b"12345")
    part, whole = bench.piece(first_block=None), bench.piece(first_block=None, whole=True, method=Method.CONTENT)
    replace()
    assert bench.reader.read(part).vanished, "parts of two files make none"
    result = bench.reader.read(whole)
    assert result.replaced
    assert bench.stored(result) == {0: b"other"}


def test_what_cannot_be_read_is_an_error(bench: Bench) -> None:
    bench.file.symlink_to(bench.file)
    with pytest.raises(SourceError, match="16384 cannot be read") as caught:
        bench.reader.read(Piece(os.fsencode(bench.file), 0, 1, 0, 0))
    assert caught.value.id == "source-unreadable"


def test_broken_pages_are_named_and_kept(bench: Bench) -> None:
    pages = [make_page(number + 131072) for number in range(200)]
    pages[7], pages[150] = broken(pages[7]), broken(pages[150])
    bench.file.write_bytes(b"".join(pages))
    result = bench.read(first_block=131072)
    assert result.damaged == [131072 + 7, 131072 + 150]
    assert result.unsettled == []
    assert b"".join(bench.stored(result).values()) == b"".join(pages)


def test_broken_page_that_wal_may_write_again_is_not_settled(bench: Bench) -> None:
    pages = [make_page(0), broken(make_page(1, lsn=START)), broken(make_page(2, lsn=START - 1))]
    bench.file.write_bytes(b"".join(pages))
    result = bench.read()
    assert result.damaged == [2]
    assert result.unsettled == [(1, START)]


class Patience(threading.Event):
    """Lets something happen while the reader waits before it reads a page again."""

    def __init__(self, action: Callable[[], object]) -> None:
        super().__init__()
        self._action = action

    def wait(self, timeout: float | None = None) -> bool:
        self._action()
        return self.is_set()


def test_page_that_is_being_written_is_read_again(tmp_path: Path) -> None:
    """It is broken when the file is first read, and whole a moment later."""
    sound = [make_page(number) for number in range(3)]
    halves = iter([sound[1][:4096] + bytes(4096), sound[1]])

    def go_on_writing() -> None:
        with bench.file.open("r+b") as file:
            file.seek(BLOCK)
            file.write(next(halves))

    bench = Bench(tmp_path, stop=Patience(go_on_writing))
    bench.file.write_bytes(sound[0] + broken(sound[1]) + sound[2])
    result = bench.read()
    assert (result.damaged, result.unsettled) == ([], [])
    assert bench.stored(result) == {0: b"".join(sound)}


def test_without_checksums_headers_are_looked_at(tmp_path: Path) -> None:
    bench = Bench(tmp_path, checksums=False)
    header = bytearray(make_page(1))
    header[12:14] = (9000).to_bytes(2, "little")
    bench.file.write_bytes(broken(make_page(0)) + header)
    assert bench.read().damaged == [1]
    bench.reader.writer.abort()


def test_page_lsn_stores_what_is_newer_and_what_cannot_be_judged(bench: Bench) -> None:
    since = 0x2000000
    pages = [
        make_page(0),
        make_page(1, lsn=since),
        make_page(2),
        bytes(BLOCK),
        make_page(4),
        broken(make_page(5)),
        make_page(6),
        make_page(7),
    ]
    bench.file.write_bytes(b"".join(pages) + b"tail")
    result = bench.read(method=Method.PAGE_LSN, since_lsn=since, parent_size=7 * BLOCK + 100)
    # 7 is old, but the parent has only the beginning of it.
    expected = {BLOCK: pages[1], 3 * BLOCK: pages[3], 5 * BLOCK: pages[5], 7 * BLOCK: pages[7] + b"tail"}
    assert bench.stored(result) == expected
    assert (result.pages, result.pages_stored, result.damaged) == (9, 5, [5])
    assert result.partial_page


def test_compaction_stores_what_is_sound_and_no_more(bench: Bench) -> None:
    """By blocks: the parent has them all, so a broken one that nobody changed is not taken from here."""
    pages = [make_page(number) for number in range(6)]
    now = [pages[0], broken(pages[1]), pages[2], broken(pages[3]), broken(make_page(4, lsn=START + 1)), pages[5]]
    bench.file.write_bytes(b"".join(now))
    blocks, again = np.array([0, 1, 2, 3, 4]), np.array([0, 3, 4])
    result = bench.read(method=Method.WAL_SUMMARY, blocks=blocks, again=again, block_size=BLOCK)
    assert (result.pages, result.pages_stored, result.pages_kept) == (5, 3, 2)
    assert (result.damaged, [block for block, _lsn in result.unsettled]) == ([1, 3], [4])
    assert bench.stored(result) == {0: b"".join(now[:3])}


def test_compaction_of_a_file_that_is_read_as_a_whole(bench: Bench) -> None:
    pages = [make_page(number) for number in range(6)]
    bench.file.write_bytes(b"".join(pages))
    result = bench.read(
        method=Method.PAGE_LSN, since_lsn=START, parent_size=6 * BLOCK, again=np.array([1, 2, 5]), block_size=BLOCK
    )
    assert bench.stored(result) == {BLOCK: b"".join(pages[1:3]), 5 * BLOCK: pages[5]}
    assert (result.pages, result.pages_stored) == (6, 3)


def test_content_stores_what_differs(bench: Bench) -> None:
    before = os.urandom(2 * CHUNK_BYTES + 100)
    bench.file.write_bytes(before)
    extents = bench.read(first_block=None).extents
    assert len(extents) == 3
    after = bytearray(before)
    after[CHUNK_BYTES + 5] ^= 1
    after += b"more"
    bench.file.write_bytes(after)
    result = bench.read(first_block=None, method=Method.CONTENT, parent_extents=extents)
    stored = bench.stored(result)
    # The last run is another one now: it is longer.
    assert stored == {
        CHUNK_BYTES: bytes(after[CHUNK_BYTES : 2 * CHUNK_BYTES]),
        2 * CHUNK_BYTES: before[-100:] + b"more",
    }


def test_stops_when_told(bench: Bench) -> None:
    bench.file.write_bytes(b"x" * BLOCK)
    bench.stop.set()
    with pytest.raises(Abandoned):
        bench.read()


def test_files_read_together_are_as_those_read_alone(bench: Bench) -> None:
    """Small, empty, large and odd files, broken ones, one that grew, one that went, one that was replaced."""
    directory = bench.file.parent / "files"
    directory.mkdir()
    files = {
        "1": [make_page(0), make_page(1)],
        "2": [make_page(131072)],
        "3": [],
        "4": [make_page(0), broken(make_page(1)), make_page(2)],
        "5": [make_page(number) for number in range(60)],
        "6": [make_page(0), b"half a page"],
        "7": [b"no page at all"],
        "8": [make_page(0), bytes(BLOCK)],
        "grows": [make_page(0)],
        "goes": [make_page(0)],
        "replaced": [make_page(0), make_page(1)],
        **{f"more-{number}": [make_page(block, fill=b"%d" % number) for block in range(20)] for number in range(9)},
    }
    pieces = []
    for name, pages in files.items():
        path = directory / name
        path.write_bytes(b"".join(pages))
        status = path.stat()
        first = {"7": None, "2": 131072}.get(name, 0)
        piece = Piece(
            os.fsencode(path), 0, status.st_size, status.st_dev, status.st_ino, first, Method.PAGE_LSN, whole=True
        )
        # Every page is old, and the parent has them all but the last.
        pieces.append(dataclasses.replace(piece, since_lsn=START, parent_size=max(0, status.st_size - BLOCK)))
    (directory / "grows").write_bytes(make_page(0) + make_page(1))
    (directory / "goes").unlink()
    (directory / "other").write_bytes((directory / "replaced").read_bytes())
    (directory / "other").rename(directory / "replaced")

    alone = [bench.reader.read(piece) for piece in pieces]
    together = bench.reader.read_all(pieces)
    named = dict(zip(files, together, strict=True))
    assert named["4"].damaged == [1]
    assert named["goes"].vanished
    assert named["grows"].size == 2 * BLOCK
    assert named["replaced"].pages_stored == 2
    assert named["1"].pages_stored == 1
    bench.reader.writer.flush()
    for one, other in zip(alone, together, strict=True):
        assert bench.stored(one) == bench.stored(other)
        for field in ("vanished", "replaced", "size", "bytes_read", "bytes_stored", "pages", "pages_stored", "damaged"):
            assert getattr(one, field) == getattr(other, field), field
