# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every error of the engine says what to do next."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from importlib import import_module

import pytest

import cryobackup
from cryobackup import errors
from cryobackup.errors import EXIT_DAMAGE, EXIT_FAILED, EXIT_USAGE, ConfigError, CryoError, DamageError


def kinds(kind: type[CryoError] = CryoError) -> Iterator[type[CryoError]]:
    for below in kind.__subclasses__():
        yield below
        yield from kinds(below)


def test_every_kind_has_a_hint_of_its_own_or_a_usual_one() -> None:
    for module in pkgutil.walk_packages(cryobackup.__path__, "cryobackup."):
        import_module(module.name)
    found = [kind for kind in kinds() if kind.__module__.startswith("cryobackup.")]
    assert len(found) > 15
    for kind in found:
        assert kind.usual_hint, kind
        assert kind.id != CryoError.id, kind
        assert kind.exit_code in (EXIT_FAILED, EXIT_USAGE, EXIT_DAMAGE), kind


@pytest.mark.parametrize("kind", [ConfigError, DamageError])
def test_what_is_known_better_replaces_the_usual_hint(kind: type[CryoError]) -> None:
    assert kind("it broke").as_dict() == {"id": kind.id, "message": "it broke", "hint": kind.usual_hint}
    assert kind("it broke", hint="Mend it.", id="broken").as_dict() == {
        "id": "broken",
        "message": "it broke",
        "hint": "Mend it.",
    }


def test_a_reason_does_not_name_the_location_again() -> None:
    for message in ("location 'nas': it is away", "it is away"):
        assert errors.reason_of(errors.LocationError(message), "nas") == "it is away"
    assert errors.without_location("location 'nas' has no room", "nas") == "has no room"
    assert errors.without_location("location 'far': it is away", "nas") == "location 'far': it is away"
