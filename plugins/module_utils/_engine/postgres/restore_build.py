# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Making a data directory out of a backup.

The order is what makes it safe at every instant:

1. the marker file, synced: from now on everybody can see what this directory is
2. the control file of a directory that is written over is moved away: no server starts without one
3. directories, files, links; what is there besides is removed
4. recovery settings, ``recovery.signal``, ``tablespace_map``
5. everything is synced
6. ``global/pg_control``, by rename. Its checkpoint is made invalid: were ``backup_label`` lost,
   the server could not start from the wrong place
7. the marker goes

A crash before 6 leaves a directory that no server starts on; one after it a complete one.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import fcntl
import os
import stat
import time
import typing as t
from pathlib import Path

from ..errors import BusyError, CryoError, RestoreError
from ..repository import extents as xt
from ..repository.model import DIRECTORY, FILE, SYMLINK, Entry
from .backup_label import TablespaceLink, format_tablespace_map, parse_tablespace_map
from .control import invalidate_checkpoint
from .recovery import AUTO_CONF, RECOVERY_SIGNAL, Recovery, edit_auto_conf
from .relfile import TABLESPACE_MAP_FILE
from .restore_kept_wal import PG_WAL, Rescued, WalKeeper, is_put_aside
from .restore_prepare import Prepared, UnrestorableFiles
from .restore_servers import server_of
from .restore_survey import CONTROL, is_never_restored, tablespace_oid
from .restore_sweep import Walk
from .restore_sync import sync_trees
from .restore_tree import Handles, Owner, Tree, errors, set_attributes, write_at
from .restore_write import ContentWriter, Counters
from .target import MARKER, OLD_CONTROL, Marker

if t.TYPE_CHECKING:
    from ..events import Reporter

_SHOWN = 20
_MARKER, _OLD_CONTROL = MARKER.encode(), OLD_CONTROL.encode()
_LEFT_ALONE: t.Final = frozenset((_MARKER, _OLD_CONTROL, b"lost+found"))


@dataclasses.dataclass(frozen=True, slots=True)
class Materialised:
    """A data directory that PostgreSQL can be started on."""

    files: int
    bytes_restored: int
    """Of all files together."""
    bytes_fetched: int
    """Plaintext taken from packs."""
    bytes_compared: int
    """Read from files that were there before."""
    bytes_written: int
    seconds: float
    config_files: tuple[str, ...]
    """Configuration from outside of the data directory, by its absolute path then; now below ``.cryobackup/config``."""
    has_postgresql_conf: bool
    tablespaces: dict[int, str]
    owner: str
    wal: Rescued
    """Files of pg_wal that the archive does not have."""


def build(
    prepared: Prepared,
    recovery: Recovery,
    *,
    workers: int,
    durable: bool,
    reporter: Reporter,
    now: dt.datetime,
    keeper: WalKeeper | None = None,
) -> Materialised:
    """Write the directory. Durable on return unless ``durable`` is false.

    Raises RestoreError when the target cannot be written, UnrestorableFiles when parts of the backup are
    damaged (after everything else was written), LocationError when no location answers. After any of
    them the directory cannot be started, and the same restore with delta goes on where this one ended.
    """
    started = time.monotonic()
    try:
        with _Target(prepared, now) as target:
            return target.fill(recovery, workers, durable, reporter, keeper, started)
    except BusyError:
        raise
    except CryoError as error:
        raise _incomplete(error, prepared) from error


def _incomplete(error: CryoError, prepared: Prepared) -> CryoError:
    """The same error, with what is in the target now and how to go on."""
    words = (
        f"{prepared.target.path} is incomplete, and PostgreSQL does not start on it. The backup is untouched. "
        "The same command with --delta goes on with what is there."
    )
    error.hint = f"{error.hint} {words}".strip()
    return error


