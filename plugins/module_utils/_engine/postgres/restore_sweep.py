# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Walking the entries of a manifest, and removing what a directory has besides them.

Entries come sorted, each directory before what is in it, so that only the names in the directories
between the root and the present entry have to be remembered.
"""

from __future__ import annotations

import typing as t

from ..errors import DamageError
from .restore_survey import tablespace_oid
from .restore_tree import Handles, Owner

Keep: t.TypeAlias = t.Callable[[bytes, bytes], bool]


class Walk:
    """The directories on the way to the present entry.

    ``sweep`` says whether surplus names are removed, as a restore over something does; ``keep`` is asked
    for each of them (directory, name) and may object.
    """

    def __init__(self, handles: Handles, owner: Owner | None, *, sweep: bool, keep: Keep) -> None:
        self._handles = handles
        self._owner = owner
        self._sweep = sweep
        self._keep = keep
        self._stack: list[tuple[bytes, set[bytes]]] = [(b"", set())]
        self._last: list[bytes] = []

    def enter(self, path: bytes, *, directory: bool) -> None:
        """The next entry. Directories above it that the manifest does not list are made.

        A directory itself is made by the caller, before the next call. Raises DamageError for entries that
        are not in order: what belongs to a directory that was left already would be taken for surplus.
        """
        above, _unused, name = path.rpartition(b"/")
        parts = path.split(b"/")
        if (above or directory) and parts <= self._last:
            raise DamageError(
                f"the entries of the backup are not in their order, at {path.decode('utf-8', 'backslashreplace')}",
                hint="The manifest is not what this program writes. Choose another backup.",
            )
        self._last = max(parts, self._last)
        while not _is_above(self._stack[-1][0], path):
            self._leave()
        self._descend(above)
        self._stack[-1][1].add(name)
        if directory:
            self._stack.append((path, set()))

    def _descend(self, above: bytes) -> None:
        """Make the directories between the present one and ``above`` that no entry stands for."""
        present = self._stack[-1][0]
        rest = above[len(present) :].strip(b"/")
        for name in rest.split(b"/") if rest else []:
            self._stack[-1][1].add(name)
            present = present + b"/" + name if present else name
            if self._handles.tree.root(present) is None:
                self._handles.make_directory(present, 0o700, self._owner)
            self._stack.append((present, set()))

    def finish(self) -> None:
        """After the last entry."""
        while self._stack:
            self._leave()

    def _leave(self) -> None:
        directory, names = self._stack.pop()
        # A tablespace's directory may also hold those of other major versions: nothing of ours.
        if not self._sweep or tablespace_oid(directory) is not None:
            return
        for name in self._handles.names(directory):
            if name not in names and not self._keep(directory, name):
                self._handles.remove(directory + b"/" + name if directory else name)


def _is_above(directory: bytes, path: bytes) -> bool:
    return not directory or path.startswith(directory + b"/")
