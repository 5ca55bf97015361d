# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which files of a backup lie in what was found damaged."""

from __future__ import annotations

import os
import typing as t

from ..postgres.lsn import parse_lsn
from ..repository.model import DAMAGED_PAGES
from .content import describe
from .needs import NO_PAGES, batches, claims_of, first_blocks, flatten
from .result import DAMAGE, FILES_LISTED, NOTICE, PARTLY

if t.TYPE_CHECKING:
    from collections.abc import Sequence

    from ..repository import extents as xt
    from ..repository.manifest import Manifest
    from ..repository.model import BackupHeader, Entry, PostgresInfo
    from .content import Examined
    from .subjects import Subject


class _Files:
    """Paths, the first of them by name."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.total = 0
        self._last: bytes | None = None

    def add(self, path: bytes) -> None:
        if path == self._last:
            return
        self._last = path
        self.total += 1
        if len(self.paths) < FILES_LISTED:
            self.paths.append(os.fsdecode(path))


def blame(subject: Subject, header: BackupHeader, manifest: Manifest | None, packs: Sequence[Examined]) -> None:
    """Add findings to the subject for each of ``packs`` (none of them sound) that the backup needs.

    Reads the manifest once, however many there are. None: it cannot be read, so that no files can be named.
    """
    claims = claims_of(header)
    cases = [_Case(subject, pack, field) for pack in packs for field, claim in claims.items() if claim == pack.claim]
    if cases and manifest is not None:
        _look(cases, header, manifest)
    for case in cases:
        case.report()


def _look(cases: Sequence[_Case], header: BackupHeader, manifest: Manifest) -> None:
    for batch in batches(manifest.entries()):
        extents, owner = flatten(batch)
        blocks = first_blocks(header, batch, extents, owner)
        for case in cases:
            mine = extents["pack"] == case.field
            if mine.any():
                case.look(batch, extents[mine], owner[mine])
                if header.postgres is not None:
                    case.look_at_pages(batch, extents[mine], owner[mine], blocks[mine], header.postgres)


class _Case:
    """One object that is not sound, and one backup."""

    def __init__(self, subject: Subject, found: Examined, field: int) -> None:
        import numpy as np

        self.field = field
        self._subject = subject
        self._found = found
        self._frames = np.array(sorted(found.bad_frames), dtype=np.int64)
        # With the digest: others may say something else of the same bytes.
        self._extents = {(bad.frame, bad.offset, bad.length, bad.digest) for bad in found.bad_extents}
        self._lost = _Files()
        self._wrong = _Files()
        self._pages: dict[str, tuple[bool, set[int]]] = {}

    def look(self, batch: list[Entry], extents: xt.Extents, owner: t.Any) -> None:
        """Note the files that have extents in the damage."""
        import numpy as np

        hit = np.ones(len(extents), bool)
        if self._found.problem is None:
            hit = np.isin(extents["frame"], self._frames)
        for number in dict.fromkeys(owner[hit].tolist()):
            self._lost.add(batch[number].path)
        if self._extents:
            columns = (extents["frame"].tolist(), extents["frame_offset"].tolist(), extents["length"].tolist())
            for at, (key, digest) in enumerate(zip(zip(*columns, strict=True), extents["digest"], strict=True)):
                if (*key, digest.tobytes()) in self._extents:
                    self._wrong.add(batch[int(owner[at])].path)

    def look_at_pages(
        self,
        batch: list[Entry],
        extents: xt.Extents,
        owner: t.Any,
        blocks: t.Any,
        postgres: PostgresInfo,
    ) -> None:
        """Note the blocks that broken pages are in this backup, if they count for it."""
        import numpy as np

        start_lsn, block_size = parse_lsn(postgres.start_lsn), postgres.block_size
        for page in self._found.bad_pages:
            if page.checksums != postgres.page_checksums or (not page.is_new and page.lsn >= start_lsn):
                continue
            within = page.offset - extents["frame_offset"].astype(np.int64)
            hit = (
                (extents["frame"] == page.frame)
                & (blocks != NO_PAGES)
                & (within >= 0)
                & (within + block_size <= extents["length"])
                & (blocks + within // block_size == page.block)
            )
            for at in np.flatnonzero(hit).tolist():
                if within[at] % block_size == 0:
                    entry = batch[int(owner[at])]
                    known = bool(entry.flags & DAMAGED_PAGES)
                    found = self._pages.setdefault(os.fsdecode(entry.path), (known, set()))
                    found[1].add(int(blocks[at] + within[at] // block_size))

    def report(self) -> None:
        location, name = self._found.location, self._found.name
        if self._found.problem is not None or self._found.bad_frames:
            kind, what = describe(self._found)
            severity = PARTLY if kind == "unreadable" else DAMAGE
            self._subject.add(kind, severity, location, name, what, **_listed(self._lost))
        if self._wrong.total:
            what = "it is sound, but not what the manifest says of these files"
            self._subject.add("inconsistent", DAMAGE, location, name, what, **_listed(self._wrong))
        for path, (known, numbers) in self._pages.items():
            what = "these pages were broken when they were backed up"
            what += ", as the backup says itself" if known else ", and the backup does not know it"
            severity = NOTICE if known else DAMAGE
            self._subject.add(
                "page", severity, location, name, what, files=(path,), files_total=1, blocks=sorted(numbers)
            )


class _Listed(t.TypedDict):
    files: Sequence[str]
    files_total: int


def _listed(files: _Files) -> _Listed:
    return {"files": files.paths, "files_total": files.total}
