# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults: killing a program at an instant, a disk that is full, bytes that change."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .account import ServerAccount
from .cleanup import unmount
from .waiting import wait_until

if TYPE_CHECKING:
    from .stores import StoredPath


@dataclass(frozen=True)
class Killed:
    """How a program ended that was to be killed."""

    returncode: int
    was_killed: bool
    """False when the program had ended by itself before the instant came."""
    stdout: str
    stderr: str
    seconds: float


def run_and_kill(
    command: Sequence[str | Path],
    *,
    after: float | None = None,
    when: Path | Callable[[], bool] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 120.0,
) -> Killed:
    """Run a program in a process group of its own and send SIGKILL to the group at an instant.

    Args:
        command: The argument vector.
        after: Kill that many seconds after the condition ``when`` (or the start, without one).
        when: Kill as soon as this path exists, or this function says so; looked at about every millisecond.
        env: The whole environment; this process's by default.
        cwd: Working directory.
        timeout: Seconds after which the program is killed and TimeoutError raised.

    With neither ``after`` nor ``when`` the program runs to its end.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.monotonic()
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=None if env is None else dict(env),
            cwd=cwd,
            start_new_session=True,
        )
        try:
            _wait_for_instant(process, after, when, started + timeout)
            was_killed = process.poll() is None
        finally:
            # The group may outlive its leader.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        seconds = time.monotonic() - started
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode(errors="replace"))
    return Killed(process.returncode, was_killed, texts[0], texts[1], seconds)


def _wait_for_instant(
    process: subprocess.Popen[bytes],
    after: float | None,
    when: Path | Callable[[], bool] | None,
    deadline: float,
) -> None:
    reached = when.exists if isinstance(when, Path) else when
    instant = time.monotonic() + after if reached is None and after is not None else None
    while process.poll() is None:
        now = time.monotonic()
        if now > deadline:
            raise TimeoutError(f"{process.args!r} neither ended nor reached the instant")
        if instant is not None and now >= instant:
            return
        if instant is None and reached is not None and reached():
            if not after:
                return
            instant, reached = now + after, None
        time.sleep(0.001)


def flip_byte(path: StoredPath, offset: int, mask: int = 0xFF) -> None:
    """Invert the bits of ``mask`` in one byte of a file or object; a negative offset counts from the end.

    Applied twice, it is as before (but for its times). Raises ValueError when there is no such byte.
    """
    if not isinstance(path, Path):
        data = bytearray(path.read_bytes())
        data[offset] ^= mask
        path.write_bytes(bytes(data))
        return
    mode = path.stat().st_mode
    path.chmod(mode | stat.S_IWUSR)
    try:
        with open(path, "r+b") as file:
            size = file.seek(0, os.SEEK_END)
            position = offset if offset >= 0 else size + offset
            if not 0 <= position < size:
                raise ValueError(f"{path} has {size} bytes, none at {offset}")
            file.seek(position)
            old = file.read(1)[0]
            file.seek(position)
            file.write(bytes([old ^ mask]))
    finally:
        path.chmod(mode)


def flip_bytes_sampled(path: StoredPath, count: int, seed: int = 0) -> Iterator[int]:
    """Flip one byte after another, each undone before the next; yields the offset while it is flipped.

    Takes every byte of a file of at most ``count`` bytes, else the first and last 64 and a random choice.
    """
    size = path.stat().st_size
    offsets = list(range(size))
    if size > count:
        edge = min(64, count // 4)
        inner = random.Random(seed).sample(range(edge, size - edge), count - 2 * edge)
        offsets = sorted([*range(edge), *inner, *range(size - edge, size)])
    for offset in offsets:
        flip_byte(path, offset)
        try:
            yield offset
        finally:
            flip_byte(path, offset)


class FullDisk:
    """A small file system (tmpfs) that can be filled to the last byte. Needs root.

    Made by the fixture ``full_disk``, or with ``mount`` and ``close``.
    """

    FILLER = ".filler"

    def __init__(self, path: Path, account: ServerAccount) -> None:
        self.path = path
        self._account = account

    def mount(self, megabytes: int, inodes: int | None = None) -> FullDisk:
        """Mount it at ``path``, an existing directory."""
        options = f"size={megabytes}m,mode=0700,uid={self._account.uid},gid={self._account.gid}"
        if inodes is not None:
            options += f",nr_inodes={inodes}"
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "cryobackup-lab", str(self.path)],
            check=True,
            capture_output=True,
        )
        return self

    @property
    def free(self) -> int:
        """Bytes that can still be written."""
        state = os.statvfs(self.path)
        return state.f_bavail * state.f_frsize

    def fill(self, leave_bytes: int = 0) -> None:
        """Take all space but ``leave_bytes`` (in whole memory pages)."""
        block = b"\0" * 65536
        with open(self.path / self.FILLER, "ab", buffering=0) as file:
            while (room := self.free - leave_bytes) > 0:
                try:
                    file.write(block[: min(room, len(block))])
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    return

    def release(self) -> None:
        """Give the space back that ``fill`` took."""
        (self.path / self.FILLER).unlink(missing_ok=True)

    def read_only(self, enabled: bool = True) -> None:
        """Make the file system read-only, or writable again."""
        mode = "ro" if enabled else "rw"
        command = ["mount", "-o", f"remount,{mode}", str(self.path)]
        # Busy until whoever writes for a client that has ended, such as an SFTP server, has noticed that.
        wait_until(lambda: subprocess.run(command, check=False, capture_output=True).returncode == 0, " ".join(command))

    def close(self) -> None:
        """Unmount it; everything in it is gone."""
        unmount(self.path)
