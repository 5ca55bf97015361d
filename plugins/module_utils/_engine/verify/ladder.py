# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``verify``: from a selection of backups to a report."""

from __future__ import annotations

import datetime as dt
import os
import time
import typing as t

from ..config import default_workers
from ..errors import ConfigError, CryoError, LocationError, RepositoryError
from ..repository import names
from ..repository.catalog import write_note
from ..repository.model import PHYSICAL, VERIFIED, Note
from .opening import open_repository
from .presence import Presence
from .reading import Reading
from .result import (
    ABSENT,
    CONTENT,
    DAMAGE,
    DAMAGED,
    FAILED,
    INCOMPLETE,
    LEVELS,
    LOST,
    NOTICE,
    OK,
    PARTLY,
    PRESENCE,
    RESTORE,
    Finding,
    LocationResult,
    VerifyReport,
)
from .subjects import Selection, Which, select
from .survey import Survey, add_gaps, add_orphans, survey

if t.TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from ..config import Config
    from ..events import Reporter
    from .opening import Opened
    from .rehearsal import SandboxOptions
    from .subjects import Subject


def _utc_now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def verify(
    config: Config,
    *,
    which: Which | None = None,
    level: str = CONTENT,
    reporter: Reporter,
    clock: Callable[[], dt.datetime] = _utc_now,
    locations: Sequence[str] | None = None,
    workers: int | None = None,
    record: bool = True,
    sandbox: SandboxOptions | None = None,
) -> VerifyReport:
    """Verify backups; what is wrong with them is in the report, never an exception.

    Args:
        config: The configuration.
        which: The backups; by default the newest of every source (of every cluster, for ``restore``).
        level: ``presence`` (needs no identity), ``content`` or ``restore``. ``restore`` reads every byte of the one
            location it restores from, and looks at the presence of objects in the others.
        reporter: Hears of progress and of what a person should know besides.
        clock: The time, aware.
        locations: Names of the locations to look at; None: all.
        workers: Threads.
        record: Whether to note the result in the repository (``content`` and ``restore``).
        sandbox: How to restore.

    Raises:
        ConfigError: An unknown level or location.
        KeyFileError: ``no-identity`` among others.
        LocationError: No location answers.
        RepositoryError: ``no-such-backup``, ``ambiguous-backup``; a location is of another repository.
        RestoreError: With ``restore`` and a single backup, when no sandbox could be had.
    """
    if level not in LEVELS:
        raise ConfigError(f"there is no level {level!r}", hint=f"The levels are: {', '.join(LEVELS)}.")
    run = _Run(config, which or Which(), level, reporter, clock)
    run.open(locations)
    run.look(workers or default_workers())
    if level == RESTORE:
        run.rehearse(sandbox, workers or default_workers())
    return run.finish(record=record)


