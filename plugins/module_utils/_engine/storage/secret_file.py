# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files with secrets of locations: credentials, private keys."""

from __future__ import annotations

import os
import stat
import typing as t

from ..errors import LocationError
from ..private_files import readable_by_others

if t.TYPE_CHECKING:
    from pathlib import Path


def read_secret(location: str, path: Path, *, private: bool = True) -> str:
    """The text of a file that only its owner may read, or not only (``private``).

    Raises LocationError for one that is missing or that others may read; its content never shows in the error.
    """
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            if private and readable_by_others(file.fileno()):
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                raise LocationError(
                    f"location {location!r}: {path} can be read by others (mode {mode:04o})",
                    hint=f"chmod 0400 {path}, and think about whom it may have been read by.",
                    id="secret-file-mode",
                )
            return file.read()
    except OSError as error:
        raise LocationError(
            f"location {location!r}: cannot read {path}: {error.strerror}",
            hint="Run as the user that owns the file, or put it where the configuration says.",
            id="secret-file",
        ) from error
