# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lines of text that can be printed and typed, each with a check at its end (docs/repository-format.md, section 5)."""

from __future__ import annotations

import base64
import binascii
import hashlib

from ..errors import KeyFileError


def check_of(body: str) -> str:
    """The check of a line: the first 8 hex digits of the SHA-256 of what stands before it."""
    return hashlib.sha256(body.encode()).hexdigest()[:8]


def make_line(role: str, *words: str) -> str:
    """``cryo-<role>-1 <words> <check>``, without line end."""
    body = " ".join([f"cryo-{role}-1", *words])
    return f"{body} {check_of(body)}"


def read_line(text: str, role: str, count: int, where: str) -> list[str]:
    """The ``count`` words between role and check of such a line.

    Raises KeyFileError naming ``where``; the text itself is never repeated.
    """
    body, _space, check = text.rpartition(" ")
    words = body.split(" ")
    if words[0] != f"cryo-{role}-1" or len(words) != count + 1:
        raise KeyFileError(f"{where}: this is not a line cryo-{role}-1")
    if check_of(body) != check:
        raise KeyFileError(
            f"{where}: the check at the end of the line does not fit",
            hint="A character was lost or mistyped. Take the line from where it came from once more.",
        )
    return words[1:]


def to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def from_base64(text: str, where: str) -> bytes:
    """Raises KeyFileError naming ``where``."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise KeyFileError(f"{where}: what should be base64 is not") from error