class _Target:
    """The directory while it is written to: marked, locked, without control file."""

    def __init__(self, prepared: Prepared, now: dt.datetime) -> None:
        self.prepared = prepared
        self.path = prepared.target.path
        self.owner = prepared.ownership.cluster
        self._now = now
        self._marker = -1

    def __enter__(self) -> t.Self:
        _make_root(self.path, self.owner)
        for path in self.prepared.roots.values():
            _make_root(path, self.owner)
        roots = {f"pg_tblspc/{oid}".encode(): path for oid, path in self.prepared.roots.items()}
        if self.prepared.wal_root is not None:
            roots[PG_WAL] = self.prepared.wal_root
        self.tree = Tree(self.path, roots).__enter__()
        self.handles = Handles(self.tree)
        try:
            self._mark()
            if self.handles.status(b"global") is not None:
                self.handles.rename(CONTROL, _OLD_CONTROL)
            self._check_not_started()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_unused: object) -> None:
        if self._marker >= 0:
            os.close(self._marker)
        self.handles.close()
        self.tree.__exit__(None, None, None)

    def _check_not_started(self) -> None:
        """From here on no server can start; one may have been started since the target was checked."""
        server = server_of(self.path)
        if server is None:
            return
        self.handles.rename(_OLD_CONTROL, CONTROL)
        self.handles.remove(_MARKER)
        raise BusyError(
            f"a server was started on {self.path} just now (process {server.pid})",
            hint="Nothing was changed. Stop it, see to it that nothing starts it again, and repeat the restore.",
            id="target-running",
        )

    def _mark(self) -> None:
        directory, name = self.handles.parent(_MARKER)
        with errors(self.path / MARKER):
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._marker = os.open(name, flags, 0o600, dir_fd=directory)
            try:
                fcntl.flock(self._marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BusyError(
                    f"another restore writes to {self.path}",
                    hint="Wait until it is done. Its lock goes with its process, so it is never left over.",
                ) from error
            if not _bears(name, directory, self._marker):
                # It locked and removed the file between our opening and our locking it.
                raise BusyError(
                    f"another restore has just written to {self.path}",
                    hint="It is done. Look at what it made before this is repeated, with --delta if it is to go there.",
                )
            os.truncate(self._marker, 0)
            write_at(self._marker, self._marker_text(), 0)
            os.fsync(self._marker)
            os.fsync(directory)

    def _marker_text(self) -> bytes:
        backup = self.prepared.backup
        earlier = self.prepared.target.marker.tablespaces if self.prepared.target.marker else ()
        paths = [str(path) for path in self.prepared.roots.values()]
        return Marker(
            backup.source,
            backup.id,
            int(self.prepared.info.system_identifier),
            self._now.isoformat(),
            tuple(dict.fromkeys([*paths, *earlier])),
        ).encode()

    def fill(
        self,
        recovery: Recovery,
        workers: int,
        durable: bool,
        reporter: Reporter,
        keeper: WalKeeper | None,
        started: float,
    ) -> Materialised:
        """Steps 3 to 7."""
        prepared = self.prepared
        self._tell_about_pg_wal(reporter)
        wal = Rescued()
        if keeper is not None and prepared.writes_over:
            wal = keeper.rescue(self.handles, self.owner, self._now)
        reporter.phase("restore", prepared.survey.size)
        kept = frozenset(map(os.fsencode, wal.kept))
        control, counters = self._write_content(workers, reporter, kept, durable=durable)
        self._write_settings(recovery)
        content = invalidate_checkpoint(prepared.packs.content(control.extents))
        if durable:
            reporter.phase("sync")
            sync_trees([self.path, *prepared.roots.values(), *([prepared.wal_root] if prepared.wal_root else [])])
        self._write_control(control, content)
        return Materialised(
            files=prepared.survey.files,
            bytes_restored=prepared.survey.size,
            bytes_fetched=counters.fetched,
            bytes_compared=counters.compared,
            bytes_written=counters.written,
            seconds=round(time.monotonic() - started, 3),
            config_files=tuple(prepared.survey.config_files),
            has_postgresql_conf=prepared.survey.has_postgresql_conf,
            tablespaces={oid: str(path) for oid, path in prepared.tablespaces.items()},
            owner=prepared.owner_name,
            wal=wal,
        )

    def _tell_about_pg_wal(self, reporter: Reporter) -> None:
        status = self.handles.status(PG_WAL)
        if status is not None and stat.S_ISLNK(status.st_mode) and self.prepared.wal_root is None:
            where = os.readlink(self.path / os.fsdecode(PG_WAL))
            reporter.warn(
                f"pg_wal was a symbolic link to {where}; it is a directory in the restored cluster. "
                "What the link led to was left as it was"
            )

    def _write_content(
        self, workers: int, reporter: Reporter, kept_wal: t.Collection[bytes], *, durable: bool
    ) -> tuple[Entry, Counters]:
        """Returns the entry of the control file, the only one that is not restored yet."""
        prepared = self.prepared

        def keep(directory: bytes, name: bytes) -> bool:
            if directory == PG_WAL:
                return name in kept_wal or is_put_aside(name)
            return not directory and name in _LEFT_ALONE

        control: Entry | None = None
        walk = Walk(self.handles, self.owner, sweep=prepared.writes_over, keep=keep)
        with ContentWriter(
            self.tree, prepared.packs, prepared.digest_key, workers=workers, reporter=reporter, durable=durable
        ) as content:
            for entry in prepared.manifest.entries():
                if is_never_restored(entry.path):
                    continue
                if entry.path == CONTROL:
                    control = entry
                    continue
                walk.enter(entry.path, directory=entry.type == DIRECTORY)
                self._write_entry(entry, content)
            content.flush()
            walk.finish()
        if content.damaged:
            raise self._damage(content, reporter)
        if control is None:
            raise RestoreError(f"object {prepared.manifest.name} lacks the control file", id="not-a-cluster")
        return control, content.counters

    def _write_entry(self, entry: Entry, content: ContentWriter) -> None:
        owner = self.prepared.ownership.of(entry)
        if entry.type == DIRECTORY and self.tree.root(entry.path) is not None:
            with errors(self.tree.real(entry.path)):
                set_attributes(self.handles.directory(entry.path), entry.mode | 0o700, owner)
        elif entry.type == DIRECTORY:
            self.handles.make_directory(entry.path, entry.mode | 0o700, owner)
        elif entry.type == SYMLINK:
            self._write_link(entry, owner)
        elif entry.type == FILE:
            there = self.prepared.writes_over and self.handles.reuse_file(entry.path, entry.size, entry.mode, owner)
            if not there:
                self.handles.make_file(entry.path, entry.size, entry.mode, owner)
            if entry.size:
                content.add(entry.path, xt.unpack(entry.extents), compare=there)
        else:
            raise RestoreError(
                f"{entry.path.decode('utf-8', 'backslashreplace')} is of type {entry.type}, which is not known",
                hint="Use a newer version of this program.",
                id="format-version",
            )

    def _write_link(self, entry: Entry, owner: Owner | None) -> None:
        oid = tablespace_oid(entry.path)
        if oid is None:
            self.handles.make_link(entry.path, entry.target, owner)
            return
        directory = self.prepared.tablespaces[oid]
        self.handles.make_link(entry.path, os.fsencode(directory), owner)
        with errors(directory):
            set_attributes(self.handles.directory(entry.path), entry.mode | 0o700, owner)

    def _damage(self, content: ContentWriter, reporter: Reporter) -> UnrestorableFiles:
        damaged = list(content.damaged.values())
        for each in damaged:
            reporter.warn(f"{self.tree.real(each.path)} lacks bytes: {each.reason}")
        files = [each.path.decode("utf-8", "backslashreplace") for each in damaged]
        reasons = list(dict.fromkeys(each.reason for each in damaged))
        more = ", …" if len(files) > _SHOWN else ""
        return UnrestorableFiles(
            f"{len(files)} files of backup {self.prepared.backup.id} cannot be restored: "
            f"{', '.join(files[:_SHOWN])}{more}; {'; '.join(reasons[:_SHOWN])}",
            hint="All other files were restored. Choose another backup, or bring back a location that has it whole.",
            files=files,
        )

    def _write_settings(self, recovery: Recovery) -> None:
        """Step 4."""
        auto_conf = AUTO_CONF.encode()
        old = self.handles.read_small(auto_conf) or b""
        text = edit_auto_conf(old.decode("utf-8", "surrogateescape"), recovery)
        self.handles.write_small(auto_conf, text.encode("utf-8", "surrogateescape"), 0o600, self.owner)
        self.handles.write_small(RECOVERY_SIGNAL.encode(), b"", 0o600, self.owner)
        self._write_tablespace_map()

    def _write_tablespace_map(self) -> None:
        """PostgreSQL makes the links anew from this file when it finds backup_label.

        A tablespace that was dropped before the backup came to it stands in the file and is not in the backup. Its
        link is left out: it would lead to a directory that is somebody else's by now, and WAL drops it anyway.
        """
        path = TABLESPACE_MAP_FILE.encode()
        old = self.handles.read_small(path)
        if old is None:
            return
        where = self.prepared.tablespaces
        major = self.prepared.info.version // 10000
        listed = parse_tablespace_map(old.decode("utf-8", "surrogateescape"), postgres_major=major)
        links = [TablespaceLink(link.oid, str(where[link.oid])) for link in listed if link.oid in where]
        if not self.prepared.moved_tablespaces and len(links) == len(listed):
            return
        text = format_tablespace_map(links, postgres_major=major).encode("utf-8", "surrogateescape")
        self.handles.write_small(path, text, 0o600, self.owner)

    def _write_control(self, entry: Entry, content: bytes) -> None:
        """Steps 6 and 7."""
        with errors(self.path):
            set_attributes(self.handles.directory(b""), self.prepared.survey.root_mode, self.owner)
        if self.handles.status(b"global") is None:
            self.handles.make_directory(b"global", 0o700, self.owner)
        self.handles.write_small(CONTROL, content, entry.mode, self.prepared.ownership.of(entry))
        self.handles.sync_directory(b"global")
        for name in (_OLD_CONTROL, _MARKER):
            if self.handles.status(name) is not None:
                self.handles.remove(name)
        self.handles.sync_directory(b"")


def _bears(name: bytes, directory: int, descriptor: int) -> bool:
    """Whether the name still stands for the open file."""
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(descriptor))


def _make_root(path: Path, owner: Owner | None) -> None:
    """The directory itself, private, if it is not there."""
    with errors(path):
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            set_attributes(descriptor, 0o700, owner)
        finally:
            os.close(descriptor)
