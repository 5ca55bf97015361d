# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``cryobackup capacity``: how much lies where, when it is full, and what it costs."""

from __future__ import annotations

import typing as t

from ._frame import Outcome

if t.TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from ..report.backups import Fields
    from ._frame import Context


_SOURCES: t.Final = ("SOURCE", "KIND", "BACKUPS", "SIZE", "STORED", "RATIO")
_STORAGE: t.Final = ("SOURCE", "PACKS", "STORED", "ONE FULL", "AMPLIFICATION", "OF THE NEWEST")
_LOCATIONS: t.Final = ("LOCATION", "USED", "WAL", "OBJECTS", "RATIO", "ROOM", "PRUNABLE", "WRITTEN", "GROWTH", "FULL")
_COSTS: t.Final = ("COSTS", "STORAGE", "REQUESTS", "A MONTH", "A RESTORE", "")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It has no options of its own."""


def run(_args: argparse.Namespace, context: Context) -> Outcome:
    from ..report.capacity import capacity
    from ..repository.catalog import Catalog
    from ..repository.repository import Repository
    from ._backups import reading_exit, warn_of_gaps

    repository = Repository.open(context.config.repository.as_written())
    catalog = Catalog.load(repository)
    result = capacity(context.config, repository, catalog, context.now())
    warn_of_gaps(context.reporter, repository, catalog)
    return Outcome(result, reading_exit(repository, catalog), lambda: "\n".join(_lines(result)))


def _lines(result: Fields) -> Iterator[str]:
    from ._text import format_table

    if result["sources"]:
        rows = [row for name, source in result["sources"].items() for row in _source(name, source)]
        yield format_table(_SOURCES, rows, right=_SOURCES[2:])
        yield ""
        storage = [_storage(name, source["storage"]) for name, source in result["sources"].items()]
        yield format_table(_STORAGE, storage, right=_STORAGE[1:])
        yield ""
    places = [_location(name, each) for name, each in result["locations"].items()]
    yield format_table(_LOCATIONS, places, right=_LOCATIONS[1:-1])
    priced = {name: each["costs"] for name, each in result["locations"].items() if each.get("costs")}
    if priced:
        yield ""
        yield format_table(_COSTS, [_costs(name, each) for name, each in priced.items()], right=_COSTS[1:-1])
    if result["attention"]:
        yield ""
        yield "Attention:"
        yield from (f"  {text}" for text in result["attention"])


def _source(name: str, source: Fields) -> Iterator[tuple[str, ...]]:
    from ._text import format_bytes

    for kind, each in source["kinds"].items():
        stored = each["bytes_stored"]
        ratio = f"{each['bytes_source'] / stored:.1f}" if stored else "-"
        yield name, kind, str(each["backups"]), format_bytes(each["bytes_source"]), format_bytes(stored), ratio


def _storage(name: str, storage: Fields) -> tuple[str, ...]:
    from ._text import format_bytes

    return (
        name,
        str(storage["packs"]),
        format_bytes(storage["bytes_packs"]),
        format_bytes(storage["bytes_full"]),
        _ratio(storage["amplification"]),
        _ratio(storage["newest"]["amplification"]),
    )


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _location(name: str, location: Fields) -> tuple[str, ...]:
    from ._text import format_bytes

    if not location["ok"]:
        return (name, *("-" for _unused in range(8)), "lost")
    room, growth, ratio = location["bytes_room"], location["bytes_growth_per_day"], location["ratio"]
    return (
        name,
        format_bytes(location["bytes_used"]),
        format_bytes(location["wal"]["bytes"]),
        str(location["objects"]),
        "-" if ratio is None else f"{ratio:.1f}",
        "-" if room is None else format_bytes(room),
        format_bytes(location["bytes_prunable"]),
        f"{format_bytes(location['bytes_written_per_day'])}/d",
        "-" if growth is None else f"{format_bytes(growth)}/d",
        _full(location["forecast"]),
    )


def _full(forecast: Fields) -> str:
    """When it is full, in a few words; behind a semicolon: if nothing were deleted."""
    unpruned = forecast["full_at_without_prune"]
    without = f"; without prune {unpruned[:10]}" if unpruned else ""
    match forecast["state"]:
        case "full":
            return "now"
        case "fills":
            return f"{forecast['full_at'][:10]}{without}"
        case "does-not-fill":
            return f"not before {forecast['until'][:10]}{without}"
    return f"unknown: {forecast['reason']}"


def _costs(name: str, costs: Fields) -> tuple[str, ...]:
    amounts = (f"{costs[key]:,.2f}" for key in ("storage_month", "requests_month", "month", "restore"))
    return (name, *amounts, costs["currency"])
