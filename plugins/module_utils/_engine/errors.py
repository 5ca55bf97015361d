# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every error of the engine.

    CryoError
    ├── ConfigError          the configuration or the command line is wrong                 exit 2
    ├── KeyFileError         a key file is missing, readable by others, or of another repository
    ├── SourceError          the living cluster or file tree could not be read
    │   └── ClusterError     PostgreSQL refused, is not there, or is not what we expected
    ├── RepositoryError      the repository could not be read or written
    │   ├── LocationError    one location failed (down, full, no permission)
    │   │   └── LocationFull
    │   ├── UnknownEpoch     an object is of an epoch of which the keys are not here
    │   ├── ObjectMissing    an object that must exist does not
    │   ├── ObjectConflict   an object of that name exists and has other content
    │   └── DamageError      an object exists and is not what was written               exit 4
    ├── RestoreError         the restore cannot go on, or must not
    ├── TargetError          what was asked for cannot be restored from what there is
    ├── StateError           the state directory has no room, or fails
    ├── BusyError            somebody else does this already
    └── RefusedError         done on purpose only: a brake needs an explicit yes

Reading the source and writing the repository fail with different classes, raised where the
operating system's error is first seen, so that neither can be taken for the other.
"""

from __future__ import annotations

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_PARTIAL = 3
EXIT_DAMAGE = 4


class CryoError(Exception):
    """What happened, and in ``hint`` what is still safe and what to do next.

    ``id`` is stable: scripts and translations may rely on it. ``exit_code`` is what the command
    line ends with. Neither text ever contains key material or a password.
    """

    id = "error"
    exit_code = EXIT_FAILED
    usual_hint = "What was finished is safe, and nothing half-done counts. Mend the cause, then run it again."
    """What to do next where whoever raised it knew nothing better."""

    def __init__(self, message: str, *, hint: str = "", id: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.usual_hint
        if id is not None:
            self.id = id

    def as_dict(self) -> dict[str, str]:
        """The object that ``--json`` prints under ``error`` and that modules return."""
        return {"id": self.id, "message": self.message, "hint": self.hint}


def reason_of(error: CryoError, location: str) -> str:
    """The message, without the name of the location at its beginning: for sentences that name it already."""
    return without_location(error.message, location)


def without_location(message: str, location: str) -> str:
    """``reason_of`` for a message."""
    return message.removeprefix(f"location {location!r}").removeprefix(":").lstrip()


class ConfigError(CryoError):
    id = "config"
    exit_code = EXIT_USAGE
    usual_hint = "Nothing was changed. `cryobackup config check` and `cryobackup COMMAND --help` show what is possible."


class KeyFileError(CryoError):
    id = "key-file"
    usual_hint = "Bring the file back from the recovery kit (`cryobackup key import`) or from a host that has it."


class SourceError(CryoError):
    id = "source"
    usual_hint = "Earlier backups are untouched. Mend the source, then run it again."


class ClusterError(SourceError):
    id = "cluster"


class RepositoryError(CryoError):
    id = "repository"
    usual_hint = (
        "Nothing was deleted. `cryobackup verify --all` shows what is damaged or missing, and which backups need it."
    )


class LocationError(RepositoryError):
    id = "location"


class LocationFull(LocationError):
    id = "location-full"


class ObjectMissing(RepositoryError):
    id = "object-missing"


class ObjectConflict(RepositoryError):
    id = "object-conflict"


class DamageError(RepositoryError):
    id = "damage"
    exit_code = EXIT_DAMAGE
    usual_hint = "Nothing damaged was used. `cryobackup verify --all` shows what else is, and which backups need it."


class UnknownEpoch(RepositoryError):
    """An object says that it is of an epoch of which there is no catalog key here. Nothing has authenticated that."""

    id = "unknown-epoch"

    def __init__(self, message: str, *, hint: str, epoch: int) -> None:
        super().__init__(message, hint=hint)
        self.epoch = epoch


class RestoreError(CryoError):
    id = "restore"
    usual_hint = "The backups are untouched. Mend what hinders the restore, then run it again."


class TargetError(CryoError):
    id = "target"
    usual_hint = "The backups are untouched. `cryobackup list` shows what there is to restore."


class StateError(CryoError):
    id = "state-directory"
    usual_hint = "Earlier backups are untouched. Make room there or mend it, then run it again."


class BusyError(CryoError):
    id = "busy"
    usual_hint = "Wait until the other one is done. Its lock goes with its process."


class RefusedError(CryoError):
    id = "refused"
    usual_hint = "Nothing was changed."
