# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The first look at a manifest, before anything is written: what there is to restore, and whose it is."""

from __future__ import annotations

import dataclasses
import os
import re
import struct
import typing as t

from ..errors import DamageError, RestoreError
from ..repository import extents as xt
from ..repository.model import DIRECTORY, FILE, SYMLINK, Entry, Owners
from .relfile import BACKUP_LABEL_FILE, CONTROL_FILE, SIGNAL_FILES
from .restore_tree import Owner
from .target import MARKER, OLD_CONTROL, Need

if t.TYPE_CHECKING:
    from ..repository.manifest import Manifest

CONTROL: t.Final = CONTROL_FILE.encode()
CONFIG_PREFIX: t.Final = b".cryobackup/config/"
_TABLESPACE = re.compile(rb"pg_tblspc/([1-9][0-9]{0,9})")
# A restored cluster is told anew what to do at its start, and nobody runs on it.
_NEVER_RESTORED: t.Final = frozenset(
    name.encode() for name in (*SIGNAL_FILES, "postmaster.pid", "postmaster.opts", MARKER, OLD_CONTROL)
)
_PRIVATE, _GROUP_READABLE = 0o700, 0o750
_ONE_EXTENT = struct.Struct(">QII")
_NEEDED: t.Final = (b"PG_VERSION", BACKUP_LABEL_FILE.encode(), CONTROL)


@dataclasses.dataclass(slots=True)
class Survey:
    """What a backup holds."""

    files: int = 0
    size: int = 0
    """Bytes of all files together."""
    needs: dict[bytes, Need] = dataclasses.field(default_factory=dict)
    """By root: ``b""`` and the path of each tablespace. Zeros take no room."""
    tablespaces: dict[int, Entry] = dataclasses.field(default_factory=dict)
    config_files: list[str] = dataclasses.field(default_factory=list)
    """Configuration that lay outside of the data directory, by absolute path."""
    has_postgresql_conf: bool = False
    """Whether ``postgresql.conf`` lies in the data directory."""
    root_mode: int = _PRIVATE
    cluster_owner: Owner = dataclasses.field(default_factory=lambda: Owner(0, 0))
    """As recorded."""
    found: set[bytes] = dataclasses.field(default_factory=set)
    unrestorable: list[bytes] = dataclasses.field(default_factory=list)
    """Files that need a pack which is in no location."""

    def original_paths(self) -> dict[int, str]:
        """The directory of each tablespace when the backup was made."""
        return {oid: os.fsdecode(entry.target) for oid, entry in self.tablespaces.items()}


def survey(manifest: Manifest, missing_packs: t.Collection[int] = ()) -> Survey:
    """Read all entries once. ``missing_packs``: pack fields of extents that cannot be had.

    Raises RestoreError when the manifest is not that of a data directory, DamageError when it is damaged.
    """
    seen = Survey()
    root = b""
    for entry in manifest.entries():
        if is_never_restored(entry.path):
            continue
        _note(seen, entry)
        if entry.type == SYMLINK and (oid := tablespace_oid(entry.path)) is not None:
            seen.tablespaces[oid] = entry
            root = entry.path
            seen.needs[root] = Need(0, 0)
        elif not (root and entry.path.startswith(root + b"/")):
            root = b""
        _count(seen, entry, root, missing_packs)
    lacking = [name.decode() for name in _NEEDED if name not in seen.found]
    if lacking:
        raise RestoreError(
            f"object {manifest.name} is no backup of a data directory: it lacks {', '.join(lacking)}",
            hint="Choose another backup. Nothing was changed.",
            id="not-a-cluster",
        )
    return seen


def is_never_restored(path: bytes) -> bool:
    return path in _NEVER_RESTORED


def tablespace_oid(path: bytes) -> int | None:
    """The OID when ``path`` is where the link of a tablespace is."""
    match = _TABLESPACE.fullmatch(path)
    return int(match[1]) if match else None


def _note(seen: Survey, entry: Entry) -> None:
    if entry.path in _NEEDED:
        seen.found.add(entry.path)
    if entry.path == b"PG_VERSION":
        seen.cluster_owner = Owner(entry.uid, entry.gid)
    if entry.path == b"postgresql.conf":
        seen.has_postgresql_conf = True
    # The directory itself has no entry; what PostgreSQL makes in it follows its mode (SetDataDirectoryCreatePerm).
    if entry.path == b"global" and entry.type == DIRECTORY and entry.mode == _GROUP_READABLE:
        seen.root_mode = _GROUP_READABLE
    if entry.type == FILE and entry.path.startswith(CONFIG_PREFIX):
        seen.config_files.append("/" + os.fsdecode(entry.path[len(CONFIG_PREFIX) :]))


