# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A repository in a locked bucket, used by the roles of docs/object-lock.md with the policies of docs/policies/."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryobackup.config import Config, load_config
from tests.lab import Cluster, Workspace
from tests.lab.ceph import Gateway
from tests.lab.objects import Bucket, User

CHECKOUT = Path(__file__).resolve().parents[3]
SOURCE = "main"
PREFIX = "db1"
POLICY = CHECKOUT / "docs/policies/ceph-bucket.json"
KEYS_OF_HOST = ("catalog.key", "data.pub")


@dataclasses.dataclass(frozen=True)
class Role:
    """Somebody with a configuration, keys, credentials and a state directory of his own."""

    name: str
    user: User
    directory: Path
    command: list[str]
    workspace: Workspace

    @property
    def config_path(self) -> Path:
        return self.directory / "config.yml"

    def config(self) -> Config:
        return load_config(self.config_path)

    def try_run(self, *words: str | Path) -> tuple[int, dict[str, Any], str]:
        """Exit code, the object that --json prints, standard error."""
        result: subprocess.CompletedProcess[str] = self.workspace.run(
            [*self.command, "--json", *map(str, words)], check=False
        )
        assert result.stdout, result.stderr
        return result.returncode, json.loads(result.stdout), result.stderr

    def run(self, *words: str | Path, exit_code: int = 0) -> dict[str, Any]:
        code, result, errors = self.try_run(*words)
        assert code == exit_code, (result, errors)
        return result


class LockedLab:
    """The database host with its cluster (``writer``), and two machines elsewhere: ``verifier`` and ``keeper``.

    The bucket belongs to an administrator, who made the repository and is not seen again until a test is him.
    """

    def __init__(
        self,
        workspace: Workspace,
        runtime: Path,
        cluster: Cluster,
        gateway: Gateway,
        *,
        mode: str = "governance",
        retain: str = "30d",
        retention: Mapping[str, Any] | None = None,
        name: str = "roles",
    ) -> None:
        self.workspace = workspace
        self.cluster = cluster
        self.gateway = gateway
        self.bucket: Bucket = gateway.make_bucket("locked")
        self._runtime = runtime
        self._base = workspace.directory(f"{name}-roles")
        self._location = {"object_lock": {"mode": mode, "retain": retain}, "prefix": PREFIX}
        self._retention = dict(retention or {})
        self.admin = self._role("admin", self.bucket.owner, identity=True)
        self.admin.run("init")
        self.writer = self._role("writer", gateway.user(), identity=False)
        self.verifier = self._role("verifier", gateway.user(), identity=True)
        self.keeper = self._role("keeper", gateway.user(), identity=False)
        self.apply_policy()
        cluster.enable_archiving(f"{shlex.join(self.writer.command)} wal-push %p")

    def apply_policy(self, *, without: str = "") -> None:
        """The example of the documentation, with this bucket's names; one statement may be left out."""
        text = POLICY.read_text()
        for word, value in {
            "WRITER": self.writer.user.name,
            "VERIFIER": self.verifier.user.name,
            "KEEPER": self.keeper.user.name,
            "BUCKET": self.bucket.name,
            "PREFIX": PREFIX,
        }.items():
            text = text.replace(word, value)
        self.bucket.set_policy([each for each in json.loads(text)["Statement"] if each["Sid"] != without])

    def _role(self, name: str, user: User, *, identity: bool) -> Role:
        directory = self._base / name
        directory.mkdir(mode=0o700)
        keys = directory / "keys"
        state = directory / "state"
        state.mkdir(mode=0o700)
        settings = {
            "repository": {
                "locations": {"cloud": self.bucket.config(user, **self._location)},
                "keys": str(keys),
            },
            "clusters": {
                SOURCE: {
                    "data_directory": str(self.cluster.data_dir),
                    "connection": self.cluster.conninfo,
                    "workers": 2,
                    "archive_timeout": 60,
                }
            },
            "retention": self._retention,
            "state_directory": str(state),
        }
        path = directory / "config.yml"
        path.write_text(json.dumps(settings))
        if name != "admin":
            keys.mkdir(mode=0o700)
            for file in self.admin.directory.joinpath("keys").iterdir():
                if identity or file.name in KEYS_OF_HOST:
                    shutil.copy2(file, keys / file.name)
        for each in (directory, *directory.rglob("*")):
            self.workspace.account.own(each)
        return Role(name, user, directory, [str(self._runtime), "--config", str(path)], self.workspace)

    def backup(self, kind: str = "full") -> str:
        result = self.writer.run("backup", SOURCE, "--type", kind)
        return str(result["backup_id"])

    def archive_everything(self) -> None:
        self.cluster.wait_archived(self.cluster.switch_wal())

    def full(self, key: str) -> str:
        """The key in the bucket of an object of the repository."""
        return f"{PREFIX}/{key}"

    def keys(self, prefix: str = "") -> list[str]:
        """Objects that a reader sees, as the repository names them."""
        return [key.removeprefix(f"{PREFIX}/") for key in self.bucket.keys(self.full(prefix))]

    def manifest(self, backup_id: str) -> str:
        return f"manifests/{SOURCE}/{backup_id}"

    def listed(self, role: Role, *options: str) -> set[str]:
        return {each["backup_id"] for each in role.run("list", *options)["backups"]}
