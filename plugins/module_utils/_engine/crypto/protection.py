# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The identity at rest under a passphrase: ``data.identity.locked`` in the place of ``data.identity``."""

from __future__ import annotations

import pathlib
import typing as t

from ..errors import KeyFileError
from .key_store import changing, install_keys, remove_file, replace_file
from .keys import FILES, LOCKED_IDENTITY, Key, KeyRing, parse_lines, read_file, read_keys
from .passphrase import lock, unlock

_COMMENT: t.Final = "# CryoProtect Backup: data identity under a passphrase. `cryobackup key unlock` opens it."


def locked_epochs(directory: pathlib.Path) -> list[int]:
    """The epochs whose identities are locked there; none when there is no such file. Raises KeyFileError."""
    line = _locked_line(directory)
    return [] if line is None else [int(word) for word in line.split(" ")[3].split(",")]


def protect(directory: pathlib.Path, passphrase: str, *, replace: bool = False) -> bool:
    """Lock the identity and remove the file that is not locked. Whether anything changed; durable on return.

    The plain file goes last, after the locked one was opened once. ``replace``: give up the passphrase there was.
    Raises KeyFileError: ``wrong-passphrase`` when the identity is locked with another one already,
    ``passphrase-weak``, ``no-identity``, ``key-conflict``.
    """
    with changing(directory):
        ring = KeyRing.load(directory)
        plain = [key for key in read_keys(directory) if key.role == "identity"]
        path = directory / LOCKED_IDENTITY
        epochs = set(locked_epochs(directory))
        if not plain:
            if epochs:
                return False
            KeyRing.load(directory, need_identity=True)
        if epochs and not replace:
            plain = _united(plain, _open(directory, ring, passphrase))
        missing = sorted(epochs - {key.epoch for key in plain})
        if missing:
            raise KeyFileError(
                f"{path} has the identity of epoch {missing[0]}, and {FILES['identity']} has not",
                hint="Run `cryobackup key unlock` first. Nothing was changed.",
                id="key-conflict",
            )
        name = ",".join(str(epoch) for epoch in sorted({key.epoch for key in plain}))
        text = "".join(f"{key.line()}\n" for key in sorted(plain, key=lambda key: key.epoch))
        line = lock("identity", ring.repository_id, name, text, passphrase)
        if unlock(line, "identity", ring.repository_id, name, passphrase, str(path)) != text:
            raise KeyFileError("what was locked does not open again", hint="Nothing was changed. Please report this.")
        replace_file(path, f"{_COMMENT}\n{line}\n", 0o400)
        remove_file(directory / FILES["identity"])
        return True


def unlock_identity(directory: pathlib.Path, passphrase: str) -> bool:
    """Write ``data.identity`` from the locked one, which stays. Whether anything changed; durable on return.

    Raises KeyFileError: ``wrong-passphrase``; ``key-file`` when nothing is locked there.
    """
    with changing(directory):
        ring = KeyRing.load(directory)
        return bool(install_keys(directory, _open(directory, ring, passphrase)))


def _open(directory: pathlib.Path, ring: KeyRing, passphrase: str) -> list[Key]:
    path = directory / LOCKED_IDENTITY
    line = _locked_line(directory)
    if line is None:
        raise KeyFileError(f"there is no {path}", hint="`cryobackup key protect` makes it of data.identity.")
    text = unlock(line, "identity", ring.repository_id, line.split(" ")[3], passphrase, str(path))
    keys = parse_lines(text, str(path))
    if {key.role for key in keys} != {"identity"} or sorted(key.epoch for key in keys) != locked_epochs(directory):
        raise KeyFileError(f"{path} holds something else than the identities it names")
    return keys


def _united(plain: list[Key], locked: list[Key]) -> list[Key]:
    both = {key.epoch: key for key in locked}
    for key in plain:
        if both.setdefault(key.epoch, key) != key:
            raise KeyFileError(
                f"{LOCKED_IDENTITY} and {FILES['identity']} hold different identities of epoch {key.epoch}",
                hint="Nothing was changed. `cryobackup key show` tells which one fits data.pub.",
                id="key-conflict",
            )
    return list(both.values())


def _locked_line(directory: pathlib.Path) -> str | None:
    path = directory / LOCKED_IDENTITY
    text = read_file(path, secret=True)
    if text is None:
        return None
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    words = lines[0].split(" ") if len(lines) == 1 else []
    if len(words) != 7 or not all(word.isascii() and word.isdigit() for word in words[3].split(",")):
        raise KeyFileError(f"{path} is not a locked identity")
    return lines[0]
