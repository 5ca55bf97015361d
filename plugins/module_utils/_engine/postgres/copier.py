# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From files that were found to entries of the manifest, in order, with bounded memory."""

from __future__ import annotations

import collections
import dataclasses
import typing as t

from ..repository import extents as xt
from ..repository import model
from ..repository.model import Damage, Entry
from . import relfile
from .changes import Identity, Method, Plan, is_racy, is_same_version_file, plan_file
from .compaction import Compactor
from .frames import UNIT_BYTES, store_units
from .reader import CHUNK_BYTES, Piece, PieceResult
from .walk import Found, identity_of

if t.TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..repository.compaction import CompactionPlan
    from ..repository.session import BackupSession
    from .basis import Known
    from .changed_blocks import Blocks
    from .parent import Parent
    from .readers import Readers, Results
    from .relfile import RelationFile

PIECE_BYTES: t.Final = 8 * CHUNK_BYTES
"""What one thread reads of a large file at a time."""

_SMALL_FILE_BYTES = 2 * CHUNK_BYTES
_BATCH_BYTES = 4 * CHUNK_BYTES
_BATCH_FILES = 128
_WAITING_ENTRIES = 1000
_WAITING_EXTENT_BYTES = 16 << 20
_DAMAGED_FILES_LISTED = 1000
_DAMAGED_BLOCKS_LISTED = 1000


@dataclasses.dataclass(slots=True)
class Counters:
    """What was done, for the manifest and for people."""

    files: int = 0
    bytes_source: int = 0
    bytes_read: int = 0
    files_unchanged: int = 0
    files_by_wal_summary: int = 0
    files_by_page_lsn: int = 0
    files_by_content: int = 0
    files_stored: int = 0
    files_vanished: int = 0
    pages_read: int = 0
    pages_stored: int = 0
    bytes_referenced: int = 0
    """Of this backup's files, taken over from earlier packs."""
    partial_pages: int = 0
    """Files of relations that do not end on a page's border."""


