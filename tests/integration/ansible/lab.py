# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tasks as a user writes them, run by the real ``ansible-playbook`` on this machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.integration.backup.lab import SOURCE, BackupLab
from tests.lab import executable_by

COLLECTION = "cryoprotect.backup"
Result = dict[str, Any]


def task(module: str, *, check: bool = False, diff: bool = False, **options: Any) -> dict[str, Any]:
    """A task. ``check`` and ``diff`` as the keywords ``check_mode`` and ``diff`` have it."""
    name = module if "." in module else f"{COLLECTION}.{module}"
    return {"name": f"Run {module}", name: options, "check_mode": check, "diff": diff}


class AnsibleLab(BackupLab):
    """A cluster with two locations, and playbooks run as the server's user."""

    def play(self, *tasks: Mapping[str, Any], variables: Mapping[str, Any] | None = None) -> list[Result]:
        """Run the tasks, one after the other, also behind one that failed; returns what each registered."""
        folder = self.workspace.path / "ansible"
        folder.mkdir(exist_ok=True)
        self.workspace.account.own(folder)
        output = folder / "results.json"
        output.unlink(missing_ok=True)
        names = [f"result_{number}" for number in range(len(tasks))]
        play = {
            "name": "Test",
            "hosts": "localhost",
            "connection": "local",
            "gather_facts": False,
            "vars": {"ansible_python_interpreter": sys.executable, **(variables or {})},
            # The action group of the collection: every module takes the configuration from here.
            "module_defaults": {f"group/{COLLECTION}.backup": {"config": str(self.config_path)}},
            "tasks": [
                *({**each, "register": name, "ignore_errors": True} for each, name in zip(tasks, names, strict=True)),
                task("ansible.builtin.copy", dest=str(output), content=f"{{{{ [{', '.join(names)}] | to_json }}}}"),
            ],
        }
        playbook = folder / "playbook.yml"
        playbook.write_text(json.dumps([play]))
        self._run_playbook(playbook, folder)
        results: list[Result] = json.loads(output.read_text())
        return results

    def do(self, module: str, *, check: bool = False, diff: bool = False, **options: Any) -> Result:
        """One task that must succeed."""
        (result,) = self.play(task(module, check=check, diff=diff, **options))
        assert not result["failed"], result
        return result

    def failure(self, module: str, *, check: bool = False, **options: Any) -> Result:
        """One task that must fail, with words."""
        (result,) = self.play(task(module, check=check, **options))
        assert_failed(result)
        return result

    def _run_playbook(self, playbook: Path, home: Path) -> None:
        command = [sys.executable, "-m", "ansible", "playbook", playbook]
        # Which user can run the interpreter depends on where the checkout is: tools/reachable.sh takes care of it.
        assert executable_by(self.workspace.account, [sys.executable, "-c", "import ansible"]), "use make test"
        environment = {
            "ANSIBLE_HOME": str(home),
            "ANSIBLE_REMOTE_TMP": str(home / "tmp"),
            "ANSIBLE_ASYNC_DIR": str(home / "async"),
            "ANSIBLE_LOCALHOST_WARNING": "false",
            "ANSIBLE_INVENTORY_UNPARSED_WARNING": "false",
            "ANSIBLE_NOCOLOR": "true",
        }
        self.workspace.run(command, env=environment, cwd=home)

    def backup_ids(self) -> list[str]:
        return self.manifests()

    def pack(self, backup_id: str, location: str) -> Path:
        """The biggest pack of a backup in a location."""
        return max((self.locations[location] / "packs" / backup_id).iterdir(), key=lambda path: path.stat().st_size)


def assert_failed(result: Result) -> None:
    """It failed because the engine said so: in words, with an id, and without a traceback."""
    assert result["failed"], result
    assert result["exit_code"] > 0
    assert "rc" not in result
    assert "Traceback" not in result.get("exception", ""), result["exception"]
    error = result.get("error")
    if error is not None:
        assert error["id"]
        assert error["hint"]
        assert result["msg"].startswith(error["message"].rstrip("."))


__all__ = ["COLLECTION", "SOURCE", "AnsibleLab", "Result", "assert_failed", "task"]
