# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pgBackRest: tuned as well as it can be for these measurements, and with the settings it comes with."""

from __future__ import annotations

import contextlib
import secrets
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .protocol import LEVEL, SOURCE, Ability, Command, Setting

NO_LIMIT = "pgBackRest cannot limit how fast a backup reads."


class _PgBackRest:
    """What both have in common: ``settings`` are added to the places of its files."""

    key: str
    name: str
    brief: bool
    cannot: Mapping[Ability, str] = {Ability.LIMIT: NO_LIMIT}
    archiver_bytes = 0

    def __init__(self, setting: Setting, program: Path, settings: Mapping[str, Any]) -> None:
        workspace, cluster = setting.workspace, setting.cluster
        self.version = workspace.run([program, "version"]).stdout.strip().removeprefix("pgBackRest ")
        self.store = setting.store
        home = workspace.directory(self.key)
        places = {
            # Without it, a backup waits for the end of a checkpoint that takes its time.
            "start-fast": "y",
            "log-level-console": "warn",
            "log-level-file": "off",
            "lock-path": home / "lock",
            "log-path": home / "log",
            "spool-path": home / "spool",
        }
        stanza = {
            "pg1-path": cluster.data_dir,
            "pg1-socket-path": cluster.socket_dir,
            "pg1-user": "postgres",
            "pg1-port": cluster.port,
        }
        lines = ["[global]"]
        lines += [f"{key}={value}" for key, value in {**self.store.pgbackrest(), **places, **settings}.items()]
        lines += [f"[{SOURCE}]", *(f"{key}={value}" for key, value in stanza.items())]
        config = home / "pgbackrest.conf"
        config.write_text("\n".join(lines) + "\n")
        config.chmod(0o600)
        workspace.account.own(config)
        self._command = [str(program), f"--config={config}", f"--stanza={SOURCE}"]
        workspace.run([*self._command, "stanza-create"])

    @contextlib.contextmanager
    def archiving(self) -> Iterator[str]:
        # What archives ahead, where that is on, is started by the command and ends by itself.
        yield f"{shlex.join([*self._command, 'archive-push'])} %p"

    def drained(self) -> None:
        return None

    def backup(self, kind: str, *, limit: int | None = None) -> Command:
        if limit is not None:
            raise ValueError(NO_LIMIT)
        return [*self._command, f"--type={'incr' if kind == 'incremental' else kind}", "backup"]

    def restore(self, target: Path, *, delta: bool = False, lsn: str | None = None) -> Command:
        how = ["--delta"] if delta else []
        goal = ["--type=immediate"] if lsn is None else ["--type=lsn", f"--target={lsn}", "--target-action=promote"]
        return [*self._command, f"--pg1-path={target}", *goal, *how, "restore"]

    def wal_push(self, segment: Path) -> Command:
        return [*self._command, "--no-archive-async", "archive-push", str(segment)]

    def wal_ask(self, segment: Path) -> Command:
        return [*self._command, "archive-push", str(segment)]


class Tuned(_PgBackRest):
    """Bundles and block incremental backups, zstd, as many processes as others have threads, asynchronous WAL."""

    key = "pgbackrest"
    name = "pgBackRest, tuned"
    brief = False

    def __init__(self, setting: Setting, program: Path) -> None:
        settings = {
            "repo1-cipher-type": "aes-256-cbc",
            "repo1-cipher-pass": secrets.token_urlsafe(48),
            "repo1-bundle": "y",
            "repo1-block": "y",
            "repo1-retention-full": 99,
            "compress-type": "zst",
            "compress-level": LEVEL,
            "process-max": setting.workers,
            "archive-async": "y",
            # cryobackup does not prune in a backup either.
            "expire-auto": "n",
        }
        super().__init__(setting, program, settings)
        self.how = f"zstd {LEVEL}, AES-256-CBC, bundles, block incremental, {setting.workers} processes, archive-async"


class Defaults(_PgBackRest):
    """As it comes."""

    key = "pgbackrest-defaults"
    name = "pgBackRest, defaults"
    # One process with gzip takes many times as long as everything else together.
    brief = True
    how = "gzip 6, no encryption, one process; start-fast is set, as for all"
    cannot: Mapping[Ability, str] = {
        **_PgBackRest.cannot,
        Ability.ASK: "archive-async is off by default: each segment is archived by the process that is asked.",
    }

    def __init__(self, setting: Setting, program: Path) -> None:
        super().__init__(setting, program, {})
