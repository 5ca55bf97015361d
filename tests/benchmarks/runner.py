# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole benchmark, from nothing to nothing."""

from __future__ import annotations

import compileall
import contextlib
import datetime
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab import Installation, Lab, Runtime, distribution, installation
from tests.lab.peers import PeerUnavailable
from tests.lab.runtime import ENGINE
from tests.lab.workspace import CHECKOUT

from .database import build
from .groups import GROUPS
from .machine import describe
from .report import Report
from .session import Conditions, Session, say
from .stores import Stores
from .tools import LOCAL_ONLY, Tool, make

QUIET_LOAD = 0.7


class Interrupted(KeyboardInterrupt):
    """Somebody lost patience; ``args[0]`` is the report of what was measured until then."""


@dataclass(frozen=True)
class Plan:
    """What is asked for.

    Attributes:
        gigabytes: Size of the cluster, 10^9 bytes.
        postgres: Major; None for the distribution's.
        storage: posix or s3.
        tools: Keys, this project's first.
        groups: Names of groups of measurements.
        warm: Whether the page cache is.
        thorough: Whether also slow programs do everything in every round.
        wait_minutes: For a quiet machine, at most.
    """

    gigabytes: float
    rounds: int
    workers: int
    postgres: int | None
    storage: str
    tools: Sequence[str]
    groups: Sequence[str]
    warm: bool
    thorough: bool
    wait_minutes: float


@dataclass(frozen=True)
class Outcome:
    """What came of it: the figures, and words for each program that failed."""

    report: Report
    failures: Sequence[str]


def run(plan: Plan) -> Outcome:
    """Build, measure, remove. Raises Interrupted with what there is."""
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(Lab())
        workspace = stack.enter_context(lab.workspace("benchmark"))
        chosen: Installation = installation(plan.postgres) if plan.postgres else distribution()
        say(f"building a cluster of about {plan.gigabytes:g} GB with {chosen} in {workspace.path}")
        cluster = build(workspace, chosen, plan.gigabytes)
        cluster.enable_archiving("")
        program = command_of(lab)
        stores = stack.enter_context(Stores(workspace, plan.storage))
        tools: list[Tool] = []
        left_out = {}
        for key in plan.tools:
            if plan.storage == "s3" and key in LOCAL_ONLY:
                left_out[key] = "has no object store here"
                continue
            say(f"setting up {key}")
            try:
                tools.append(make(key, workspace, cluster, stores, workers=plan.workers, program=program))
            except PeerUnavailable as error:
                left_out[key] = str(error)
        for key, reason in left_out.items():
            say(f"left out: {key}: {reason}")
        conditions = Conditions(plan.gigabytes, plan.workers, plan.warm, plan.thorough)
        session = Session(workspace, cluster, program, tools, conditions)
        _wait_for_quiet(plan.wait_minutes)
        session.report.facts = {
            "measured": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
            **describe(workspace.path),
            "postgresql": chosen.version,
            **{tool.name: f"{tool.version}: {tool.how}" for tool in tools},
            **{f"left out, {key}": reason for key, reason in left_out.items()},
            "rounds": f"{plan.rounds}" + ("" if plan.thorough else _once(tools, plan.rounds)),
            "page cache": "warm" if plan.warm else "cold",
            "repositories": stores.description,
            "load before": f"{os.getloadavg()[0]:.2f} (1 minute), {os.getloadavg()[2]:.2f} (15 minutes)",
        }
        for number in range(plan.rounds):
            say(f"round {number + 1} of {plan.rounds}, load {os.getloadavg()[0]:.2f}")
            try:
                _round(session, plan, number)
            except KeyboardInterrupt:
                session.report.facts["rounds"] = f"{number} of {plan.rounds}, then interrupted"
                raise Interrupted(session.report) from None
        return Outcome(session.report, session.failures)


def _round(session: Session, plan: Plan, number: int) -> None:
    for name in plan.groups:
        started = time.monotonic()
        GROUPS[name](session, number)
        say(f" {name}: {time.monotonic() - started:.0f} s")


def _once(tools: Sequence[Tool], rounds: int) -> str:
    names = [tool.name for tool in tools if tool.brief]
    return f"; the first one only: {', '.join(names)}" if names and rounds > 1 else ""


def command_of(lab: Lab) -> Path:
    """The program as an installation has it: with its bytecode, which the server's user could not write."""
    program = Runtime(lab).command()
    for folder in (CHECKOUT / ENGINE, *program.parent.glob("venv")):
        compileall.compile_dir(folder, quiet=2)
    return program


def _wait_for_quiet(minutes: float) -> None:
    """Until others leave the machine alone; measured anyway when they do not, and the report says so."""
    deadline = time.monotonic() + minutes * 60
    while os.getloadavg()[0] > QUIET_LOAD and time.monotonic() < deadline:
        time.sleep(5)
