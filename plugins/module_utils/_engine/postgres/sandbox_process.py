# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The user a sandbox runs as, and processes that do not outlive the one that started them."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import typing as t

from ..errors import ConfigError

if t.TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

# The kernel tells the child when the thread that started it ends (prctl(2), PR_SET_PDEATHSIG). A change of user
# takes that back, so it comes last; a parent that was gone before shows by another one in its place.
_LAUNCHER: t.Final = """
import ctypes, os, sys
parent, number, uid, gid, groups = sys.argv[1:6]
argv = sys.argv[6:]
if uid:
    os.setgroups([int(group) for group in groups.split(",")])
    os.setresgid(int(gid), int(gid), int(gid))
    os.setresuid(int(uid), int(uid), int(uid))
os.umask(0o077)
if ctypes.CDLL(None).prctl(1, int(number), 0, 0, 0) != 0 or os.getppid() != int(parent):
    sys.exit("the process that wanted " + argv[0] + " is gone")
os.execv(argv[0], argv)
"""
_PATH: t.Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclasses.dataclass(frozen=True, slots=True)
class Account:
    """A user of this host."""

    name: str
    uid: int
    gid: int

    @property
    def is_me(self) -> bool:
        return self.uid == os.geteuid()

    def may_read(self, path: Path) -> bool:
        """As far as owners and modes tell. Who owns a file or a directory can give himself the mode he wants."""
        groups = {self.gid, *os.getgrouplist(self.name, self.gid)}

        def has(place: Path, bit: int) -> bool:
            status = place.stat()
            shift = 3 if status.st_gid in groups else 0
            return status.st_uid == self.uid or bool(status.st_mode >> shift & bit)

        try:
            real = path.resolve()
            return has(real, 0o4) and all(has(parent, 0o1) for parent in real.parents)
        except OSError:
            return False


def server_account(wanted: str | None, data_directory: Path | None) -> Account:
    """The user a sandbox runs as: the one wanted; else for root the owner of the cluster, or postgres; else this one.

    Raises ConfigError, id ``sandbox-user``: PostgreSQL refuses to run as root, and only root can be somebody else.
    """
    import pwd

    names: list[str | int] = [wanted] if wanted is not None else [os.geteuid()]
    if wanted is None and os.geteuid() == 0:
        names = [*_owner(data_directory), "postgres"]
    for name in names:
        try:
            found = pwd.getpwuid(name) if isinstance(name, int) else pwd.getpwnam(name)
        except KeyError:
            continue
        if found.pw_uid != 0 and os.geteuid() in (0, found.pw_uid):
            return Account(found.pw_name, found.pw_uid, found.pw_gid)
    raise ConfigError(
        f"PostgreSQL cannot be started as {wanted or 'root'}",
        hint="It refuses to run as root, and only root can start it as another user: name one with --user, or run "
        "this as the user that is to own the sandbox.",
        id="sandbox-user",
    )


def _owner(data_directory: Path | None) -> list[int]:
    try:
        return [data_directory.stat().st_uid] if data_directory is not None else []
    except OSError:
        return []


def launch(
    argv: Sequence[str],
    account: Account,
    *,
    at_our_end: signal.Signals = signal.SIGTERM,
    environment: Mapping[str, str] | None = None,
    cwd: Path,
    stdin: int | None = subprocess.DEVNULL,
    stdout: int | t.IO[bytes],
    stderr: int | t.IO[bytes],
) -> subprocess.Popen[bytes]:
    """Start a program as a user. It gets ``at_our_end`` when the thread that called this ends, however that comes.

    ``argv[0]`` is an absolute path. Its environment is ``environment`` and a plain PATH, nothing of ours: our own
    PGOPTIONS and the like must not reach it. Signals of our terminal do not.
    """
    identity = ["", "", ""]
    if not account.is_me:
        groups = os.getgrouplist(account.name, account.gid)
        identity = [str(account.uid), str(account.gid), ",".join(map(str, groups))]
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), str(int(at_our_end)), *identity, *argv],
        env={"PATH": _PATH, "LC_ALL": "C", **(environment or {})},
        cwd=cwd,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
    )


def run(
    argv: Sequence[str],
    account: Account,
    *,
    environment: Mapping[str, str] | None = None,
    cwd: Path,
    text: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run a program as a user to its end, with ``text`` on its standard input. It ends with us."""
    process = launch(
        argv,
        account,
        environment=environment,
        cwd=cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        out, err = process.communicate(text.encode("utf-8", "surrogateescape"))
    except BaseException:
        process.kill()
        process.communicate()
        raise
    return subprocess.CompletedProcess(
        list(argv), process.returncode, out.decode("utf-8", "replace"), err.decode("utf-8", "replace")
    )
