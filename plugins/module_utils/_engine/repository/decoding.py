# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""MessagePack as the types it stands for, from any thread."""

from __future__ import annotations

import threading
import typing as t

_lock = threading.Lock()
_decoders: dict[object, t.Any] = {}

T = t.TypeVar("T")


def decode(data: bytes, kind: type[T]) -> T:
    """Raises msgspec.DecodeError, whatever it is that cannot be read.

    msgspec finds out about a class when it meets it first, and crashes when two threads have it do so at the same
    time (seen with 0.22, in ``get_class_annotations``). So decoders are made one at a time, and kept; using
    one from several threads is safe.
    """
    import msgspec

    with _lock:
        decoder = _decoders.get(kind)
        if decoder is None:
            decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    try:
        found: T = decoder.decode(data)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error
    return found
