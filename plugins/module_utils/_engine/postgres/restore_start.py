# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Starting PostgreSQL on a restored directory, and waiting until recovery is where it should be."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import time
import typing as t
from pathlib import Path

from ..errors import ConfigError, RestoreError, SourceError
from .control import read_control
from .relfile import CONTROL_FILE

if t.TYPE_CHECKING:
    from collections.abc import Iterator

START_LOG: t.Final = "cryobackup.start.log"
_BIN_PLACES: t.Final = ("/usr/lib/postgresql/{major}/bin", "/usr/pgsql-{major}/bin")
_POLL_SECONDS = 0.2
IN_PRODUCTION: t.Final = "in production"
IN_RECOVERY: t.Final = "in archive recovery"
SHUT_DOWN: t.Final = "shut down in recovery"
_GRAVE: t.Final = ("FATAL", "PANIC", "ERROR")
_OWN_ERROR: t.Final = "error: "
_OWN_HINT: t.Final = "hint: "


def find_bin_directory(version: int, wanted: Path | None = None) -> Path:
    """Where the programs of a major version are; ``version`` is a server_version_num.

    Raises ConfigError, id ``no-postgresql``.
    """
    major = version // 10000
    places = [wanted] if wanted is not None else [Path(place.format(major=major)) for place in _BIN_PLACES]
    for place in places:
        if os.access(place / "pg_ctl", os.X_OK):
            return place
    raise ConfigError(
        f"the programs of PostgreSQL {major} are not on this host ({', '.join(map(str, places))})",
        hint="Install that major version, or name their directory with --bin-directory.",
        id="no-postgresql",
    )


def server_options(target: Path, config_file: Path | None) -> list[str]:
    """Options for a server whose configuration file does not lie in its data directory.

    ``data_directory`` must be among them: the saved configuration names the directory of the original
    cluster, and that would win over ``-D`` (``SelectConfigFiles`` in ``guc.c``).
    """
    if config_file is None:
        return []
    folder = config_file.parent
    settings = {
        "config_file": str(config_file),
        "data_directory": str(target),
        "external_pid_file": "",
    }
    for name, file in (("hba_file", "pg_hba.conf"), ("ident_file", "pg_ident.conf")):
        if (folder / file).exists():
            settings[name] = str(folder / file)
    return [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]


def pg_ctl_command(programs: Path, target: Path, options: t.Sequence[str]) -> list[str]:
    """What starts the server; also shown to people who do it by hand."""
    command = [str(programs / "pg_ctl"), "-D", str(target), "-l", str(target / START_LOG)]
    if options:
        command += ["-o", shlex.join(options)]
    return [*command, "start"]


def start_server(command: t.Sequence[str], target: Path, owner: str, *, until: t.Container[str], timeout: float) -> str:
    """Start the server as ``owner`` and wait until pg_control shows one of the states ``until``.

    Returns that state. Raises RestoreError, id ``start-failed``, with the end of the server's log.
    """
    deadline = time.monotonic() + timeout
    since = time.time() - 1  # times of files are coarse
    words = [command[0], "-w", "-t", str(max(1, int(timeout))), *command[1:]]
    result = subprocess.run(words, capture_output=True, text=True, cwd="/", check=False, **_as_user(owner))
    state = _state(target)
    # The control file comes from a running server, so that "in production" alone proves nothing.
    stopped_at_goal = state == SHUT_DOWN and state in until
    if result.returncode != 0 and not stopped_at_goal:
        raise _start_failed(target, result.stdout + result.stderr, since)
    while state not in until:
        if time.monotonic() > deadline:
            raise _start_failed(target, f"it is still {state} after {timeout:.0f} s", since)
        if not (target / "postmaster.pid").exists():
            raise _start_failed(target, f"it stopped, and is {_state(target)}", since)
        time.sleep(_POLL_SECONDS)
        state = _state(target)
    return state


def _as_user(owner: str) -> dict[str, t.Any]:
    import pwd

    account = pwd.getpwnam(owner)
    if os.geteuid() != 0 or account.pw_uid == os.geteuid():
        return {}
    groups = os.getgrouplist(account.pw_name, account.pw_gid)
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": groups}


def _state(target: Path) -> str:
    try:
        return read_control(target / CONTROL_FILE).state
    except SourceError as error:
        return f"unknown ({error.message})"


def _start_failed(target: Path, words: str, since: float) -> RestoreError:
    """What the server's log says; and what wal-get says in it, for "exit code 200" is no reason that helps."""
    lines = [line for log in _logs(target, since) for line in _last_start(log)]
    telling = [line for line in lines if any(word in line for word in _GRAVE)][-3:]
    said = "; ".join(telling or lines[-3:]) or words.strip()
    own = [number for number, line in enumerate(lines) if line.startswith(_OWN_ERROR)]
    hint = ""
    if own:
        said += f"; wal-get: {lines[own[-1]].removeprefix(_OWN_ERROR)}"
        after = lines[own[-1] + 1 : own[-1] + 2]
        hint = next((f"{line.removeprefix(_OWN_HINT)} " for line in after if line.startswith(_OWN_HINT)), "")
    return RestoreError(
        f"PostgreSQL did not start on {target}: {said}",
        hint=f"The restore itself is complete. {hint}See {target / START_LOG}.",
        id="start-failed",
    )


def _logs(target: Path, since: float) -> Iterator[str]:
    """The log of pg_ctl, and that of the logging collector, which takes it over soon after the start."""
    places = [target / START_LOG]
    with contextlib.suppress(OSError):
        for line in (target / "current_logfiles").read_text().splitlines():
            kind, _unused, name = line.partition(" ")
            if kind == "stderr":
                places.append(target / name)
    for place in places:
        with contextlib.suppress(OSError):
            if place.stat().st_mtime >= since:
                yield place.read_text(errors="replace")


def _last_start(log: str) -> list[str]:
    """The lines since the server began for the last time; all if that is not to be seen."""
    lines = log.splitlines()
    starts = [number for number, line in enumerate(lines) if "starting PostgreSQL" in line]
    return lines[starts[-1] :] if starts else lines
