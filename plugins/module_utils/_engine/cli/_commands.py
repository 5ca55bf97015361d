# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands there are, and the one place that imports them.

The imports are spelt out because Ansible finds the files a module needs by reading import
statements, and each stands in a function because a command must not pay for the others.
"""

from __future__ import annotations

import typing as t
from collections.abc import Callable

if t.TYPE_CHECKING:
    import argparse

    from ._frame import Context, Outcome


class CommandModule(t.Protocol):
    """What the file of a command has."""

    def add_arguments(self, parser: argparse.ArgumentParser, /) -> None: ...

    def run(self, args: argparse.Namespace, context: Context, /) -> Outcome: ...


class Command(t.NamedTuple):
    name: str
    help: str
    load: Callable[[], CommandModule]
    failure_exit: int | None = None
    """What every failure ends with, whatever its own exit code; None: the error's own."""


def _init() -> CommandModule:
    from . import init

    return init


def _check() -> CommandModule:
    from . import check

    return check


def _backup() -> CommandModule:
    from . import backup

    return backup


def _list() -> CommandModule:
    from . import list as list_

    return list_


def _info() -> CommandModule:
    from . import info

    return info


def _status() -> CommandModule:
    from . import status

    return status


def _capacity() -> CommandModule:
    from . import capacity

    return capacity


def _verify() -> CommandModule:
    from . import verify

    return verify


def _restore() -> CommandModule:
    from . import restore

    return restore


def _pin() -> CommandModule:
    from . import pin

    return pin


def _unpin() -> CommandModule:
    from . import unpin

    return unpin


def _replicate() -> CommandModule:
    from . import replicate

    return replicate


def _prune() -> CommandModule:
    from . import prune

    return prune


def _lock() -> CommandModule:
    from . import lock

    return lock


def _wal_push() -> CommandModule:
    from . import wal_push

    return wal_push


def _wal_archiver() -> CommandModule:
    from . import wal_archiver

    return wal_archiver


def _wal_get() -> CommandModule:
    from . import wal_get

    return wal_get


def _wal_stream() -> CommandModule:
    from . import wal_stream

    return wal_stream


def _wal_ahead() -> CommandModule:
    from . import wal_ahead

    return wal_ahead


def _key() -> CommandModule:
    from . import key

    return key


def _config() -> CommandModule:
    from . import config

    return config


# restore_command: PostgreSQL takes 1 to 125 for "there is no such segment", ends recovery and may
# promote with data lost; above 125 it stops (RestoreArchivedFile in xlogarchive.c). So only a
# segment that is certainly not there may end with 1.
WAL_GET_FAILED: t.Final = 200

COMMANDS: t.Final = {
    command.name: command
    for command in (
        Command("init", "create the repository and its keys", _init),
        Command("check", "prove the set-up from end to end", _check),
        Command("backup", "back up a cluster", _backup),
        Command("list", "list backups", _list),
        Command("info", "show one backup", _info),
        Command("status", "show how well each source is backed up, and the locations", _status),
        Command("capacity", "show what lies where, when a location is full, and what it costs", _capacity),
        Command("verify", "prove that backups can be restored", _verify),
        Command("restore", "restore a cluster, to its latest state or to a point in time", _restore),
        Command("pin", "keep a backup, whatever the retention rules say", _pin),
        Command("unpin", "let the retention rules decide about a backup again", _unpin),
        Command("replicate", "bring to each location what the others have", _replicate),
        Command("prune", "delete what retention does not keep", _prune),
        Command("lock", "keep objects locked for as long as retention keeps them", _lock),
        Command("wal-push", "archive a WAL file (archive_command)", _wal_push),
        Command("wal-archiver", "archive WAL ahead of PostgreSQL, as a service", _wal_archiver),
        Command("wal-stream", "store the unfinished segment every second, as a service", _wal_stream),
        Command(
            "wal-get",
            "fetch a WAL file from the archive (restore_command)",
            _wal_get,
            failure_exit=WAL_GET_FAILED,
        ),
        Command("wal-ahead", "fetch WAL ahead of a recovery; wal-get starts it", _wal_ahead),
        Command("key", "create, rotate, wrap, export and import keys", _key),
        Command("config", "check the configuration", _config),
    )
}
