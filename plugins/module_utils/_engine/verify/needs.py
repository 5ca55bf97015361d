# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What backups need of each pack: which bytes of which frame, and what they must be.

Many backups need the same bytes. Needs are kept once, so that a pack is read once however many backups are
verified, and memory grows with what is stored, by 40 bytes for each extent, not with the number of backups.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import typing as t

from ..errors import DamageError
from ..postgres.lsn import parse_lsn
from ..postgres.relfile import relation_file
from ..repository import extents as xt
from ..repository import names
from ..repository.model import FILE, BackupHeader, Entry
from .essentials import Essentials, Excerpt, Problem

if t.TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np
    import numpy.typing as npt

    from ..repository.manifest import Manifest

    Rows: t.TypeAlias = npt.NDArray[np.void]

NO_PAGES: t.Final = -1
_BLOCKS_OF_RELATION: t.Final = (1 << 32) - 1
_BATCH_ENTRIES: t.Final = 2000
_PENDING_ROWS: t.Final = 1 << 20


@functools.cache
def row_type() -> np.dtype[np.void]:
    """One extent that backups need."""
    import numpy as np

    return np.dtype(
        [
            ("frame", "<u4"),
            ("frame_offset", "<u4"),
            ("length", "<u4"),
            ("checksums", "<u4"),  # whether the pages have checksums
            ("block", "<i8"),  # number within the relation of the page that the extent begins with; or NO_PAGES
            ("digest", "V16"),
        ]
    )


def _no_rows() -> Rows:
    import numpy as np

    return np.zeros(0, row_type())


class Claim(t.NamedTuple):
    """What a backup says of a pack. What contradicts it is wrong with those who claim the same, and nobody else."""

    name: str
    size: int
    digest: bytes
    """BLAKE3 of the stored object."""
    block_size: int = 0
    """Of the pages in it; 0: there are none."""


@dataclasses.dataclass(slots=True)
class PackNeeds:
    """One pack, and all that backups take from it."""

    claim: Claim
    start_lsn: int = 0
    """The latest start of a backup that takes pages from it: only older pages can be judged."""
    rows: Rows = dataclasses.field(default_factory=_no_rows)
    """Sorted by frame and offset, each once; complete after ``settle``."""
    excerpts: dict[int, set[Excerpt]] = dataclasses.field(default_factory=dict)
    """By frame: bytes that somebody wants to look at."""
    _added: list[Rows] = dataclasses.field(default_factory=list)

    def add(self, rows: Rows) -> None:
        self._added.append(rows)

    def settle(self) -> None:
        """Sort in what was added, and drop what was there before."""
        import numpy as np

        if self._added:
            self.rows = _unique(np.concatenate([self.rows, *self._added]))
            self._added = []


def _unique(rows: Rows) -> Rows:
    import numpy as np

    halves = np.ascontiguousarray(rows["digest"]).view("<u8").reshape(-1, 2)
    columns = (halves[:, 1], halves[:, 0], rows["checksums"], rows["block"], rows["length"], rows["frame_offset"])
    order = np.lexsort((*columns, rows["frame"]))
    ordered = rows[order]
    if len(ordered) < 2:
        return ordered
    raw = np.ascontiguousarray(ordered).view(np.uint8).reshape(len(ordered), row_type().itemsize)
    first = np.concatenate([[True], (raw[1:] != raw[:-1]).any(axis=1)])
    return t.cast("Rows", ordered[first])


@dataclasses.dataclass(slots=True)
class Counted:
    """What a manifest lists."""

    files: int = 0
    extents: int = 0
    problems: list[Problem] = dataclasses.field(default_factory=list)
    """What the manifest contradicts itself in, with paths."""


