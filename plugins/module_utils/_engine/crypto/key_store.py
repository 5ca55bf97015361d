# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Changing key files: lines are added, none is ever changed or taken away.

A file is replaced as a whole, by a new one that is durable before it gets the name: whatever happens, it is either as
it was or has the new lines.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import typing as t
from collections.abc import Iterable

from ..errors import BusyError, KeyFileError
from .keys import (
    COMMENTS,
    FILE_OF,
    FILES,
    LOCKED_IDENTITY,
    Key,
    KeyRing,
    file_mode,
    read_file,
    read_keys,
    sorted_keys,
    sync_directory,
    write_keys,
)

ROTATION: t.Final = "rotation.keys"
"""The keys of a rotation that is not finished."""
_WRITTEN: t.Final = (*FILES.values(), LOCKED_IDENTITY, ROTATION)
# Who reads the files meanwhile must never find a public key whose identity or catalog key is not there yet.
_ORDER: t.Final = (FILES["identity"], FILES["catalog"], FILES["public"])


@contextlib.contextmanager
def changing(directory: pathlib.Path) -> t.Iterator[None]:
    """Hold the key directory for one who changes it. The kernel frees it when its holder is gone.

    What a killed holder left half written goes: it has secrets in it. Raises BusyError when another process changes
    the directory now, KeyFileError when it cannot be opened.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise KeyFileError(
            f"cannot open the key directory {directory}: {error.strerror}",
            hint="Run as the user that owns it. Where there is none: `cryobackup init`, or `cryobackup key import`.",
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(
                f"another process is changing the keys in {directory}",
                hint="Wait until it is done, then look with `cryobackup key show`.",
            ) from error
        for name in _WRITTEN:
            for path in directory.glob(f".{name}.[0-9]*"):
                with contextlib.suppress(OSError):
                    path.unlink()
        yield
    finally:
        os.close(descriptor)


def add_keys(directory: pathlib.Path, keys: Iterable[Key]) -> list[pathlib.Path]:
    """Add the keys that are not there yet to the key files, durable on return; returns the files that changed.

    Idempotent. Raises KeyFileError, with nothing written, when the directory holds another key of the same role and
    epoch, or keys that do not belong together: keys are never overwritten. BusyError when somebody else changes them.
    """
    keys = list(keys)
    if not directory.exists():
        return write_keys(directory, keys)
    with changing(directory):
        return install_keys(directory, keys)


def install_keys(directory: pathlib.Path, keys: Iterable[Key]) -> list[pathlib.Path]:
    """As ``add_keys``, for one who holds the directory."""
    present = {(key.role, key.epoch): key for key in read_keys(directory)}
    missing = []
    for key in keys:
        here = present.get((key.role, key.epoch))
        if here is None:
            missing.append(key)
        elif here != key:
            raise KeyFileError(
                f"{directory / FILE_OF[key.role]} holds another key of epoch {key.epoch} than those to be added",
                hint="Nothing was written. Move the directory away if its keys are of no use, or import into another"
                " one with --directory.",
                id="key-conflict",
            )
    foreign = {key.repository for key in present.values()} - {key.repository for key in missing}
    if missing and foreign:
        raise KeyFileError(
            f"the keys in {directory} belong to repository {foreign.pop()}, those to be added to "
            f"{missing[0].repository}",
            hint="Nothing was written. Import into another directory with --directory.",
            id="key-conflict",
        )
    if missing:
        # A pair that is none must show now, not at the first restore.
        KeyRing([*present.values(), *missing], str(directory))
    return [
        path
        for name in _ORDER
        if (path := _append(directory / name, [key for key in missing if FILE_OF[key.role] == name])) is not None
    ]


def _append(path: pathlib.Path, keys: list[Key]) -> pathlib.Path | None:
    if not keys:
        return None
    old = read_file(path, secret=path.name != FILES["public"])
    text = f"{COMMENTS[path.name]}\n" if old is None else old
    if not text.endswith("\n"):
        text += "\n"
    replace_file(path, text + "".join(f"{key.line()}\n" for key in sorted_keys(keys)), file_mode(path.name))
    return path


def writer_keys(keys: KeyRing, from_epoch: int = 1) -> list[Key]:
    """What a host gets that makes backups and cannot read them.

    ``from_epoch``: without the catalog keys of earlier epochs, so that it cannot list what was written under them;
    the digest key of epoch 1 it needs for ever. Raises KeyFileError, id ``no-epoch-key``.
    """
    epochs = sorted(keys.epochs("catalog") & keys.epochs("public"))
    chosen = [epoch for epoch in epochs if epoch >= from_epoch]
    if from_epoch < 1 or not chosen:
        raise KeyFileError(
            f"there is no epoch {from_epoch} to export",
            hint=f"Keys to write with are here of epoch {', '.join(map(str, epochs)) or 'none'}.",
            id="no-epoch-key",
        )
    found = [keys.key(role, epoch) for epoch in chosen for role in ("catalog", "public")]
    return found if 1 in chosen else [*found, keys.digest_line()]


def replace_file(path: pathlib.Path, text: str, mode: int) -> None:
    """Give the file a new content, whole or not at all, durable on return. Its owner stays.

    Raises KeyFileError, with the file as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        owner = path.stat() if path.exists() else path.parent.stat()
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(text)
                file.flush()
                if os.geteuid() == 0:  # root may change the keys of the user that makes the backups
                    os.fchown(descriptor, owner.st_uid, owner.st_gid)
                os.fsync(descriptor)
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
        sync_directory(path.parent)
    except OSError as error:
        raise KeyFileError(
            f"cannot write {path}: {error.strerror}",
            hint="The file is as it was. Run as the user that owns the key directory, where it can be written.",
        ) from error


def remove_file(path: pathlib.Path) -> None:
    """Durable on return; idempotent. Raises KeyFileError."""
    try:
        path.unlink(missing_ok=True)
        sync_directory(path.parent)
    except OSError as error:
        raise KeyFileError(f"cannot remove {path}: {error.strerror}") from error
