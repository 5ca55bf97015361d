# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write what the command line says of itself into docs/command-line.md, between the markers there.

    .venv/bin/python tools/command_line_docs.py            brings the file up to date
    .venv/bin/python tools/command_line_docs.py --check    exits with 1 if it is not

The words around the markers are written by people; ``tests/unit/test_docs.py`` sees to it that no command lacks them.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import sys

from cryobackup.cli import _parser
from cryobackup.cli._commands import COMMANDS

PAGE = pathlib.Path(__file__).parent.parent / "docs/command-line.md"
BLOCK = re.compile(r"(<!-- generated: (?P<name>[a-z -]+) -->\n).*?(<!-- end -->)", re.DOTALL)
HELP = ("-h", "--help")


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command, and of each action of those that have several: ``key kit``."""
    found = {}
    for command in COMMANDS.values():
        parser = _parser.Parser.of_command(command.name, command.help)
        command.load().add_arguments(parser)
        found |= actions_of(command.name, parser)
    return found


def actions_of(name: str, parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    found = {} if actions else {name: parser}
    for action in actions:
        for word, child in action.choices.items():
            found |= actions_of(f"{name} {word}", child)
    return found


def arguments(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if not set(HELP) & set(action.option_strings)]


def block(name: str) -> str:
    """What stands between the markers of that name."""
    if name == "commands":
        rows = [(f"[`{command.name}`](#{anchor(command.name)})", command.help) for command in COMMANDS.values()]
        return table(("command", "what it does"), rows)
    if name == "everywhere":
        return table(("option", "meaning"), [(f"`{option}`", text) for option, text in _parser._EVERYWHERE])
    parser = parsers()[name]
    usage = " ".join(["cryobackup", name, *(_in_usage(action) for action in _usage_order(parser))])
    rows = [(f"`{_words(action)}`", _help(parser, action)) for action in arguments(parser)]
    lines = ["```text", *_wrapped(usage), "```", ""]
    return "\n".join(lines) + (table(("argument", "meaning"), rows) if rows else "It has no options of its own.\n")


def anchor(command: str) -> str:
    return command.replace(" ", "-")


def table(header: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    lines = [header, ("---", "---"), *rows]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "".join(f"| {left} | {right} |\n" for left, right in cells)


def _usage_order(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return sorted(arguments(parser), key=lambda action: bool(action.option_strings) and not action.required)


def _in_usage(action: argparse.Action) -> str:
    words = _words(action)
    if action.required and action.nargs != argparse.OPTIONAL:
        return words
    return f"[{words}]" + (" …" if isinstance(action, argparse._AppendAction) else "")


def _words(action: argparse.Action) -> str:
    """An option with its value, or the name of an argument."""
    if action.choices is not None:
        value = "|".join(map(str, action.choices))
    else:
        value = str(action.metavar or action.dest.upper())
    if not action.option_strings:
        return value
    return action.option_strings[-1] + ("" if action.nargs == 0 else f" {value}")


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    return parser._get_formatter()._expand_help(action)


def _wrapped(usage: str, width: int = 100) -> list[str]:
    lines, rest = [""], re.findall(r"\[[^\]]*\](?: …)?|--\S+ \S+|\S+", usage)
    for word in rest:
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("    ")
        lines[-1] += word if not lines[-1].strip() else f" {word}"
    return lines


def renewed(page: str) -> str:
    return BLOCK.sub(lambda match: match[1] + block(match["name"]) + match[3], page)


def main(argv: list[str]) -> int:
    old = PAGE.read_text(encoding="utf-8")
    new = renewed(old)
    if argv == ["--check"]:
        if new != old:
            sys.stdout.write(f"{PAGE.name} is not what the command line says: run tools/command_line_docs.py\n")
        return int(new != old)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
