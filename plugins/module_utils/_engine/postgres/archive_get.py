# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One file out of the archive, or the certainty that it is not there, from locations that are open.

PostgreSQL takes "there is no such segment" for the end of the archive: it ends recovery there and may promote, with
everything later lost. So absence is claimed only when every location answered and lacks the file. ``wal-get`` itself,
which has to do with locations that do not answer, is in ``archive_fetch``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import typing as t

from ..errors import CryoError, KeyFileError, LocationError, ObjectMissing, RepositoryError, RestoreError
from ..repository import names
from .archive_object import WalReader

if t.TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from ..repository.repository import Repository
    from ..storage.base import Location


@dataclasses.dataclass(frozen=True, slots=True)
class Delivered:
    location: str
    size: int
    """Bytes of the file."""
    passed_over: dict[str, CryoError]
    """Locations asked before, which are damaged or do not answer."""
    streamed_to: str | None = None
    """The LSN up to which the segment was streamed, where it was never archived as a whole."""


def deliver(repository: Repository, system_identifier: int, name: str, destination: Path) -> Delivered | None:
    """Write an archived file to ``destination``, replacing what is there; None when it is surely in no location.

    The name appears only once the whole content is authenticated. It is not synced: PostgreSQL does that
    itself with what it keeps (``KeepFileRestoredFromArchive`` in ``xlogarchive.c``).

    The repository must have been opened with the identity. Raises DamageError (or what else keeps it from being
    read) when the file is damaged wherever it is, LocationError when it is in no location that answers and another
    one does not, RepositoryError ``empty-archive`` when there is no WAL of this system identifier at all,
    RestoreError when ``destination`` cannot be written.
    """
    errors: dict[str, CryoError] = dict(repository.lost)
    for location in repository.locations:
        try:
            reader = WalReader.archived(repository.keys, location, system_identifier, name)
            _write(reader, destination)
        except ObjectMissing:
            try:
                _must_be_the_repository(location)
            except LocationError as error:
                errors[location.name] = error
        except (RepositoryError, KeyFileError) as error:
            # Also what looks like another version or epoch: the byte that says so may be the damaged one.
            errors[location.name] = error
        else:
            return Delivered(location.name, reader.stored.size, errors)
    raise_doubt(name, errors)
    must_have_wal(repository.locations, system_identifier)
    return None


def raise_doubt(name: str, errors: dict[str, CryoError], more: str = "") -> None:
    """Raises when it is not sure that the file is nowhere. ``more``: a sentence for the hint."""
    present = [error for error in errors.values() if not isinstance(error, LocationError)]
    if present:
        raise present[0]
    if errors:
        where, error = next(iter(errors.items()))
        raise LocationError(
            f"cannot find out whether {name} is archived: {error.message}",
            hint=f"The other locations do not have it.{more} Recovery must not go on as if it did not exist: bring the "
            f"location back, or state with `--without {where}` that it is lost for good. {error.hint}".strip(),
            id=error.id,
        )


def _must_be_the_repository(location: Location) -> None:
    """An empty mount point has no objects either: absence counts only where the repository still is."""
    if location.stat(names.REPOSITORY_JSON) is None:
        raise LocationError(
            f"location {location.name!r}: {location.describe()} holds no repository any more",
            hint="Was it unmounted just now? Nothing was changed.",
            id="not-initialised",
        )


def must_have_wal(locations: Sequence[Location], system_identifier: int) -> None:
    """A restore always needs some WAL: an archive without any is a wrong identifier, or is not mounted.

    Raises RepositoryError ``empty-archive``.
    """
    for location in locations:
        if next(iter(location.list(names.wal_of(system_identifier))), None) is not None:
            return
    raise RepositoryError(
        f"no location has any WAL of system identifier {system_identifier}",
        hint="Is it the right one, and is all of the repository mounted? pg_controldata prints the identifier.",
        id="empty-archive",
    )


def _write(reader: WalReader, destination: Path) -> None:
    temporary = destination.with_name(f"{destination.name}.{os.getpid()}.tmp")
    try:
        save(reader.chunks(), temporary)
        put_in_place(temporary, destination)
    except BaseException:
        discard(temporary)
        raise


def save(chunks: Iterable[bytes], temporary: Path) -> None:
    """Write the file's content, which is authentic throughout on return. Raises RestoreError, and what reading does."""
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise _not_written(temporary, error) from error
    try:
        for chunk in chunks:
            try:
                write_all(descriptor, chunk)
            except OSError as error:
                raise _not_written(temporary, error) from error
    finally:
        os.close(descriptor)


def put_in_place(temporary: Path, destination: Path) -> None:
    """Give the file the name that PostgreSQL looks for. Raises RestoreError."""
    try:
        os.replace(temporary, destination)
    except OSError as error:
        raise _not_written(destination, error) from error


def discard(temporary: Path) -> None:
    with contextlib.suppress(OSError):
        os.unlink(temporary)


def write_all(descriptor: int, chunk: bytes) -> None:
    """Append. Raises OSError."""
    view = memoryview(chunk)
    while view:
        view = view[os.write(descriptor, view) :]


def _not_written(destination: Path, error: OSError) -> RestoreError:
    return RestoreError(
        f"cannot write {destination}: {os.strerror(error.errno or 0)}",
        hint="The archive is as it was. Mend the directory and start PostgreSQL again.",
        id="destination",
    )
