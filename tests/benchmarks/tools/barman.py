# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Barman with pg_basebackup underneath (``backup_method = postgres``)."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.benchmarks.database import IDLE_ARCHIVING, archive_with
from tests.lab.peers import PeerUnavailable

from .basebackup import FIRST_WITH_INCREMENTALS, FIRST_WITH_ZSTD, WITHOUT_INCREMENTALS
from .protocol import LEVEL, SOURCE, Ability, Command, Setting, shell


class Barman:
    """On the machine of the server, so that nothing travels: WAL is copied into its directory of incoming files."""

    key = "barman"
    name = "Barman"
    brief = False
    archiver_bytes = 0

    def __init__(self, setting: Setting, program: Path) -> None:
        workspace, cluster = setting.workspace, setting.cluster
        if cluster.major < FIRST_WITH_ZSTD:
            raise PeerUnavailable(f"Barman compresses with zstd since PostgreSQL {FIRST_WITH_ZSTD}")
        self.version = workspace.run([program, "--version"]).stdout.split()[0]
        self.store = setting.store
        home = setting.store.directory
        self._incoming = home / SOURCE / "incoming"
        self.how = (
            f"pg_basebackup with zstd {LEVEL} and {setting.workers} threads, WAL with zstd {LEVEL}, no encryption"
        )
        settings = {
            "description": "benchmark",
            "conninfo": cluster.conninfo,
            "streaming_conninfo": cluster.conninfo,
            "backup_method": "postgres",
            "archiver": "on",
            "path_prefix": cluster.installation.bin_dir,
            "compression": "zstd",
            "compression_level": LEVEL,
            "immediate_checkpoint": "true",
            "staging_path": workspace.directory("barman-staging"),
            "staging_location": "local",
            "backup_compression": "zstd",
            "backup_compression_format": "tar",
            "backup_compression_location": "client",
            "backup_compression_level": LEVEL,
            "backup_compression_workers": setting.workers,
        }
        general = {
            "barman_home": home,
            "barman_user": workspace.account.name,
            "log_file": workspace.directory("barman-log") / "barman.log",
            "log_level": "WARNING",
        }
        config = workspace.path / "barman.conf"
        lines = ["[barman]", *(f"{key} = {value}" for key, value in general.items()), f"[{SOURCE}]"]
        config.write_text("\n".join([*lines, *(f"{key} = {value}" for key, value in settings.items())]) + "\n")
        workspace.account.own(config)
        self._command = [str(program), "--config", str(config), "--quiet"]
        workspace.run([*self._command, "check", SOURCE], check=False)  # makes its directories
        # No backup is made before the first WAL has arrived.
        with self.archiving() as archive_command:
            archive_with(cluster, archive_command)
            workspace.run([*self._command, "switch-wal", "--force", "--archive", SOURCE])
        archive_with(cluster, IDLE_ARCHIVING)
        cannot = {
            Ability.DELTA: "Barman restores plain backups with --delta-restore, but not compressed ones.",
            Ability.PUSH: "Barman gets WAL as copied files, and puts them into its archive later.",
            Ability.ASK: "Barman has no client on the server's own machine.",
        }
        if cluster.major < FIRST_WITH_INCREMENTALS:
            cannot[Ability.INCREMENTAL] = WITHOUT_INCREMENTALS
        self.cannot: Mapping[Ability, str] = cannot

    @contextlib.contextmanager
    def archiving(self) -> Iterator[str]:
        there = f"{shlex.quote(str(self._incoming))}/%f"
        # Durable when PostgreSQL is told so, like everybody's; and never seen half-written.
        yield f"test ! -e {there} && cp %p {there}.tmp && sync {there}.tmp && mv {there}.tmp {there}"

    def drained(self) -> Command:
        return [*self._command, "archive-wal", SOURCE]

    def backup(self, kind: str, *, limit: int | None = None) -> Command:
        how = ["--wait"]
        if kind == "incremental":
            how += ["--incremental", "last"]
        if limit is not None:
            how += ["--bwlimit", str(limit // 1024)]
        return [*self._command, "backup", *how, SOURCE]

    def restore(self, target: Path, *, delta: bool = False, lsn: str | None = None) -> Command:
        if delta:
            raise ValueError(self.cannot[Ability.DELTA])
        goal = ["--target-immediate"] if lsn is None else ["--target-lsn", lsn, "--target-action", "promote"]
        # The one that --get-wal writes has neither this program's path nor its configuration's.
        fetch = ["--restore-command", f"{shlex.join([*self._command, 'get-wal', SOURCE])} %f > %p"]
        command = [*self._command, "restore", "--get-wal", *fetch, *goal, SOURCE, "last", str(target)]
        return shell([shlex.join(command)], ["sync", "--file-system", shlex.quote(str(target))])

    def wal_push(self, segment: Path) -> Command:
        raise ValueError(f"{segment.name}: {self.cannot[Ability.PUSH]}")

    def wal_ask(self, segment: Path) -> Command:
        raise ValueError(f"{segment.name}: {self.cannot[Ability.ASK]}")
