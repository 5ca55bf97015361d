# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""YAML files as plain values that remember their lines."""

from __future__ import annotations

import functools
import os
import re
import stat
import typing as t
from collections.abc import Iterator
from pathlib import Path

from ..errors import ConfigError

if t.TYPE_CHECKING:
    import yaml

MAX_FILE_BYTES: t.Final = 1 << 20
_REPEATED = re.compile(r"(alias|anchor|tag|handle) ['\"].*", re.DOTALL)
_MERGE_TAG: t.Final = "tag:yaml.org,2002:merge"


class LocatedDict(dict[object, object]):
    """A YAML mapping. Lines count from 1."""

    def __init__(self, line: int) -> None:
        super().__init__()
        self.line = line
        self.lines: dict[object, int] = {}
        self.duplicates: list[tuple[object, int, int]] = []
        """Keys that stand there again, with the first and the other line."""


def read_yaml(path: Path) -> object:
    """The one document in a file; mappings are LocatedDicts. Raises ConfigError, also for a file anybody may write."""
    import yaml

    text = _read(path)
    try:
        loader = _loader()(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        # Not shown: the line, and what the library quotes of it. An unquoted password that begins with
        # an asterisk is an alias to YAML, one with an exclamation mark a tag.
        problem = _REPEATED.sub(r"\1", error.problem or "it does not follow YAML's rules")
        raise _not_yaml(path, problem, error.problem_mark) from error
    except yaml.reader.ReaderError as error:
        raise _not_yaml(path, f"there is a character that is not allowed: #x{error.character:04x}") from error
    except (ValueError, RecursionError) as error:
        raise _not_yaml(path, "a value in it cannot be read") from error


@functools.cache
def _loader() -> type[yaml.SafeLoader]:
    """The safe loader, with lines. It would silently let the last of several equal keys win: those are noted."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_located_map(self, node: yaml.MappingNode) -> Iterator[LocatedDict]:
            found = LocatedDict(node.start_mark.line + 1)
            yield found  # filled afterwards, because a mapping may contain itself
            for key_node, _value_node in node.value:
                if key_node.tag != _MERGE_TAG:
                    self._note_line(found, key_node)
            found.update(self.construct_mapping(node))

        def _note_line(self, found: LocatedDict, key_node: yaml.Node) -> None:
            mark = key_node.start_mark
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "the name of a key must be text", mark)
            key = self.construct_object(key_node)
            if key in found.lines:
                found.duplicates.append((key, found.lines[key], mark.line + 1))
            else:
                found.lines[key] = mark.line + 1

    Loader.add_constructor("tag:yaml.org,2002:map", Loader.construct_located_map)
    return Loader


def _read(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no configuration {path}",
            hint="Write it, or name another one with --config FILE or $CRYOBACKUP_CONFIG.",
            id="config-missing",
        ) from error
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            _check_file(path, status)
            return file.read(MAX_FILE_BYTES + 1).decode()
    except UnicodeDecodeError as error:
        raise _not_yaml(path, f"byte {error.start} is not UTF-8") from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _check_file(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"{path} is not a file", hint="Name the file itself, such as config.yml.")
    if status.st_size > MAX_FILE_BYTES:
        raise ConfigError(f"{path} has {status.st_size} bytes: this is not a configuration")
    if status.st_mode & stat.S_IWOTH:
        raise ConfigError(
            f"anybody may write to {path} (mode {stat.S_IMODE(status.st_mode):04o})",
            hint=f"It names programs that are run: look through it, then chmod o-w {path}.",
            id="config-mode",
        )


def _unreadable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"cannot read the configuration {path}: {error.strerror}",
        hint="Run as the user that may read it, or name another one with --config FILE.",
        id="config-unreadable",
    )


def _not_yaml(path: Path, problem: str, mark: yaml.Mark | None = None) -> ConfigError:
    where = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
    return ConfigError(
        f"{path}{where}: this is not YAML: {problem}",
        hint="Look at the indentation, the colons and the quotes there and in the line before.",
        id="config-syntax",
    )
