# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an interrupted backup had finished, for the next one: a manifest that never came to be.

A backup keeps it in the state directory while it runs. It names entries and the packs that were durable by then; what
is in neither is done again. It is no part of the repository: without it a backup begins from the beginning. That of an
incremental lacks what its parent tells as well: it is of use together with that parent only.

The file is a row of records, each with a keyed digest, so that the torn end after a crash is seen as one. Entries
count once a *mark* follows them: it says up to which position of the source they may have seen it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import os
import struct
import threading
import typing as t

from ..crypto import suite
from . import extents as xt
from .decoding import decode
from .model import FULL, INCREMENTAL, BackupHeader, Entry, ForeignPackRow, PackRow

if t.TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_RECORD: t.Final = struct.Struct("<cI32s")
"""Kind, bytes, digest."""
_HEADER, _PACK, _FOREIGN, _ENTRIES, _MARK = b"h", b"p", b"f", b"e", b"m"
_ENTRIES_BYTES: t.Final = 1 << 20
_MOST_BYTES: t.Final = 1 << 30
_SUFFIXES: t.Final = {FULL: ".draft", INCREMENTAL: ".incremental"}


class DraftWriter:
    """The draft of a backup under way. A full disk ends it, not the backup.

    ``pack`` may be called by any thread, the rest by one.
    """

    def __init__(self, directory: Path, digest_key: bytes, header: BackupHeader) -> None:
        """``header``: what the backup's own would say if it ended now."""
        self._key = digest_key
        self._pending = list[Entry]()
        self._pending_bytes = 0
        self._lock = threading.Lock()
        self._file: t.BinaryIO | None = None
        with contextlib.suppress(OSError):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            number = os.open(
                directory / f"{header.backup_id}{_SUFFIXES[header.kind]}",
                os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC,
                0o600,
            )
            self._file = os.fdopen(number, "wb", buffering=0)
        self._write(_HEADER, header)

    def entry(self, entry: Entry) -> None:
        """The next entry, with its extents, in the order of the format."""
        self._pending.append(entry)
        self._pending_bytes += len(entry.extents)
        if self._pending_bytes > _ENTRIES_BYTES:
            self._flush()

    def pack(self, row: PackRow) -> None:
        """A pack of the backup is complete and durable."""
        self._write(_PACK, row)

    def foreign(self, row: ForeignPackRow) -> None:
        """Entries refer to one more pack of others; they do so by the order of these calls."""
        self._write(_FOREIGN, row)

    def mark(self, position: str) -> None:
        """No entry so far has seen the source later than at ``position``."""
        self._flush()
        self._write(_MARK, position)

    def close(self) -> None:
        """The draft stays, up to the last mark. Idempotent."""
        with self._lock:
            file, self._file = self._file, None
        if file is not None:
            file.close()

    def _flush(self) -> None:
        pending, self._pending, self._pending_bytes = self._pending, [], 0
        if pending:
            self._write(_ENTRIES, pending)

    def _write(self, kind: bytes, what: object) -> None:
        import msgspec

        with self._lock:
            if self._file is None:
                return
            data = msgspec.msgpack.encode(what)
            record = _RECORD.pack(kind, len(data), suite.keyed_digest(self._key, kind + data)) + data
            try:
                if self._file.write(record) == len(record):
                    return
            except OSError:
                pass
            # A later record would be taken for the rest of this one.
            self._file.close()
            self._file = None


class Draft:
    """A draft that was left. Looks like a manifest: a ``header``, with the packs that were finished, and entries."""

    def __init__(self, path: Path, digest_key: bytes) -> None:
        """Reads it once. Raises OSError, and ValueError when there is nothing in it to go on from."""
        self.path = path
        self._key = digest_key
        self._marked = 0
        """How many records count."""
        self.position = ""
        header: BackupHeader | None = None
        packs: list[PackRow] = []
        foreign: list[ForeignPackRow] = []
        for number, (kind, data) in enumerate(self._records()):
            if kind == _HEADER:
                header = decode(data, BackupHeader)
            elif kind == _PACK:
                packs.append(decode(data, PackRow))
            elif kind == _FOREIGN:
                foreign.append(decode(data, ForeignPackRow))
            elif kind == _MARK:
                self._marked, self.position = number, decode(data, str)
        if header is None or not self._marked or not (packs or foreign):
            raise ValueError(f"{path} has no entries that are of use")
        seen = dt.datetime.fromtimestamp(path.stat().st_mtime, dt.UTC)
        self.header = dataclasses.replace(header, packs=packs, foreign=foreign, finished_at=seen.isoformat())
        self._finished = {row.number for row in packs}
        self.bytes = sum(entry.size for entry in self.entries())
        """Of the source, in files that are done."""

    @property
    def backups(self) -> list[str]:
        """Those whose packs the entries refer to; the draft's own is one of them."""
        return sorted({self.header.backup_id, *(row.backup_id for row in self.header.foreign)})

    def entries(self) -> Iterator[Entry]:
        """Those that lie in finished packs, in the order of the format."""
        for number, (kind, data) in enumerate(self._records()):
            if number >= self._marked:
                return
            if kind != _ENTRIES:
                continue
            for entry in decode(data, list[Entry]):
                own = {field for field in xt.pack_fields(xt.unpack(entry.extents)) if field < xt.FOREIGN}
                if own <= self._finished:
                    yield entry

    def _records(self) -> Iterator[tuple[bytes, bytes]]:
        """Up to the first that is torn or damaged."""
        with self.path.open("rb") as file:
            while len(head := file.read(_RECORD.size)) == _RECORD.size:
                kind, length, digest = _RECORD.unpack(head)
                data = file.read(length) if length <= _MOST_BYTES else b""
                if len(data) != length or suite.keyed_digest(self._key, kind + data) != digest:
                    return
                yield kind, data


def read_drafts(directory: Path, digest_key: bytes, kind: str) -> list[Draft]:
    """Those of a kind that are of use, the one with most in it first. What is of no use is removed."""
    import msgspec

    found: list[Draft] = []
    for path in drafts_of(directory, kind):
        try:
            draft = Draft(path, digest_key)
        except (ValueError, OSError, msgspec.DecodeError):
            remove(path)
            continue
        if draft.header.kind == kind:
            found.append(draft)
    return sorted(found, key=lambda draft: draft.bytes, reverse=True)


def drafts_of(directory: Path, kind: str) -> list[Path]:
    return sorted(directory.glob(f"*{_SUFFIXES[kind]}"))


def remove(path: Path) -> None:
    """It is of no use any more. What cannot be removed costs a little room."""
    with contextlib.suppress(OSError):
        path.unlink()
