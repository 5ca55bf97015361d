# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Metrics in Prometheus' text format, in files that node_exporter's textfile collector reads.

https://prometheus.io/docs/instrumenting/exposition_formats: so little is needed of it that no package is.
"""

from __future__ import annotations

import contextlib
import os
import typing as t

if t.TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

GAUGE: t.Final = "gauge"
COUNTER: t.Final = "counter"
_MODE: t.Final = 0o644
"""Metrics are no secret, and the collector is another user."""


class Sample(t.NamedTuple):
    labels: Mapping[str, str]
    value: float


class Family(t.NamedTuple):
    """A metric: ``name`` and the names of labels are those of the format, the rest may be any text."""

    name: str
    kind: str
    help: str
    samples: Sequence[Sample]


def render(families: Iterable[Family]) -> str:
    """What the file says. A family without samples is left out. Pure."""
    return "".join(line for family in families if family.samples for line in _lines(family))


def _lines(family: Family) -> Iterable[str]:
    yield f"# HELP {family.name} {_escaped(family.help)}\n"
    yield f"# TYPE {family.name} {family.kind}\n"
    for sample in family.samples:
        labels = ",".join(f'{name}="{_quoted(value)}"' for name, value in sample.labels.items())
        yield f"{family.name}{{{labels}}} {_number(sample.value)}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _quoted(text: str) -> str:
    return _escaped(text).replace('"', '\\"')


def _number(value: float) -> str:
    # repr() keeps all digits of a time, and of an int beyond the precision of a float.
    return str(value) if isinstance(value, int) else repr(value)


def of_writer(textfile: Path, writer: str) -> Path:
    """The file of one of several writers, beside the one that is configured: none overwrites another's."""
    return textfile.with_name(f"{textfile.stem}-{writer}{textfile.suffix}")


def write(path: Path, text: str) -> None:
    """Put it in place of what is there, at once. Raises OSError: then what was there is there still."""
    # The collector reads *.prom only.
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    number = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE)
    try:
        with os.fdopen(number, "wb") as file:
            os.fchmod(number, _MODE)  # whatever the umask
            file.write(text.encode("utf-8", "backslashreplace"))
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
