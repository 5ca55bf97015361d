# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What may stand in the configuration."""

from __future__ import annotations

import re
import typing as t
import zoneinfo
from collections.abc import Callable, Iterator
from dataclasses import fields
from datetime import UTC, timedelta, tzinfo
from pathlib import Path

from .. import retention_policy as retention
from ..errors import ConfigError
from . import (
    DEFAULT_ARCHIVE_TIMEOUT_SECONDS,
    DEFAULT_COMPRESSION_LEVEL,
    DEFAULT_STATE_DIRECTORY,
    MAX_WORKERS,
    Assertion,
    ClusterConfig,
    Config,
    FileSetConfig,
    MetricsConfig,
    NotificationsConfig,
    RepositoryConfig,
    VerifyConfig,
    default_workers,
)
from ._locations import read_location
from ._section import NOWHERE, Problem, Section
from ._together import check_together
from ._yaml import LocatedDict

_MIN_BANDWIDTH: t.Final = 64 << 10
_SECRET_PARAMETER = re.compile(
    r"\b(password|sslpassword|oauth_client_secret|scram_client_key|scram_server_key)\s*=", re.IGNORECASE
)
_URI_AUTHORITY = re.compile(r"[a-z0-9+.-]+://([^/?#]*)@", re.IGNORECASE)


def read_config(path: Path, root: LocatedDict) -> tuple[Config, list[Problem]]:
    """The configuration that ``root`` describes. It is of use only when there are no problems."""
    problems: list[Problem] = []
    top = Section(problems, "", root)
    repository = _section(top, "repository", _repository, required=True)
    clusters = dict(_named(top, "clusters", _cluster))
    file_sets = dict(_named(top, "file_sets", _file_set))
    config = Config(
        path=path,
        repository=repository or RepositoryConfig({}, NOWHERE),
        retention=_section(top, "retention", _retention) or retention.Policy({}),
        clusters=clusters,
        file_sets=file_sets,
        notifications=_section(top, "notifications", _notifications) or NotificationsConfig(),
        metrics=_section(top, "metrics", _metrics) or MetricsConfig(),
        state_directory=top.optional_path("state_directory") or DEFAULT_STATE_DIRECTORY,
    )
    top.finish()
    check_together(config, top)
    return config, sorted(problems)


T = t.TypeVar("T")


def _section(parent: Section, key: str, read: Callable[[Section], T], *, required: bool = False) -> T | None:
    section = parent.section(key, required=required)
    if section is None:
        return None
    found = read(section)
    section.finish()
    return found


def _named(parent: Section, key: str, read: Callable[[str, Section], T]) -> Iterator[tuple[str, T]]:
    sections = parent.section(key)
    for name, section in sections.named_sections() if sections else ():
        yield name, read(name, section)
        section.finish()


def _repository(section: Section) -> RepositoryConfig:
    listed = _named(section, "locations", read_location)
    locations = dict(sorted(listed, key=lambda named: named[1].priority))
    if not locations:
        section.problem("locations", "there must be at least one location")
    elif not any(location.required for location in locations.values()):
        section.problem("locations", "at least one must be required: WAL would count as archived without being so")
    return RepositoryConfig(
        locations=locations,
        keys=section.path("keys"),
        compression_level=section.integer(
            "compression_level", default=DEFAULT_COMPRESSION_LEVEL, at_least=1, at_most=19
        ),
    )


def _cluster(name: str, section: Section) -> ClusterConfig:
    connection, primary = section.text("connection"), section.optional_text("primary")
    for key, value in (("connection", connection), ("primary", primary)):
        if value is not None and _has_secret(value):
            section.problem(
                key, "must not have a secret in it: use passfile=/path/to/pgpass (mode 0600) or service=name instead"
            )
    return ClusterConfig(
        name=name,
        data_directory=section.path("data_directory"),
        connection=connection,
        workers=section.integer("workers", default=default_workers(), at_least=1, at_most=MAX_WORKERS),
        bandwidth_limit=section.bandwidth("bandwidth_limit", at_least=_MIN_BANDWIDTH),
        bin_directory=section.optional_path("bin_directory"),
        primary=primary,
        archive_timeout=section.seconds("archive_timeout", default=DEFAULT_ARCHIVE_TIMEOUT_SECONDS),
        verify=_section(section, "verify", _verify) or VerifyConfig(),
    )


