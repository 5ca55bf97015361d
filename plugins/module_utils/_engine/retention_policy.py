# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the user says about retention: rules, checked. What follows from them is in ``retention``."""

from __future__ import annotations

import re
import typing as t
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, timedelta, tzinfo

from .errors import ConfigError

Kind = t.Literal["full", "incremental", "logical", "files"]

KINDS: tuple[Kind, ...] = ("full", "incremental", "logical", "files")
PHYSICAL: frozenset[str] = frozenset({"full", "incremental"})


@dataclass(frozen=True, slots=True)
class Rule:
    """What is kept of one kind. The fields add to each other: a backup stays when any of them keeps it.

    ``keep_within`` reaches back from the newest backup. ``keep_last`` keeps the newest N, each of the others
    the newest of the N most recent hours, days … that have one; empty periods are passed over.
    """

    keep_within: timedelta | None = None
    keep_last: int = 0
    keep_hourly: int = 0
    keep_daily: int = 0
    keep_weekly: int = 0
    keep_monthly: int = 0
    keep_quarterly: int = 0
    keep_yearly: int = 0


@dataclass(frozen=True, slots=True)
class Policy:
    """The rule of each kind (a kind without one keeps everything), and what holds for all.

    ``minimum`` good backups stay per source, whatever the rules say: full and incremental count together,
    each other kind by itself. ``max_delete_share`` is the brake's limit; 1 switches the brake off. Days and
    weeks begin in ``timezone``. What is marked for deletion goes when ``grace`` has passed; where versions are
    kept, it is only hidden then, and gone for good when ``trash`` has passed too and no lock holds it. All WAL
    of a system without any backup goes when nothing was added to it for ``abandoned_wal``. Raises ConfigError,
    which names the setting, for what makes no sense, such as a rule that would keep nothing.
    """

    rules: Mapping[str, Rule]
    minimum: int = 2
    max_delete_share: float = 0.5
    timezone: tzinfo = UTC
    grace: timedelta = timedelta(hours=24)
    trash: timedelta = timedelta(days=7)
    abandoned_wal: timedelta = timedelta(days=90)

    def __post_init__(self) -> None:
        for kind, rule in self.rules.items():
            if kind not in KINDS:
                raise ConfigError(
                    f"retention: there is no kind of backup {kind!r}",
                    hint=f"The kinds are {', '.join(KINDS)}.",
                )
            _check_rule(kind, rule)
        _check_count(self.minimum, "retention.minimum")
        _check_share(self.max_delete_share)


def _check_rule(kind: str, rule: Rule) -> None:
    counts = {each.name: getattr(rule, each.name) for each in fields(rule) if each.name != "keep_within"}
    for name, count in counts.items():
        _check_count(count, f"retention.{kind}.{name}")
    within = rule.keep_within
    if within is not None and within <= timedelta():
        raise ConfigError(f"retention.{kind}.keep_within: must be more than nothing", hint="For example 30d.")
    if within is None and not any(counts.values()):
        raise ConfigError(
            f"retention.{kind}: the rule keeps nothing",
            hint="Give it a keep_within or a keep_last; to keep everything, leave the kind out.",
        )


# Values come from a file that people write, whatever their declared types say; and a bool is an int.


def _check_count(value: object, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(f"{where}: {value!r} is not a number of backups", hint="Write 0, 1, 2 …")


def _check_share(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(
            f"retention.max_delete_share: {value!r} is not a number from 0 to 1",
            hint="0.5 asks before more than half is deleted; 1 never asks.",
        )


_UNIT_DAYS = {"y": 365, "m": 30, "w": 7, "d": 1}
_DURATION = re.compile("".join(f"(?:(?P<{unit}>[0-9]{{1,9}}){unit})?" for unit in (*_UNIT_DAYS, "h")))


def parse_duration(text: object) -> timedelta:
    """``30d``, ``12h``, ``2w``, ``6m``, ``1y``, or several of them, greatest unit first: ``1y6m``.

    A month (``m``) is 30 days and a year 365; there are no minutes. Raises ConfigError for anything else,
    and for no time at all (``0d``).
    """
    match = _DURATION.fullmatch(text) if isinstance(text, str) else None
    numbers = {unit: int(number) for unit, number in match.groupdict("0").items()} if match else {}
    hours = numbers.pop("h", 0)
    days = sum(number * _UNIT_DAYS[unit] for unit, number in numbers.items())
    if not days + hours or days + hours // 24 > timedelta.max.days:
        raise ConfigError(
            f"{text!r} is not a duration",
            hint="Write for example 12h, 30d, 2w, 6m (months of 30 days), 1y or 1y6m.",
        )
    return timedelta(days=days, hours=hours)


def parse_grace(text: object) -> timedelta:
    """As ``parse_duration``, and ``0`` for no time at all."""
    return timedelta() if text in (0, "0") and text is not False else parse_duration(text)


def format_duration(duration: timedelta) -> str:
    """Whole days and hours, as ``parse_duration`` reads them."""
    days, hours = duration.days, duration.seconds // 3600
    return (f"{days}d" if days else "") + (f"{hours}h" if hours or not days else "")
