# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Passphrases come from a file or from a terminal; never from an argument or the environment, which others can see."""

from __future__ import annotations

import os
import typing as t

from ..errors import KeyFileError
from ._parser import UsageError

if t.TYPE_CHECKING:
    from pathlib import Path


def read_passphrase(file: Path | None, of_what: str, *, new: bool = False) -> str:
    """From ``file``, or typed (twice if ``new``). ``of_what`` is for the prompt.

    Raises KeyFileError, id ``key-file-mode`` when others may read the file; UsageError when there is nobody to ask.
    """
    if file is not None:
        return _from_file(file)
    _need_terminal()
    import getpass

    try:
        typed = getpass.getpass(f"Passphrase of {of_what}: ")
        again = getpass.getpass("The same again: ") if new else typed
    except EOFError as error:
        raise KeyFileError("no passphrase was typed", hint="Nothing was changed.") from error
    if typed != again:
        raise KeyFileError("the two passphrases differ", hint="Nothing was changed. Type it once more.")
    return typed


def _from_file(file: Path) -> str:
    from ..crypto.keys import read_file

    text = read_file(file, secret=True)
    if text is None:
        raise KeyFileError(f"there is no file {file}", hint="Name a file whose only line is the passphrase.")
    line = text.removesuffix("\n").removesuffix("\r")
    if not line or "\n" in line:
        raise KeyFileError(
            f"{file} does not hold one line, the passphrase",
            hint="No empty line, nothing behind it. Nothing was changed.",
        )
    return line


def _need_terminal() -> None:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError as error:
        raise UsageError(
            "there is no terminal to ask for the passphrase on",
            hint="Give --passphrase-file FILE. It is not taken from an argument or the environment: others see those.",
        ) from error
