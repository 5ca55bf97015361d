# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files that PostgreSQL starts from: whether a backup has them, and of the cluster that its header describes.

Who owns a database host can write a manifest that lists next to nothing. All of that is there and undamaged, but it is
no backup: it must not count as proven, or retention would let go of true ones for its sake. That a server really starts
on the rest only a restore shows.
"""

from __future__ import annotations

import typing as t

from ..errors import SourceError
from ..postgres.backup_label import parse_backup_label
from ..postgres.control import CONTROL_FILE_BYTES, parse_control
from ..postgres.lsn import format_lsn, parse_lsn
from ..postgres.relfile import BACKUP_LABEL_FILE, CONTROL_FILE
from ..repository import extents as xt
from ..repository.model import FILE, PHYSICAL

if t.TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ..repository.model import BackupHeader, Entry, PostgresInfo

VERSION_FILE: t.Final = "PG_VERSION"
_BYTES: t.Final[dict[bytes, range]] = {
    VERSION_FILE.encode(): range(2, 17),
    BACKUP_LABEL_FILE.encode(): range(1, 1 << 16),
    CONTROL_FILE.encode(): range(CONTROL_FILE_BYTES, CONTROL_FILE_BYTES + 1),
}
"""How large they can be."""


class Excerpt(t.NamedTuple):
    """Some bytes of a frame."""

    frame: int
    offset: int
    length: int


Problem: t.TypeAlias = tuple[str, tuple[str, ...]]
"""What is wrong, and with which files."""


class Essentials:
    """Of one manifest. Nothing is asked of backups that are not of a cluster."""

    def __init__(self, header: BackupHeader) -> None:
        self._header = header
        self._files = 0
        self._bytes = 0
        self._entries: dict[bytes, Entry] = {}
        self._odd: set[bytes] = set()

    def watch(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """The same entries; what counts here is noted on the way."""
        for entry in entries:
            if entry.type == FILE:
                self._files += 1
                self._bytes += entry.size
            if entry.path in _BYTES:
                if entry.path in self._entries or not _is_plausible(entry):
                    self._odd.add(entry.path)
                self._entries[entry.path] = entry
            yield entry

    def problems(self) -> Iterator[Problem]:
        """What the manifest lacks or contradicts itself in. To be called when all entries went by."""
        if self._header.kind not in PHYSICAL:
            return
        if self._header.postgres is None:
            yield "it says that it is of a cluster, and not of which", ()
        said = self._header.totals
        if (said.files, said.bytes_source) != (self._files, self._bytes):
            listed = f"{self._files} files of {self._bytes} bytes"
            yield f"it lists {listed}, and says that it has {said.files} of {said.bytes_source}", ()
        missing = tuple(path.decode() for path in _BYTES if path not in self._entries)
        if missing:
            yield f"it lacks what no server starts without: {', '.join(missing)}", missing
        if self._odd:
            odd = tuple(sorted(path.decode() for path in self._odd))
            yield "no cluster has these files in this number, size or form", odd

    def wanted(self) -> Iterator[tuple[int, Excerpt]]:
        """Where their bytes lie, by pack field. Together less than 80 KiB."""
        for entry in self._sound():
            for row in xt.unpack(entry.extents):
                if row["pack"] != xt.ZEROS:
                    yield int(row["pack"]), _excerpt(row)

    def wrong(self, read: Callable[[int, Excerpt], bytes | None]) -> Iterator[Problem]:
        """What their bytes say against the header. Those that ``read`` does not have are passed over."""
        info = self._header.postgres
        for entry in self._sound():
            content = _content(entry, read)
            if content is None or info is None:
                continue
            path = entry.path.decode()
            try:
                found = _CHECKS[path](content, info)
            except SourceError as error:
                found = error.message
            if found is not None:
                yield f"{path} is not that of the cluster it describes: {found}", (path,)

    def _sound(self) -> Iterator[Entry]:
        if self._header.kind in PHYSICAL:
            yield from (entry for path, entry in self._entries.items() if path not in self._odd)


def _is_plausible(entry: Entry) -> bool:
    """Whether it is a file of a size that it can have, in extents of that size: so few that they can be kept."""
    if entry.type != FILE or entry.size not in _BYTES[entry.path] or len(entry.extents) % xt.EXTENT_BYTES:
        return False
    lengths = xt.unpack(entry.extents)["length"]
    return bool(len(lengths) <= entry.size == lengths.sum(dtype="u8"))


def _excerpt(row: t.Any) -> Excerpt:
    return Excerpt(int(row["frame"]), int(row["frame_offset"]), int(row["length"]))


def _content(entry: Entry, read: Callable[[int, Excerpt], bytes | None]) -> bytes | None:
    content = b""
    for row in xt.unpack(entry.extents):
        part = bytes(row["length"]) if row["pack"] == xt.ZEROS else read(int(row["pack"]), _excerpt(row))
        if part is None:
            return None
        content += part
    return content


def _version(content: bytes, info: PostgresInfo) -> str | None:
    major = info.version // 10000
    return None if content.strip() == str(major).encode() else f"it says {content!r}, not {major}"


def _control(content: bytes, info: PostgresInfo) -> str | None:
    control = parse_control(content)
    major = info.version // 10000
    compared = {
        "system identifier": (control.system_identifier, int(info.system_identifier)),
        # None: of no release that is known, such as a newer one.
        "version": (control.postgres_major or major, major),
        "page size": (control.block_size, info.block_size),
        "pages in a file": (control.relation_segment_blocks, info.segment_blocks),
        "size of WAL segments": (control.wal_segment_size, info.wal_segment_size),
        "page checksums": (control.has_checksums, info.page_checksums),
    }
    return _difference(compared)


def _label(content: bytes, info: PostgresInfo) -> str | None:
    label = parse_backup_label(content.decode("utf-8", "surrogateescape"))
    start, checkpoint = parse_lsn(info.start_lsn), parse_lsn(info.checkpoint_lsn)
    compared = {
        "start": (format_lsn(label.start_lsn), format_lsn(start)),
        "checkpoint": (format_lsn(label.checkpoint_lsn), format_lsn(checkpoint)),
        "timeline": (label.start_timeline, info.timeline),
    }
    return _difference(compared)


def _difference(compared: dict[str, tuple[t.Any, t.Any]]) -> str | None:
    wrong = [f"{what} {there}, not {said}" for what, (there, said) in compared.items() if there != said]
    return ", ".join(wrong) or None


_CHECKS: t.Final[dict[str, Callable[[bytes, PostgresInfo], str | None]]] = {
    VERSION_FILE: _version,
    BACKUP_LABEL_FILE: _label,
    CONTROL_FILE: _control,
}
