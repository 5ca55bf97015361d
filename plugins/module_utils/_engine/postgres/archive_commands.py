# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The two command lines that PostgreSQL runs: ``archive_command`` and ``restore_command``."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import typing as t
from pathlib import Path

from ..errors import ConfigError

if t.TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Sequence

_PROGRAM = "cryobackup"


def this_command() -> list[str]:
    """The argument vector that starts the command line of this engine, with an absolute path.

    The running program if it is that; else the one that is installed: beside the interpreter, which is where an
    Ansible module finds it, or on the path. Raises ConfigError when there is none.
    """
    beside = Path(sys.executable).with_name(_PROGRAM)
    for program in (Path(sys.argv[0]), beside):
        if program.name == _PROGRAM and os.access(program, os.X_OK) and program.is_file():
            return [str(program.absolute())]
    installed = shutil.which(_PROGRAM)
    if installed is not None:
        return [str(Path(installed).absolute())]
    if __name__.partition(".")[0] == _PROGRAM:
        return [sys.executable, "-I", "-m", _PROGRAM]
    raise ConfigError(
        f"the command {_PROGRAM} is not installed on this host",
        hint="PostgreSQL needs it to archive and to fetch WAL: run the `runtime` role.",
        id="no-command",
    )


def archive_command(command: Sequence[str], config: Path, *, cluster: str | None = None) -> str:
    """What ``archive_command`` is to be set to. To be quoted once more in postgresql.conf."""
    words = [*command, "--config", str(config), "wal-push"]
    if cluster is not None:
        words += ["--cluster", cluster]
    return f"{_shell(words)} %p"


def restore_command(
    command: Sequence[str],
    config: Path,
    system_identifier: int,
    *,
    without: Sequence[str] = (),
    required_suffice: bool = False,
    contain_tablespaces: bool = False,
    as_of: dt.datetime | None = None,
    timeline: int | None = None,
) -> str:
    """What ``restore_command`` is to be set to. To be quoted once more in postgresql.conf.

    ``without``: locations that are lost for good and not to be asked. ``required_suffice``: optional ones that do not
    answer do not matter, see ``archive_absence``. ``contain_tablespaces``: for a copy, whose
    recovery must not write to directories of its source. ``as_of``: the archive is looked at as it was then.
    ``timeline``: where recovery goes, if that is known.
    """
    words = [*command, "--config", str(config), "--quiet", "wal-get"]
    words += ["--system-identifier", str(system_identifier)]
    for name in without:
        words += ["--without", name]
    if as_of is not None:
        words += ["--as-of", as_of.isoformat()]
    if timeline is not None:
        words += ["--timeline", str(timeline)]
    if required_suffice:
        words.append("--required-suffice")
    if contain_tablespaces:
        words.append("--contain-tablespaces")
    return f"{_shell(words)} %f %p"


def _shell(words: Sequence[str]) -> str:
    """Quoted for the shell, and for PostgreSQL, which replaces what begins with a percent sign."""
    return shlex.join(words).replace("%", "%%")
