# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts from the command line.

python -m tests.lab.hosts run COMMAND...           in a new world, which ends with the command
python -m tests.lab.hosts up NAME=ADDRESS=SUITE... inside of it: make hosts, and wait until they are up
python -m tests.lab.hosts down [LOGS]              inside of it: take all away; what they wrote goes to LOGS
python -m tests.lab.hosts kill|start NAME          inside of it: pull the plug, and put it in again
python -m tests.lab.hosts cut NAME ADDRESS         inside of it: what the host sends there is lost, until
python -m tests.lab.hosts mend NAME
python -m tests.lab.hosts store                    inside of it: an object store
"""

from __future__ import annotations

import sys
from pathlib import Path

from ..ceph import gateway_root
from . import store, world
from .base import PYTHON, base_root, wheels
from .machine import LAB, Host


def find(name: str) -> Host:
    """A host of this world. Raises FileNotFoundError."""
    address, suite = (LAB / "machines" / name / "what").read_text().split()
    return make(name, address, suite)


def make(name: str, address: str, suite: str) -> Host:
    """A host of this world that may not be there yet."""
    return Host(name, address, base_root(suite), tuple(folder / name for folder in world.cgroup_directories()))


def up(wanted: list[str]) -> None:
    """Make hosts and let them boot, all at once."""
    hosts = []
    for word in wanted:
        name, address, suite = word.split("=")
        host = make(name, address, suite)
        host.create()
        (host.folder / "what").write_text(f"{address} {suite}")
        host.start()
        hosts.append(host)
    for host in hosts:
        host.wait()


def down(logs: Path | None) -> None:
    """Keep what they wrote, and take them away."""
    for folder in sorted((LAB / "machines").glob("*")):
        host = find(folder.name)
        if logs is not None:
            logs.mkdir(parents=True, exist_ok=True)
            (logs / f"{host.name}.log").write_text(host.console() + host.journal())
        host.remove()


def main(words: list[str]) -> int:
    """Do what the words say; returns the exit code."""
    command, *rest = words or ["help"]
    if command == "run":
        for suite in PYTHON:
            base_root(suite)
            wheels(suite)
        gateway_root()
        return world.run_in_world(rest)
    if command == "first":
        return world.first(rest, {f"wheels/{suite}": wheels(suite) for suite in PYTHON})
    if command == "supervise":
        name, address, *cgroups = rest
        return Host(name, address, Path("/"), tuple(map(Path, cgroups))).supervise()
    if command == "up":
        up(rest)
    elif command == "down":
        down(Path(rest[0]) if rest else None)
    elif command == "kill":
        find(rest[0]).kill()
    elif command == "remove":
        find(rest[0]).remove()
    elif command == "start":
        find(rest[0]).start()
        find(rest[0]).wait()
    elif command == "cut":
        find(rest[0]).cut(rest[1])
    elif command == "mend":
        find(rest[0]).mend()
    elif command == "store":
        store.up()
    elif command == "serve-store":
        store.serve()
    else:
        raise SystemExit(__doc__)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
