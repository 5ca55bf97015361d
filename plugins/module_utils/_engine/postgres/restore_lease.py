# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""While a restore reads a backup, retention must not take it away."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import typing as t

from ..errors import LocationError
from ..repository import names
from ..repository.lease import encode_lease, new_lease
from ..repository.model import RESTORING

if t.TYPE_CHECKING:
    from ..events import Reporter
    from ..repository.catalog import BackupRecord
    from ..repository.repository import Repository


@contextlib.contextmanager
def holding(repository: Repository, backup: BackupRecord, now: dt.datetime, reporter: Reporter) -> t.Iterator[None]:
    """Hold a lease that names the backup as its parent: nothing that it refers to is deleted meanwhile.

    Where a host may only read, there is no lease, and a note about it: restoring matters more. A lease
    that a killed restore leaves is retired like that of a killed backup.
    """
    lease = new_lease(backup.source, names.new_id(now, os.urandom(4)), backup.id, now, purpose=RESTORING)
    name, encoded = encode_lease(repository.keys, lease)
    fanout = repository.fanout()
    try:
        fanout.put(name, encoded)
    except LocationError:
        reporter.note("no location takes a lease: do not prune until this restore is done")
        yield
        return
    try:
        yield
    finally:
        # One that failed meanwhile would take its time to say so again.
        for location in fanout.healthy:
            if location.name in repository.breaker.failures:
                fanout.lose(location, repository.breaker.failures[location.name])
        with contextlib.suppress(LocationError):  # retired later
            fanout.delete(name)
