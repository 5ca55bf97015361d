# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which locations did not answer lately, remembered from one WAL file to the next.

``wal-push`` and ``wal-get`` are processes of their own for every file. Each of them would wait anew for a location that
is down. One small file for each such location in the state directory; they are hints, and losing them costs a wait.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
import typing as t

from ..errors import LocationError

if t.TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ..errors import CryoError

_DIRECTORY = "outages"
FIRST_PAUSE_SECONDS: t.Final = 60.0
LONGEST_PAUSE_SECONDS: t.Final = 900.0
_CHEAP_SECONDS: t.Final = 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class Outage:
    """Times are seconds since 1970 by this host's clock."""

    since: float
    failures: int
    next_try: float
    reason: str

    def error(self, location: str) -> LocationError:
        """For who did not ask the location because of it."""
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.since))
        again = time.strftime("%H:%M:%SZ", time.gmtime(self.next_try))
        return LocationError(
            f"location {location!r}: it has failed since {since} and is tried again at {again} ({self.reason})",
            hint="What it lacks is on record. `cryobackup status` shows it, `cryobackup replicate` brings it there.",
            id="location-waiting",
        )


class Outages:
    """Those that are known on this host."""

    def __init__(self, state_directory: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._directory = state_directory / _DIRECTORY
        self._clock = clock

    def _file(self, location: str) -> Path:
        return self._directory / f"{location}.json"

    def known(self, location: str) -> Outage | None:
        """The outage of a location, if there is one."""
        try:
            found = json.loads(self._file(location).read_bytes())
            return Outage(float(found["since"]), int(found["failures"]), float(found["next_try"]), str(found["reason"]))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def waiting(self, location: str) -> Outage | None:
        """The outage of a location that is not to be asked yet; None when it may be asked."""
        outage = self.known(location)
        if outage is None:
            return None
        left = outage.next_try - self._clock()
        # A clock that was set back must not keep a location out for years.
        return outage if 0 < left <= LONGEST_PAUSE_SECONDS else None

    def failed(self, location: str, error: CryoError, seconds: float) -> None:
        """It did not answer, or took too long: it is left alone for twice as long as the last time.

        ``seconds``: how long it took to find that out. What shows at once, such as a disk that is not mounted, may
        be asked again at once.
        """
        before = self.known(location)
        now = self._clock()
        failures = before.failures + 1 if before is not None else 1
        pause = min(FIRST_PAUSE_SECONDS * 2 ** min(failures - 1, 10), LONGEST_PAUSE_SECONDS)
        if seconds < _CHEAP_SECONDS:
            pause = 0.0
        since = min(before.since, now) if before is not None else now
        outage = Outage(since, failures, now + pause, error.message)
        temporary = self._file(f".{location}-{os.getpid()}")
        # As well as it can be done: without it, the next file waits again.
        with contextlib.suppress(OSError):
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary.write_text(json.dumps(dataclasses.asdict(outage)))
            temporary.replace(self._file(location))

    def answered(self, location: str) -> None:
        with contextlib.suppress(OSError):
            self._file(location).unlink(missing_ok=True)
