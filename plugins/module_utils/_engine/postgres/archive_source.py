# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A WAL file on its way into the archive: whose it is, and whether it is what its name says.

``archive_command`` runs with the data directory as its working directory and a path relative to that
(``%p``, in ``shell_archive.c``), which is how a cluster is told from a copy of it.
"""

from __future__ import annotations

import os
import stat
import typing as t
from pathlib import Path

from ..errors import ClusterError, SourceError
from .control import read_control
from .timeline import TimelineHistory, parse_history
from .wal import SEGMENT_HEADER_BYTES, WalKind, WalName, check_segment, history_name, parse_wal_name

if t.TYPE_CHECKING:
    import types

    from ..config import ClusterConfig, Config

_SMALL_FILE_BYTES = 1 << 20
"""History and backup files have a few lines: a larger one is something else."""

_LABEL_BEGIN = b"START WAL LOCATION: "


def cluster_of(config: Config, path: Path, name: str | None = None, *, here: Path | None = None) -> ClusterConfig:
    """The configured cluster that the WAL file ``path`` belongs to: ``name``, or the one whose pg_wal it lies in.

    ``here``: where PostgreSQL started its command; by default where this process runs.

    Raises ClusterError ``foreign-data-directory`` when the file lies in no such directory, or when the command was
    started in another data directory: that is a restored or cloned copy, which must not archive into its source's
    archive. Raises ConfigError for an unknown name.
    """
    candidates = [config.cluster(name)] if name is not None else list(config.clusters.values())
    for cluster in candidates:
        if _same(path.parent, cluster.data_directory / "pg_wal") and _started_there(
            here or Path.cwd(), cluster.data_directory
        ):
            return cluster
    known = ", ".join(f"{cluster.name} ({cluster.data_directory})" for cluster in candidates) or "none"
    raise ClusterError(
        f"{path.absolute()} is not in pg_wal of {f'cluster {name}' if name else 'a configured cluster'}: {known}",
        hint="Nothing was archived. A restored or cloned copy must not archive into the archive of its source: "
        "set archive_mode = off there, or give it an entry of its own under `clusters` and its own repository.",
        id="foreign-data-directory",
    )


def _same(one: Path, other: Path) -> bool:
    """Whether two paths lead to one directory, through whatever symbolic links (pg_wal often is one)."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _started_there(here: Path, data_directory: Path) -> bool:
    """False when the working directory is another data directory: pg_wal of a clone may be a link to its source's."""
    return not os.path.exists(here / "global" / "pg_control") or _same(here, data_directory)


class WalSource:
    """An open WAL file that was found to be what its name says. A context manager. Read as often as needed."""

    def __init__(self, path: Path, data_directory: Path) -> None:
        """Raises SourceError: not a name of a WAL file, unreadable, another cluster's, damaged (``check_segment``)."""
        self.name: WalName = parse_wal_name(path.name)
        self.path = path
        self.system_identifier = read_control(data_directory / "global" / "pg_control").system_identifier
        self._descriptor = _open(path)
        try:
            self._found = self._status()
            self.size = self._found.st_size
            self._check(data_directory)
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> t.Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        os.close(self._descriptor)

    def _status(self) -> os.stat_result:
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise SourceError(f"{self.path} is not a regular file", id="wal-not-wal")
        return status

    def check_unchanged(self) -> None:
        """Raises SourceError ``wal-changed`` when somebody has written to the file since it was opened."""
        status = self._status()
        if (status.st_size, status.st_mtime_ns) != (self._found.st_size, self._found.st_mtime_ns):
            raise self.changed()

    def changed(self) -> SourceError:
        return SourceError(
            f"{self.path} changed while it was archived",
            hint="Nothing was archived under its name. PostgreSQL never changes a finished segment: "
            "see what else writes to pg_wal.",
            id="wal-changed",
        )

    def _check(self, data_directory: Path) -> None:
        if self.name.kind in (WalKind.SEGMENT, WalKind.PARTIAL):
            history = _local_history(data_directory, self.name.timeline)
            head = self.read(0, SEGMENT_HEADER_BYTES)
            check_segment(head, self.size, self.name, self.system_identifier, history=history)
            return
        if self.size > _SMALL_FILE_BYTES:
            raise SourceError(f"{self.path} is far too large for what its name says", id="wal-size")
        content = self.read(0, self.size)
        if self.name.kind is WalKind.HISTORY:
            parse_history(content.decode("utf-8", "surrogateescape"), self.name.timeline)
        elif not content.startswith(_LABEL_BEGIN):
            raise SourceError(
                f"{self.path} is not a backup history file",
                hint="It is empty or damaged; PostgreSQL writes it at the end of a backup and needs it no more.",
                id="wal-not-wal",
            )

    def read(self, offset: int, length: int) -> bytes:
        """At most ``length`` bytes from ``offset``; fewer only at the end of the file."""
        parts = []
        try:
            while length > 0 and (part := os.pread(self._descriptor, length, offset)):
                parts.append(part)
                offset += len(part)
                length -= len(part)
        except OSError as error:
            raise _unreadable(self.path, error) from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def digest(self, key: bytes) -> bytes:
        """BLAKE3 of the content, keyed: 32 bytes."""
        from blake3 import blake3

        digest = blake3(key=key)
        for offset in range(0, self.size, _SMALL_FILE_BYTES):
            digest.update(self.read(offset, _SMALL_FILE_BYTES))
        return digest.digest()


def _open(path: Path) -> int:
    try:
        # Not blocking: a named pipe in the place of a segment must not hang the archiver.
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> SourceError:
    return SourceError(
        f"{path} cannot be read: {error.strerror}",
        hint="Nothing was archived under its name; PostgreSQL keeps the file and tries again.",
        id="wal-unreadable",
    )


def _local_history(data_directory: Path, timeline: int) -> TimelineHistory | None:
    """The history of a timeline as the cluster itself has it; None where it has none that makes sense."""
    if timeline == 1:
        return TimelineHistory(1)
    try:
        content = (data_directory / "pg_wal" / history_name(timeline)).read_bytes()
        return parse_history(content.decode("utf-8", "surrogateescape"), timeline)
    except (OSError, SourceError):
        # The check of the segment is a little weaker without; its history file is checked when it is pushed.
        return None