def _has_secret(connection: str) -> bool:
    """Whether a libpq connection string, of either form, has a password or the like in it."""
    authority = _URI_AUTHORITY.match(connection)
    return bool(_SECRET_PARAMETER.search(connection) or (authority and ":" in authority[1]))


def _verify(section: Section) -> VerifyConfig:
    return VerifyConfig(assertions=tuple(_assertions(section)))


def _assertions(section: Section) -> Iterator[Assertion]:
    for each in section.sections_of_list("assertions"):
        yield Assertion(
            database=each.text("database"),
            query=each.paragraph("query"),
            expect=_expected(each),
        )
        each.finish()


def _expected(section: Section) -> str | None:
    """What PostgreSQL prints for a value that somebody wrote down without quotes."""
    value = section.raw("expect")
    if isinstance(value, bool):
        return "t" if value else "f"
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int):
        return str(value)
    section.problem("expect", "must be text, a whole number, true or false: put it in quotes")
    return None


def _file_set(name: str, section: Section) -> FileSetConfig:
    return FileSetConfig(
        name=name,
        paths=section.paths("paths"),
        exclude=section.texts("exclude"),
        history=section.choice("history", ("git",)),
    )


def _retention(section: Section) -> retention.Policy:
    rules = {}
    for kind in retention.KINDS:
        rule = _section(section, kind, _rule)
        if rule is not None:
            rules[kind] = rule
    keys = ("minimum", "max_delete_share")
    limits = {key: section.raw(key) for key in keys}
    accepted = {
        key: value
        for key, value in limits.items()
        if value is not None and _accepted(section, key, {"rules": {}, key: value})
    }
    grace = _duration(section, "grace", retention.parse_grace)
    if grace is not None:
        accepted["grace"] = grace
    trash = _duration(section, "trash", retention.parse_grace)
    if trash is not None:
        accepted["trash"] = trash
    abandoned = _duration(section, "abandoned_wal", retention.parse_duration)
    if abandoned is not None:
        accepted["abandoned_wal"] = abandoned
    return _policy({"rules": rules, "timezone": _timezone(section), **accepted})


def _rule(section: Section) -> retention.Rule | None:
    counts = {
        field.name: section.integer(field.name, default=0, at_least=0)
        for field in fields(retention.Rule)
        if field.name != "keep_within"
    }
    rule = retention.Rule(keep_within=_duration(section, "keep_within", retention.parse_duration), **counts)
    # A rule is judged as a whole, whatever kind it is for; not by what stands in for a mistake.
    if section.faultless and _accepted(section, None, {"rules": {retention.KINDS[0]: rule}}):
        return rule
    return None


def _duration(section: Section, key: str, parse: t.Callable[[object], timedelta]) -> timedelta | None:
    value = section.raw(key)
    if value is None:
        return None
    try:
        return parse(value)
    except ConfigError as error:
        section.problem(key, f"{error.message}. {error.hint}")
        return None


def _policy(settings: dict[str, t.Any]) -> retention.Policy:
    return retention.Policy(**settings)


def _accepted(section: Section, key: str | None, settings: dict[str, t.Any]) -> bool:
    """Whether the retention planner takes these settings. Note its objection if not."""
    try:
        _policy(settings)
    except ConfigError as error:
        # Its texts name the place too, which the problem does already.
        text = error.message.partition(": ")[2] or error.message
        section.problem(key, f"{text}. {error.hint}")
        return False
    return True


def _timezone(section: Section) -> tzinfo:
    name = section.optional_text("timezone")
    if not name:
        return UTC
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        section.problem("timezone", f"this host does not know a time zone {name!r}; for example Europe/Berlin")
        return UTC


def _notifications(section: Section) -> NotificationsConfig:
    return NotificationsConfig(urls_file=section.optional_path("urls_file"))


def _metrics(section: Section) -> MetricsConfig:
    return MetricsConfig(textfile=section.optional_path("textfile"))
