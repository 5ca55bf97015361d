# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything that is found out about a restore before its first change to the target."""

from __future__ import annotations

import dataclasses
import os
import typing as t
from pathlib import Path

from ..errors import DamageError, RestoreError
from ..repository.catalog import BackupRecord, locations_of
from ..repository.epochs import need_identities
from ..repository.manifest import Manifest, open_manifest
from ..repository.model import PostgresInfo
from .restore_fetch import PackShelf, absent_packs
from .restore_plan import postgres
from .restore_servers import running_servers
from .restore_survey import Ownership, Survey, survey
from .target import (
    Need,
    Protected,
    TargetKind,
    TargetState,
    check_apart,
    check_space,
    check_tablespace,
    check_target,
    tablespace_map,
    wal_directory,
)

if t.TYPE_CHECKING:
    from ..repository.repository import Repository
    from ..storage.base import Location

_SHOWN = 20
_ROOM_FOR_WAL_SEGMENTS = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Prepared:
    """A restore that may begin."""

    backup: BackupRecord
    info: PostgresInfo
    manifest: Manifest
    survey: Survey
    packs: PackShelf
    target: TargetState
    tablespaces: t.Mapping[int, Path]
    """Where each goes, by OID: what its link will say."""
    roots: t.Mapping[int, Path]
    """The same directories with the links on the way to them resolved."""
    ownership: Ownership
    digest_key: bytes
    wal_root: Path | None
    """Where the link ``pg_wal`` leads that stays; None: pg_wal is a directory."""

    @property
    def moved_tablespaces(self) -> bool:
        """Whether any goes elsewhere than it came from."""
        return {oid: str(path) for oid, path in self.tablespaces.items()} != self.survey.original_paths()

    @property
    def owner_name(self) -> str:
        """The user that the server has to run as."""
        import pwd

        uid = self.ownership.cluster.uid if self.ownership.cluster else os.geteuid()
        try:
            return pwd.getpwuid(uid).pw_name
        except KeyError:
            return str(uid)

    @property
    def writes_over(self) -> bool:
        """Whether the target or a tablespace holds something already."""
        return self.target.kind in (TargetKind.CLUSTER, TargetKind.INTERRUPTED)


def prepare(
    repository: Repository,
    backup: BackupRecord,
    target: Path,
    *,
    tablespaces: t.Mapping[str, str],
    tablespace_root: Path | None,
    delta: bool,
    owner: str | None,
    protected: t.Sequence[Protected] = (),
    keep_wal_link: bool = False,
) -> Prepared:
    """Check target, tablespaces, room, owner and the presence of every pack. Changes nothing.

    ``keep_wal_link``: pg_wal stays where a link of that name leads to: the target is the cluster's own directory.

    Raises RestoreError (see ``target``), TargetError for tablespaces that do not fit, DamageError when the
    manifest is damaged or packs are not there, LocationError when no location answers, KeyFileError when it lies in
    packs of an epoch whose identity is not here.
    """
    repository.require("read")
    info = postgres(backup)
    protected = [*_repository_places(repository), *protected]
    state = check_target(target, delta=delta, system_identifier=int(info.system_identifier), protected=protected)
    need_identities(repository.keys, backup)
    locations = _in_order(repository, backup)
    manifest = open_manifest(repository.keys, locations, backup.source, backup.id, breaker=repository.breaker)
    absent = absent_packs(manifest.header, locations)
    packs = PackShelf(manifest.header, locations, repository.keys, repository.breaker)
    seen = survey(manifest, packs.fields_of(absent))
    if absent:
        raise _packs_absent(backup, absent, seen)
    paths = tablespace_map(seen.original_paths(), tablespaces, tablespace_root)
    roots = _check_tablespaces(state, paths, protected)
    places = [*protected, Protected(state.path, "the target directory"), *_as_places(roots)]
    wal_root = wal_directory(state.path, places) if keep_wal_link else None
    check_space(_needs(state, seen, roots, info.wal_segment_size))
    ownership = Ownership(manifest.header.owners, seen.cluster_owner, name=owner, as_root=os.geteuid() == 0)
    return Prepared(
        backup, info, manifest, seen, packs, state, paths, roots, ownership, repository.keys.digest_key, wal_root
    )


def _as_places(tablespaces: t.Mapping[int, Path]) -> list[Protected]:
    return [Protected(path, f"tablespace {oid}") for oid, path in tablespaces.items()]


def _in_order(repository: Repository, backup: BackupRecord) -> list[Location]:
    """First the locations that hold the whole backup; the others may still have a pack that is damaged there."""
    complete = locations_of(repository, backup)
    return [*complete, *(location for location in repository.locations if location not in complete)]


