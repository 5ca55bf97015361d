# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing past the page cache: which files, and that every byte is where it belongs, or that nothing was written."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

import pytest

from cryobackup.postgres import restore_direct
from cryobackup.postgres.restore_direct import DirectWriter, worth_it
from cryobackup.repository import extents as xt

MIB = 1 << 20


def extents(*parts: tuple[int, int]) -> xt.Extents:
    return xt.build([(offset, length, 0, number, 0, bytes(16)) for number, (offset, length) in enumerate(parts)])


def test_which_files() -> None:
    assert worth_it(extents((0, MIB)))
    assert worth_it(extents((0, MIB), (MIB, 8192)))
    assert not worth_it(xt.empty())
    assert not worth_it(extents((0, MIB - 8192)))
    assert not worth_it(extents((0, MIB), (MIB, 100))), "not aligned"
    assert not worth_it(extents((0, MIB), (MIB + 512, mmap.PAGESIZE))), "not aligned"
    scattered = [(MIB + number * 8192, 8192) for number in range(8)]
    assert not worth_it(extents((0, MIB), *scattered)), "many small writes"


def test_every_byte(tmp_path: Path) -> None:
    """On whatever file system this is: where it refuses, the caller writes as ever."""
    path = tmp_path / "file"
    expected = bytearray(3 * MIB)
    writer = DirectWriter()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    os.ftruncate(descriptor, len(expected))
    for offset, length in ((MIB, 2 * MIB), (0, 8192), (65536, 4096)):
        data = os.urandom(length)
        expected[offset : offset + length] = data
        if not writer.write(descriptor, memoryview(data), offset):
            os.pwrite(descriptor, data, offset)
    os.close(descriptor)
    assert path.read_bytes() == expected


@pytest.mark.parametrize("refusing", ["flag", "write"])
def test_a_file_system_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusing: str) -> None:
    def refuse(*_arguments: object) -> int:
        asked.append(1)
        raise OSError(errno.EINVAL, "refused")

    asked: list[int] = []
    path = tmp_path / "file"
    path.write_bytes(b"before" * 4096)
    writer = DirectWriter()
    descriptor = os.open(path, os.O_RDWR)
    with monkeypatch.context() as patch:
        if refusing == "write":
            patch.setattr(restore_direct.os, "pwrite", refuse)
        else:
            patch.setattr(os, "O_DIRECT", 0o777000000)
            patch.setattr("fcntl.fcntl", lambda _file, command, *_flags: refuse() if command == 4 else 0)
        assert not writer.write(descriptor, bytes(4096), 0)
        assert not writer.write(descriptor, bytes(4096), 0)
    assert len(asked) in (1, 2), "asked once, and perhaps once more to take the flag back"
    assert os.pwrite(descriptor, b"x" * 100, 7) == 100, "the flag is gone: nothing has to be aligned"
    os.close(descriptor)
    assert path.read_bytes() == b"beforeb" + b"x" * 100 + (b"before" * 4096)[107:]


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    monkeypatch.setattr(restore_direct.os, "pwrite", full)
    with pytest.raises(OSError, match="full"):
        DirectWriter().write(descriptor, bytes(4096), 0)
    os.close(descriptor)
