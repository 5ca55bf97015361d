# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a configuration may say, and what somebody should think about once. Pure."""

from __future__ import annotations

import dataclasses
import typing as t
from datetime import timedelta

from ..retention_policy import format_duration

if t.TYPE_CHECKING:
    from collections.abc import Iterator

    from ..retention_policy import Policy
    from . import Config
    from .locations import LocationConfig, ObjectLock, S3Options


@dataclasses.dataclass(frozen=True, slots=True)
class Advice:
    place: str
    """Of the key, such as ``repository.locations.cloud.endpoint_url``."""
    text: str
    hint: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


def advice(config: Config) -> list[Advice]:
    """In the order of the locations. No problem among them: everything works as configured."""
    return [each for location in config.repository.locations.values() for each in _of(location, config.retention)]


def _of(location: LocationConfig, policy: Policy) -> Iterator[Advice]:
    place = f"repository.locations.{location.name}"
    if location.s3 is None:
        return
    yield from _of_s3(place, location.s3)
    if location.s3.object_lock is not None:
        yield from _of_lock(f"{place}.object_lock", location.s3.object_lock, policy)


def _of_s3(place: str, s3: S3Options) -> Iterator[Advice]:
    if s3.endpoint_url is not None and s3.endpoint_url.startswith("http://"):
        yield Advice(
            f"{place}.endpoint_url",
            "has no TLS: who listens on the way sees every request, and may repeat or change it",
            "Use https:// outside of a laboratory; ca_file names the certificate of an authority of your own. "
            "What is in the objects is encrypted all the same.",
        )
    if s3.create_only == "check":
        yield Advice(
            f"{place}.create_only",
            "check is weaker than conditional: between a look and a write another writer may come",
            "Use it only with a store that does not know `If-None-Match`, and let one host write there.",
        )


def _of_lock(place: str, lock: ObjectLock, policy: Policy) -> Iterator[Advice]:
    longest = longest_kept(policy)
    if longest is None or longest > lock.retain:
        kept = "for ever" if longest is None else f"for {format_duration(longest)}"
        yield Advice(
            f"{place}.retain",
            f"is {format_duration(lock.retain)}, and the retention rules keep backups {kept}: "
            "after that time what is kept can be deleted by a thief",
            f"Let `cryobackup lock` extend the locks of what is kept, more often than every "
            f"{format_duration(lock.retain)}.",
        )
    shortest = shortest_kept(policy)
    if shortest is not None and shortest + policy.grace < lock.retain:
        yield Advice(
            f"{place}.retain",
            f"is {format_duration(lock.retain)}, and the retention rules drop backups after "
            f"{format_duration(shortest)}: they stay, and cost, until the lock ends",
            "Nothing is wrong with that; `cryobackup capacity` counts them.",
        )


_PERIODS: t.Final = {
    "keep_hourly": timedelta(hours=1),
    "keep_daily": timedelta(days=1),
    "keep_weekly": timedelta(weeks=1),
    "keep_monthly": timedelta(days=30),
    "keep_quarterly": timedelta(days=91),
    "keep_yearly": timedelta(days=365),
}


def longest_kept(policy: Policy) -> timedelta | None:
    """How long rules keep a backup of a cluster, at the most; None: for ever, or as long as some number lasts."""
    spans = [_span(policy, kind) for kind in ("full", "incremental")]
    known = [span for span in spans if span is not None]
    return max(known) if len(known) == len(spans) else None


def shortest_kept(policy: Policy) -> timedelta | None:
    """The kind that goes first; None when no kind is known to go after a time."""
    spans = [_span(policy, kind) for kind in ("full", "incremental")]
    return min((span for span in spans if span is not None), default=None)


def _span(policy: Policy, kind: str) -> timedelta | None:
    rule = policy.rules.get(kind)
    if rule is None or rule.keep_last:
        return None
    spans: list[timedelta] = [getattr(rule, name) * period for name, period in _PERIODS.items()]
    return max(*spans, rule.keep_within or timedelta())
