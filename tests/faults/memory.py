# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A location in memory that can crash at any call, for tests of the protocol."""

from __future__ import annotations

import typing as t

from cryobackup.errors import LocationError, ObjectConflict, ObjectMissing
from cryobackup.storage.base import Capacity, ObjectInfo, check_key


class Crash(BaseException):
    """The machine is gone: no cleanup can run any more."""


class Machine:
    """What crashes: once it has, every further call of its locations fails. And what only fails, once, and goes on."""

    def __init__(self) -> None:
        self.countdown: int | None = None
        self.after = False  # the effect of the last call happened, its answer was lost
        self.down = False
        self.failed = False
        self._failure: tuple[int, bool] | None = None
        self._pause: tuple[int, t.Callable[[], None]] | None = None

    def pause_at(self, call: int, meanwhile: t.Callable[[], None]) -> None:
        """Before the call with this number, let ``meanwhile`` happen: the holder was slow, others were not."""
        self._pause = call, meanwhile

    def crash_at(self, call: int, *, after: bool) -> None:
        self.countdown, self.after = call, after

    def fail_at(self, call: int, *, after: bool) -> None:
        """Let the call with this number end with a LocationError, ``after`` it had its effect or instead of it.

        So do object stores whose acknowledgement gets lost.
        """
        self._failure = call, after

    def call(self, effect: t.Callable[[], t.Any]) -> t.Any:
        if self._pause is not None:
            call, meanwhile = self._pause
            self._pause = (call - 1, meanwhile) if call > 1 else None
            if call == 1:
                meanwhile()
        if self.down:
            raise Crash
        if self._failure is not None:
            call, after = self._failure
            self._failure = (call - 1, after) if call > 1 else None
            if call == 1:
                self.failed = True
                if after:
                    effect()
                raise LocationError("no answer came", hint="This is a test.", id="location-down")
        if self.countdown is None:
            return effect()
        self.countdown -= 1
        if self.countdown > 0:
            return effect()
        self.down = True
        if self.after:
            effect()
        raise Crash


class MemoryLocation:
    """Keeps what a real location promises; counts nothing, forgets nothing, lists consistently."""

    required = True

    def __init__(self, name: str, machine: Machine, objects: dict[str, tuple[bytes, float]] | None = None) -> None:
        self.name = name
        self.machine = machine
        self.objects = {} if objects is None else objects
        self.clock = 1_000_000_000.0

    def describe(self) -> str:
        return f"memory {self.name}"

    def prepare(self) -> None:
        pass

    def create(self, key: str) -> _Writer:
        check_key(key)
        return _Writer(self, key)

    def add(self, key: str, data: bytes) -> None:
        if key in self.objects:
            raise ObjectConflict(f"{key} exists")
        self.objects[key] = data, self.clock

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        def effect() -> bytes:
            if key not in self.objects:
                raise ObjectMissing(f"{key} is not there")
            data = self.objects[key][0]
            return data[offset:] if length is None else data[offset : offset + length]

        return self.machine.call(effect)

    def stat(self, key: str) -> ObjectInfo | None:
        def effect() -> ObjectInfo | None:
            if key not in self.objects:
                return None
            data, modified = self.objects[key]
            return ObjectInfo(key, len(data), modified)

        return self.machine.call(effect)

    def confirm(self, key: str) -> None:
        self.machine.call(lambda: self.objects[key])

    def list(self, prefix: str) -> t.Iterator[ObjectInfo]:
        return iter(
            self.machine.call(
                lambda: [
                    ObjectInfo(key, len(data), modified)
                    for key, (data, modified) in sorted(self.objects.items())
                    if key.startswith(prefix)
                ]
            )
        )

    def delete(self, key: str) -> None:
        self.machine.call(lambda: self.objects.pop(key, None))

    def now(self) -> float:
        return self.machine.call(lambda: self.clock)

    def capacity(self) -> Capacity:
        return Capacity(None, None)

    def sweep(self, older_than: float) -> int:
        return 0

    def requests(self) -> dict[str, int]:
        return {}


class _Writer:
    def __init__(self, location: MemoryLocation, key: str) -> None:
        self._location = location
        self._key = key
        self._data = bytearray()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._data += data

    def commit(self) -> None:
        self._location.machine.call(lambda: self._location.add(self._key, bytes(self._data)))

    def abort(self) -> None:
        pass
