# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine as a command that PostgreSQL's system user can execute."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import stat
import subprocess
from pathlib import Path

from .account import ServerAccount
from .cleanup import remove_tree
from .workspace import CHECKOUT, Lab

PACKAGE = "cryobackup"
ENGINE = Path("plugins/module_utils/_engine")
CONSOLE_SCRIPT = "from cryobackup.cli import main; raise SystemExit(main())"


class RuntimeFailed(Exception):
    """The engine cannot be run; the message says what failed."""


def executable_by(account: ServerAccount, command: list[str | Path]) -> bool:
    """Whether ``account`` can run ``command`` from the root directory, and it succeeds."""
    # setpriv looks for the program while it still has root's rights; a shell, like the server's, does not.
    shell: list[str | Path] = ["/bin/sh", "-c", 'exec "$@"', "sh"]
    result = subprocess.run(
        account.argv([*shell, *command]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        check=False,
    )
    return result.returncode == 0


class Runtime:
    """Finds or makes a command ``cryobackup`` that both this user and the server's user can execute.

    ``archive_command`` and ``restore_command`` run as the server's user, which cannot enter a checkout below a
    private directory, root's home for instance. The engine and its environment are then copied into the
    laboratory, and are gone with it.
    """

    def __init__(self, lab: Lab, checkout: Path = CHECKOUT) -> None:
        self._lab = lab
        self._checkout = checkout

    def command(self) -> Path:
        """Path of the command. Raises RuntimeFailed when the checkout has no environment (``make venv``)."""
        environment = self._checkout / ".venv"
        if not (environment / "bin/python").exists():
            raise RuntimeFailed(f"{environment} is missing: run make venv")
        installed = environment / "bin" / PACKAGE
        if installed.exists() and self._works(installed):
            return installed
        folder = self._folder()
        if self._imports(environment / "bin/python"):
            # All there but the command, or the command has another interpreter's path in its first line.
            return self._wrapper(folder, environment)
        return self._wrapper(folder, self._copy(environment, folder))

    def _works(self, command: Path) -> bool:
        return executable_by(self._lab.account, [command, "--version"])

    def _imports(self, python: Path) -> bool:
        return executable_by(self._lab.account, [python, "-c", f"import {PACKAGE}, cryptography"])

    def _folder(self) -> Path:
        number = 1
        while True:
            folder = self._lab.path / f"runtime-{number}"
            try:
                folder.mkdir(mode=0o755)
            except FileExistsError:
                number += 1
                continue
            return folder

    def _wrapper(self, folder: Path, environment: Path) -> Path:
        path = folder / PACKAGE
        python = shlex.quote(str(environment / "bin/python"))
        path.write_text(f'#!/bin/sh\nexec {python} -I -c {shlex.quote(CONSOLE_SCRIPT)} "$@"\n')
        path.chmod(0o755)
        # Beside the command, as in an environment.
        interpreter = folder / "python"
        interpreter.write_text(f'#!/bin/sh\nexec {python} "$@"\n')
        interpreter.chmod(0o755)
        if not self._imports(environment / "bin/python"):
            raise RuntimeFailed(f"user {self._lab.account.name} cannot run {environment}/bin/python")
        return path

    def _copy(self, environment: Path, folder: Path) -> Path:
        copy = folder / "venv"
        skipped = shutil.ignore_patterns("__pycache__")
        shutil.copytree(environment, copy, symlinks=True, ignore=skipped, copy_function=_link_or_copy)
        package = next(copy.glob("lib/python3*/site-packages")) / PACKAGE
        if package.is_symlink():
            # An editable install points into the checkout.
            package.unlink()
        else:
            remove_tree(package)
        shutil.copytree(self._checkout / ENGINE, package, ignore=skipped, copy_function=_link_or_copy)
        for directory in (path for path in copy.rglob("*") if path.is_dir() and not path.is_symlink()):
            directory.chmod(0o755)
        copy.chmod(0o755)
        return copy


def _link_or_copy(source: str, target: str) -> None:
    mode = os.stat(source).st_mode
    wanted = 0o555 if mode & stat.S_IXUSR else 0o444
    if mode & wanted == wanted:
        # An environment has tens of thousands of files.
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    shutil.copyfile(source, target)
    os.chmod(target, wanted)
