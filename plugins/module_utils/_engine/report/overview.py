# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What there is, and how well all is backed up, in one look at the repository."""

from __future__ import annotations

import datetime as dt
import typing as t

from ..errors import ConfigError, RepositoryError, reason_of
from ..repository.catalog import Catalog, newest
from ..repository.repository import Repository
from .backups import Fields, details, listing, require_known_source
from .status import status

if t.TYPE_CHECKING:
    from ..config import Config
    from ..events import Reporter


def overview(
    config: Config,
    *,
    source: str | None = None,
    backup: str | None = None,
    latest: str | None = None,
    limit: int | None = None,
    now: dt.datetime,
    reporter: Reporter,
) -> Fields:
    """Backups (of ``source``; the newest ``limit``), sources, locations, and one backup in full if one is named.

    ``complete`` is false, and the reporter is warned, when a location does not answer or a manifest cannot be read.
    Changes nothing. Raises ConfigError ``unknown-source``, RepositoryError ``no-such-backup``, ``ambiguous-backup``,
    LocationError when no location answers.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"a list of {limit} backups is none", hint="Ask for one or more.", id="usage")
    repository = Repository.open(config.repository.as_written())
    catalog = Catalog.load(repository)
    for name in filter(None, (source, latest)):
        require_known_source(config, catalog, name)
    report = {**status(config, repository, catalog, now)}
    backups = [each for each in listing(config, repository, catalog)["backups"] if source in (None, each["source"])]
    report |= {"backups": backups[-limit:] if limit else backups, "backups_total": len(backups)}
    if backup is not None:
        report["backup"] = details(catalog.find(backup), repository)
    elif latest is not None:
        record = newest(catalog.of(latest))
        if record is None:
            raise RepositoryError(f"there is no backup of {latest} yet", hint="Take one.", id="no-such-backup")
        report["backup"] = details(record, repository)
    report["complete"] = not repository.lost and not catalog.broken
    for name, error in repository.lost.items():
        reporter.warn(f"location {name} was not looked at: {reason_of(error, name)}")
    for broken in catalog.broken:
        reporter.warn(f"{broken.name} cannot be read: {broken.error.message}")
    return report
