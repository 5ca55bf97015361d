# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the user of a sandbox can read."""

from __future__ import annotations

import os
from pathlib import Path

from cryobackup.postgres.sandbox_process import Account

STRANGER = Account("nobody-of-this-name", 54321, 54321)


def test_what_a_user_may_read(tmp_path: Path) -> None:
    secret = tmp_path / "data.identity"
    secret.touch(0o400)
    me = Account("me", os.geteuid(), os.getegid())
    assert me.may_read(secret)
    assert not STRANGER.may_read(secret)
    secret.chmod(0)
    assert me.may_read(secret), "it is his: he can change the mode"
    assert not me.may_read(tmp_path / "missing")


def test_what_is_open_to_all(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("/etc/passwd")
    assert STRANGER.may_read(Path("/etc/passwd"))
    assert STRANGER.may_read(link), "what it leads to counts"


def test_a_directory_that_nobody_else_may_enter(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(0o700)
    (closed / "file").touch(0o644)
    (closed / "file").chmod(0o644)
    assert not STRANGER.may_read(closed / "file")
