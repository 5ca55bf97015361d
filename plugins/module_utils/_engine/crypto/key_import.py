# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bringing keys to a machine that has none of them, or some."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable

from ..errors import KeyFileError
from .keys import FILES, Key, read_keys, write_keys


def add_keys(directory: pathlib.Path, keys: Iterable[Key]) -> list[pathlib.Path]:
    """Write the key files that are not there yet, durable on return; returns those written.

    Idempotent. Raises KeyFileError, with nothing written, when a file that is there holds anything
    else than the keys say: keys are never overwritten.
    """
    present = read_keys(directory)
    missing: list[Key] = []
    for role in FILES:
        wanted = {key for key in keys if key.role == role}
        found = {key for key in present if key.role == role}
        if not found:
            missing += wanted
        elif not wanted <= found:
            raise KeyFileError(
                f"{directory / FILES[role]} holds other keys than those to be imported",
                hint="Nothing was written. Move the directory away if its keys are of no use, or import into another"
                " one with --directory.",
                id="key-conflict",
            )
    return write_keys(directory, missing) if missing else []
