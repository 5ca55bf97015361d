# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Incrementals of one cluster in one state, from one parent, by each way there is to find out what changed.

A better way is closed by taking away what it rests on: the summaries, the word of the kernel that it is the same
boot, the times of the files.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cryobackup.postgres import relfile
from cryobackup.repository import model
from tests.integration.restore.lab import RestoreLab
from tests.lab import Cluster

from .page_comparison import different_pages, without_cache

BOOT_ID = "/proc/sys/kernel/random/boot_id"
_IN_ANOTHER_BOOT = f'mount --bind "$1" {BOOT_ID} && shift && exec "$@"'


@dataclass(frozen=True)
class Way:
    """What an incremental may rest on."""

    name: str
    summaries: bool = True
    same_boot: bool = True
    """Without it, the times of files prove nothing, and LSNs neither."""
    times: bool = True
    """Without them, every file of a relation seems to have been written."""


WAYS = (
    Way("all there is"),
    Way("summaries alone", same_boot=False),
    Way("LSNs and times", summaries=False),
    Way("LSNs of all pages", summaries=False, times=False),
    Way("content", summaries=False, same_boot=False),
)


def ways_of(cluster: Cluster) -> list[Way]:
    """Those that make a difference there; those that spoil the files' times, for all that come after them, last."""
    possible = [way for way in WAYS if not way.summaries or cluster.major >= 17]
    if not cluster.checksums:
        possible = [way for way in possible if way.times]
    return sorted(possible, key=lambda way: not way.times)


def method_of(way: Way, cluster: Cluster) -> str:
    """What ``change_detection`` has to say."""
    if way.summaries:
        return "wal-summary"
    return "page-lsn" if way.same_boot and cluster.checksums else "content"


class WaysLab(RestoreLab):
    """Backups that do not see each other, unless they shall."""

    same_boot = True

    def run(self, *words: str, check: bool = False) -> subprocess.CompletedProcess[str]:
        if self.same_boot:
            return super().run(*words, check=check)
        command = self.workspace.account.argv([*self.command, *words])
        other = ["unshare", "--mount", "sh", "-c", _IN_ANOTHER_BOOT, "boot", self._boot_file, *command]
        return self.workspace.run(other, as_server=False, check=check)

    @property
    def _boot_file(self) -> Path:
        path = self.directory / "boot_id"
        if not path.exists():
            if os.geteuid() != 0:
                pytest.skip("mounting a file needs root")
            path.write_text(f"{uuid.uuid4()}\n")
        return path

    def incremental(self, way: Way, *, exit_code: int = 0) -> dict[str, Any]:
        """By that way, or the test fails."""
        with contextlib.ExitStack() as stack:
            if not way.summaries and self.cluster.major >= 17:
                stack.enter_context(self._without_summaries())
            if not way.times:
                self._touch_relations()
            self.same_boot = way.same_boot
            try:
                backup = self.backup("incremental", exit_code=exit_code)
            finally:
                self.same_boot = True
        assert backup["type"] == "incremental", backup
        detection = backup["change_detection"]
        assert detection["method"] == method_of(way, self.cluster), detection
        unchanged = detection["files_unchanged"]
        assert unchanged > 300 if way.same_boot and way.times else unchanged < 50, detection
        return backup

    @contextlib.contextmanager
    def _without_summaries(self) -> Iterator[None]:
        self.cluster.configure(summarize_wal=False)
        yield
        # It goes on where it ended: WAL from there on is still in pg_wal, see wal_keep_size.
        self.cluster.configure(summarize_wal=True)

    def _touch_relations(self) -> None:
        for part in ("base", "global", "pg_tblspc"):
            for directory, _unused, names in os.walk(self.cluster.data_dir / part, followlinks=True):
                for name in names:
                    if relfile.parse_relation_name(name) is not None:
                        os.utime(os.path.join(directory, name))

    # Which backups there are, as far as the engine can see

    def hide(self, *backup_ids: str) -> None:
        hidden = self.directory / "hidden"
        hidden.mkdir(exist_ok=True)
        for each in backup_ids:
            self._manifest_path(each).rename(hidden / each)

    def show(self, *backup_ids: str) -> None:
        for each in backup_ids:
            (self.directory / "hidden" / each).rename(self._manifest_path(each))

    def _manifest_path(self, backup_id: str) -> Path:
        return self.locations["local"] / "manifests/main" / backup_id


def all_ways(lab: WaysLab, parent: str, ways: Sequence[Way], *, full: bool = False) -> dict[str, str]:
    """Backups by the name of their way, none of which sees another, and with ``full`` a full one. All are hidden."""
    taken: dict[str, str] = {}
    names: set[str] | None = None
    for way in ways:
        backup = lab.incremental(way)
        assert backup["parent"] == parent
        taken[way.name] = backup["backup_id"]
        with noting(way.name):
            found = as_on_disk(lab, backup["backup_id"])
            assert names is None or found == names
        names = found
        lab.hide(backup["backup_id"])
    if full:
        taken["full"] = lab.backup("full")["backup_id"]
        assert as_on_disk(lab, taken["full"]) == names
        lab.hide(taken["full"])
    lab.hide(parent)
    return taken


@contextlib.contextmanager
def noting(words: str) -> Iterator[None]:
    try:
        yield
    except AssertionError as error:
        error.add_note(words)
        raise


def as_on_disk(lab: WaysLab, backup_id: str, *, strict: bool | None = None) -> set[str]:
    """Compares each file with the disk; returns their paths.

    Byte by byte. Only without checksums hints are written without a trace, and a way that reads what the summaries
    name alone has the older page, which is as good. ``strict`` is said when the parent is of another host.
    """
    contents = lab.contents(backup_id)
    strict = lab.cluster.checksums if strict is None else strict
    names = set()
    for entry in contents.manifest.entries():
        name = os.fsdecode(entry.path)
        # pg_control and the files of the backup mode are of this backup; a server writes others as it likes.
        if entry.type != model.FILE or name == relfile.CONTROL_FILE:
            continue
        if not name.startswith(("base/", "global/", "pg_tblspc/", "pg_xact/", "pg_multixact/")):
            continue
        names.add(name)
        ours, theirs = contents.read(entry), (lab.cluster.data_dir / name).read_bytes()
        same = ours == theirs or without_cache(ours) == without_cache(theirs)
        assert same or (not strict and not list(different_pages(name, ours, theirs))), name
    assert len(names) > 500
    return names
