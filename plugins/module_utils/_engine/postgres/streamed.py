# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The streamed beginning of a segment that was never archived: where the WAL of a lost server ends.

What ``wal-stream`` has stored of it is followed by zeros up to the size of a segment, which is how a server's own
unfinished segment looks, too: recovery ends at the first record that is not whole (``ReadRecord`` in ``xlogreader.c``).
"""

from __future__ import annotations

import dataclasses
import itertools
import typing as t

from ..errors import DamageError, LocationError, ObjectMissing, SourceError
from ..repository import names
from ..repository.packs import first_good
from .archive_index import read_history
from .archive_object import WalReader
from .wal import SEGMENT_HEADER_BYTES, WalName, check_segment, parse_segment_header, parse_wal_name

if t.TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from ..repository.names import StreamedPart
    from ..repository.repository import Repository
    from ..storage.base import Location

_ZEROS: t.Final = bytes(1 << 20)


@dataclasses.dataclass(frozen=True, slots=True)
class Streamed:
    """The longest beginning of a segment that one stream has left, as the listings tell it: nothing was read."""

    system_identifier: int
    name: WalName
    parts: tuple[StreamedPart, ...]
    """In order, without a gap, from the first byte of the segment on."""
    modified: float
    """When the last part was stored: seconds since 1970 by the clock of its location."""

    @property
    def end(self) -> int:
        """Bytes of the segment that are there."""
        return self.parts[-1].end

    def end_lsn(self, segment_size: int) -> int:
        """Up to where there is WAL; its last record may begin before and not be whole."""
        return self.name.start_lsn(segment_size) + self.end


def find_streamed(locations: Iterable[Location], system_identifier: int, name: str) -> Streamed | None:
    """What was streamed of a segment, in all these locations together; None when that is nothing.

    Streams are not mixed: a server that crashed may have written other bytes over a record that it had not finished
    (``XLP_FIRST_IS_OVERWRITE_CONTRECORD``). Of several, the one that gets farthest is as right as any: a server
    streams only what it has flushed, which no crash takes back. Raises LocationError when a location cannot be listed.
    """
    found: dict[StreamedPart, float] = {}
    for location in locations:
        for info in location.list(names.streamed_of(system_identifier, name)):
            parsed = names.parse_streamed_part(info.key)
            if parsed is not None:
                found[parsed[1]] = max(info.modified, found.get(parsed[1], 0.0))
    runs = [_run(found, stream) for stream in {part.stream for part in found}]
    best = max((run for run in runs if run), key=lambda run: (run[-1].end, run[-1].stream), default=None)
    if best is None:
        return None
    return Streamed(system_identifier, parse_wal_name(name), best, found[best[-1]])


def _run(parts: Iterable[StreamedPart], stream: str) -> tuple[StreamedPart, ...]:
    run: list[StreamedPart] = []
    for part in sorted((part for part in parts if part.stream == stream), key=lambda part: part.begin):
        if part.begin != (run[-1].end if run else 0):
            break
        run.append(part)
    return tuple(run)


def segment_content(repository: Repository, streamed: Streamed) -> Iterator[bytes]:
    """The segment, in its full size: what was streamed, authenticated, and zeros.

    Needs the identity. Raises DamageError when a part is damaged wherever it is, ObjectMissing when one has gone,
    LocationError, and SourceError when it is not the segment that its name says.
    """
    first = _part(repository, streamed.system_identifier, streamed.parts[0])
    header = first[:SEGMENT_HEADER_BYTES]
    left = parse_segment_header(header).segment_size - streamed.end
    check_segment(header, left + streamed.end, streamed.name, streamed.system_identifier)
    if left < 0:
        raise _damaged(streamed.system_identifier, streamed.parts[-1])
    yield first
    for part in streamed.parts[1:]:
        yield _part(repository, streamed.system_identifier, part)
    while left:
        zeros = _ZEROS[:left]
        left -= len(zeros)
        yield zeros


def _part(repository: Repository, system_identifier: int, part: StreamedPart) -> bytes:
    key = names.streamed_part(system_identifier, part)

    def read(location: Location) -> bytes:
        content = b"".join(WalReader(repository.keys, location, key).chunks())
        if len(content) != part.end - part.begin:
            raise _damaged(system_identifier, part)
        return content

    return first_good(repository.locations, key, read, repository.breaker)


def _damaged(system_identifier: int, part: StreamedPart) -> DamageError:
    return DamageError(
        f"object {names.streamed_part(system_identifier, part)} is damaged: it is not as long as its name says",
        hint="Another location may have it undamaged.",
    )


def was_left(repository: Repository, streamed: Streamed, segment_size: int, target: int | None) -> bool:
    """Whether recovery has to leave the timeline before the end of what was streamed, to get to timeline ``target``.

    It asks for this segment as well while its own timeline's is not archived yet, and would replay what the new primary
    never had (``XLogFileReadAnyTLI``): that is why PostgreSQL calls the end of a timeline that was left ``.partial``.
    None as the target: any timeline in the archive may be it. Needs the identity. Raises DamageError, LocationError.
    """
    timeline, end = streamed.name.timeline, streamed.end_lsn(segment_size)
    for newer in itertools.count(timeline + 1) if target is None else range(max(target, timeline + 1), target + 1):
        try:
            spans = read_history(repository, streamed.system_identifier, newer).spans()
        except ObjectMissing:
            # Numbers are given out one after the other (findNewestTimeLine).
            return target is not None
        if any(span.timeline == timeline and span.end is not None and span.end < end for span in spans):
            return True
    return False


def gets_farther(streamed: Path, local: Path) -> bool:
    """Whether a streamed segment has WAL that the file of pg_wal lacks, which it would replace.

    PostgreSQL asks the archive first (``XLogFileReadAnyTLI``), also where a server's own pg_wal was kept, which has all
    that it ever flushed. Not everything that bears a segment's name is one: files are made and renamed in advance.
    """
    import numpy as np

    try:
        mine = np.fromfile(local, np.uint8)
        header = mine[:SEGMENT_HEADER_BYTES].tobytes()
        system_identifier = parse_segment_header(header).system_identifier
        check_segment(header, len(mine), parse_wal_name(local.name), system_identifier)
    except (OSError, SourceError):
        return True
    differs = np.flatnonzero(np.fromfile(streamed, np.uint8) != mine)
    return differs.size > 0 and not mine[differs[0] :].any()


class Tails:
    """What was streamed behind the end of one archive, for who plans a restore."""

    def __init__(self, repository: Repository, system_identifier: int) -> None:
        self._repository = repository
        self._system_identifier = system_identifier

    def of(self, name: str) -> Streamed | None:
        """What was streamed of the segment; None also where a location does not answer."""
        try:
            return find_streamed(self._repository.locations, self._system_identifier, name)
        except LocationError:
            return None

    def content(self, name: str) -> bytes | None:
        """The segment in its full size, None when nothing of it was streamed. Raises as ``segment_content``."""
        streamed = self.of(name)
        return b"".join(segment_content(self._repository, streamed)) if streamed is not None else None
