# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An object store in the world, at an address of its own, with a bucket that has Object Lock: for hosts to back up to.

All of this is to be called inside of the world, and ends with it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys

from ..ceph import start_gateway
from ..majors import run
from ..waiting import wait_until
from .machine import BRIDGE, LAB, HostFailed

ADDRESS = "10.77.0.2"
FOLDER = LAB / "store"
FACTS = FOLDER / "store.json"
"""What clients need: ``endpoint_url``, ``bucket``, ``credentials`` (the text of a file), ``ca`` (certificates)."""


def up() -> None:
    """Start it; return when it takes requests. Raises HostFailed."""
    FOLDER.mkdir()
    run("ip", "addr", "add", f"{ADDRESS}/24", "dev", BRIDGE)
    with open(FOLDER / "log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", __package__, "serve-store"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    wait_until(lambda: FACTS.exists() or process.poll() is not None, "the object store")
    if process.poll() is not None:
        raise HostFailed(f"the object store ended: {(FOLDER / 'log').read_text()[-3000:]}")


def serve() -> None:
    """Be the object store."""
    gateway = start_gateway(FOLDER / "ceph", address=ADDRESS)
    facts = {
        "endpoint_url": gateway.url,
        "bucket": gateway.make_bucket("locked").name,
        "credentials": gateway.owner.ini(),
        "ca": gateway.authority.bundle.read_text(),
    }
    draft = FACTS.with_suffix(".new")
    draft.write_text(json.dumps(facts))
    draft.rename(FACTS)
    signal.pause()