class _Batch:
    """Pieces that one thread reads together, and what it says of them."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.bytes = 0
        self.future: Results | None = None

    def add(self, piece: Piece) -> int:
        self.pieces.append(piece)
        self.bytes += piece.bytes_to_read
        return len(self.pieces) - 1


@dataclasses.dataclass(slots=True)
class _Waiting:
    """Something whose entry can be made when its pieces, and all entries before it, are done."""

    found: Found
    plan: Plan
    parts: Sequence[tuple[_Batch, int]]
    parent: Parent | None
    """Whose the entry in the plan is."""

    @property
    def is_ready(self) -> bool:
        return all(batch.future is not None and batch.future.done() for batch, _unused in self.parts)

    @property
    def extent_bytes(self) -> int:
        return len(self.plan.parent.extents) if self.plan.parent is not None else 0


class Copier:
    """Give it everything that was found, in order; then call ``finish``. For one thread.

    ``advance`` is told how many bytes of the source are done. ``compaction``: what of the parent's is stored again
    besides.
    """

    def __init__(
        self,
        session: BackupSession,
        readers: Readers,
        *,
        block_size: int,
        segment_blocks: int,
        advance: Callable[[int], None],
        compaction: CompactionPlan | None = None,
    ) -> None:
        self._session = session
        self._readers = readers
        self._block_size = block_size
        self._segment_blocks = segment_blocks
        self._advance = advance
        self.compactor = (
            None if compaction is None else Compactor(compaction, block_size=block_size, small_bytes=_SMALL_FILE_BYTES)
        )
        self._waiting: collections.deque[_Waiting] = collections.deque()
        self._waiting_extent_bytes = 0
        self._batch = _Batch()
        self._directories: dict[bool, tuple[bytes, bool]] = {}
        self.counters = Counters()
        self.damage: list[Damage] = []
        self.pages_kept = 0
        """Pages that stay in the parent's packs because the source has them broken by now."""
        self.unsettled: list[tuple[str, int, int]] = []
        """(path, block, LSN) of pages that are broken unless WAL writes them again."""
        self.users: set[int] = set()
        self.groups: set[int] = set()

    def add(self, found: Found, known: Known | None) -> None:
        """The next file, directory or link, and what is known of that path from before."""
        plan, parts = Plan(Method.STORE), list[tuple[_Batch, int]]()
        if found.type == model.FILE:
            relation = relfile.relation_file(found.text)
            plan = self._plan(found, relation, known)
            if plan.reads:
                parts = self._schedule(found, plan, relation, known.parent.guards.since_lsn if known else 0)
        waiting = _Waiting(found, plan, parts, known.parent if known is not None else None)
        self._waiting.append(waiting)
        self._waiting_extent_bytes += waiting.extent_bytes
        while self._waiting and (self._is_full() or self._waiting[0].is_ready):
            self._emit_first()

    def finish(self) -> None:
        """Wait for all that is under way and make its entries."""
        while self._waiting:
            self._emit_first()

    def add_contents(self, found: Found, contents: bytes) -> None:
        """A small file whose contents are at hand. Only after ``finish``."""
        import numpy as np

        units = np.ones(-(-len(contents) // UNIT_BYTES), np.bool_)
        rows = store_units(self._readers.writer, 0, memoryview(contents), units, UNIT_BYTES)
        self._add_entry(found, found.identity, xt.build(rows), worth_noting=False)

    def settle(self, stop_lsn: int) -> None:
        """Now that it is known where WAL ended: broken pages that it does not write again are damage."""
        blocks: dict[str, list[int]] = {}
        for path, block, lsn in self.unsettled:
            if lsn > stop_lsn:
                blocks.setdefault(path, []).append(block)
        for path, numbers in blocks.items():
            self._add_damage(path, numbers)

    def _is_full(self) -> bool:
        return len(self._waiting) > _WAITING_ENTRIES or self._waiting_extent_bytes > _WAITING_EXTENT_BYTES

    # What is to be read

    def _plan(self, found: Found, relation: RelationFile | None, known: Known | None) -> Plan:
        if known is None:
            return Plan(Method.STORE)
        same = relation is not None and self._is_same_directory(found, known.parent)
        plan = plan_file(
            found.identity,
            relation,
            known.entry,
            known.parent.guards,
            same_directory=same,
            block_size=self._block_size,
            segment_blocks=self._segment_blocks,
        )
        if self.compactor is None or known.parent.is_draft:  # that run did its share, and numbers packs its own way
            return plan
        return self.compactor.extend(plan, found.identity, relation)

    def _is_same_directory(self, found: Found, parent: Parent) -> bool:
        """Whether the relation's database directory is the one that the parent saw."""
        directory = found.path.rpartition(b"/")[0]
        if directory == b"global":
            return True
        last, same = self._directories.get(parent.is_draft, (b"", False))
        if last != directory:
            now = identity_of(found.source.rpartition(b"/")[0] + b"/PG_VERSION")
            same = is_same_version_file(parent.versions.get(directory + b"/PG_VERSION"), now)
            self._directories[parent.is_draft] = directory, same
        return same

    def _schedule(
        self, found: Found, plan: Plan, relation: RelationFile | None, since_lsn: int
    ) -> list[tuple[_Batch, int]]:
        first_block = relation.first_block(self._segment_blocks) if relation is not None else None
        size = found.identity.size
        if plan.blocks is not None:
            return self._schedule_blocks(found, plan, plan.blocks, first_block)
        if size <= _SMALL_FILE_BYTES:
            return [self._add_to_batch(self._piece(found, plan, first_block, since_lsn, 0, size))]
        parts = []
        for start in range(0, size, PIECE_BYTES):
            batch = _Batch()
            number = batch.add(self._piece(found, plan, first_block, since_lsn, start, min(start + PIECE_BYTES, size)))
            self._submit(batch)
            parts.append((batch, number))
        return parts

    def _schedule_blocks(
        self, found: Found, plan: Plan, blocks: Blocks, first_block: int | None
    ) -> list[tuple[_Batch, int]]:
        """Nothing to read of most files: no piece then."""
        parts, at_once = [], PIECE_BYTES // self._block_size
        for start in range(0, len(blocks), at_once):
            piece = Piece(
                found.source,
                0,
                found.identity.size,
                found.identity.device,
                found.identity.inode,
                first_block,
                plan.method,
                blocks=blocks[start : start + at_once],
                block_size=self._block_size,
                again=plan.again,
            )
            if piece.bytes_to_read <= _SMALL_FILE_BYTES:
                parts.append(self._add_to_batch(piece))
                continue
            batch = _Batch()
            parts.append((batch, batch.add(piece)))
            self._submit(batch)
        return parts

    def _piece(self, found: Found, plan: Plan, first_block: int | None, since_lsn: int, start: int, stop: int) -> Piece:
        whole = found.identity.size <= _SMALL_FILE_BYTES
        piece = Piece(
            found.source, start, stop, found.identity.device, found.identity.inode, first_block, plan.method, whole
        )
        if plan.parent is None:
            return piece
        if plan.method is Method.PAGE_LSN:
            return dataclasses.replace(piece, since_lsn=since_lsn, parent_size=plan.parent.size, again=plan.again)
        extents = xt.unpack(plan.parent.extents) if plan.comparable is None else plan.comparable
        return dataclasses.replace(piece, parent_extents=extents if whole else xt.cut(extents, start, stop))

    def _add_to_batch(self, piece: Piece) -> tuple[_Batch, int]:
        batch = self._batch
        number = batch.add(piece)
        if batch.bytes >= _BATCH_BYTES or number + 1 >= _BATCH_FILES:
            self._submit(batch)
        return batch, number

    def _submit(self, batch: _Batch) -> None:
        if batch is self._batch:
            self._batch = _Batch()
        batch.future = self._readers.submit(batch.pieces)

    # What came of it

    def _emit_first(self) -> None:
        waiting = self._waiting.popleft()
        self._waiting_extent_bytes -= waiting.extent_bytes
        found, plan = waiting.found, waiting.plan
        from_draft = waiting.parent is not None and waiting.parent.is_draft
        if found.type != model.FILE:
            self._add_entry(found, found.identity, xt.empty(), worth_noting=False)
        elif not plan.reads and plan.parent is not None:
            self.counters.files_unchanged += 1
            extents = self._refer(xt.unpack(plan.parent.extents), from_draft=from_draft)
            # What the parent tells without reading it will tell the next run as well.
            self._add_entry(found, found.identity, extents, worth_noting=from_draft)
        else:
            results = [self._result(batch, number) for batch, number in waiting.parts]
            self._emit_read(found, plan, results, from_draft=from_draft)
        self._advance(found.identity.size)

    def _result(self, batch: _Batch, number: int) -> PieceResult:
        if batch.future is None:
            self._submit(batch)
        if batch.future is None:
            raise RuntimeError("a batch was submitted and has no future")
        return self._readers.result(batch.future)[number]

    def _emit_read(self, found: Found, plan: Plan, results: list[PieceResult], *, from_draft: bool) -> None:
        counters = self.counters
        bytes_read = sum(result.bytes_read for result in results)
        counters.bytes_read += bytes_read
        if any(result.vanished for result in results):
            counters.files_vanished += 1
            return
        counters.pages_read += sum(result.pages for result in results)
        counters.pages_stored += sum(result.pages_stored for result in results)
        counters.partial_pages += any(result.partial_page for result in results)
        self.pages_kept += sum(result.pages_kept for result in results)
        identity, seen = found.identity, found.seen_ns
        first = results[0] if results else PieceResult()
        if first.status is not None:
            identity, seen = Identity.of_status(first.status), first.seen_ns
        extents = xt.concatenate([result.extents for result in results])
        if plan.parent is not None and not first.replaced:
            kept = xt.uncovered(xt.unpack(plan.parent.extents), extents, identity.size)
            kept = self._refer(kept, from_draft=from_draft)
            extents = xt.concatenate([kept, extents])
            extents.sort(order="offset")
        self._count(plan, replaced=first.replaced)
        flags = self._note_damage(found, results)
        if is_racy(identity, seen):
            flags |= model.RACY
        self._add_entry(found, identity, extents, flags, worth_noting=from_draft or bytes_read > 0)

    def _count(self, plan: Plan, *, replaced: bool) -> None:
        if plan.method is Method.UNCHANGED:
            self.counters.files_unchanged += 1
        elif plan.method is Method.WAL_SUMMARY:
            self.counters.files_by_wal_summary += 1
        elif plan.method is Method.PAGE_LSN and not replaced:
            self.counters.files_by_page_lsn += 1
        elif plan.method is Method.CONTENT and not replaced:
            self.counters.files_by_content += 1
        else:
            self.counters.files_stored += 1

    def _note_damage(self, found: Found, results: list[PieceResult]) -> int:
        """The flags that the entry needs, so that the next backup reads the file again."""
        blocks = [block for result in results for block in result.damaged]
        unsettled = [(found.text, *page) for result in results for page in result.unsettled]
        if blocks:
            self._add_damage(found.text, blocks)
        self.unsettled += unsettled
        return model.DAMAGED_PAGES if blocks or unsettled else 0

    def _add_damage(self, path: str, blocks: list[int]) -> None:
        if len(self.damage) < _DAMAGED_FILES_LISTED:
            self.damage.append(Damage(path, blocks[:_DAMAGED_BLOCKS_LISTED]))

    def _refer(self, extents: xt.Extents, *, from_draft: bool) -> xt.Extents:
        """Take over extents of the parent, or of the draft."""
        stored = extents["pack"] != xt.ZEROS
        self.counters.bytes_referenced += int(extents["length"][stored].sum(dtype="u8"))
        return self._session.refer(extents, draft=from_draft)

    def _add_entry(
        self, found: Found, identity: Identity, extents: xt.Extents, flags: int = 0, *, worth_noting: bool
    ) -> None:
        self.users.add(found.uid)
        self.groups.add(found.gid)
        if found.type == model.FILE:
            self.counters.files += 1
            self.counters.bytes_source += identity.size
        entry = Entry(found.path, found.type, found.mode, found.uid, found.gid, *identity, flags, found.target)
        self._session.add(entry, extents, worth_noting=worth_noting)
