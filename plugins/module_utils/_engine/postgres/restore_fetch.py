# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bytes of a backup: frames of its packs, and the extents cut out of them."""

from __future__ import annotations

import collections
import threading
import typing as t

from ..crypto import suite
from ..errors import DamageError, LocationError
from ..repository import extents as xt
from ..repository import names
from ..repository.model import BackupHeader, pack_names
from ..repository.packs import PackReader
from ..storage.breaker import Breaker

if t.TYPE_CHECKING:
    from ..crypto.keys import KeyRing
    from ..storage.base import Location

_OPEN_PACKS: t.Final = 512
"""Kept open: each is a key and the table of its frames. A backup at the end of a long chain has hundreds."""


class PackShelf:
    """The packs of one backup, by the pack field of its extents. Thread-safe."""

    def __init__(
        self, header: BackupHeader, locations: t.Sequence[Location], keys: KeyRing, breaker: Breaker | None = None
    ) -> None:
        self._locations = list(locations)
        self._keys = keys
        self.breaker = breaker or Breaker()
        self._sizes = {name: size for name, (size, _digest) in pack_names(header).items()}
        self._names = {row.number: names.pack(header.backup_id, row.number) for row in header.packs}
        for index, row in enumerate(header.foreign):
            self._names[xt.FOREIGN + index] = names.pack(row.backup_id, row.number)
        self._open: collections.OrderedDict[int, PackReader] = collections.OrderedDict()
        self._lock = threading.Lock()

    def name(self, field: int) -> str:
        """The object's name. Raises DamageError when the manifest lists no such pack."""
        name = self._names.get(field)
        if name is None:
            raise DamageError(f"an extent refers to pack {field}, which the manifest does not list")
        return name

    def fields_of(self, wanted: t.Collection[str]) -> set[int]:
        """The pack fields of these objects."""
        return {field for field, name in self._names.items() if name in wanted}

    def reader(self, field: int) -> PackReader:
        with self._lock:
            reader = self._open.get(field)
            if reader is None:
                name = self.name(field)
                reader = self._open[field] = PackReader(
                    self._locations, self._keys, name, size=self._sizes[name], breaker=self.breaker
                )
                if len(self._open) > _OPEN_PACKS:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(field)
            return reader

    def content(self, packed: bytes) -> bytes:
        """All bytes of a small file. Raises DamageError, ObjectMissing, LocationError."""
        parts = []
        for row in xt.unpack(packed):
            length, field = int(row["length"]), int(row["pack"])
            if field == xt.ZEROS:
                parts.append(bytes(length))
                continue
            frame = self.reader(field).frame(int(row["frame"]))
            digest = bytes(row["digest"])
            part = cut(frame, int(row["frame_offset"]), length, digest, self._keys.digest_key, self.name(field))
            parts.append(bytes(part))
        return b"".join(parts)


def cut(frame: bytes, offset: int, length: int, digest: bytes, key: bytes, name: str) -> memoryview:
    """An extent's bytes out of its frame. Raises DamageError when they are not those that were backed up.

    The frame is authentic already; this is the last check of everything between it and the file.
    """
    part = memoryview(frame)[offset : offset + length]
    if len(part) != length:
        raise DamageError(f"object {name}: an extent reaches beyond the end of its frame")
    if digest != xt.UNKNOWN_DIGEST and suite.keyed_digest(key, part)[:16] != digest:
        raise DamageError(f"object {name}: an extent's content is not what its manifest says")
    return part


def absent_packs(header: BackupHeader, locations: t.Sequence[Location]) -> dict[str, str]:
    """Packs of a backup that no location has whole, by name, with a word on each.

    A location that does not answer is passed over, as long as one does: what only it has counts as absent,
    because this restore cannot have it. Raises LocationError when none answers.
    """
    wanted = {name: size for name, (size, _digest) in pack_names(header).items()}
    backups = sorted({name.split("/")[1] for name in wanted})
    absent = dict.fromkeys(wanted, "missing")
    errors: list[LocationError] = []
    for location in locations:
        try:
            for backup_id in backups:
                for info in location.list(names.packs(backup_id)):
                    if info.key in absent and info.size == wanted[info.key]:
                        del absent[info.key]
                    elif info.key in absent:
                        absent[info.key] = f"{info.size} bytes instead of {wanted[info.key]}"
        except LocationError as error:
            errors.append(error)
    if len(errors) == len(locations):
        raise errors[0]
    return absent
