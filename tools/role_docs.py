# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the README of every role from its argument specification.

    .venv/bin/python tools/role_docs.py            brings the files up to date
    .venv/bin/python tools/role_docs.py --check    exits with 1 if one is not

``tools/lint.sh`` and ``tests/unit/ansible/test_roles.py`` run the second.
"""

from __future__ import annotations

import pathlib
import re
import sys
import typing as t

import yaml

ROLES = pathlib.Path(__file__).parent.parent / "roles"
# O(name), V(value), C(code) and P(plugin#kind), as Ansible's documentation has them.
MARKUP = re.compile(r"\b[OVCP]\(((?:[^()]|\([^()]*\))*)\)")


def text(words: str | list[str]) -> str:
    """One line of Markdown."""
    whole = words if isinstance(words, str) else " ".join(words)
    return MARKUP.sub(lambda match: f"`{match.group(1).partition('#')[0]}`", " ".join(whole.split()))


def readme(role: pathlib.Path) -> str:
    """The README of a role."""
    specs: dict[str, t.Any] = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]
    lines = [f"# cryoprotect.backup.{role.name}", ""]
    for entry, spec in specs.items():
        if entry != "main":
            lines += [f"## `tasks_from: {entry}`", ""]
        lines += [f"{spec['short_description']}.", "", text(spec["description"]), ""]
        lines += ["| variable | type | default | meaning |", "| --- | --- | --- | --- |"]
        for name, option in spec["options"].items():
            default = "required" if option.get("required") else f"`{shown(option.get('default'))}`"
            kind = option["type"] if "choices" not in option else ", ".join(f"`{one}`" for one in option["choices"])
            lines.append(f"| `{name}` | {kind} | {default} | {text(option['description'])} |")
        lines.append("")
    lines += [
        "Variables that several roles share are in [docs/ansible.md](../../docs/ansible.md). This file is written by",
        "`tools/role_docs.py` from `meta/argument_specs.yml`.",
    ]
    return "\n".join(lines) + "\n"


def shown(value: object) -> str:
    """A default, as YAML has it."""
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n").removesuffix("\n...")


def main(arguments: list[str]) -> int:
    """Write or check; returns the exit code."""
    stale = []
    for role in sorted(path for path in ROLES.iterdir() if path.is_dir()):
        file, wanted = role / "README.md", readme(role)
        if not file.exists() or file.read_text() != wanted:
            stale.append(str(file))
            if "--check" not in arguments:
                file.write_text(wanted)
    sys.stdout.writelines(f"{name}\n" for name in stale)
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
