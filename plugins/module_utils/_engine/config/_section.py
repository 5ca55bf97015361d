# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Taking a mapping apart: every key is asked for once with its type, what was not asked for is unknown.

A wrong value becomes a Problem and a placeholder, and the reading goes on: whoever has written a
file wants to hear of all mistakes at once. Placeholders never leave this package, because a file
with problems gives no Config. Values of wrong keys are not repeated: they may be secrets.
"""

from __future__ import annotations

import difflib
import re
import typing as t
from collections.abc import Iterator, Sequence
from pathlib import Path

from ._yaml import LocatedDict

NOWHERE: t.Final = Path()
"""The placeholder for a path."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_SECRET_KEY = re.compile(r"pass(word|wd|phrase)?$|secret|token|(access|private|api|account)_?key|credentials?$")
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)")
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([a-z]*)")
# As PostgreSQL counts in its settings: kB is 1024 bytes.
_SIZE_UNITS: t.Final = {
    "B": 1,
    "kB": 1 << 10,
    "MB": 1 << 20,
    "GB": 1 << 30,
    "k": 1 << 10,
    "M": 1 << 20,
    "G": 1 << 30,
    "KB": 1 << 10,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TB": 1 << 40,
    "TiB": 1 << 40,
    "T": 1 << 40,
}
_DURATION_UNITS: t.Final = {"": 1.0, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


class Problem(t.NamedTuple):
    """One thing that is wrong. ``line`` counts from 1."""

    line: int
    place: str
    text: str

    def __str__(self) -> str:
        where = f"line {self.line}" + (f", {self.place}" if self.place else "")
        return f"{where}: {self.text}"


class Section:
    """One mapping of the file."""

    def __init__(self, problems: list[Problem], place: str, values: LocatedDict, *, line: int | None = None) -> None:
        self.place = place
        self.line = values.line if line is None else line
        self.faultless = True
        """Nothing was found wrong with any key of this section so far."""
        self._problems = problems
        self._values = values
        self._asked: list[str] = []
        self._rest_ignored = False
        for key, first, other in values.duplicates:
            problems.append(Problem(other, self._place_of(key), f"stands in line {first} already"))

    def problem(self, key: str | None, text: str) -> None:
        """Note that something is wrong with a key, or with the section itself (None)."""
        self.faultless = False
        if key is None:
            self._problems.append(Problem(self.line, self.place, text))
        else:
            self._problems.append(Problem(self._values.lines.get(key, self.line), self._place_of(key), text))

    def problem_at(self, place: Sequence[str], text: str) -> None:
        """Note that something is wrong with a key further down, which was read already."""
        values: object = self._values
        line = self.line
        for key in place:
            if isinstance(values, LocatedDict):
                line = values.lines.get(key, line)
                values = values.get(key)
        self._problems.append(Problem(line, ".".join((self.place, *place) if self.place else place), text))

    def finish(self) -> None:
        """Note every key that was not asked for."""
        if self._rest_ignored:
            return
        for key in self._values:
            if key not in self._asked:
                self._unknown(key)

    def ignore_rest(self) -> None:
        """Nobody can say which other keys there may be."""
        self._rest_ignored = True

    def text(self, key: str, *, default: str = "") -> str:
        """Required, unless there is a default."""
        value = self._take(key, required=not default)
        return default if value is None else self._as_text(key, value)

    def optional_text(self, key: str) -> str | None:
        value = self._take(key)
        return None if value is None else self._as_text(key, value)

    def paragraph(self, key: str) -> str:
        """Required text of one or more lines."""
        value = self._take(key, required=True)
        return "" if value is None else self._as_text(key, value, lines=True)

    def choice(self, key: str, known: Sequence[str], *, required: bool = False) -> str | None:
        """One of some words."""
        value = self._take(key, required=required)
        if value is None or value in known:
            return t.cast("str | None", value)
        self.problem(key, f"must be {' or '.join(known)}{_did_you_mean(value, known)}")
        return None

    def texts(self, key: str, *, required: bool = False) -> tuple[str, ...]:
        """A list of texts."""
        value = self._take(key, required=required)
        if value is None:
            return ()
        if not isinstance(value, list):
            self.problem(key, f"must be a list, not {_kind(value)}: put it in [ ]")
            return ()
        if not value:
            self.problem(key, "must not be empty") if required else None
        if not all(isinstance(each, str) and each for each in value):
            self.problem(key, "must be a list of texts: put each of them in quotes")
            return ()
        return tuple(value)

    def flag(self, key: str, *, default: bool) -> bool:
        value = self._take(key)
        if value is None or isinstance(value, bool):
            return default if value is None else value
        self.problem(key, f"must be true or false, not {_kind(value)}")
        return default

    def integer(self, key: str, *, default: int, at_least: int, at_most: int | None = None) -> int:
        value = self._take(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            self.problem(key, f"must be a whole number, not {_kind(value)}")
        elif value < at_least or (at_most is not None and value > at_most):
            limits = f"at least {at_least}" if at_most is None else f"from {at_least} to {at_most}"
            self.problem(key, f"must be {limits}, not {value}")
        else:
            return value
        return default

    def path(self, key: str) -> Path:
        """Required and absolute."""
        value = self._take(key, required=True)
        return NOWHERE if value is None else self._as_path(key, value)

    def optional_path(self, key: str) -> Path | None:
        value = self._take(key)
        return None if value is None else self._as_path(key, value)

    def paths(self, key: str) -> tuple[Path, ...]:
        """A list of absolute paths, at least one."""
        return tuple(self._as_path(key, each) for each in self.texts(key, required=True))

    def bandwidth(self, key: str, *, at_least: int) -> int | None:
        """Bytes a second, as a number or such as ``50MB/s``."""
        value = self._take(key)
        if value is None:
            return None
        count = value if isinstance(value, int) and not isinstance(value, bool) else _parse_size(value, "/s")
        if count is None:
            self.problem(key, "must be bytes a second with a unit, such as 50MB/s (units: kB, MB, GB)")
        elif count < at_least:
            self.problem(key, f"{count} bytes a second is next to nothing: write a unit, such as 50MB/s")
        return count

    def size(self, key: str, *, at_least: int = 1) -> int | None:
        """Bytes, as a number or such as ``500GB``."""
        value = self._take(key)
        if value is None:
            return None
        count = value if isinstance(value, int) and not isinstance(value, bool) else _parse_size(value)
        if count is None or count <= 0:
            self.problem(key, "must be bytes with a unit, such as 500GB (units: MB, GB, TB)")
        elif count < at_least:
            self.problem(key, f"{count} bytes are next to nothing: write a unit, such as 500GB")
        return count

    def amount(self, key: str) -> float:
        """A number that is not negative; 0 when it is not there."""
        value = self._take(key)
        if value is None:
            return 0.0
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.problem(key, f"must be a number, not {_kind(value)}")
        elif not 0 <= value < 1e12:
            self.problem(key, "must be a number that is not negative")
        else:
            return float(value)
        return 0.0

    def seconds(self, key: str, *, default: float, at_least: float = 0.0) -> float:
        """Seconds, as a number or such as ``90s``, ``5min``, ``1h``."""
        value = self._take(key)
        if value is None:
            return default
        match = _DURATION.fullmatch(str(value)) if not isinstance(value, bool) else None
        unit = _DURATION_UNITS.get(match[2]) if match else None
        if match is None or unit is None:
            self.problem(key, "must be a duration, such as 90s, 5min or 1h")
            return default
        found = float(match[1]) * unit
        if found < at_least:
            self.problem(key, f"must be at least {at_least:g} s")
        return found

    def raw(self, key: str) -> object:
        """The value as it is; None when it is not there."""
        return self._take(key)

    def section(self, key: str, *, required: bool = False) -> Section | None:
        """A mapping within this one. None when it is not there, or is none."""
        value = self._take(key, required=required)
        if value is None:
            return None
        if not isinstance(value, LocatedDict):
            self.problem(key, f"must be a mapping of keys and values, not {_kind(value)}")
            return None
        return Section(self._problems, self._place_of(key), value, line=self._values.lines.get(key))

    def named_sections(self) -> Iterator[tuple[str, Section]]:
        """What a mapping of names to mappings holds. Names are those that may stand in object names."""
        for key in self._values:
            if not isinstance(key, str):
                self._unknown(key)
                continue
            if _NAME.fullmatch(key) is None:
                self.problem(key, "is not a name: a-z, 0-9, - and _, at most 63, not - or _ at the beginning")
            section = self.section(key, required=True)
            if section is not None:
                yield key, section

    def sections_of_list(self, key: str) -> Iterator[Section]:
        """A list of mappings."""
        value = self._take(key)
        if value is None:
            return
        if not isinstance(value, list):
            self.problem(key, f"must be a list, not {_kind(value)}")
            return
        for number, each in enumerate(value, 1):
            place = f"{self._place_of(key)}[{number}]"
            if isinstance(each, LocatedDict):
                yield Section(self._problems, place, each)
            else:
                line = self._values.lines.get(key, self.line)
                self._problems.append(Problem(line, place, f"must be a mapping, not {_kind(each)}"))

    def _take(self, key: str, *, required: bool = False) -> object:
        self._asked.append(key)
        value = self._values.get(key)
        if value is None and required:
            self.problem(key, "is empty" if key in self._values else "is missing")
        return value

    def _as_text(self, key: str, value: object, *, lines: bool = False) -> str:
        if isinstance(value, str):
            if not value.strip():
                self.problem(key, "is empty")
            elif not lines and not value.isprintable():
                self.problem(key, "has control characters in it")
            return value
        self.problem(key, f"must be text, not {_kind(value)}: put it in quotes")
        return ""

    def _as_path(self, key: str, value: object) -> Path:
        text = self._as_text(key, value)
        if not text.strip():
            return NOWHERE
        if not text.startswith("/"):
            self.problem(key, f"must be an absolute path, beginning with /, not {text!r}")
            return NOWHERE
        if ".." in text.split("/"):
            self.problem(key, f"must not have .. in it: {text!r}")
            return NOWHERE
        return Path(text)

    def _unknown(self, key: object) -> None:
        line = self._values.lines.get(key, self.line)
        if not isinstance(key, str):
            text = f"the key was read as {_kind(key)}: put it in quotes"
        elif _SECRET_KEY.search(key.lower()) and not difflib.get_close_matches(key, self._asked, n=1, cutoff=0.9):
            text = "secrets must not stand in this file: name a file that holds it"
            files = [name for name in self._asked if name.endswith("_file")]
            text += f" ({files[0]})" if files else ""
        else:
            text = f"unknown key{_did_you_mean(key, self._asked)}"
        self._problems.append(Problem(line, self._place_of(key), text))

    def _place_of(self, key: object) -> str:
        return f"{self.place}.{key}" if self.place else str(key)


def parse_bandwidth(text: str) -> int | None:
    """``50MB/s`` as bytes a second; None where it is not written so."""
    return _parse_size(text, "/s")


def _parse_size(value: object, suffix: str = "") -> int | None:
    match = _SIZE.fullmatch(value.removesuffix(suffix).strip()) if isinstance(value, str) else None
    unit = _SIZE_UNITS.get(match[2]) if match else None
    return int(float(match[1]) * unit) if match and unit else None


def _did_you_mean(word: object, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1) if isinstance(word, str) else []
    return f": did you mean {near[0]}?" if near else ""


def _kind(value: object) -> str:
    """What a value is, in words of somebody who writes YAML."""
    match value:
        case bool():
            return f"the truth value {str(value).lower()}"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list():
            return "a list"
        case dict():
            return "a mapping"
        case None:
            return "nothing"
    return "a date" if hasattr(value, "year") else type(value).__name__
