# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A new epoch: new keys for all that is written from now on.

    1  the new keys go to ``rotation.keys`` in the key directory     nobody uses them yet
    2  ``keys/<epoch>.pub`` is created in every location             others see that there is a new epoch
    3  they are wrapped for every recipient
    4  they are added to the key files                               from here on they are used
    5  ``rotation.keys`` goes

A crash after any step leaves a rotation that the next run finishes with the same keys, and never an epoch that is in
use and whose keys are in one place only that might be lost: before step 4 nothing is written with it.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import pathlib
import typing as t

from ..crypto.key_store import ROTATION, changing, install_keys, remove_file, replace_file
from ..crypto.keys import Key, KeyRing, new_keys, parse_lines, read_file
from ..errors import CryoError, KeyFileError, LocationError, ObjectConflict
from .epochs import behind, name_of, publish
from .repository import Repository
from .wraps import CURRENT, Standing, add_wrap, read_wraps, spread, standings

if t.TYPE_CHECKING:
    from ..config import RepositoryConfig
    from ..storage.base import Location

STAGE: t.Final = ROTATION
_COMMENT: t.Final = "# CryoProtect Backup: a rotation that is not finished. Secret. `key rotate` goes on with it."


@dataclasses.dataclass(slots=True)
class Rotation:
    """What was done."""

    epoch: int
    resumed: bool
    """Whether an interrupted rotation was finished."""
    keys: list[Key]
    files: list[pathlib.Path]
    recipients: list[Standing]
    """Those who have the new epoch."""
    left_out: list[Standing]
    errors: dict[str, CryoError]
    """Optional locations that do not know of it yet."""


def rotate(config: RepositoryConfig, now: dt.datetime, *, without: t.Collection[str] = ()) -> Rotation:
    """Begin a new epoch, or finish one that was begun. Durable on return.

    ``without``: recipients that do not get it. Raises KeyFileError (``older-epoch``: a newer one is published;
    ``rotation-conflict``: somebody else rotated at the same time; ``unknown-recipient``), LocationError when a
    required location does not answer, BusyError.
    """
    if not config.keys.exists():
        KeyRing.load(config.keys)  # says what to do
    with changing(config.keys):
        return _Run(config, now, without).run()


