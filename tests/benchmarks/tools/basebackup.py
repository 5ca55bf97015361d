# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_basebackup: PostgreSQL's own, with nothing around it."""

from __future__ import annotations

import contextlib
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path

from tests.lab.peers import PeerUnavailable

from .protocol import LEVEL, Ability, Command, Setting, shell

FIRST_WITH_ZSTD = 15
FIRST_WITH_INCREMENTALS = 17
WITHOUT_INCREMENTALS = f"pg_basebackup has incremental backups since PostgreSQL {FIRST_WITH_INCREMENTALS}."
NO_ARCHIVE = "pg_basebackup has no WAL archive."


class PgBasebackup:
    """Compressed tar files in a directory for each backup; a restore unpacks them, and combines them."""

    key = "pg_basebackup"
    name = "pg_basebackup"
    brief = False
    archiver_bytes = 0

    def __init__(self, setting: Setting) -> None:
        installation = setting.cluster.installation
        if installation.major < FIRST_WITH_ZSTD:
            raise PeerUnavailable(f"pg_basebackup compresses with zstd since PostgreSQL {FIRST_WITH_ZSTD}")
        zstd = shutil.which("zstd")
        if zstd is None:
            raise PeerUnavailable("pg_basebackup's files are unpacked with zstd, which is not installed")
        # So that every command of a cluster that has them can be built, whether it is run or not.
        self._combine = str(installation.bin_dir / "pg_combinebackup")
        self._zstd = zstd
        self.version = installation.version
        self.how = f"zstd {LEVEL} with {setting.workers} threads, no encryption, WAL streamed"
        self.store = setting.store
        self._home = setting.store.directory
        self._scratch = setting.workspace.path / "unpacked"
        self._series = 0
        self._chain: list[Path] = []
        self._command = [
            *(installation.program("pg_basebackup"), f"--dbname={setting.cluster.conninfo}"),
            *("--format=tar", f"--compress=client-zstd:level={LEVEL},workers={setting.workers}"),
            *("--checkpoint=fast", "--wal-method=stream"),
        ]
        cannot = dict.fromkeys((Ability.ARCHIVE, Ability.PUSH, Ability.ASK, Ability.REPLAY), NO_ARCHIVE)
        cannot[Ability.DELTA] = "pg_basebackup's files are unpacked as a whole."
        if installation.major < FIRST_WITH_INCREMENTALS:
            cannot[Ability.INCREMENTAL] = WITHOUT_INCREMENTALS
        self.cannot: Mapping[Ability, str] = cannot

    def archiving(self) -> contextlib.AbstractContextManager[str]:
        raise ValueError(NO_ARCHIVE)

    def drained(self) -> None:
        return None

    def backup(self, kind: str, *, limit: int | None = None) -> Command:
        self._series += 1
        folder = self._home / f"{self._series:03}"
        how = [f"--pgdata={folder}"]
        if limit is not None:
            how.append(f"--max-rate={limit // 1024}k")
        if kind == "incremental":
            how.append(f"--incremental={self._chain[-1] / 'backup_manifest'}")
            self._chain.append(folder)
        else:
            self._chain = [folder]
        return [*self._command, *how]

    def restore(self, target: Path, *, delta: bool = False, lsn: str | None = None) -> Command:
        if delta or lsn is not None:
            raise ValueError("pg_basebackup cannot do that")
        sync = ["sync", "--file-system", shlex.quote(str(target))]
        if len(self._chain) == 1:
            return shell(*self._unpack(self._chain[0], target), sync)
        parts = [self._scratch / str(number) for number in range(len(self._chain))]
        steps = [line for backup, part in zip(self._chain, parts, strict=True) for line in self._unpack(backup, part)]
        # WAL is not combined: the newest backup's is the one that is needed.
        combine = [self._combine, f"--output={target}", *map(str, parts)]
        return shell(*steps, [shlex.join(combine)], ["rm -r", shlex.quote(str(self._scratch))], sync)

    def _unpack(self, backup: Path, folder: Path) -> list[list[str]]:
        there = shlex.quote(str(folder))
        data = shlex.quote(str(backup / "base.tar.zst"))
        wal = shlex.quote(str(backup / "pg_wal.tar"))
        manifest = shlex.quote(str(backup / "backup_manifest"))
        return [
            [f"mkdir -p {there}"],
            [f"{self._zstd} -q -d -c {data} | tar -x -f - -C {there}"],
            [f"tar -x -f {wal} -C {there}/pg_wal"],
            # In tar format it lies beside the data, and pg_combinebackup wants it there.
            [f"cp {manifest} {there}/backup_manifest"],
        ]

    def wal_push(self, segment: Path) -> Command:
        raise ValueError(f"{segment.name}: {NO_ARCHIVE}")

    def wal_ask(self, segment: Path) -> Command:
        raise ValueError(f"{segment.name}: {NO_ARCHIVE}")
