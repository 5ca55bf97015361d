# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The logical content of a whole cluster, in a form that two clusters with equal content share."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .cluster import Cluster

# Random keys of psql's restricted mode (since 18.0, 17.6 and their contemporaries), and versions.
NOISE = re.compile(r"\\(?:un)?restrict .*|-- Dumped (?:from|by) .*|-- (?:Started|Completed) on .*")
TABLESPACE = re.compile(r"(CREATE TABLESPACE .* LOCATION )'(?:[^']|'')*';")
DATABASE = re.compile(r"\\connect (?:-reuse-previous=on )?(.+)")
SEQUENCE = re.compile(r"\s*(?:CREATE SEQUENCE|SEQUENCE NAME) (\S+)")
INCREMENT = re.compile(r"\s+INCREMENT BY (-?\d+)")
SETVAL = re.compile(r"SELECT pg_catalog\.setval\('((?:[^']|'')+)', (-?\d+), (true|false)\);")

# A sequence writes WAL for this many values in advance: SEQ_LOG_VALS in src/backend/commands/sequence.c.
VALUES_IN_ADVANCE = 32


@dataclass(frozen=True)
class Sequence:
    """State of a sequence as pg_dump tells it."""

    value: int
    called: bool
    increment: int

    def may_become(self, restored: Sequence) -> bool:
        """Whether replay may turn this state into the other: it may skip values, but give none again."""
        if self == restored:
            return True
        steps = (restored.value - self.value) / self.increment
        return restored.called and 0 <= steps <= VALUES_IN_ADVANCE


@dataclass(frozen=True)
class Golden:
    """A normalised dump of all databases and global objects."""

    text: str
    sequences: dict[str, Sequence]
    """By database and qualified name; their values are not in ``text``."""

    def compare(self, restored: Golden) -> None:
        """Compare the dump of a restored cluster with this one. Raises AssertionError with the differences."""
        if self.text != restored.text:
            lines = difflib.unified_diff(
                *(dump.text.splitlines() for dump in (self, restored)), "golden", "restored", "", "", 1, ""
            )
            shown = [line[:200] for line, _unused in zip(lines, range(60), strict=False)]
            raise AssertionError("the dump differs from the golden dump:\n" + "\n".join(shown))
        wrong = [
            f"{name}: {before} became {restored.sequences.get(name)}"
            for name, before in self.sequences.items()
            if name not in restored.sequences or not before.may_become(restored.sequences[name])
        ]
        if wrong or self.sequences.keys() != restored.sequences.keys():
            raise AssertionError("sequences differ from the golden dump: " + "; ".join(wrong))


def golden_dump(cluster: Cluster, *, timeout: float | None = None) -> Golden:
    """Dump everything that a restore must bring back. The cluster runs and nothing writes to it.

    Uses the pg_dumpall of the cluster's own major. Left out is what no restore brings back or keeps: the
    content of unlogged tables (recovery empties them), the directories of tablespaces, random keys, versions.
    """
    options = ["--no-unlogged-table-data", "--lock-wait-timeout=60000"]
    return normalise(cluster.run("pg_dumpall", *options, timeout=timeout).stdout)


def normalise(dump: str) -> Golden:
    """The text of pg_dumpall without what differs by nature."""
    lines: list[str] = []
    sequences: dict[str, Sequence] = {}
    increments: dict[str, int] = {}
    database = current = ""
    for line in dump.splitlines():
        if NOISE.fullmatch(line):
            continue
        if match := DATABASE.fullmatch(line):
            database = match.group(1)
        elif match := SEQUENCE.match(line):
            current = f"{database} {match.group(1)}"
        elif match := INCREMENT.match(line):
            increments[current] = int(match.group(1))
        elif match := SETVAL.fullmatch(line):
            name = f"{database} {match.group(1)}"
            state = Sequence(int(match.group(2)), match.group(3) == "true", increments.get(name, 1))
            sequences[name] = state
            lines.append(f"-- state of sequence {name}")
            continue
        lines.append(TABLESPACE.sub(r"\1'';", line))
    return Golden("\n".join(lines), sequences)
