# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may read a file with a secret: modes, and the lists with which systemd hands credentials over."""

from __future__ import annotations

import os
import pathlib
import pwd
import struct
import tempfile
from collections.abc import Iterator

import pytest

from cryobackup.crypto.keys import read_file
from cryobackup.errors import LocationError
from cryobackup.private_files import readable_by_others
from cryobackup.storage.secret_file import read_secret

OWNER, USER, GROUP, NAMED_GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
NOBODY_IN_PARTICULAR = 0xFFFFFFFF
STRANGER = 54321


@pytest.fixture
def secret() -> Iterator[pathlib.Path]:
    # Not in pytest's own directory, which only its user can enter.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = pathlib.Path(folder, "secret")
        path.write_text("s3cret")
        path.chmod(0o400)
        yield path


@pytest.fixture
def reader() -> Iterator[int]:
    """The user that a service of systemd's runs as: not root, which owns the file."""
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    user = pwd.getpwnam("nobody").pw_uid
    yield user
    os.seteuid(0)


def give(path: pathlib.Path, *more: tuple[int, int, int], group: int = 0, other: int = 0) -> None:
    """What setfacl does: these entries, and those that every list has."""
    entries = [(OWNER, 4, NOBODY_IN_PARTICULAR), *more, (GROUP, group, NOBODY_IN_PARTICULAR)]
    entries += [(MASK, 4, NOBODY_IN_PARTICULAR), (OTHER, other, NOBODY_IN_PARTICULAR)]
    packed = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in sorted(entries))
    os.setxattr(path, "system.posix_acl_access", packed)


def others_may(path: pathlib.Path) -> bool:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return readable_by_others(descriptor)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("mode", "others"), [(0o400, False), (0o600, False), (0o440, True), (0o404, True), (0o420, True), (0o620, True)]
)
def test_modes(secret: pathlib.Path, mode: int, others: bool) -> None:
    secret.chmod(mode)
    assert others_may(secret) is others


def test_a_credential_of_systemd_is_its_service_s_alone(secret: pathlib.Path, reader: int) -> None:
    give(secret, (USER, 4, reader))
    assert secret.stat().st_mode & 0o777 == 0o440
    os.seteuid(reader)
    assert not others_may(secret)
    assert read_secret("cloud", secret) == "s3cret"
    assert read_file(secret, secret=True) == "s3cret"


@pytest.mark.parametrize(
    "entry", [(USER, 4, STRANGER), (USER, 2, STRANGER), (NAMED_GROUP, 4, STRANGER)], ids=["user", "writer", "group"]
)
def test_a_list_with_somebody_else_is_refused(secret: pathlib.Path, entry: tuple[int, int, int]) -> None:
    give(secret, (USER, 4, os.geteuid()), entry)
    assert others_may(secret)
    with pytest.raises(LocationError) as caught:
        read_secret("cloud", secret)
    assert caught.value.id == "secret-file-mode"


def test_a_list_does_not_hide_what_group_and_others_may(secret: pathlib.Path) -> None:
    give(secret, (USER, 4, os.geteuid()), group=4)
    assert others_may(secret)
    give(secret, (USER, 4, os.geteuid()), other=4)
    assert others_may(secret)


def test_who_owns_the_file_may_read_it(secret: pathlib.Path, reader: int) -> None:
    give(secret, (USER, 4, 0))
    os.chown(secret, reader, -1)
    assert others_may(secret)
