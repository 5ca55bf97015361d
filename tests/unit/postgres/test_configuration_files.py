# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every file that a server's configuration includes is found, however it is written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cryobackup.postgres.configuration_files import included_files


def write(path: Path, text: str = "# nothing\n") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def test_everything_that_is_included(tmp_path: Path) -> None:
    main = write(
        tmp_path / "postgresql.conf",
        "port = 5432\n"
        "include 'a.conf'\n"
        "  INCLUDE = 'sub/b.conf'  # spoken loudly\n"
        "include_if_exists 'not-there.conf'\n"
        "include_dir = 'conf.d'\n"
        "include bare.conf\n"
        "include 'it''s.conf'\n"
        r"include 'back\'slash.conf'"
        "\n"
        "#include 'commented.conf'\n"
        "includes = 'no.conf'\n"
        "application_name = 'include no.conf'\n",
    )
    wanted = {
        main,
        write(tmp_path / "a.conf"),
        write(tmp_path / "sub/b.conf", "include 'c.conf'\n"),
        write(tmp_path / "sub/c.conf"),
        write(tmp_path / "conf.d/1.conf"),
        write(tmp_path / "conf.d/2.conf", "include '../sub/d.conf'\n"),
        write(tmp_path / "bare.conf"),
        write(tmp_path / "it's.conf"),
        write(tmp_path / "back'slash.conf"),
    }
    wanted.add(write(tmp_path / "sub/d.conf"))
    for unwanted in ("conf.d/.hidden.conf", "conf.d/3.conf.dpkg-old", "commented.conf", "no.conf", "not.conf"):
        write(tmp_path / unwanted)
    (tmp_path / "conf.d/directory.conf").mkdir()
    assert included_files([main]) == wanted


def test_files_of_hba(tmp_path: Path) -> None:
    hba = write(tmp_path / "pg_hba.conf", 'local all all peer\ninclude "more.conf"\ninclude_dir hba.d\n')
    wanted = {hba, write(tmp_path / "more.conf"), write(tmp_path / "hba.d/x.conf")}
    assert included_files([hba]) == wanted


def test_a_circle_ends(tmp_path: Path) -> None:
    one = write(tmp_path / "1.conf", "include '2.conf'\n")
    two = write(tmp_path / "2.conf", "include '1.conf'\ninclude '2.conf'\n")
    assert included_files([one]) == {one, two}
    assert included_files([f"{tmp_path}/none.conf"]) == set()


@pytest.mark.parametrize("content", [b"\xff\xfe\n", b"include '\xe9.conf'\n"])
def test_bytes_that_are_no_text(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "postgresql.conf"
    path.write_bytes(content)
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9.conf"))).write_text("")
    assert str(path) in included_files([str(path)])
