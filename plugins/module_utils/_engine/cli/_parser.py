# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading the command line: options that every command knows, and argparse for its own."""

from __future__ import annotations

import argparse
import dataclasses
import re
import typing as t
from pathlib import Path

from ..errors import ConfigError

if t.TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ._commands import Command

_USAGE = "cryobackup [--config FILE] [--json] [--quiet] COMMAND ..."
_EVERYWHERE = (
    ("--config FILE", "the configuration (default: $CRYOBACKUP_CONFIG or /etc/cryobackup/config.yml)"),
    ("--json", "print one JSON object on standard output, also on failure"),
    ("--quiet", "no progress and no notes on standard error, only warnings and errors"),
)
_ELSEWHERE = ("--help", "--version")


class UsageError(ConfigError):
    """The command line makes no sense."""

    id = "usage"


@dataclasses.dataclass(frozen=True, slots=True)
class Invocation:
    """The command line, sorted into what every command knows and the rest."""

    command: str | None
    rest: list[str]
    config: Path | None = None
    json: bool = False
    quiet: bool = False
    version: bool = False
    help: bool = False


def wants_json(argv: Sequence[str]) -> bool:
    """Whether errors must be printed as JSON, known even when ``argv`` makes no sense."""
    return "--json" in _before_separator(argv)


def split(argv: Sequence[str]) -> Invocation:
    """Take the options that every command knows out of ``argv``, wherever they stand before a ``--``.

    Raises UsageError. An unknown command is an error, no command at all is not.
    """
    found = argparse.Namespace(config=None, json=False, quiet=False, version=False, help=False)
    command: str | None = None
    rest: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if word == "--":
            rest += [word, *words]
            break
        name, has_value, value = word.partition("=")
        if name == "--config":
            found.config = _config_path(value if has_value else words.pop(0) if words else "")
        elif word in ("--json", "--quiet"):
            setattr(found, word[2:], True)
        elif command is not None:
            rest.append(word)
        elif word in ("--version", "--help", "-h"):
            setattr(found, "version" if word == "--version" else "help", True)
        elif word.startswith("-"):
            options = [*(text.split()[0] for text, _unused in _EVERYWHERE), *_ELSEWHERE]
            raise UsageError(f"unknown option {name}", hint=_did_you_mean(name, options) or _SEE_HELP)
        else:
            command = _known_command(word)
    return Invocation(command=command, rest=rest, **vars(found))


class Parser(argparse.ArgumentParser):
    """argparse that raises instead of exiting.

    It takes no abbreviations: a script that uses one would break when an option is added.
    """

    def __init__(self, **options: t.Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    @classmethod
    def of_command(cls, name: str, purpose: str) -> Parser:
        return cls(
            prog=f"cryobackup {name}",
            description=purpose[:1].upper() + purpose[1:] + ".",
            epilog=_everywhere(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Raises UsageError, with the option that was probably meant."""
        try:
            parsed, unknown = self.parse_known_args(words)
        except UsageError:
            # What follows an unknown option was taken for an argument, and that is what is complained of.
            if self._subparsers is None:
                options = self._options()
                names = (word.partition("=")[0] for word in _before_separator(words) if word.startswith("--"))
                self._refuse([name for name in names if name not in options])
            raise
        self._refuse(unknown)
        return parsed

    def _refuse(self, unknown: Sequence[str]) -> None:
        if unknown:
            name = unknown[0].partition("=")[0]
            what = "option" if name.startswith("-") else "argument"
            raise UsageError(f"unknown {what} {name}", hint=_did_you_mean(name, self._options()) or self._see_help())

    def _options(self) -> list[str]:
        return re.findall(r"--[a-z][a-z-]*", self.format_help())

    def error(self, message: str) -> t.NoReturn:
        raise UsageError(message, hint=self._see_help())

    def _see_help(self) -> str:
        return f"`{self.prog} --help` shows what it takes."


_SEE_HELP = "`cryobackup --help` shows what there is."


def overview(commands: Iterable[Command]) -> str:
    """The text of ``cryobackup --help``."""
    lines = [f"usage: {_USAGE}", "", "Backups of PostgreSQL that are proven to restore.", "", "commands:"]
    lines += [f"  {command.name:<10} {command.help}" for command in commands]
    lines += ["", _everywhere(), "  --help         show this text", "  --version      show the version", ""]
    lines += ["`cryobackup COMMAND --help` shows the options of a command."]
    return "\n".join(lines)


def _everywhere() -> str:
    return "\n".join(["options everywhere:", *(f"  {option:<14} {meaning}" for option, meaning in _EVERYWHERE)])


def _before_separator(argv: Sequence[str]) -> Sequence[str]:
    return argv[: argv.index("--")] if "--" in argv else argv


def _config_path(value: str) -> Path:
    if not value or value.startswith("--"):
        raise UsageError("--config needs the path of a file", hint="For example --config /etc/cryobackup/config.yml")
    return Path(value)


def _known_command(word: str) -> str:
    from ._commands import COMMANDS

    if word not in COMMANDS:
        raise UsageError(f"there is no command {word!r}", hint=_did_you_mean(word, COMMANDS) or _SEE_HELP)
    return word


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    import difflib

    near = difflib.get_close_matches(word, list(known), n=1)
    return f"Did you mean {near[0]}?" if near else ""
