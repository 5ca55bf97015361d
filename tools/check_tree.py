# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""House rules that no other linter knows. Prints what breaks them and exits with 1."""

from __future__ import annotations

import ast
import collections.abc
import pathlib
import re
import subprocess
import sys

ENGINE = "plugins/module_utils/_engine/"
LONGEST = 550
HEADER = """\
# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""
MODULE_FIRST_LINE = "#!/usr/bin/python\n"
SUPPRESSION = re.compile(r"#\s*(noqa|type:\s*ignore|pylint:|mypy:|ruff:|pyright:)")

Findings = collections.abc.Iterator[tuple[int, str]]


def checkout_files() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [name for name in listed.split("\0") if name.endswith(".py") and pathlib.Path(name).is_file()]


def beginning(text: str) -> Findings:
    if not text:
        return
    if not text.removeprefix(MODULE_FIRST_LINE).startswith(HEADER):
        yield 1, "does not begin with the copyright and licence lines"
    if "\nfrom __future__ import annotations\n" not in text and re.search(
        r"^\s*(def|class|import|from)\b", text, re.MULTILINE
    ):
        yield 1, "lacks `from __future__ import annotations`"


def suppressions(text: str) -> Findings:
    for number, line in enumerate(text.splitlines(), 1):
        if SUPPRESSION.search(line):
            yield number, "switches a check off: mend the code, or the rule for all of the project"


def engine_imports(tree: ast.AST) -> Findings:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        else:
            continue
        for name in names:
            package = name.partition(".")[0]
            if package in ("ansible", "ansible_collections"):
                yield node.lineno, "the engine knows nothing of Ansible"
            elif package == "cryobackup":
                yield node.lineno, "the engine imports itself relatively: it has two homes"
            elif package in ("importlib", "pkgutil", "runpy"):
                yield node.lineno, "Ansible ships what it finds by reading imports: no dynamic ones"


def findings(name: str) -> Findings:
    text = pathlib.Path(name).read_text(encoding="utf-8")
    yield from beginning(text)
    if name.startswith("plugins/"):
        yield from suppressions(text)
        lines = text.count("\n")
        if lines > LONGEST:
            yield lines, f"{lines} lines are too many to have one subject"
    if name.startswith(ENGINE):
        yield from engine_imports(ast.parse(text, name))


def main() -> int:
    broken = [f"{name}:{line}: {message}" for name in checkout_files() for line, message in sorted(findings(name))]
    sys.stdout.writelines(f"{line}\n" for line in broken)
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
