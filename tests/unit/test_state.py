# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Failures of the state directory are told as such: the place is wrong, or it fails just now."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from cryobackup.errors import ConfigError, CryoError, StateError
from cryobackup.locks import locked
from cryobackup.state import Spool, state_errors


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EACCES, ConfigError),
        (errno.EROFS, ConfigError),
        (errno.ENOENT, ConfigError),
        (errno.ENOSPC, StateError),
        (errno.EDQUOT, StateError),
        (errno.EIO, StateError),
    ],
)
def test_what_the_system_says_becomes_an_error_with_a_hint(number: int, kind: type[CryoError], tmp_path: Path) -> None:
    with pytest.raises(CryoError) as caught, state_errors(tmp_path):
        raise OSError(number, "as the system says")
    assert isinstance(caught.value, kind)
    assert str(tmp_path) in caught.value.message
    assert caught.value.hint


def test_a_spool_keeps_what_is_written_and_leaves_nothing(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        assert spool.write(b"one, two") == 8
        assert list(tmp_path.iterdir()) == []
        spool.seek(5)
        assert spool.read(100) == b"two"
    with pytest.raises(ConfigError, match="state directory"):
        Spool(tmp_path / "missing")


def test_a_lock_in_a_place_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="state directory"), locked(tmp_path / "file", "x", "a test"):
        pass