class _Run:
    def __init__(
        self, config: Config, which: Which, level: str, reporter: Reporter, clock: Callable[[], dt.datetime]
    ) -> None:
        self._config = config
        self._which = which
        self._level = level
        self._reporter = reporter
        self._clock = clock
        self._began = time.monotonic()
        self._report = VerifyReport(level, clock())
        self._opened: Opened
        self._selection: Selection
        self._surveys: list[Survey] = []

    @property
    def _subjects(self) -> list[Subject]:
        return self._selection.subjects

    def open(self, locations: Sequence[str] | None) -> None:
        need_identity = self._level != PRESENCE
        self._opened = open_repository(self._config.repository.as_written(), locations, need_identity=need_identity)
        repository = self._opened.repository
        report = self._report
        report.others += self._opened.findings
        if self._which.all:
            self._reporter.phase("listing locations")
            self._surveys = survey(repository, report)
        self._selection = select(self._opened, self._which, physical_only=self._level == RESTORE)
        report.others += self._selection.others
        report.backups += [subject.result for subject in self._subjects]
        for location in repository.locations:
            report.locations[location.name] = LocationResult()
        for each in self._surveys:
            report.locations[each.location.name].objects += each.records

    def look(self, workers: int) -> None:
        """Presence or content."""
        repository = self._opened.repository
        if self._level == CONTENT:
            more_wal = {each.location.name: each.wal for each in self._surveys}
            reading = Reading(repository, self._subjects, self._report, self._reporter, more_wal=more_wal)
            reading.run(workers)
        else:
            self._look_for_objects()
        if self._which.all:
            add_orphans(self._surveys, self._subjects, self._report)
            add_gaps(repository, self._subjects)

    def _look_for_objects(self) -> None:
        self._reporter.phase("looking for objects")
        repository = self._opened.repository
        for location in repository.locations:
            presence = Presence(repository.keys, location)
            try:
                for subject in self._subjects:
                    presence.check(subject)
            except LocationError as error:
                repository.lost[location.name] = error
            self._report.locations[location.name].objects += len(presence.objects)

    def rehearse(self, sandbox: SandboxOptions | None, workers: int) -> None:
        """Restore each backup in a sandbox, one after the other."""
        from .rehearsal import SandboxOptions, rehearse

        options = sandbox or SandboxOptions()
        exposed: set[Path] = set()
        for subject in self._subjects:
            if self._which.all and subject.result.kind not in PHYSICAL:
                continue
            try:
                rehearse(self._config, self._opened.repository, subject, options, workers, self._reporter, exposed)
            except CryoError as error:
                if len(self._subjects) == 1:
                    raise
                subject.result.error = error

    def finish(self, *, record: bool) -> VerifyReport:
        report, repository = self._report, self._opened.repository
        self._forgive_deletions()
        for name, error in repository.lost.items():
            report.locations.setdefault(name, LocationResult()).error = error
            report.others.append(Finding("location", PARTLY, name, "", f"it was not looked at: {error.message}"))
        self._settle_states()
        report.seconds = time.monotonic() - self._began
        if record and self._level != PRESENCE:
            for subject in self._subjects:
                self._record(subject)
        return report

    def _forgive_deletions(self) -> None:
        """A prune may have deleted a backup while it was looked at: then its objects are rightly gone."""
        for location in self._opened.repository.locations:
            for subject in self._subjects:
                mine = [finding for finding in subject.result.findings if finding.location == location.name]
                if not any(finding.severity == DAMAGE for finding in mine):
                    continue
                try:
                    gone = location.stat(subject.manifest_name) is None
                except LocationError:
                    continue
                if gone:
                    subject.result.findings = [found for found in subject.result.findings if found not in mine]
                    subject.result.locations[location.name] = ABSENT
                    what = "the backup was deleted while it was being verified"
                    subject.add("deleted", NOTICE, location.name, subject.manifest_name, what)

    def _settle_states(self) -> None:
        """The state of every location, for each backup and as a whole, from what was found there."""
        report = self._report
        for subject in self._subjects:
            states = subject.result.locations
            for name in self._opened.repository.lost:
                states[name] = LOST
            for finding in subject.result.findings:
                if finding.severity == DAMAGE and finding.location in states:
                    states[finding.location] = DAMAGED
                elif finding.severity == PARTLY and states.get(finding.location) == OK:
                    states[finding.location] = INCOMPLETE
        for name, location in report.locations.items():
            severities = {finding.severity for finding in report.findings if finding.location == name}
            if DAMAGE in severities:
                location.status = DAMAGED
            elif location.error is not None:
                location.status = LOST
            elif PARTLY in severities:
                location.status = INCOMPLETE

    def _record(self, subject: Subject) -> None:
        """Note what was found in the locations that were looked at; without it the report is as good."""
        result = subject.result
        seen = {name: state for name, state in result.locations.items() if state in (OK, DAMAGED)}
        if self._level == RESTORE:
            # One location was read, the first that has it; nothing can be said of the content of the others.
            seen = {name: state for name, state in seen.items() if name == subject.holders[0]} if result.checks else {}
        if subject.record is None or not seen or result.error is not None:
            return
        found = result.result if result.result in (DAMAGED, FAILED) else OK
        data = {"level": self._level, "result": found, "locations": seen, "seconds": round(self._report.seconds, 3)}
        data |= {name: value for name, value in result.figures.items() if isinstance(value, (int, float, str, dict))}
        at = self._clock()
        note = Note(result.backup_id, result.source, VERIFIED, at.isoformat(), data)
        try:
            write_note(self._opened.repository, note, names.new_id(at, os.urandom(4)))
        except RepositoryError as error:
            self._reporter.warn(f"the verification of {result.backup_id} could not be recorded: {error.message}")