class Needs:
    """Collects the needs of several backups."""

    def __init__(self) -> None:
        self.packs: dict[Claim, PackNeeds] = {}
        self._pending = 0

    def add(self, manifest: Manifest, essentials: Essentials) -> Counted:
        """Read a whole manifest. Raises DamageError and the like when it cannot be read to its end.

        ``essentials`` hear of all entries.
        """
        header = manifest.header
        for claim in claims_of(header).values():
            self.packs.setdefault(claim, PackNeeds(claim))
        counted = Counted()
        live: dict[int, int] = {}
        for batch in batches(essentials.watch(manifest.entries())):
            counted.files += len(batch)
            self._add_batch(header, batch, counted, live)
        self._check_live(header, live, counted)
        if self._pending > _PENDING_ROWS:
            self.settle()
        return counted

    def add_essentials(self, header: BackupHeader, essentials: Essentials) -> None:
        """Have the bytes kept that they are judged by."""
        claims = claims_of(header)
        for field, excerpt in essentials.wanted():
            if field in claims:
                needs = self.packs.setdefault(claims[field], PackNeeds(claims[field]))
                needs.excerpts.setdefault(excerpt.frame, set()).add(excerpt)

    def settle(self) -> None:
        """To be called before anybody reads the rows."""
        for needs in self.packs.values():
            needs.settle()
        self._pending = 0

    def _add_batch(self, header: BackupHeader, batch: list[Entry], counted: Counted, live: dict[int, int]) -> None:
        import numpy as np

        extents, owner = flatten(batch)
        counted.extents += len(extents)
        bad = uncovered(batch, extents, owner)
        if bad:
            counted.problems.append(("its extents do not cover these files", tuple(bad)))
        blocks = first_blocks(header, batch, extents, owner)
        claims = claims_of(header)
        order = np.argsort(extents["pack"], kind="stable")
        sorted_packs = extents["pack"][order]
        starts = np.flatnonzero(np.concatenate([[True], sorted_packs[1:] != sorted_packs[:-1]]))
        for positions in np.split(order, starts[1:]) if len(order) else []:
            field = int(extents["pack"][positions[0]])
            if field == xt.ZEROS:
                continue
            part = extents[positions]
            live[field] = live.get(field, 0) + int(part["length"].sum(dtype=np.uint64))
            if field not in claims:
                paths = {os.fsdecode(batch[number].path) for number in owner[positions].tolist()}
                counted.problems.append((f"it lists no pack {field}, which these files need", tuple(sorted(paths))))
                continue
            self._add_rows(header, claims[field], part, blocks[positions])

    def _add_rows(self, header: BackupHeader, claim: Claim, part: xt.Extents, blocks: npt.NDArray[np.int64]) -> None:
        import numpy as np

        rows = np.zeros(len(part), row_type())
        for column in ("frame", "frame_offset", "length", "digest"):
            rows[column] = part[column]
        rows["block"] = blocks
        needs = self.packs[claim]
        postgres = header.postgres
        if postgres is not None and bool((blocks != NO_PAGES).any()):
            rows["checksums"][blocks != NO_PAGES] = postgres.page_checksums
            needs.start_lsn = max(needs.start_lsn, parse_lsn(postgres.start_lsn))
        needs.add(rows)
        self._pending += len(rows)

    @staticmethod
    def _check_live(header: BackupHeader, live: dict[int, int], counted: Counted) -> None:
        """Garbage collection and compaction go by these numbers."""
        said = {row.number: row.live for row in header.packs}
        said |= {xt.FOREIGN + index: row.live for index, row in enumerate(header.foreign)}
        wrong = [field for field, number in said.items() if live.get(field, 0) != number]
        if wrong:
            counted.problems.append((f"{len(wrong)} packs hold more or less of it than it says", ()))


def batches(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Files, in bounded numbers."""
    files = (entry for entry in entries if entry.type == FILE)
    while batch := list(itertools.islice(files, _BATCH_ENTRIES)):
        yield batch


def flatten(batch: list[Entry]) -> tuple[xt.Extents, npt.NDArray[np.int64]]:
    """All extents of some files, and for each the number of its file. Raises DamageError."""
    import numpy as np

    if any(len(entry.extents) % xt.EXTENT_BYTES for entry in batch):
        raise DamageError("a manifest has an incomplete extent")
    counts = [len(entry.extents) // xt.EXTENT_BYTES for entry in batch]
    extents = xt.unpack(b"".join(entry.extents for entry in batch))
    return extents, np.repeat(np.arange(len(batch), dtype=np.int64), counts)


def uncovered(batch: list[Entry], extents: xt.Extents, owner: npt.NDArray[np.int64]) -> list[str]:
    """Paths of the files that their extents do not cover without gap or overlap."""
    import numpy as np

    sizes = np.array([entry.size for entry in batch], dtype=np.int64)
    starts = extents["offset"].astype(np.int64)
    ends = starts + extents["length"].astype(np.int64)
    first = np.concatenate([[True], owner[1:] != owner[:-1]]) if len(owner) else np.zeros(0, bool)
    before = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
    wrong = (starts != np.where(first, 0, before)) | (extents["length"] == 0)
    reached = np.zeros(len(batch), dtype=np.int64)
    reached[owner] = ends  # the last extent of each file remains
    bad = set(owner[wrong].tolist()) | set(np.flatnonzero(reached != sizes).tolist())
    return [os.fsdecode(batch[number].path) for number in sorted(bad)]


def first_blocks(
    header: BackupHeader, batch: list[Entry], extents: xt.Extents, owner: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """For each extent the number, within its relation, of the page that it begins with; or NO_PAGES."""
    import numpy as np

    blocks = np.full(len(extents), NO_PAGES, dtype=np.int64)
    postgres = header.postgres
    if postgres is None:
        return blocks
    base = np.array([relation_base(entry.path, postgres.segment_blocks) for entry in batch], dtype=np.int64)
    offsets = extents["offset"].astype(np.int64)
    pages = (base[owner] != NO_PAGES) & (offsets % postgres.block_size == 0)
    blocks[pages] = base[owner][pages] + offsets[pages] // postgres.block_size
    return blocks


def relation_base(path: bytes, segment_blocks: int) -> int:
    """The number of the first page of a file within its relation; NO_PAGES for other files."""
    relation = relation_file(os.fsdecode(path))
    if relation is None or relation.name.is_temporary:
        return NO_PAGES
    block = relation.first_block(segment_blocks)
    return block if block < _BLOCKS_OF_RELATION else NO_PAGES


def claims_of(header: BackupHeader) -> dict[int, Claim]:
    """The packs that a manifest lists, by the pack field of its extents."""
    block_size = header.postgres.block_size if header.postgres is not None else 0
    own = {
        row.number: Claim(names.pack(header.backup_id, row.number), row.size, row.digest, block_size)
        for row in header.packs
    }
    foreign = {
        xt.FOREIGN + index: Claim(names.pack(row.backup_id, row.number), row.size, row.digest, block_size)
        for index, row in enumerate(header.foreign)
    }
    return own | foreign