def _count(seen: Survey, entry: Entry, root: bytes, missing_packs: t.Collection[int]) -> None:
    size = 0
    if entry.type == FILE:
        seen.files += 1
        seen.size += entry.size
        size, packs = _stored(entry)
        if missing_packs and not packs.isdisjoint(missing_packs):
            seen.unrestorable.append(entry.path)
    before = seen.needs.get(root, Need(0, 0))
    seen.needs[root] = Need(before.size + size, before.files + 1)


def _stored(entry: Entry) -> tuple[int, set[int]]:
    """Bytes of a file that are not known to be zero, and the pack fields of its extents."""
    if len(entry.extents) == xt.EXTENT_BYTES:  # nearly all files: worth a way of its own
        offset, length, field = _ONE_EXTENT.unpack_from(entry.extents)
        if (offset, length) == (0, entry.size):
            return (0, set()) if field == xt.ZEROS else (length, {field})
    extents = xt.unpack(entry.extents)
    if not xt.covers(extents, entry.size):
        raise DamageError(
            f"the extents of {entry.path.decode('utf-8', 'backslashreplace')} do not cover it",
            hint="The manifest is not what this program writes. Choose another backup.",
        )
    stored = extents[extents["pack"] != xt.ZEROS]
    return int(stored["length"].sum(dtype="u8")), set(stored["pack"].tolist())


class Ownership:
    """Who the restored files belong to.

    Only root can give files away; everybody else owns what they restore. Recorded names count, not
    numbers: another host may have given the number to somebody else.
    """

    def __init__(self, recorded: Owners, cluster: Owner, *, name: str | None, as_root: bool) -> None:
        """Raises RestoreError, id ``target-owner``, when the cluster would belong to nobody or to root."""
        self._recorded = recorded
        self._known: dict[tuple[int, int], Owner] = {}
        self.cluster: Owner | None = None
        self._everything = False
        if name is not None:
            self.cluster = _named_owner(name)
            self._everything = True
            if not as_root and self.cluster.uid != os.geteuid():
                raise _owner_error(f"only root can restore for another user ({name})", "Run as root or as that user.")
        elif as_root:
            self.cluster = self._local(cluster.uid, cluster.gid)
            if self.cluster is None:
                user = recorded.users.get(cluster.uid, f"number {cluster.uid}")
                raise _owner_error(
                    f"the cluster belongs to user {user}, whom this host does not know",
                    "Install PostgreSQL or make the user, or name another one with --owner.",
                )
        if as_root and self.cluster is not None and self.cluster.uid == 0:
            raise _owner_error("PostgreSQL does not run as root", "Name the user it runs as with --owner.")
        if not as_root:
            self.cluster = None

    def of(self, entry: Entry) -> Owner | None:
        """None: leave it to the one who restores."""
        if self.cluster is None or self._everything:
            return self.cluster
        key = entry.uid, entry.gid
        if key not in self._known:
            self._known[key] = self._local(*key) or self.cluster
        return self._known[key]

    def _local(self, uid: int, gid: int) -> Owner | None:
        import grp
        import pwd

        user, group = self._recorded.users.get(uid), self._recorded.groups.get(gid)
        try:
            account = pwd.getpwnam(user) if user is not None else pwd.getpwuid(uid)
        except KeyError:
            return None
        try:
            return Owner(account.pw_uid, grp.getgrnam(group).gr_gid if group is not None else account.pw_gid)
        except KeyError:
            return Owner(account.pw_uid, account.pw_gid)


def _named_owner(name: str) -> Owner:
    import pwd

    try:
        account = pwd.getpwnam(name)
    except KeyError as error:
        raise _owner_error(f"there is no user {name!r}", "Name one that PostgreSQL runs as.") from error
    return Owner(account.pw_uid, account.pw_gid)


def _owner_error(message: str, hint: str) -> RestoreError:
    return RestoreError(message, hint=f"{hint} Nothing was changed.", id="target-owner")
