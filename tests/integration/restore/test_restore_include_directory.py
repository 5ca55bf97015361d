# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian's layout: the configuration in /etc includes a directory that is empty, and no server starts without it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab import Cluster, Workspace

from .lab import RestoreLab


@pytest.mark.parametrize(
    "directive", ["include_dir 'conf.d'", "Include_Dir='conf.d'", "include_dir '{outside}/conf.d'"]
)
def test_an_empty_include_directory(directive: str, workspace: Workspace, runtime: Path, cluster: Cluster) -> None:
    outside = workspace.directory("etc")
    (outside / "conf.d").mkdir(mode=0o755)
    cluster.stop()
    for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):
        (cluster.data_dir / name).rename(outside / name)
    sockets = workspace.directory("sockets")
    with (outside / "postgresql.conf").open("a") as file:
        file.write(f"data_directory = '{cluster.data_dir}'\nunix_socket_directories = '{sockets}'\n")
        file.write(f"hba_file = '{outside}/pg_hba.conf'\nident_file = '{outside}/pg_ident.conf'\n")
        file.write("listen_addresses = ''\narchive_mode = on\n#include_dir 'commented'\n")
        file.write(f"{directive.format(outside=outside)}\n")
    workspace.account.own(outside, recursive=True)
    cluster.overrides["config_file"] = f"{outside}/postgresql.conf"
    cluster.start()
    lab = RestoreLab(workspace, runtime, cluster, archive=False)
    cluster.execute(f"ALTER SYSTEM SET archive_command = '{lab.archive_command}'")
    cluster.reload()
    lab.backup()
    lab.archive_everything()

    target = lab.place("restored")
    result = lab.restore(target, "--start", "--port", "5436")
    try:
        assert result["state"] == "in production"
        assert (target / f".cryobackup/config{outside}/conf.d").is_dir()
        assert not (target / f".cryobackup/config{outside}/commented").exists()
    finally:
        workspace.run([cluster.installation.program("pg_ctl"), "-D", target, "-m", "fast", "stop"])


def test_the_copy_of_the_configuration_that_a_restore_leaves(restores: RestoreLab, workspace: Workspace) -> None:
    """It is no part of the next backup, and no reason for a warning, unless the cluster runs on it."""
    lab, cluster = restores, restores.cluster
    saved = cluster.data_dir / ".cryobackup/config/etc"
    saved.mkdir(parents=True)
    (saved / "pg_hba.conf").write_bytes((cluster.data_dir / "pg_hba.conf").read_bytes())
    workspace.account.own(cluster.data_dir / ".cryobackup", recursive=True)
    assert "warnings" not in lab.backup()

    (saved.parent.parent / "other").touch()
    assert "the name is taken" in lab.backup()["warnings"][0]
    (saved.parent.parent / "other").unlink()

    cluster.configure(reload=False, hba_file=str(saved / "pg_hba.conf"))
    cluster.restart()
    (warning,) = lab.backup()["warnings"]
    assert "move it to where it belongs" in warning