def _repository_places(repository: Repository) -> list[Protected]:
    from ..storage.posix import PosixLocation

    return [
        Protected(location.path, f"the repository (location {location.name!r})")
        for location in repository.locations
        if isinstance(location, PosixLocation)
    ]


def _packs_absent(backup: BackupRecord, absent: t.Mapping[str, str], seen: Survey) -> DamageError:
    objects = "; ".join(f"{name} is {word}" for name, word in list(absent.items())[:_SHOWN])
    files = [path.decode("utf-8", "backslashreplace") for path in seen.unrestorable]
    more = ", …" if len(files) > _SHOWN else ""
    return UnrestorableFiles(
        f"backup {backup.id} cannot be restored: {objects} in every location that answers. "
        f"{len(files)} files need it: {', '.join(files[:_SHOWN])}{more}",
        hint="Nothing was changed. Bring back the location that has it, or choose another backup; "
        "`cryobackup verify --all` shows which are whole.",
        files=files,
    )


class UnrestorableFiles(DamageError):
    """Damage in the repository that a restore met, with the files that lack bytes because of it."""

    def __init__(self, message: str, *, hint: str, files: t.Sequence[str]) -> None:
        super().__init__(message, hint=hint)
        self.files = list(files)


def _check_tablespaces(
    state: TargetState, paths: t.Mapping[int, Path], protected: t.Sequence[Protected]
) -> dict[int, Path]:
    """The real path of each."""
    roots = {}
    known = _tablespaces_of(state)
    clusters = {Path(os.path.realpath(place.path)) for place in protected if place.itself_allowed}
    in_use = _tablespaces_in_use(state.path, clusters)
    places = [*protected, Protected(state.path, "the target directory")]
    for oid, path in paths.items():
        user = in_use.get(Path(os.path.realpath(path)))
        if user is not None:
            raise RestoreError(
                f"{path}, where tablespace {oid} goes, is used by the cluster in {user}",
                hint=f"Give another directory: --tablespace {path}=/new/directory. Nothing was changed.",
                id="target-running",
            )
        roots[oid] = check_tablespace(path, known=known, protected=places)
    for oid, path in roots.items():
        others = [Protected(other, "another tablespace") for number, other in roots.items() if number != oid]
        check_apart(path, others)
    return roots


def _tablespaces_of(state: TargetState) -> set[Path]:
    """Directories that belong to the target already, and are written over with it."""
    known = {Path(path) for path in state.marker.tablespaces} if state.marker else set()
    if state.kind in (TargetKind.CLUSTER, TargetKind.INTERRUPTED):
        known |= set(_links(state.path))
    return known


def _tablespaces_in_use(target: Path, clusters: set[Path]) -> dict[Path, Path]:
    """Directories of tablespaces of other clusters, with the data directory of each.

    Those are the servers that run on this host and the ``clusters`` of the configuration. A copy of a data
    directory made with ``cp -a`` has the links of its source: following them would destroy the living cluster.
    """
    others = {server.data_directory for server in running_servers()} | clusters
    return {path: other for other in others - {target} for path in _links(other)}


def _links(data_directory: Path) -> list[Path]:
    folder = data_directory / "pg_tblspc"
    try:
        return [Path(os.path.realpath(folder / name)) for name in os.listdir(folder) if (folder / name).is_symlink()]
    except OSError:
        return []


def _needs(state: TargetState, seen: Survey, tablespaces: t.Mapping[int, Path], segment_size: int) -> dict[Path, Need]:
    """What is added to each directory. What is there already is either equal or replaced."""
    needs = {}
    for prefix, need in seen.needs.items():
        if prefix:
            path = tablespaces[int(prefix.rpartition(b"/")[2])]
            wal = 0
        else:
            # Recovery keeps some segments of WAL that it fetched.
            path, wal = state.path, _ROOM_FOR_WAL_SEGMENTS * segment_size
        used = _usage(path)
        needs[path] = Need(need.size + wal - used.size, need.files - used.files)
    return needs


def _usage(path: Path) -> Need:
    """Bytes and files below a directory, on its own file system. What cannot be read does not count."""
    size = files = 0
    try:
        device = path.stat().st_dev
    except OSError:
        return Need(0, 0)
    for directory, folders, names in os.walk(path):
        for name in names:
            try:
                status = os.lstat(os.path.join(directory, name))
            except OSError:
                continue
            size += status.st_blocks * 512
            files += 1
        folders[:] = [name for name in folders if _is_on(device, os.path.join(directory, name))]
    return Need(size, files)


def _is_on(device: int, path: str) -> bool:
    try:
        return os.lstat(path).st_dev == device
    except OSError:
        return False
