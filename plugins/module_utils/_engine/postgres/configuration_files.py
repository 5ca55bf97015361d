# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which files a server's configuration lies in, found as the server finds them: by following what includes what.

``pg_file_settings`` says it too, but only to a superuser, and not of files that set nothing or of those that
``pg_hba.conf`` includes. The rules are those of ``guc-file.l`` and ``conffiles.c`` (``hba.c`` since PostgreSQL 16).
"""

from __future__ import annotations

import os
import re
import typing as t

from ..errors import SourceError

if t.TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MOST_LEVELS: t.Final = 10
"""As CONF_FILE_MAX_DEPTH: a server does not start on more."""
_INCLUDE = re.compile(
    r"\s*(?P<how>include|include_if_exists|include_dir)"
    r"(?:\s*=\s*|\s+)"
    r"(?:'(?P<single>(?:[^'\\]|''|\\.)*)'|\"(?P<double>[^\"]*)\"|(?P<bare>[^\s#'\"]+))",
    re.IGNORECASE,
)
_ESCAPED = re.compile(r"''|\\(.)")


def included_files(files: Iterable[str]) -> set[str]:
    """``files`` and all that they include, as the paths that they are read by.

    Raises SourceError, id ``source-unreadable``, for what is there and cannot be read: a backup without it would lack
    a part of the configuration, and nobody would know.
    """
    found: set[str] = set()
    for path in files:
        _follow(path, found, MOST_LEVELS)
    return found


def _follow(path: str, found: set[str], levels: int) -> None:
    if path in found or levels < 0:
        return
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            text = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise _unreadable(path, error) from error
    found.add(path)
    for how, name in _includes(text):
        # Without "..", as canonicalize_path leaves it: the name becomes part of one in the backup.
        other = os.path.normpath(os.path.join(os.path.dirname(path), name))
        for each in _in_directory(other) if how == "include_dir" else [other]:
            _follow(each, found, levels - 1)


def _includes(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        match = _INCLUDE.match(line)
        if match is not None:
            single = match["single"]
            name = match["double"] or match["bare"] or ""
            if single is not None:
                name = _ESCAPED.sub(lambda escape: escape[1] or "'", single)
            yield match["how"].lower(), name


def _in_directory(directory: str) -> list[str]:
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _unreadable(directory, error) from error
    wanted = sorted(name for name in names if name.endswith(".conf") and not name.startswith("."))
    return [path for path in (os.path.join(directory, name) for name in wanted) if not os.path.isdir(path)]


def _unreadable(path: str, error: OSError) -> SourceError:
    return SourceError(
        f"the configuration of the server lies in {path} too, which cannot be read: {error.strerror}",
        hint="Run as the user that owns the data directory, usually postgres. Earlier backups are untouched.",
        id="source-unreadable",
    )
