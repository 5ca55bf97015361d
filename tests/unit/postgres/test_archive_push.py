# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pushing WAL: the threads that compress."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from cryobackup.postgres import archive_push
from tests.lab.waiting import wait_until


class Encoder:
    def seal_frame(self, _kind: int, _number: int, data: bytes) -> bytes:
        return data

    def place(self, _stored: int, _plain: int) -> None:
        pass


def frames() -> list[bytes]:
    encoder: Any = Encoder()
    return list(archive_push._frames(encoder, iter([b"one", b"two"])))


def compressing() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("compress")]


def test_a_signal_while_a_thread_starts_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool does not know it, so that nobody would tell it to end, and the interpreter would wait for it."""
    archive_push._pool.cache_clear()
    wait_until(lambda: not compressing())
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            frames()
    wait_until(lambda: not compressing())
    assert frames() == [b"one", b"two"]
