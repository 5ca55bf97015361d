# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The epochs that a repository has published: ``keys/<epoch>.pub`` (docs/repository-format.md, section 5)."""

from __future__ import annotations

import contextlib
import re
import typing as t

from ..errors import KeyFileError, LocationError
from ..storage.base import Location, put

if t.TYPE_CHECKING:
    from ..crypto.keys import KeyRing
    from .catalog import BackupRecord
    from .repository import Repository

_NAME = re.compile(r"keys/([1-9][0-9]{0,8})\.pub")


def name_of(epoch: int) -> str:
    return f"keys/{epoch}.pub"


def check_published(location: Location, keys: KeyRing) -> dict[int, float]:
    """The epochs that a location has published, and since when by its own clock (seconds since 1970).

    Raises KeyFileError when keys at hand are not those that were published, LocationError when it does not answer.
    """
    found = {}
    for info in location.list("keys/"):
        match = _NAME.fullmatch(info.key)
        if match is not None:
            keys.check_published(location.read(info.key).decode("ascii", "replace"), f"location {location.name!r}")
            found[int(match[1])] = info.modified
    return found


def at_hand(keys: KeyRing) -> list[int]:
    """The epochs that somebody with these keys can publish."""
    return sorted(keys.epochs("catalog") & keys.epochs("public"))


def publish(location: Location, keys: KeyRing, epoch: int) -> bool:
    """Publish an epoch in a location: whether it was not there yet. Durable on return.

    Raises ObjectConflict when other keys of that epoch are published there, LocationError.
    """
    return put(location, name_of(epoch), keys.published(epoch).encode())


def publish_missing(repository: Repository) -> None:
    """Publish what a rotation could not: a location was away, or it was interrupted. As well as that can be done.

    Nothing depends on it at once: it only lets others recognise wrong keys, and see that there is a newer epoch.
    """
    for location in repository.locations:
        for epoch in at_hand(repository.keys):
            if epoch not in repository.published.get(location.name, (epoch,)):
                with contextlib.suppress(LocationError):
                    publish(location, repository.keys, epoch)


def need_identities(keys: KeyRing, backup: BackupRecord) -> None:
    """Raises KeyFileError, id ``no-identity``, when a backup lies in packs whose identity is not here."""
    missing = sorted(backup.header.epochs_needed - keys.epochs("identity"))
    if missing:
        here = ", ".join(map(str, sorted(keys.epochs("identity"))))
        raise KeyFileError(
            f"backup {backup.id} lies in packs of epoch {', '.join(map(str, missing))}, and the identity here is of "
            f"epoch {here or 'none'}",
            hint="Bring that identity (`cryobackup key import`, `cryobackup key recover`), or choose another backup: "
            "`cryobackup info BACKUP` shows which epochs one needs. Nothing was changed.",
            id="no-identity",
        )


def written_late(repository: Repository, backup: BackupRecord) -> int | None:
    """The epoch that was published before the backup was made with the keys of an older one; None: all is well.

    A host that has not got the new keys does that; so does who stole the old ones.
    """
    for published in repository.published.values():
        for epoch, since in sorted(published.items()):
            if epoch > backup.epoch and backup.started.timestamp() > since:
                return epoch
    return None


def behind(repository: Repository) -> KeyFileError | None:
    """What is wrong when a newer epoch is published than the one that would be written here; None when nothing is.

    It is told and not raised by who makes backups: a backup that the old keys can read is better than none, and
    anybody who writes to the storage could stop all backups by publishing something.
    """
    newest = max((epoch for epochs in repository.published.values() for epoch in epochs), default=0)
    if newest <= repository.keys.epoch:
        return None
    return KeyFileError(
        f"the keys were rotated to epoch {newest}, and this host still writes with those of epoch "
        f"{repository.keys.epoch}",
        hint="On the host with the new keys `cryobackup key export --writer DIR`, bring DIR here, and "
        "`cryobackup key import DIR`. Until then whoever has the old identity reads what is written here.",
        id="older-epoch",
    )
