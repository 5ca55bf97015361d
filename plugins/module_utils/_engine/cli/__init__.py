# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line.

One file per command: ``add_arguments`` describes its options, ``run`` turns them into a call of the
engine and the result into an ``Outcome``. ``_frame`` does the rest for all of them: output, errors,
exit codes, signals. A command's module is imported when that command runs and not before.
"""

from __future__ import annotations

import sys

from .. import __version__


def main(argv: list[str] | None = None) -> int:
    """Run one command, ``sys.argv`` by default. Returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments == ["--version"]:  # asked by scripts and health checks all the time: imports nothing
        sys.stdout.write(f"cryobackup {__version__}\n")
        return 0
    if "--socket" in arguments and "wal-push" in arguments:  # PostgreSQL waits: the archiver may have it already
        from . import _archiver_client

        exit_code = _archiver_client.run(arguments)
        if exit_code is not None:
            return exit_code
    if "wal-get" in arguments:  # replay waits: the segment may have been fetched already
        from . import _ahead_client

        exit_code = _ahead_client.run(arguments)
        if exit_code is not None:
            return exit_code
    from . import _frame

    exit_code = _frame.main(arguments)
    if exit_code == 0 and "wal-get" in arguments:
        from . import wal_ahead

        wal_ahead.start(arguments)
    return exit_code
