# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Types that several threads meet for the first time at once: that has crashed the interpreter."""

from __future__ import annotations

import subprocess
import sys

# A process of its own for each try, because it is only the first time that counts; one that crashes has no words.
PROGRAM = """
import sys, threading
import msgspec
from cryobackup.repository.decoding import decode
from cryobackup.repository.model import BackupHeader

sys.setswitchinterval(1e-6)
start = threading.Barrier(8)
found = []

def meet():
    start.wait()
    try:
        decode(msgspec.msgpack.encode({"backup_id": "b"}), BackupHeader)
    except msgspec.ValidationError as error:
        found.append(str(error))

threads = [threading.Thread(target=meet) for _number in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert found == ["Object missing required field `source`"] * 8, found
"""


def test_many_threads_at_once() -> None:
    for _try in range(10):
        done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
        assert done.returncode == 0, (done.returncode, done.stderr)
