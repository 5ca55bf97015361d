# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documentation is complete, and nothing in it is unknown to the program."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cryobackup.cli import _parser
from cryobackup.cli._commands import COMMANDS
from cryobackup.config import load_config
from cryobackup.config._section import Section

CHECKOUT = Path(__file__).parents[2]
DOCS = CHECKOUT / "docs"
PAGES = [CHECKOUT / "README.md", *sorted(DOCS.rglob("*.md"))]
ENGINE = CHECKOUT / "plugins/module_utils"
TABLE_ROW = re.compile(r"^\| ([^|]+?) \|", re.MULTILINE)
CODE = re.compile(r"`([^`]+)`")
FENCE = re.compile(r"^( *)```([a-z]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)

# Every key there is.
FULL: dict[str, Any] = {
    "repository": {
        "locations": {
            "here": {"type": "posix", "path": "/backup", "required": True},
            "there": {
                "type": "s3",
                "bucket": "b",
                "prefix": "p",
                "region": "r",
                "endpoint_url": "https://s3.example",
                "credentials_file": "/etc/cryobackup/s3.ini",
                "required": False,
                "prices": {"storage_gb_month": 0.02},
                "encryption": {"type": "s3"},
                "object_lock": {"mode": "compliance", "retain": "30d"},
            },
            "vault": {
                "type": "sftp",
                "host": "vault.example",
                "user": "backup",
                "path": "/srv/backup",
                "key_file": "/etc/cryobackup/id_ed25519",
                "known_hosts": "/etc/cryobackup/known_hosts",
            },
        },
        "keys": "/etc/cryobackup/keys",
    },
    "clusters": {
        "main": {
            "data_directory": "/pg",
            "connection": "dbname=postgres",
            "verify": {"assertions": [{"database": "d", "query": "SELECT 1", "expect": "1"}]},
        }
    },
    "file_sets": {"uploads": {"paths": ["/srv/uploads"], "exclude": ["*.tmp"], "history": "git"}},
    "retention": {kind: {"keep_last": 3} for kind in ("full", "incremental", "logical", "files")},
    "notifications": {"urls_file": "/urls"},
    "metrics": {"textfile": "/metrics.prom"},
}


def name_of(page: Path) -> str:
    return str(page.relative_to(CHECKOUT))


def blocks(page: Path, language: str) -> Iterator[str]:
    """The fenced blocks of that language, without their indentation."""
    for match in FENCE.finditer(page.read_text()):
        indent, found, body = match.groups()
        if found == language:
            yield re.sub(f"^{indent}", "", body, flags=re.MULTILINE)


def first_cells(text: str) -> list[str]:
    """Everything in code style in the first column of every table."""
    return [code for cell in TABLE_ROW.findall(text) for code in CODE.findall(cell)]


# The command line


def command_parsers() -> dict[str, _parser.Parser]:
    found = {}
    for command in COMMANDS.values():
        found[command.name] = _parser.Parser.of_command(command.name, command.help)
        command.load().add_arguments(found[command.name])
    return found


PARSERS = command_parsers()


def test_the_page_of_the_command_line_is_what_the_program_says() -> None:
    result = subprocess.run(
        [sys.executable, "tools/command_line_docs.py", "--check"],
        cwd=CHECKOUT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_section_with_words(command: str) -> None:
    page = (DOCS / "command-line.md").read_text()
    section = re.search(rf"^## {command}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert section is not None
    prose = re.sub(r"<!-- generated.*?<!-- end -->", "", section[1], flags=re.DOTALL)
    assert len(prose.split()) > 10, "a table of options is no explanation"
    for option in re.findall(r"--[a-z][a-z-]+", PARSERS[command].format_help()):
        assert option in page


def documented_commands() -> Iterator[Any]:
    for page in PAGES:
        for block in blocks(page, "console"):
            for line in block.replace("\\\n", " ").splitlines():
                command = re.search(r"(?:^[$#] |-- |^)(cryobackup .*)", line)
                if command is not None and "..." not in line:
                    yield pytest.param(command[1], id=f"{page.name}: {command[1]}"[:90])


@pytest.mark.parametrize("line", list(documented_commands()))
def test_documented_commands_are_understood(line: str) -> None:
    """By the parser only: what they do is another matter."""
    # Some blocks explain a command behind several spaces, or behind a #.
    line = re.split(r"\s{3,}|\s+#", line)[0].replace("[", "").replace("]", "")
    invocation = _parser.split(shlex.split(line)[1:])
    if invocation.command is not None:
        PARSERS[invocation.command].parse(invocation.rest)


# Errors


def error_ids() -> set[str]:
    """Every id that an error of the engine or of a module can have, from their sources."""
    found = set()
    for path in ENGINE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                values = [keyword.value for keyword in node.keywords if keyword.arg == "id"]
            elif isinstance(node, ast.ClassDef):
                values = [
                    statement.value
                    for statement in node.body
                    if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "id"
                ]
            else:
                continue
            for value in values:
                found |= {
                    each.value
                    for each in ast.walk(value)
                    if isinstance(each, ast.Constant) and isinstance(each.value, str)
                }
    return found


def test_every_error_is_explained() -> None:
    documented = first_cells((DOCS / "errors.md").read_text())
    assert sorted(documented) == sorted(set(documented)), "an id stands there twice"
    assert set(documented) == error_ids()


def test_the_runbook_names_only_errors_that_there_are() -> None:
    known = error_ids() | {"degraded", "damaged"}  # the exit code's own words
    for cell in TABLE_ROW.findall((DOCS / "runbook.md").read_text()):
        if re.fullmatch(r"(`[a-z-]+`(, )?)+", cell):
            assert set(CODE.findall(cell)) <= known, cell


# The configuration


def schema_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """What the program asks for when it reads a configuration that has everything."""
    asked: set[str] = set()
    finish = Section.finish

    def noting(section: Section) -> None:
        asked.update(f"{section.place}.{key}" if section.place else key for key in section._asked)
        finish(section)

    monkeypatch.setattr(Section, "finish", noting)
    path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump(FULL))
    load_config(path)
    return {generic(key) for key in asked}


def generic(key: str) -> str:
    key = re.sub(r"^(clusters|file_sets|repository\.locations)\.[a-z]+", r"\1.NAME", key)
    key = re.sub(r"^retention\.(full|incremental|logical|files)\.", "retention.KIND.", key)
    return re.sub(r"\[[0-9]+\]", "[]", key)


def test_every_key_of_the_configuration_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documented = first_cells((DOCS / "configuration.md").read_text())
    assert sorted(documented) == sorted(set(documented)), "a key stands there twice"
    names = {"repository.locations.NAME", "clusters.NAME", "file_sets.NAME"}
    assert set(documented) == schema_keys(tmp_path, monkeypatch) - names


def examples() -> Iterator[Any]:
    for page in PAGES:
        for number, block in enumerate(blocks(page, "yaml"), 1):
            # Rules for Prometheus, which promtool looks at, and pipelines.
            if any(key in yaml.safe_load(block) for key in ("groups", "jobs", "stages")):
                continue
            yield pytest.param(block, id=f"{page.name}-{number}")


@pytest.mark.parametrize("block", list(examples()))
def test_examples_of_the_configuration_are_valid(block: str, tmp_path: Path) -> None:
    example = yaml.safe_load(block)
    if isinstance(example, list):
        check_playbook(example)
        return
    whole: dict[str, Any] = {
        "repository": {"locations": {"local": {"type": "posix", "path": "/backup"}}, "keys": "/keys"},
        **example,
    }
    for cluster in whole.get("clusters", {}).values():
        # An example of one setting leaves out the others.
        cluster.setdefault("data_directory", "/pg")
        cluster.setdefault("connection", "dbname=postgres")
    path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump(whole))
    load_config(path)


def test_playbooks_that_are_run_exist() -> None:
    run = {
        name
        for page in PAGES
        for name in re.findall(r"ansible-playbook\b.*? cryoprotect\.backup\.(\w+)", page.read_text())
    }
    assert run >= {"install", "restore", "pre_deploy", "post_deploy"}
    assert run <= {path.stem for path in (CHECKOUT / "playbooks").glob("*.yml")}


def check_playbook(plays: list[dict[str, Any]]) -> None:
    modules = {path.stem for path in (CHECKOUT / "plugins/modules").glob("*.py")}
    for play in plays:
        for task in play["tasks"]:
            used = [key for key in task if key.startswith("cryoprotect.backup.")]
            assert len(used) == 1
            module = used[0].rpartition(".")[2]
            assert module in modules
            source = (CHECKOUT / f"plugins/modules/{module}.py").read_text()
            (documentation,) = re.findall(r'^DOCUMENTATION = r"""\n(.*?)^"""', source, re.MULTILINE | re.DOTALL)
            assert set(task[used[0]] or {}) <= yaml.safe_load(documentation)["options"].keys()


def test_the_readme_names_every_module() -> None:
    readme = first_cells((CHECKOUT / "README.md").read_text())
    modules = {f"cryoprotect.backup.{path.stem}" for path in (CHECKOUT / "plugins/modules").glob("*.py")}
    assert {code for code in readme if code.startswith("cryoprotect.backup.")} == modules


# Links


def anchors(page: Path) -> set[str]:
    """As GitHub makes them."""
    text = FENCE.sub("", page.read_text())
    found = set()
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        found.add(re.sub(r"[^\w\- ]", "", words).replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        if target.startswith(("http://", "https://")):
            continue
        path, _unused, anchor = target.partition("#")
        other = (page.parent / path) if path else page
        assert other.exists(), target
        if anchor:
            assert anchor in anchors(other), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_pages_end_well(page: Path) -> None:
    text = page.read_text()
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    assert not re.search(r"[ \t]+$", text, re.MULTILINE)
    assert len(re.findall("^ *```", text, re.MULTILINE)) % 2 == 0