class _Run:
    def __init__(self, config: RepositoryConfig, now: dt.datetime, without: t.Collection[str]) -> None:
        self._config = config
        self._now = now
        self._without = without
        self._stage = config.keys / STAGE

    def run(self) -> Rotation:
        old = KeyRing.load(self._config.keys, need_identity=True)
        staged = _read_stage(self._stage, old)
        repository = Repository.open(self._config)
        self._must_answer(repository.lost)
        if staged is None:
            newer = behind(repository)
            if newer is not None:
                raise newer
            staged = new_keys(old.repository_id, old.epoch + 1)
            resumed = False
        else:
            resumed = True
        epoch = staged[0].epoch
        new = KeyRing([*old.keys, *staged], str(self._config.keys))
        chosen, left_out = self._recipients(repository, new, epoch)
        if not resumed:
            text = "\n".join([_COMMENT, *(key.line() for key in staged), ""])
            replace_file(self._stage, text, 0o400)
        self._publish(repository, new, epoch)
        done = [self._wrap(repository, new, epoch, standing) for standing in chosen]
        spread(repository.locations)
        files = install_keys(self._config.keys, staged)
        remove_file(self._stage)
        return Rotation(epoch, resumed, staged, files, done, left_out, dict(repository.lost))

    def _must_answer(self, lost: t.Mapping[str, LocationError]) -> None:
        for name, error in lost.items():
            if self._config.locations[name].required:
                raise LocationError(
                    f"the rotation needs location {name!r}: {error.message}",
                    hint="The keys in use are the old ones. Bring the location back and run `cryobackup key rotate` "
                    "again, or take it out of the configuration if it is gone for good.",
                    id=error.id,
                ) from error

    def _recipients(self, repository: Repository, keys: KeyRing, epoch: int) -> tuple[list[Standing], list[Standing]]:
        """Those who get the new epoch, and those who do not."""
        stored = read_wraps(repository.locations, lost=repository.lost)
        self._must_answer(repository.lost)
        # A wrap of the epoch that is replaced counts; one of the new epoch is there when a rotation was interrupted.
        known = standings(stored, keys, epoch - 1)
        unknown = sorted(set(self._without) - {standing.name for standing in known})
        if unknown:
            raise KeyFileError(
                f"there is no recipient {unknown[0]!r}",
                hint="`cryobackup key recipient list` shows them. Nothing was changed.",
                id="unknown-recipient",
            )
        chosen = [each for each in known if each.state == CURRENT and each.name not in self._without]
        for standing in chosen:
            for of in standing.wrap.epochs if standing.wrap else ():
                keys.identity(of)  # a keeper who lacks one cannot go on with that recipient: now is the time to say so
        return chosen, [each for each in known if each not in chosen]

    def _publish(self, repository: Repository, keys: KeyRing, epoch: int) -> None:
        """In the order of the configuration, which is the same everywhere: of two rotations one fails at once."""
        for location in repository.locations:
            try:
                publish(location, keys, epoch)
            except ObjectConflict as error:
                raise self._conflict(repository, keys, epoch, location) from error
            except LocationError as error:
                repository.lost[location.name] = error
        self._must_answer(repository.lost)

    def _conflict(self, repository: Repository, keys: KeyRing, epoch: int, location: Location) -> KeyFileError:
        ours = keys.published(epoch).encode()
        if any(_holds(place, epoch, ours) for place in repository.locations):
            return KeyFileError(
                f"two rotations to epoch {epoch} were begun: this one is published in one location, another one in "
                f"{location.name!r}",
                hint="Neither is in use. Finish the one and give up the other: where it is given up, remove "
                f"{self._stage.name} from the key directory and {name_of(epoch)} from the locations that have it.",
                id="rotation-conflict",
            )
        remove_file(self._stage)
        return KeyFileError(
            f"epoch {epoch} was made by another rotation, which is published in location {location.name!r}",
            hint="This one was given up; the keys here are as they were. Get the new ones: `cryobackup key recover`, "
            "or `cryobackup key import` with what the other keeper exports.",
            id="rotation-conflict",
        )

    def _wrap(self, repository: Repository, keys: KeyRing, epoch: int, standing: Standing) -> Standing:
        wrap = standing.wrap
        if wrap is None or wrap.proof_epoch == epoch:
            return standing
        epochs = (*wrap.epochs, epoch)
        change = add_wrap(repository, keys, wrap.recipient, epochs, self._now, locked=wrap.locked)
        for name, error in change.errors.items():
            if isinstance(error, LocationError):
                repository.lost[name] = error
        self._must_answer(repository.lost)
        places = tuple(place.name for place in repository.locations if place.name not in change.errors)
        return dataclasses.replace(standing, wrap=dataclasses.replace(wrap, epochs=epochs), locations=places)


def _holds(location: Location, epoch: int, text: bytes) -> bool:
    try:
        return location.stat(name_of(epoch)) is not None and location.read(name_of(epoch)) == text
    except LocationError:
        return False


def _read_stage(path: pathlib.Path, keys: KeyRing) -> list[Key] | None:
    """The keys of a rotation that was begun. Raises KeyFileError when they make no sense here."""
    text = read_file(path, secret=True)
    if text is None:
        return None
    staged = parse_lines(text, str(path))
    epochs = {key.epoch for key in staged}
    roles = sorted(key.role for key in staged)
    fits = {key.repository for key in staged} == {keys.repository_id} and len(epochs) == 1
    if roles != ["catalog", "identity", "public"] or not fits or not epochs <= {keys.epoch, keys.epoch + 1}:
        raise KeyFileError(
            f"{path} is left over from a rotation that does not fit the keys beside it",
            hint=f"They end with epoch {keys.epoch}. If that rotation is given up, move the file away; nothing was "
            "written with its keys.",
        )
    return staged
